"""Overviews: what is summarised is what numpy says of the same rows, however it was written."""

from __future__ import annotations

import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.errors import RunNotFound, UsageError
from workbench.store import overviews
from workbench.store.overview import overview
from workbench.store.overviews import BLOCK, extend_overviews
from workbench.store.pooling import LEVELS

DIMS = {"loss": ("step",), "tokens_seen": ("step",), "assignments": ("step", "layer", "expert")}
FINEST = BLOCK * LEVELS[0]


class Memory:
    """A record in memory that stands for a snapshot: committed rows in Zarr, the others in
    `tail`.
    """

    def __init__(self) -> None:
        self.root = zarr.open_group(zarr.storage.MemoryStore(), mode="a", zarr_format=3)
        self.tail: dict = {}
        self.note: dict = {}

    def append(self, rows: dict[str, np.ndarray]) -> None:
        group = self.root.require_group("train")
        had = group["step"].shape[0] if "step" in group else 0
        count = len(rows["step"])
        names = {*rows, *(n for n, _ in group.arrays())}
        for name in names - {"layer", "expert"}:
            dims = DIMS.get(name, ("step",))
            if name not in group:
                like = rows[name]
                group.create_array(
                    name, shape=(had, *like.shape[1:]), chunks=(50, *like.shape[1:]),
                    dtype=like.dtype, fill_value=np.nan if like.dtype.kind == "f" else -1,
                    dimension_names=dims, attributes={"units": "u", "long_name": name},
                )  # fmt: skip
            array = group[name]
            array.resize((had + count, *array.shape[1:]))
            if name in rows:
                array[had:] = rows[name]

    def extend(self) -> int:
        return extend_overviews(self.root, "train")


