"""Saturation and churn: planted agreement is recovered, beyond chance, with honest intervals."""

from collections import Counter

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

import probes
from workbench.errors import RunNotFound, SchemaError, UsageError
from workbench.testing import activations_record

DIMS = ("checkpoint", "token", "layer", "k")


def routing(ids: np.ndarray) -> xr.Dataset:
    """An activations record of just these expert ids (checkpoint, token, layer, k)."""
    steps = np.arange(len(ids)) * 100
    return xr.Dataset({"expert_ids": (DIMS, ids)}, coords={"checkpoint": steps})


def by_the_formula(now: np.ndarray, then: np.ndarray) -> tuple[float, float, float]:
    """(overlap, chance, kappa) of one layer, token by token; ids (token, k)."""
    tokens, k = now.shape
    shared, in_now, in_then = 0, {}, {}
    for a, b in zip(now, then, strict=True):
        shared += len(set(a) & set(b))
        for expert in a:
            in_now[expert] = in_now.get(expert, 0) + 1
        for expert in b:
            in_then[expert] = in_then.get(expert, 0) + 1
    overlap = shared / tokens / k
    chance = sum(n / tokens * in_then.get(e, 0) / tokens for e, n in in_now.items()) / k
    return overlap, chance, (overlap - chance) / (1 - chance)


def random_ids(seed: int, shape: tuple[int, ...], experts: int) -> np.ndarray:
    order = np.random.default_rng(seed).random((*shape[:-1], experts)).argsort(axis=-1)
    return order[..., : shape[-1]]


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(4, 9))
def test_saturation_agrees_with_a_plain_loop_over_tokens(seed, k, experts):
    ids = random_ids(seed, (3, 40, 2, k), experts)
    found = probes.saturation(routing(ids), n_boot=2)
    for c in range(3):
        for layer in range(2):
            want = by_the_formula(ids[c, :, layer], ids[-1, :, layer])
            row = found.isel(checkpoint=c, layer=layer)
            got = [float(row[name]) for name in ("overlap", "chance", "kappa")]
            assert got == pytest.approx(want, abs=1e-12)


def test_with_one_expert_a_token_kappa_is_cohens():
    ids = random_ids(5, (2, 300, 1, 1), 6)
    ids[1, :150] = ids[0, :150]
    want = cohen_kappa_score(ids[0].ravel(), ids[1].ravel())
    assert probes.saturation(routing(ids), n_boot=2)["kappa"][0].item() == pytest.approx(want)


def by_the_formula_with_drops(now, then):
    """(overlap, chance) of one layer, token by token; ids (token, k), -1: dropped."""
    shared = most = pairs = 0
    in_now, in_then = Counter(), Counter()
    for a, b in zip(now, then, strict=True):
        kept_a, kept_b = ({int(e) for e in ids if e >= 0} for ids in (a, b))
        shared += len(kept_a & kept_b)
        most += min(len(kept_a), len(kept_b))
        pairs += len(kept_a) * len(kept_b)
        in_now.update(kept_a)
        in_then.update(kept_b)
    meet = sum(n * in_then[e] for e, n in in_now.items()) / in_now.total() / in_then.total()
    return shared / most, pairs / most * meet


def dropped(ids, seed, share):
    """Some assignments dropped, the same at every checkpoint."""
    away = np.random.default_rng(seed).random(ids.shape[1:]) < share
    return np.where(away, -1, ids)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 3), st.floats(0.05, 0.6))
def test_dropped_assignments_are_left_out_as_in_a_plain_loop(seed, k, share):
    ids = random_ids(seed, (2, 60, 2, k), 5)
    ids[0] = np.where(np.random.default_rng(seed).random(ids[0].shape) < share, -1, ids[0])
    ids[:, 0] = 0 if k == 1 else np.arange(k)
    found = probes.churn(routing(ids), n_boot=2).isel(checkpoint=0)
    for layer in range(2):
        overlap, chance = by_the_formula_with_drops(ids[1, :, layer], ids[0, :, layer])
        row = found.isel(layer=layer)
        assert row["overlap"].item() == pytest.approx(overlap, abs=1e-12)
        assert row["chance"].item() == pytest.approx(chance, abs=1e-12)
        assert row["churn"].item() == pytest.approx(1 - overlap, abs=1e-12)


def test_drops_alone_are_neither_churn_nor_agreement():
    same = np.repeat(random_ids(0, (1, 60, 2, 2), 8), 2, axis=0)
    same[1, ::3, :, 0] = -1
    assert (probes.churn(routing(same))["churn"] == 0).all()
    # Two routings that share only which tokens were dropped agree as by chance.
    found = probes.churn(routing(dropped(random_ids(1, (2, 6000, 1, 2), 8), 2, 0.5)), n_boot=2)
    assert abs(found["kappa"].item()) < 0.03


def test_a_layer_that_dropped_every_token_has_no_overlap_and_a_checkpoint_that_did_is_refused():
    ids = random_ids(0, (2, 60, 2, 2), 8)
    ids[0, :, 1] = -1
    found = probes.churn(routing(ids)).isel(checkpoint=0)
    assert np.isfinite(found["kappa"][0])
    assert np.isnan(found["kappa"][1])
    assert np.isnan(found["overlap"][1])
    ids[0] = -1
    with pytest.raises(SchemaError, match="captured"):
        probes.churn(routing(ids))


