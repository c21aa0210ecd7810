"""A live record shows what an overview of the whole would, and reads every committed row once."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.app.dashboard.growing_bins import GrowingBins
from workbench.app.dashboard.live_record import LiveRecord
from workbench.app.dashboard.pages import tokens as tokens_page
from workbench.errors import RunNotFound
from workbench.store.layout import Layout
from workbench.store.run_store import RunStore

LAYOUT = Layout(layers=(0, 1), experts=4, k=2)


def rows(first, last):
    step = np.arange(first, last + 1)
    return {"step": step, "loss": step.astype("float32"), "utc": 10.0 * step}


@pytest.fixture
def store(tmp_path):
    return RunStore.create(tmp_path / "store", LAYOUT)


def record(store, points=8, **stretch):
    return LiveRecord(
        store, "main", "train", ("loss", "utc", "grad_norm"), points=points, **stretch
    )


def check(live, first, last):
    """That the bins are of the steps first to last, whose loss is the step."""
    bins = live.bins
    assert int(bins["first_step"][0]) == first
    assert int(bins["last_step"][-1]) == last
    assert int(bins["rows"].sum()) == last - first + 1
    assert (bins["first_step"].values[1:] == bins["last_step"].values[:-1] + 1).all()
    middle = (bins["first_step"] + bins["last_step"]) / 2
    np.testing.assert_allclose(bins["loss"], middle)
    np.testing.assert_array_equal(bins["loss_min"], bins["first_step"])
    np.testing.assert_array_equal(bins["loss_max"], bins["last_step"])


def test_what_is_committed_and_what_waits_are_shown_together(store):
    live = record(store)
    with store.writer("main") as writer:
        writer.append("train", rows(1, 5))
        writer.commit("five")
        writer.append("train", rows(6, 7))
        writer.seal()
        live.refresh(store.read("main"))
        check(live, 1, 7)
        assert "grad_norm" not in live.bins


@pytest.mark.parametrize("points", [1, 3, 8, 50])
def test_steps_that_come_are_added_however_they_are_committed(store, points):
    live = record(store, points=points)
    at = 0
    with store.writer("main") as writer:
        for n, commit in [(3, True), (1, False), (40, True), (7, False), (300, True), (1, True)]:
            writer.append("train", rows(at + 1, at + n))
            at += n
            writer.commit("more") if commit else writer.seal()
            live.refresh(store.read("main"))
            check(live, 1, at)
            assert live.bins.sizes["bin"] <= 2 * points + 8
    assert live.looks == 1


def test_a_stretch_begins_and_ends_where_it_was_told_to(store):
    live, ended = record(store, start=10), record(store, start=10, stop=60)
    with store.writer("main") as writer:
        for last in (50, 100, 150):
            writer.append("train", rows(last - 49, last))
            writer.commit("fifty")
            for one in (live, ended):
                one.refresh(store.read("main"))
            check(live, 11, last)
            check(ended, 11, min(last, 60))


class Reads:
    """How many rows of train/loss, committed ones, are read in its blocks, by any way."""

    def __init__(self):
        self.rows = 0

    def __enter__(self):
        self._real = real = zarr.Array.__getitem__

        def counted(array, selection):
            found = real(array, selection)
            if array.path.endswith("train/loss"):
                self.rows += np.shape(found)[0]
            return found

        zarr.Array.__getitem__ = counted

    def __exit__(self, *_):
        zarr.Array.__getitem__ = self._real


def test_a_refresh_reads_the_new_rows_and_no_other(store):
    live, reads = record(store), Reads()
    with store.writer("main") as writer:
        writer.append("train", rows(1, 5000))
        writer.commit("many")
        live.refresh(store.read("main"))
        for last in (5050, 5100, 5150):
            writer.append("train", rows(last - 49, last))
            writer.seal()
            with reads:
                live.refresh(store.read("main"))
            assert reads.rows == last - 50 - 5000  # what waits is in no array yet
            writer.commit("fifty")
            for _ in ("news", "none"):
                with reads:
                    live.refresh(store.read("main"))
                assert reads.rows == last - 5000
        check(live, 1, 5150)
    assert live.rows_read == 150
    assert live.looks == 1


def test_what_a_rollback_set_aside_is_shown_no_more(store):
    live = record(store)
    with store.writer("main") as writer:
        writer.append("train", rows(1, 50))
        writer.commit("fifty")
        writer.tag_checkpoint(50)
        writer.append("train", rows(51, 80))
        writer.commit("eighty")
        writer.append("train", rows(81, 90))
        writer.seal()
        live.refresh(store.read("main"))
        check(live, 1, 90)
    store.rollback("main", 50)
    live.refresh(store.read("main"))
    check(live, 1, 50)
    with store.writer("main") as writer:
        writer.append("train", rows(51, 200))
        writer.commit("anew")
        live.refresh(store.read("main"))
    check(live, 1, 200)


def test_rows_that_waited_and_were_set_aside_are_shown_no_more(store):
    live = record(store)
    with store.writer("main") as writer:
        writer.append("train", rows(1, 50))
        writer.commit("fifty")
        writer.tag_checkpoint(50)
        live.refresh(store.read("main"))
        writer.append("train", rows(51, 55))
        writer.seal()
        live.refresh(store.read("main"))
        check(live, 1, 55)
    store.rollback("main", 50)
    live.refresh(store.read("main"))
    check(live, 1, 50)


def test_a_variable_may_begin_while_it_is_followed(store):
    live = record(store, points=50)
    norm = {"grad_norm": np.ones(2, "float32")}
    with store.writer("main") as writer:
        for portion, commit in [
            (rows(1, 2), True), (rows(3, 4) | norm, False), (rows(5, 6) | norm, True),
            (rows(7, 8) | norm, False), (rows(9, 10) | norm, True),
        ]:  # fmt: skip
            writer.append("train", portion)
            writer.commit("two") if commit else writer.seal()
            live.refresh(store.read("main"))
            check(live, 1, int(portion["step"][-1]))
    known = np.isfinite(live.bins["grad_norm"].values)
    assert live.bins["last_step"].values[known].tolist() == list(range(3, 11))


def test_nothing_recorded_is_said_and_then_followed(store):
    live = record(store)
    live.refresh(store.read("main"))
    with pytest.raises(RunNotFound, match="no train record"):
        _ = live.bins
    with store.writer("main") as writer:
        writer.append("train", rows(1, 2))
        writer.seal()
        live.refresh(store.read("main"))
        check(live, 1, 2)
        writer.commit("two")
        live.refresh(store.read("main"))
        check(live, 1, 2)


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.integers(1, 20),
    st.integers(0, 2**32 - 1),
)
def test_bins_that_grew_hold_the_mean_of_all_their_rows(portions, points, seed):
    total = sum(portions)
    values = np.random.default_rng(seed).normal(size=total)
    values[np.random.default_rng(seed).random(total) < 0.1] = np.nan
    bins, at = None, 0
    for n in portions:
        part = one_each(values, at, at + n)
        if bins is None:
            bins = GrowingBins(part, points=points)
        else:
            bins.add(part)
        at += n
    found = bins.dataset
    assert found.sizes["bin"] <= max(2 * points, 1)
    assert found["rows"].sum() == total
    for i in range(found.sizes["bin"]):
        own = values[int(found["first_step"][i]) : int(found["last_step"][i]) + 1]
        assert len(own) == int(found["rows"][i])
        expected = np.nanmean(own) if np.isfinite(own).any() else np.nan
        np.testing.assert_allclose(found["x"][i], expected, rtol=1e-9, atol=1e-12)


def one_each(values, first, stop):
    part, step = values[first:stop], np.arange(first, stop)
    ends = {"first_step": ("bin", step), "last_step": ("bin", step)}
    return xr.Dataset(
        dict.fromkeys(("x", "x_min", "x_max"), ("bin", part)),
        coords={**ends, "rows": ("bin", np.ones(len(step), int))},
        attrs={"rows_a_bin": 1},
    )


def test_as_many_traces_of_another_life_are_counted_anew():
    def traces(expert):
        ids = np.full((4, 1, 1), expert, "int16")
        columns = {name: ("trace", np.arange(4)) for name in ("token", "document", "position")}
        steps = {"step": ("trace", np.arange(4))}
        return xr.Dataset({"expert_ids": (("trace", "layer", "k"), ids), **columns}, coords=steps)

    kept = {}

    def once(what, key, make):
        return kept.setdefault((what, key), make())

    found = []
    for expert in (0, 1, 0):
        moment = SimpleNamespace(
            run=SimpleNamespace(branch="main", name="mine"), live=SimpleNamespace(once=once),
            view=SimpleNamespace(layer=0, expert=0, start=0, stop=None), sizes=(1, 2),
            window=SimpleNamespace(traces=traces(expert)),
        )  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tokens_page, "_about", lambda found, moment: found)
            patch.setattr(tokens_page, "traced_vocabulary",
                          lambda traces, **_: int(traces["expert_ids"][0, 0, 0]))  # fmt: skip
            found.append(tokens_page._traced(moment))
    assert found == [0, 1, 0]
    assert len(kept) == 2