def record(rows: int, seed: int = 0, gaps: float = 0.1, stride: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    loss = rng.normal(size=rows).astype("float32")
    loss[rng.random(rows) < gaps] = np.nan
    seen = np.cumsum(rng.integers(1, 5_000_000, rows))
    counts = rng.integers(0, 1000, (rows, 2, 3))
    counts[rng.random(rows) < gaps] = -1
    steps = np.cumsum(rng.integers(1, stride + 1, rows))
    return {"step": steps, "loss": loss, "tokens_seen": seen, "assignments": counts}


def by_numpy(values: np.ndarray, first: int, stop: int, width: int) -> np.ndarray:
    """(statistic, bin, ...) of rows first up to stop, the plain way."""
    values = values.astype(float)
    values[values == -1] = np.nan
    out = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for at in range(first // width, -(-stop // width)):
            rows = values[max(at * width, first) : min((at + 1) * width, stop)]
            out.append([np.nanmean(rows, 0), np.nanmin(rows, 0), np.nanmax(rows, 0)])
    return np.moveaxis(np.array(out), 1, 0)


def check(seen: xr.Dataset, rows: dict[str, np.ndarray], first: int, stop: int) -> None:
    width = seen.attrs["rows_a_bin"]
    for name in rows.keys() - {"step"}:
        values = rows[name].copy()
        if values.dtype.kind == "f":
            values[values == -1] = -1 + 1e-6
        mean, least, greatest = by_numpy(values, first, stop, width)
        scale = np.nanmax(np.abs(values.astype(float)))
        assert np.allclose(seen[name], mean, rtol=0, atol=5e-7 * scale, equal_nan=True), name
        exact = np.float64 if rows[name].ndim == 1 else np.float32
        assert np.array_equal(seen[f"{name}_min"], least.astype(exact), equal_nan=True)
        assert np.array_equal(seen[f"{name}_max"], greatest.astype(exact), equal_nan=True)
    edges = np.arange(first // width, -(-stop // width)) * width
    assert np.array_equal(seen.first_step, rows["step"][np.maximum(edges, first)])
    assert np.array_equal(seen.last_step, rows["step"][np.minimum(edges + width, stop) - 1])
    assert int(seen["rows"].sum()) == stop - first


@pytest.fixture
def small_levels(monkeypatch):
    """Levels so narrow that a short record has all of them."""
    from workbench.store import overview as reading
    from workbench.store import pooling

    for module in (overviews, reading, pooling):
        monkeypatch.setattr(module, "LEVELS", (4, 32, 256))
    for module in (overviews, reading):
        monkeypatch.setattr(module, "BLOCK", 4)
        monkeypatch.setattr(module, "PIECE_BYTES", 2000)


@given(
    parts=st.lists(st.integers(1, 500), min_size=1, max_size=4),
    points=st.sampled_from([1, 3, 10, 40, 1000]),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    tail=st.integers(0, 40),
    gaps=st.sampled_from([0.0, 0.1, 0.97]),
    every=st.booleans(),
    seed=st.integers(0, 10),
)
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_stretch_of_any_record_is_summarised_as_numpy_does(
    small_levels, parts, points, cut, tail, gaps, every, seed
):
    total = sum(parts) + tail
    rows = record(total, seed, gaps, stride=3)
    store, at = Memory(), 0
    for n, count in enumerate(parts):
        store.append({name: values[at : at + count] for name, values in rows.items()})
        at += count
        if every or n == len(parts) - 1:
            store.extend()
    if tail:
        store.tail = {"train": {"step": {name: values[at:] for name, values in rows.items()}}}
    steps = rows["step"]
    low, high = sorted(int(c * (steps[-1] + 2)) - 1 for c in cut)
    first, stop = np.searchsorted(steps, [low, high], side="right")
    check(overview(store, "train", points=points), rows, 0, total)
    part = overview(store, "train", points=points, start=low, stop=high)
    if stop > first:
        check(part, rows, int(first), int(stop))
        assert part.sizes["bin"] <= 2 * points + 1
        assert part.sizes["bin"] >= min(points // 4, stop - first)
    else:
        assert part.sizes["bin"] == 0


def test_the_stored_levels_are_those_that_are_promised(small_store):
    steps = np.arange(1, 2 * FINEST + 100)
    with small_store.writer() as w:
        w.append("train", {"step": steps, "tokens_seen": steps * 100})
    session = small_store.repository.writable_session("main")
    root = zarr.open_group(session.store, mode="r+")
    extend_overviews(root, "train")
    stored = root["overviews/train/32/tokens_seen"]
    assert stored.shape == (2 * BLOCK, 4)
    assert stored.dtype == "float64"
    assert stored.metadata.dimension_names == ("bin", "statistic")
    assert stored[1].tolist() == [4850.0, 3300.0, 6400.0, 32.0]
    assert root["overviews/train/32/first_step"][:2].tolist() == [1, 33]
    assert root["overviews/train/32/last_step"][-1] == 2 * FINEST
    assert root["overviews/train"].attrs["statistic"] == ["mean", "min", "max", "valid"]


def test_what_is_there_is_not_written_again():
    store, rows = Memory(), record(3 * FINEST)
    store.append({name: values[: 2 * FINEST] for name, values in rows.items()})
    # Five arrays of level 32, two blocks each.
    assert store.extend() == 10
    assert store.extend() == 0
    before = np.array(store.root["overviews/train/32/loss"][:])
    store.append({name: values[2 * FINEST :] for name, values in rows.items()})
    assert store.extend() == 5
    after = store.root["overviews/train/32/loss"][:]
    assert np.array_equal(after[: 2 * BLOCK], before, equal_nan=True)
    check(overview(store, "train", points=40), rows, 0, 3 * FINEST)


def test_a_record_without_overviews_gets_them_all_at_once():
    rows = record(10 * FINEST)
    at_once, bit_by_bit = Memory(), Memory()
    at_once.append(rows)
    for at in range(0, 10 * FINEST, FINEST):
        bit_by_bit.append({name: values[at : at + FINEST] for name, values in rows.items()})
        bit_by_bit.extend()
    without = overview(at_once, "train", points=100)
    at_once.extend()
    xr.testing.assert_allclose(without, overview(at_once, "train", points=100), rtol=1e-5)
    for level in (32, 256):
        for name in ("loss", "assignments", "first_step", "last_step"):
            path = f"overviews/train/{level}/{name}"
            assert np.array_equal(at_once.root[path][:], bit_by_bit.root[path][:], equal_nan=True)


def test_a_variable_that_begins_late_is_missing_before():
    rows = record(3 * FINEST, gaps=0)
    store = Memory()
    store.append({n: v[:FINEST] for n, v in rows.items() if n != "assignments"})
    store.extend()
    store.append({n: v[FINEST:] for n, v in rows.items()})
    store.extend()
    seen = overview(store, "train", points=48)
    assert np.isnan(seen.assignments[:BLOCK]).all()
    assert not np.isnan(seen.assignments[BLOCK:]).any()
    rows["assignments"][:FINEST] = -1
    check(seen, rows, 0, 3 * FINEST)


def test_a_variable_that_only_the_tail_has_is_shown():
    rows = record(1200, gaps=0)
    store = Memory()
    store.append({n: v[:1100] for n, v in rows.items() if n != "loss"})
    store.extend()
    store.tail = {"train": {"step": {n: v[1100:] for n, v in rows.items() if n != "tokens_seen"}}}
    rows["loss"][:1100], rows["tokens_seen"][1100:] = np.nan, -1
    check(overview(store, "train", points=20), rows, 0, 1200)


def test_infinite_losses_are_values():
    store, rows = Memory(), record(FINEST, gaps=0)
    rows["loss"][40] = np.inf
    store.append(rows)
    store.extend()
    seen = overview(store, "train", points=16)
    assert seen.loss[1] == np.inf
    assert seen.loss_max[1] == np.inf
    assert np.isfinite(seen.loss_min[1])
    assert np.isfinite(seen.loss[0])


def test_a_wide_row_is_taken_in_columns_and_in_pieces(monkeypatch):
    monkeypatch.setattr(overviews, "PIECE_BYTES", 20_000)
    store, read = Memory(), []
    counts = np.random.default_rng(0).integers(0, 9, (FINEST, 4, 30))
    store.append({"step": np.arange(FINEST)})
    store.root["train"].create_array(
        "assignments", data=counts, chunks=(50, 2, 30), dimension_names=DIMS["assignments"]
    )
    real = overviews.pool_rows
    monkeypatch.setattr(overviews, "pool_rows", lambda r: (read.append(r.nbytes), real(r))[1])
    store.extend()
    assert max(read) <= 20_000
    stored = store.root["overviews/train/32/assignments"]
    assert stored.chunks == (32, 4, 2, 30)
    assert np.allclose(stored[:, 0], counts.reshape(32, 32, 4, 30).mean(1))


def test_units_meanings_and_labels_come_along(small_store, rows):
    with small_store.writer() as w:
        w.append("router", rows(1, 100)[0])
    seen = overview(small_store.read(), "router", points=10, variables=["assignments"])
    assert set(seen.data_vars) == {"assignments", "assignments_min", "assignments_max"}
    assert seen.assignments.dims == ("bin", "layer", "expert")
    assert seen.assignments.attrs["units"] == "assignments"
    assert "mean" in seen.assignments.attrs["long_name"]
    assert seen.layer.values.tolist() == [0, 1]
    assert seen.expert.attrs["units"] == "1"
    assert seen.attrs["rows_a_bin"] == 32


def test_what_is_not_there_is_named_with_what_is(small_store, rows):
    with small_store.writer() as w:
        w.append("train", rows(1, 10)[1])
    snapshot = small_store.read()
    with pytest.raises(RunNotFound, match="did you mean 'tokens_seen'"):
        overview(snapshot, "train", variables=["token_seen"])
    with pytest.raises(RunNotFound, match="'router' and 'train'"):
        overview(snapshot, "evaluations")
    with pytest.raises(UsageError, match="points=0"):
        overview(snapshot, "train", points=0)


@pytest.mark.slow
def test_a_million_steps_are_seen_whole_within_two_seconds():
    store = Memory()
    steps = np.arange(1, 1_000_001)
    group = store.root.create_group("train")
    for name, values in {"step": steps, "loss": (1 / steps).astype("float32")}.items():
        group.create_array(name, data=values, chunks=(1000,), dimension_names=("step",))
    # Every row the same: a record of a million whole rows would be 8 GB on its way in.
    wide = group.create_array(
        "assignments", shape=(1_000_000, 16, 64), chunks=(1000, 16, 64), dtype="int64",
        fill_value=7, dimension_names=DIMS["assignments"],
    )  # fmt: skip
    assert wide.nchunks == 1000
    store.extend()
    begun = time.perf_counter()
    seen = overview(SimpleNamespace(root=store.root, tail={}), "train", points=1000)
    assert time.perf_counter() - begun < 2
    assert 250 <= seen.sizes["bin"] <= 2000
    assert (seen.assignments == 7).all()
    assert seen.last_step[-1] == 1_000_000
