"""Evenness: five numbers for how unequal loads are, against independent implementations."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from probes.statistics import evenness
from workbench.errors import SchemaError

MEASURES = (
    evenness.max_violation,
    evenness.cv,
    evenness.gini,
    evenness.normalized_entropy,
    evenness.effective_experts,
)


@st.composite
def loads(draw):
    experts = draw(st.integers(2, 12))
    counts = draw(hnp.arrays(np.int64, experts, elements=st.integers(0, 1000)))
    counts[draw(st.integers(0, len(counts) - 1))] += 1
    return xr.DataArray(counts / counts.sum(), dims="expert")


@given(loads())
def test_each_measure_stays_in_its_range(load):
    experts = load.sizes["expert"]
    tiny = 1e-9
    assert -tiny <= evenness.max_violation(load) <= experts - 1 + tiny
    assert -tiny <= evenness.cv(load) <= np.sqrt(experts - 1) + tiny
    assert -tiny <= evenness.gini(load) <= 1 - 1 / experts + tiny
    assert -tiny <= evenness.normalized_entropy(load) <= 1 + tiny
    assert 1 - tiny <= evenness.effective_experts(load) <= experts + tiny


@given(loads(), st.randoms())
def test_the_names_of_the_experts_do_not_matter(load, random):
    order = list(range(load.sizes["expert"]))
    random.shuffle(order)
    for measure in MEASURES:
        assert float(measure(load[order])) == pytest.approx(float(measure(load)), abs=1e-12)


@given(loads())
def test_entropy_and_variation_agree_with_scipy(load):
    assert float(evenness.entropy(load)) == pytest.approx(stats.entropy(load), abs=1e-12)
    assert float(evenness.cv(load)) == pytest.approx(stats.variation(load), abs=1e-12)


@given(loads())
def test_gini_is_half_the_mean_absolute_difference_over_the_mean(load):
    pairs = np.abs(load.values[:, None] - load.values[None, :]).mean()
    assert float(evenness.gini(load)) == pytest.approx(pairs / (2 * load.values.mean()), abs=1e-12)


@pytest.mark.parametrize(
    ("load", "values"),
    [([0.25] * 4, [0, 0, 0, 1, 4]), ([1, 0, 0, 0], [3, np.sqrt(3), 0.75, 0, 1])],
    ids=["fair", "collapse"],
)
def test_the_ends_of_the_scales_are_fair_and_collapse(load, values):
    array = xr.DataArray(np.array(load, float), dims="expert")
    np.testing.assert_allclose([measure(array) for measure in MEASURES], values, atol=1e-12)


def test_a_step_without_tokens_has_no_evenness():
    load = xr.DataArray([[0.5, 0.5], [np.nan, np.nan]], dims=("step", "expert"))
    for measure in MEASURES:
        assert np.isnan(measure(load)).values.tolist() == [False, True]


def test_raw_counts_are_refused_with_the_remedy():
    with pytest.raises(SchemaError, match=r"counts / counts\.sum"):
        evenness.gini(xr.DataArray([30.0, 10.0], dims="expert"))


def test_an_axis_that_is_not_called_expert_is_refused():
    with pytest.raises(SchemaError, match="Name the expert axis"):
        evenness.cv(xr.DataArray([0.5, 0.5], dims="e"))
