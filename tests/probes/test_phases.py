"""Phases: planted regimes are recovered; noise, with memory or without, is one state."""

import numpy as np
import pytest
import xarray as xr

from probes.phases import phases
from probes.statistics.autoregression import noise
from workbench.errors import SchemaError, UsageError


def signals(phi: float, seed: int, regime: np.ndarray | None = None) -> xr.DataArray:
    values = np.stack([noise(phi, 60, 1, 10 * seed + j)[0] for j in range(3)], axis=1)
    if regime is not None:
        values = values + 3.0 * regime[:, None] * [1, -1, 1]
    return xr.DataArray(values, coords={"step": np.arange(60) * 10}, dims=("step", "signal"))


@pytest.mark.parametrize("phi", [0.0, 0.5])
def test_stationary_noise_is_one_state(phi):
    found = [phases(signals(phi, s), most=3, surrogates=19, seed=s) for s in range(12)]
    # At 5 % more than 3 of 12 would be met in 0.2 % of cases.
    assert sum(f.attrs["states"] > 1 for f in found) <= 3


def test_planted_regimes_are_recovered_step_by_step():
    regime = np.repeat([0.0, 1.0, 0.0], 20)
    found = phases(signals(0.0, 1, regime), most=4, surrogates=19)
    assert found.attrs["states"] == 2
    assert (found["state"].values == regime).mean() >= 0.97
    assert found["state"]["step"].values.tolist() == list(range(0, 600, 10))
    # Signal 1 falls where 0 and 2 rise.
    rise = found["mean"].sel(state_number=1) - found["mean"].sel(state_number=0)
    assert np.sign(rise.values).tolist() == [1, -1, 1]
    assert found["transition"].sum("state_to").values == pytest.approx(1)
    assert found["probability"].sum("state_number").values == pytest.approx(1)


def test_the_same_seed_gives_the_same_states():
    made = signals(0.0, 1, np.repeat([0.0, 1.0, 0.0], 20))
    one, two = (phases(made, most=3, surrogates=5, seed=4) for _ in range(2))
    xr.testing.assert_identical(one, two)


def test_units_do_not_matter_and_a_signal_that_stands_still_is_left_out():
    made = signals(0.0, 1, np.repeat([0.0, 1.0, 0.0], 20))
    other = made * [1000, 0.001, 1] + [5, 0, -7]
    still = xr.concat([other, xr.zeros_like(other.isel(signal=[0]))], dim="signal")
    one, two = phases(made, surrogates=0), phases(still, surrogates=0)
    assert one["state"].values.tolist() == two["state"].values.tolist()
    assert two.sizes["signal"] == 3


def test_a_dataset_of_curves_is_taken_as_signals():
    made = signals(0.0, 1).to_dataset("signal").rename({0: "a", 1: "b", 2: "c"})
    assert phases(made, surrogates=0)["signal"].values.tolist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (signals(0.0, 0)[:10], UsageError, "found 10 points"),
        (xr.zeros_like(signals(0.0, 0)), UsageError, "no signal varies"),
        (signals(0.0, 0).expand_dims("layer"), SchemaError, "stack"),
        (signals(0.0, 0).rename(step="time"), SchemaError, "expected .step, signal."),
    ],
)
def test_what_has_no_phases_is_refused_with_the_remedy(made, error, message):
    with pytest.raises(error, match=message):
        phases(made)
