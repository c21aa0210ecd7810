"""Drift: the parts add up exactly, and are the planted ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.drift import drift
from workbench.errors import SchemaError, UsageError
from workbench.planted.drifting import DriftingRun, drifting_run


def test_drift_by_the_mix_alone_is_none_of_the_routers():
    run = drifting_run(mix=0.8)
    found = drift(run)
    assert (found["router"] == 0).all()
    np.testing.assert_allclose(found["mix"], run.true_mix[1:, None] * np.ones((1, 2, 1)), atol=0.01)
    np.testing.assert_allclose(found["mix_share"].isel(checkpoint=-1), 1, atol=0.06)


def test_drift_by_the_router_alone_is_none_of_the_mix():
    run = drifting_run(router=0.8)
    found = drift(run)
    assert float(abs(found["mix"]).max()) < 0.005
    np.testing.assert_allclose(
        found["router"], run.true_router[1:, None] * np.ones((1, 2, 1)), atol=0.05
    )
    np.testing.assert_allclose(found["router_share"].isel(checkpoint=-1), 1, atol=0.06)


@settings(max_examples=15)
@given(
    st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["first", "previous"])
)
def test_the_parts_add_up_to_the_change_of_the_load(seed, router, mix, against):
    run = drifting_run(router=router, mix=mix, steps=12, tokens=200, seed=seed)
    found = drift(run, against=against)
    whole = found["mix"] + found["router"] + found["rest"]
    np.testing.assert_allclose(whole, found["change"], atol=1e-12)
    load = run.router["assignments"].values / run.router["assignments"].values.sum(-1)[..., None]
    # Checkpoints at 0, 4, 8 and 12: steps 1 and 2 are nearest to the first, the last two to 12.
    if against == "first":
        want = load[10:].mean(0) - load[:2].mean(0)
        np.testing.assert_allclose(found["change"].isel(checkpoint=-1), want, atol=1e-12)
    shares = found["mix_share"] + found["router_share"] + found["rest_share"]
    np.testing.assert_allclose(shares.values[~np.isnan(shares.values)], 1, atol=1e-9)


def test_domains_that_the_fixed_tokens_lack_are_said_to_be_missing():
    run = drifting_run(router=0.5)
    lacking = run.activations.isel(token=run.activations["domain"] != run.activations["domain"][0])
    found = drift(DriftingRun(run.router, lacking, run.true_mix, run.true_router))
    np.testing.assert_allclose(found["covered"], 0.75, atol=0.01)


def test_a_domain_that_comes_later_counts_as_mix():
    run = drifting_run(steps=20, checkpoints=2)
    counts = run.router["domain_assignments"].copy(deep=True)
    counts[:10, :, 0] = 0
    found = drift(
        DriftingRun(run.router.assign(domain_assignments=counts), run.activations, None, None)
    )
    np.testing.assert_allclose(found["mix_share"], 1, atol=0.05)
    assert (found["router"] == 0).all()


def test_one_text_a_domain_gives_the_part_without_an_interval():
    found = drift(drifting_run(router=0.5, rows_per_domain=1))
    assert found["router_low"].isnull().all()
    assert found["router"].notnull().all()


def test_what_cannot_be_split_is_refused_with_the_remedy():
    run = drifting_run(steps=20)
    fixed = run.activations
    other = fixed.assign_coords(domain=fixed["domain"].str.upper())
    cases = [
        (run.router, other, UsageError, "no name in common"),
        (run.router, fixed.isel(checkpoint=[0]), UsageError, "expected 2 or more"),
        (run.router.drop_vars("domain_assignments"), fixed, SchemaError, "lacks domain_assign"),
    ]
    for router, activations, error, message in cases:
        with pytest.raises(error, match=message):
            drift(DriftingRun(router, activations, None, None))
    with pytest.raises(UsageError, match="'first' or 'previous'"):
        drift(run, against="final")