def test_the_order_of_the_k_experts_does_not_matter():
    ids = random_ids(3, (2, 50, 2, 4), 16)
    shuffled = ids.copy()
    shuffled[0] = ids[0, :, :, ::-1]
    a, b = (probes.saturation(routing(x), n_boot=2) for x in (ids, shuffled))
    xr.testing.assert_identical(a, b)


def test_identical_routing_has_kappa_one_and_no_churn():
    ids = np.repeat(random_ids(0, (1, 60, 2, 2), 8), 3, axis=0)
    assert (probes.saturation(routing(ids))["kappa"] == 1).all()
    assert (probes.churn(routing(ids))["churn"] == 0).all()


@pytest.mark.parametrize("skew", [0.0, 1.5], ids=["equal loads", "unequal loads"])
def test_independent_routing_has_kappa_zero_whatever_the_loads(skew):
    record = activations_record(freeze_at=None, skew=skew, tokens=4000, checkpoints=4)
    found = probes.saturation(record, n_boot=100).isel(checkpoint=slice(0, -1))
    np.testing.assert_allclose(found["kappa"], 0, atol=0.025)
    if skew:
        # k/E would call this routing settled; the loads alone make the overlap.
        assert (found["chance"] > 1.3 * 4 / 16).all()
    else:
        np.testing.assert_allclose(found["chance"], 4 / 16, atol=0.002)


@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_routing_that_freezes_at_60_percent_is_seen_to(skew):
    record = activations_record(freeze_at=0.6, checkpoints=11, tokens=3000, skew=skew)
    kappa = probes.saturation(record, n_boot=2)["kappa"].mean("layer")
    share = np.linspace(0, 1, 11)
    np.testing.assert_allclose(kappa, np.minimum(1, share / 0.6), atol=0.03)
    after = probes.churn(record, n_boot=2)
    np.testing.assert_allclose(
        after["kappa"].mean("layer"), np.minimum(1, share[:-1] / 0.6), atol=0.03
    )
    assert (after["churn"].sel(checkpoint=slice(700, None)) == 0).all()


def test_the_interval_of_kappa_covers_the_truth_where_neighbouring_tokens_depend():
    covered = []
    for seed in range(100):
        record = activations_record(
            checkpoints=3, freeze_at=0.8, tokens=1280, layers=1, document_tokens=16, seed=seed
        )
        row = probes.saturation(record, n_boot=200).isel(checkpoint=1, layer=0)
        covered.append(bool(row["kappa_low"] <= 0.5 / 0.8 <= row["kappa_high"]))
    assert 0.88 <= np.mean(covered) <= 0.99


def test_documents_are_the_blocks_where_the_record_names_them():
    record = activations_record(checkpoints=3, tokens=300, document_tokens=30)
    named = record.assign_coords(document=("token", np.arange(300) // 30))
    found = probes.saturation(named, n_boot=50)
    assert (found.attrs["blocks"], found.attrs["block_tokens"]) == (10, 30)


def test_few_tokens_make_shorter_blocks_and_say_so():
    found = probes.saturation(activations_record(checkpoints=2, tokens=200), n_boot=10)
    assert (found.attrs["blocks"], found.attrs["block_tokens"]) == (20, 10)


def test_a_router_that_has_collapsed_has_no_kappa():
    ids = np.zeros((2, 30, 1, 2), dtype=int)
    ids[..., 1] = 1
    found = probes.saturation(routing(ids))
    assert (found["overlap"] == 1).all()
    assert found["kappa"].isnull().all()


def test_saturation_can_be_measured_against_any_checkpoint():
    record = activations_record(checkpoints=5, tokens=200)
    found = probes.saturation(record, final=200)
    assert (found["kappa"].sel(checkpoint=200) == 1).all()
    assert found.attrs["final"] == 200


def test_churn_names_the_checkpoint_before():
    found = probes.churn(activations_record(checkpoints=4, tokens=100), n_boot=2)
    assert found["since"].values.tolist() == [0, 100, 200]
    assert found["checkpoint"].values.tolist() == [100, 200, 300]


def test_every_number_says_its_unit_chance_level_and_what_its_interval_means():
    found = probes.churn(activations_record(checkpoints=3, tokens=100), n_boot=2)
    for name in found.data_vars:
        assert {"units", "long_name", "chance_level", "interval"} <= set(found[name].attrs)
    assert found.attrs["n"] == 100


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda r: probes.saturation(r, final=7),
            RunNotFound,
            r"no checkpoint at step 7; there are 3, from 0 to 200",
        ),
        (lambda r: probes.churn(r.isel(checkpoint=[0])), UsageError, "expected 2 or more"),
        (lambda r: probes.saturation(r.isel(token=[0])), UsageError, "found 1 tokens"),
        (lambda r: probes.saturation(r.isel(checkpoint=[])), UsageError, "no checkpoint"),
        (lambda r: probes.saturation(r[["router_probs"]]), SchemaError, "lacks expert_ids"),
        (
            lambda r: probes.saturation(r.assign(expert_ids=r["expert_ids"] * 0)),
            SchemaError,
            "names an expert twice",
        ),
        (
            lambda r: probes.saturation(r.assign(expert_ids=r["expert_ids"] - 1000)),
            SchemaError,
            "expected experts from 0",
        ),
        (lambda r: probes.saturation(r.isel(k=0)), SchemaError, "expected .*'k'"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_remedy(call, error, message):
    with pytest.raises(error, match=message):
        call(activations_record(checkpoints=3, tokens=40))
