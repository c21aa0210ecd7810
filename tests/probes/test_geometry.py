"""CKA and the participation ratio: plain formulas, planted truths, invariances, refusals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.cka import cka, cka_reference
from probes.participation import participation, ratio
from probes.statistics.cross_rows import cross_rows, jackknife_interval
from workbench.errors import UsageError
from workbench.planted.stream import PlantedSubject, readable_stream, shared_streams

SPECTRUM = 1 / np.arange(1, 25)


def hsic_unbiased(k, m):
    """Song et al. 2012, equation 5, on Gram matrices."""
    k, m = k.copy(), m.copy()
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    n = len(k)
    first = np.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2))
    return (first - 2 * (k @ m).sum() / (n - 2)) / (n * (n - 3))


def streams(seed=0, n=60):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5)) + 2
    return x, np.concatenate([x[:, :2] + rng.normal(size=(n, 2)), rng.normal(size=(n, 5))], 1)


def as_tensors(*arrays):
    return [torch.from_numpy(a) for a in arrays]


def test_with_one_token_a_row_it_is_the_unbiased_hsic():
    x, y = streams()
    sums = cross_rows(as_tensors(x, y), np.arange(60))
    kx, ky = x @ x.T, y @ y.T
    assert sums.shared[0, 1] == pytest.approx(hsic_unbiased(kx, ky), rel=1e-4)
    assert sums.shared[1, 1] == pytest.approx(hsic_unbiased(ky, ky), rel=1e-4)
    assert sums.variance[0] == pytest.approx(np.trace(np.cov(x.T)), rel=1e-4)


def test_pairs_are_of_different_rows_as_a_plain_loop_has_them():
    rng = np.random.default_rng(0)
    rows, length = 5, 2
    x, y = rng.normal(size=(10, 3)), rng.normal(size=(10, 2))
    row = np.repeat(np.arange(rows), length)
    kx, ky = x @ x.T, y @ y.T
    two, three, four = [], [], []
    for i, j in itertools.permutations(range(10), 2):
        if row[i] != row[j]:
            two.append(kx[i, j] * ky[i, j])
            three += [kx[i, j] * ky[i, k] for k in range(10) if row[k] not in (row[i], row[j])]
    for i, j, k, h in itertools.permutations(range(10), 4):
        if len({row[i], row[j], row[k], row[h]}) == 4:
            four.append(kx[i, j] * ky[k, h])
    expected = np.mean(two) - 2 * np.mean(three) + np.mean(four)
    assert cross_rows(as_tensors(x, y), row).shared[0, 1] == pytest.approx(expected, abs=1e-5)


def test_sums_without_a_row_are_those_of_the_other_rows():
    x, y = streams()
    row = np.arange(60) // 6
    whole = cross_rows(as_tensors(x, y), row)
    for r in (0, 4, 9):
        rest = row != r
        part = cross_rows(as_tensors(x[rest], y[rest]), row[rest])
        np.testing.assert_allclose(whole.shared_without[r], part.shared, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(whole.variance_without[r], part.variance, rtol=1e-4)


def test_the_jackknife_of_a_mean_is_students_interval():
    x = np.random.default_rng(0).normal(size=20)
    low, high = jackknife_interval(x.mean(), (x.sum() - x) / 19)
    half = 2.093024 * x.std(ddof=1) / np.sqrt(20)
    assert (high - low) / 2 == pytest.approx(half, rel=1e-5)


def planted_with(streams, like):
    return PlantedSubject(like.tokens, like.domains, {"resid_post": streams})


@settings(max_examples=10)
@given(st.integers(0, 100), st.floats(0.1, 30))
def test_a_turned_and_scaled_stream_is_the_same_stream(seed, scale):
    planted = shared_streams(spectrum=SPECTRUM, shared=0.3, length=8, seed=seed)
    first = planted.sites["resid_post"][0]
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(24, 24)))[0]
    turned = np.stack([first, (scale * first @ turn + 5).astype(np.float32)])
    found = cka(planted_with(turned, planted))["cka"]
    assert found[0, 1].item() == pytest.approx(1, abs=1e-3)


def test_the_planted_share_is_found_and_unrelated_layers_have_nothing_in_common():
    half = cka(shared_streams(spectrum=SPECTRUM, shared=0.5, rows=60, seed=0))
    assert half["cka"][0, 1].item() == pytest.approx(0.5, abs=0.06)
    assert half["cka"].values == pytest.approx(half["cka"].values.T)
    none = cka(shared_streams(spectrum=SPECTRUM, shared=0.0, seed=0))
    assert none["cka_low"][0, 1] <= 0 <= none["cka_high"][0, 1]
    assert np.diagonal(none["cka_low"]) == pytest.approx(1)


def test_a_reference_that_is_the_same_checkpoint_reads_as_its_own_layers():
    planted = shared_streams(spectrum=SPECTRUM, shared=0.5, length=16, seed=0)
    own, pair = cka(planted), cka_reference(planted, planted)
    np.testing.assert_allclose(pair["cka"], own["cka"], atol=1e-5)
    assert pair.attrs["reference_step"] == 0
    other = shared_streams(spectrum=SPECTRUM, shared=0.5, length=16, seed=1)
    with pytest.raises(UsageError, match="one exam"):
        cka_reference(planted, other)


def test_participation_of_known_spectra():
    for spectrum in ([1.0] * 12, list(SPECTRUM), [1.0] + [1e-4] * 20):
        planted = shared_streams(spectrum=spectrum, shared=0.0, rows=100, seed=2)
        found = participation(planted)["participation"]
        np.testing.assert_allclose(found, planted.truth["participation"], rtol=0.12)


def test_the_plain_ratio_is_too_small_where_rows_resemble_themselves():
    many = [shared_streams(spectrum=[1.0] * 24, shared=0.0, row_share=0.6, rows=12, seed=s)
            for s in range(20)]  # fmt: skip
    plain = np.mean([participation(p)["plain"].values for p in many])
    ours = np.mean([participation(p)["participation"].values for p in many])
    assert plain < 20
    assert ours == pytest.approx(24, rel=0.1)


def test_the_plain_ratio_is_numpys():
    planted = readable_stream(separation=[1.0], rows=6, seed=0)
    values = np.linalg.eigvalsh(np.cov(planted.sites["resid_post"][0].T))
    expected = values.sum() ** 2 / (values**2).sum()
    assert participation(planted)["plain"].item() == pytest.approx(expected, rel=1e-4)


def test_a_layer_that_does_not_vary_is_nan_without_a_warning():
    planted = shared_streams(spectrum=SPECTRUM, shared=0.5, length=8, seed=0)
    flat = planted.sites["resid_post"].copy()
    flat[1] = 3.0
    subject = planted_with(flat, planted)
    found = cka(subject)
    assert found["cka"].isnull().values.tolist() == [[False, True], [True, True]]
    assert participation(subject)["participation"].isnull().values.tolist() == [False, True]


def test_few_or_uneven_rows_are_refused():
    x = torch.randn(12, 3)
    with pytest.raises(UsageError, match="found 4 rows of text, expected 5"):
        cross_rows([x], np.repeat(np.arange(4), 3))
    with pytest.raises(UsageError, match="one length"):
        cross_rows([x], np.array([0] * 5 + [1] * 7))
    with pytest.raises(UsageError, match="not finite"):
        ratio([x * torch.inf], np.arange(12))
