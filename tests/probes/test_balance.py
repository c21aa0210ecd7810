"""Balance: measures layer by layer, dead experts over a stated window, in bounded memory."""

import tracemalloc

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from xarray.backends import BackendArray
from xarray.core import indexing

import probes
from probes.dead import Silence
from workbench.errors import SchemaError, UsageError
from workbench.testing import DeadExpert, router_record


def silent_for(assignments: np.ndarray, tokens: np.ndarray, window: int) -> np.ndarray:
    """Dead experts by the definition: look back over the smallest window of W tokens or more."""
    dead = np.full(assignments.shape[:2], np.nan)
    for step in range(len(tokens)):
        for start in range(step, -1, -1):
            if tokens[start : step + 1].sum() >= window:
                silent = assignments[start : step + 1].sum(axis=0) == 0
                dead[step] = silent.sum(axis=-1)
                break
    return dead


def test_an_expert_that_dies_is_counted_once_the_window_has_passed():
    router = router_record(steps=40, tokens=100, dead=[DeadExpert(expert=3, step=20)])
    dead = probes.balance(router, dead_window=500)["dead_experts"]
    assert dead.sel(layer=0, step=slice(5, 23)).max() == 0
    assert (dead.sel(layer=0, step=slice(24, None)) == 1).all()
    assert (dead.sel(layer=1, step=slice(5, None)) == 0).all()
    assert dead.sel(step=slice(None, 4)).isnull().all()


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 12))
def test_dead_experts_agree_with_looking_back_step_by_step(seed, window, cut):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 15, 12)
    busy = rng.random((12, 2, 4)) < 0.3
    assignments = np.where(busy, rng.integers(1, 5, busy.shape), 0) * (tokens > 0)[:, None, None]
    silence = Silence(window, layers=2, experts=4)
    # In two blocks: what was seen before must carry over.
    parts = [
        silence.count(assignments[part], tokens[part])
        for part in (slice(0, cut), slice(cut, None))
        if len(tokens[part])
    ]
    np.testing.assert_array_equal(np.concatenate(parts), silent_for(assignments, tokens, window))


def test_balance_loss_is_one_when_uniform_and_never_pools_layers():
    counts = np.array([[[8, 0], [0, 8]]])
    router = xr.Dataset(
        {
            "assignments": (("step", "layer", "expert"), counts),
            "prob_mass": (("step", "layer", "expert"), counts.astype("float32")),
            "tokens": ("step", [8]),
        }
    )
    # Two opposite collapses: pooled over layers they would look uniform.
    assert probes.balance(router)["balance_loss"].values.tolist() == [[2.0, 2.0]]


def test_balance_loss_agrees_with_the_transformers_loss_of_one_layer():
    torch = pytest.importorskip("torch")
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1, (300, 8)).astype(np.float32)
    theirs = load_balancing_loss_func((torch.from_numpy(logits),), num_experts=8, top_k=2)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = np.argsort(-logits, axis=-1)[:, :2]
    router = xr.Dataset(
        {
            "assignments": (
                ("step", "layer", "expert"),
                np.bincount(chosen.ravel(), minlength=8)[None, None],
            ),
            "prob_mass": (("step", "layer", "expert"), probs.sum(0)[None, None]),
            "tokens": ("step", [300]),
        }
    )
    # Theirs sums f over the k choices, so that it is k when uniform; ours is 1.
    ours = probes.balance(router)["balance_loss"].item()
    assert ours * 2 == pytest.approx(float(theirs), rel=1e-5)


def test_a_fair_router_varies_as_much_as_chance_allows():
    measured = probes.balance(router_record(steps=200, tokens=512, experts=8, k=2))
    expected = measured.attrs["cv_at_random"]
    rms = float(np.sqrt((measured["cv"] ** 2).mean()))
    assert rms == pytest.approx(expected, rel=0.05)


def test_pooling_shrinks_what_chance_does_and_keeps_what_is_there():
    fair = router_record(steps=64, tokens=256)
    single, wide = probes.balance(fair), probes.balance(fair, window=16 * 256)
    assert wide.sizes["step"] == 4
    assert wide["cv"].mean() < single["cv"].mean() / 2
    lost = router_record(steps=64, tokens=256, dead=[DeadExpert(expert=0, step=1)])
    pooled = probes.balance(lost, window=16 * 256).isel(layer=0)
    assert (pooled["effective_experts"] < 7.01).all()


def test_z_loss_is_passed_through_and_pooled_by_tokens():
    router = router_record(steps=4, tokens=100)
    router["tokens"] = ("step", np.array([100, 300, 100, 100]))
    router["assignments"] = router["assignments"] * xr.DataArray([1, 3, 1, 1], dims="step")
    z = router["z_squared"].values.astype(float)
    pooled = probes.balance(router, window=400)["z_loss"].values
    np.testing.assert_allclose(pooled[0], (z[0] * 100 + z[1] * 300) / 400)
    np.testing.assert_allclose(probes.balance(router)["z_loss"], z)


def test_every_measure_says_its_unit_and_its_fair_value():
    measured = probes.balance(router_record(steps=10))
    for name in measured.data_vars:
        assert {"units", "long_name", "chance_level", "interval"} <= set(measured[name].attrs)
    assert measured["effective_experts"].attrs["chance_level"] == "8"
    assert measured.attrs["dead_window_tokens"] == 1000 * 8 / 2


def test_counts_that_are_not_k_per_token_are_refused():
    router = router_record(steps=3)
    router["tokens"] = router["tokens"] * 2
    with pytest.raises(SchemaError, match="expected k=2"):
        probes.balance(router)


def test_a_record_without_steps_is_refused():
    with pytest.raises(UsageError, match="no step"):
        probes.balance(router_record(steps=3).isel(step=slice(0, 0)))


class Counted(BackendArray):
    """An array of any length that exists only where it is read, as a store's do."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.dtype, self.largest = shape, np.dtype("int64"), 0

    def __getitem__(self, key):
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, self._read
        )

    def _read(self, key):
        found = np.broadcast_to(np.int64(1024), self.shape)[key].copy()
        self.largest = max(self.largest, found.nbytes)
        return found


def test_a_long_record_is_read_a_few_megabytes_at_a_time():
    counts = Counted((20_000, 24, 16))
    lazy = xr.Variable(("step", "layer", "expert"), indexing.LazilyIndexedArray(counts))
    router = xr.Dataset(
        {"assignments": lazy, "tokens": ("step", np.full(20_000, 4096))}, attrs={"k": 4}
    )
    tracemalloc.start()
    measured = probes.balance(router)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counts.largest <= 8e6
    # The counts are 61 MB; beyond its result the probe holds a few blocks.
    assert peak - measured.nbytes < 45e6
    assert (measured["gini"] == 0).all()


def test_a_chunked_record_gives_the_same_balance():
    pytest.importorskip("dask")
    router = router_record(steps=30)
    xr.testing.assert_allclose(probes.balance(router.chunk(step=7)), probes.balance(router))
