"""The record in xarray: what the engine shows is what was recorded, of the state that was asked."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import RunNotFound, UsageError
from workbench.store.backend import WorkbenchBackend, find_store
from workbench.store.layout import Layout, Task
from workbench.store.lazy_group import StoredArray, open_group, rows_after
from workbench.store.run_store import RunStore
from workbench.store.snapshot import Snapshot

LAYOUT = Layout(
    layers=(0, 3), experts=4, k=2, domains=("prose", "code"), tasks=(Task("logic/chain", 0.25, 3),)
)


def open_run_at(where, **asked):
    return xr.open_dataset(where, engine=WorkbenchBackend, **asked)


def router(first, last):
    steps = np.arange(first, last + 1)
    counts = np.broadcast_to(steps[:, None, None], (len(steps), 2, 4)).copy()
    return {
        "step": steps, "tokens": steps, "assignments": counts,
        "entropy": counts[:, :, 0].astype("float32"),
        "sample": steps[::10], "coactivation": np.ones((len(steps[::10]), 2, 4, 4), "int64"),
    }  # fmt: skip


def train(first, last):
    steps = np.arange(first, last + 1)
    return {"step": steps, "loss": (1 / steps).astype("float32"), "tokens_seen": steps * 100}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of 300 steps with checkpoints at 100, 200 and 300, an arm from 200 of 40 more, and a
    rollback of that arm.
    """
    folder = tmp_path_factory.mktemp("runs") / "demo"
    store = RunStore.create(folder / "store", LAYOUT)
    with store.writer() as w:
        for last in (100, 200, 300):
            w.append("router", router(last - 99, last))
            w.append("train", train(last - 99, last))
            w.append("evaluations", {
                "checkpoint": np.array([last]), "tokens_seen": np.array([last * 100]),
                "correct": np.ones((1, 1, 3), "int8"),
            })  # fmt: skip
            w.commit(f"to {last}")
            w.tag_checkpoint(last)
    store.fork("arm", at_step=200)
    with store.writer("arm") as w:
        w.append("train", train(201, 240))
    return folder


def test_the_run_and_its_store_open_alike(folder):
    xr.testing.assert_identical(open_run_at(folder), open_run_at(str(folder / "store")))
    assert find_store(f"{folder}/").location.folder == folder / "store"


def test_a_group_is_what_xarrays_own_engine_shows_of_it(folder):
    snapshot = find_store(folder).read()
    for group in snapshot.groups:
        plain = xr.open_dataset(
            snapshot.root.store, engine="zarr", group=group, consolidated=False, zarr_format=3
        )
        ours = open_group(snapshot, group)
        text = {
            name: (label.dims, np.array(label.values.tolist(), dtype=str), label.attrs)
            for name, label in plain.coords.items()
            if label.dtype.kind in "OT"
        }
        xr.testing.assert_identical(ours, plain.assign_coords(text))
        for name in set(plain.variables) - set(text):
            assert str(ours[name].encoding) == str(plain[name].encoding)
            assert ours[name].dtype == plain[name].dtype


def test_the_state_that_was_asked_for_is_shown(folder):
    store = find_store(folder)
    assert open_run_at(folder, group="train").sizes["step"] == 300
    assert open_run_at(folder, group="train", branch="arm").sizes["step"] == 240
    at = open_run_at(folder, group="train", checkpoint=200)
    assert at.step[-1] == 200
    tag = next(t for t in store.repository.list_tags() if t.startswith("at.main.000000000100"))
    assert open_run_at(folder, tag=tag).step[-1] == 100
    old = open_run_at(folder, snapshot=at.attrs["snapshot"])
    assert old.step[-1] == 200
    assert old.attrs == {"snapshot": at.attrs["snapshot"], "k": 2}
    assert at.attrs["branch"] == "main" and at.attrs["checkpoint"] == 200  # noqa: PT018


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"group": "routers"}, "did you mean 'router'"),
        ({"group": "activations"}, "router, train, evaluations"),
        ({"branch": "amr"}, "did you mean 'arm'"),
        ({"checkpoint": 250}, "near it: [100, 200, 300]"),
        ({"tag": "at.main.000000000100"}, "at.main.000000000100."),
        ({"tag": "../../etc/passwd"}, "no tag"),
        ({"snapshot": "nonsense"}, "is the tip of 'main'"),
        ({"snapshot": "0" * 20}, "no snapshot"),
    ],
)
def test_what_is_not_there_is_named_with_what_is_like_it(folder, asked, said):
    with pytest.raises(RunNotFound) as caught:
        open_run_at(folder, **asked)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_states_at_once_are_refused(folder):
    with pytest.raises(UsageError, match="branch and tag were given"):
        open_run_at(folder, branch="main", tag="x")
    with pytest.raises(UsageError, match="snapshot and checkpoint"):
        open_run_at(folder, snapshot="x", checkpoint=100)


def test_a_place_without_a_store_says_what_was_expected(tmp_path):
    with pytest.raises(RunNotFound, match="give the folder of a run"):
        open_run_at(tmp_path)


def test_folders_with_a_store_are_recognised_and_others_are_not(folder, tmp_path):
    backend = WorkbenchBackend()
    assert backend.guess_can_open(folder)
    assert backend.guess_can_open(str(folder / "store"))
    for other in (tmp_path, tmp_path / "none", "x" * 5000, "a\0b", 7, b"bytes"):
        assert not backend.guess_can_open(other)


def test_nothing_is_read_before_it_is_used_and_then_only_its_chunks(folder, monkeypatch):
    read = []
    real = StoredArray._read
    monkeypatch.setattr(
        StoredArray, "_read", lambda self, key: (read.append(self.shape), real(self, key))[1]
    )
    ds = open_run_at(folder)
    assert set(read) == {(300,), (30,), (2,), (4,)}, "labels only"
    read.clear()
    ds.assignments.isel(step=slice(10, 20)).load()
    assert read == [(300, 2, 4)]


def test_variables_can_be_left_out(folder):
    assert "entropy" not in open_run_at(folder, drop_variables="entropy")
    assert set(open_run_at(folder, group="train", drop_variables=["loss"]).data_vars) == {
        "tokens_seen"
    }


def test_the_tree_shows_every_group_of_one_state(folder):
    tree = xr.open_datatree(folder, engine=WorkbenchBackend, checkpoint=200)
    assert set(tree.children) == {"router", "train", "evaluations"}
    assert tree["train"].sizes["step"] == 200
    assert len({node.attrs["snapshot"] for node in tree.subtree}) == 1
    groups = xr.open_groups(folder, engine=WorkbenchBackend)
    assert set(groups) == {"/", "/router", "/train", "/evaluations"}


def test_a_group_opens_by_the_path_that_the_tree_gives_it(folder):
    for path, shown in xr.open_groups(folder, engine=WorkbenchBackend).items():
        xr.testing.assert_identical(open_run_at(folder, group=path), shown)
    with pytest.raises(RunNotFound, match="did you mean 'train'"):
        open_run_at(folder, group="/trian/")


@pytest.mark.parametrize(
    "asked",
    [
        {"decode_cf": False}, {"decode_times": False}, {"mask_and_scale": False},
        {"decode_timedelta": True}, {"decode_coords": "all"}, {"concat_characters": False},
    ],
)  # fmt: skip
def test_there_is_nothing_to_decode_so_that_any_decoders_will_do(folder, asked):
    xr.testing.assert_identical(open_run_at(folder, **asked), open_run_at(folder))
    tree = xr.open_datatree(folder, engine=WorkbenchBackend, **asked)
    assert set(tree.children) == {"router", "train", "evaluations"}


def test_an_argument_that_the_engine_does_not_have_is_named(folder):
    with pytest.raises(UsageError, match="no argument 'brunch'; did you mean 'branch'"):
        open_run_at(folder, brunch="arm")
    with pytest.raises(UsageError, match="no argument 'consolidated'"):
        xr.open_datatree(folder, engine=WorkbenchBackend, consolidated=False)


def test_dask_takes_the_stored_chunks(folder):
    pytest.importorskip("dask")
    stored = find_store(folder).read().root["router/assignments"].chunks
    ds = open_run_at(folder, chunks={})
    assert ds.assignments.data.chunksize == stored
    auto = open_run_at(folder, chunks="auto").assignments.data.chunksize
    assert all(ours % theirs == 0 or ours == size for ours, theirs, size in
               zip(auto, stored, ds.assignments.shape, strict=True))  # fmt: skip
    xr.testing.assert_identical(ds.compute(), open_run_at(folder).load())
    tree = xr.open_datatree(folder, engine=WorkbenchBackend, chunks={})
    assert tree["train/loss"].chunks is not None


def test_two_moments_of_a_running_run_stay_apart_in_one_dask_graph(tmp_path):
    dask = pytest.importorskip("dask")
    store = RunStore.create(tmp_path / "store", LAYOUT)
    seen = []
    with store.writer() as w:
        for first, done in ((1, w.commit), (21, w.sync), (41, w.sync), (61, w.commit)):
            w.append("train", train(first, first + 19))
            done(*(["rows"] if done == w.commit else []))
            seen.append(open_run_at(tmp_path / "store", group="train", chunks={}).tokens_seen)
    assert len({array.data.name for array in seen}) == 4
    ends = dask.compute(*(array[-1] for array in seen))
    assert [int(end) for end in ends] == [2000, 4000, 6000, 8000]


def test_two_lives_after_one_checkpoint_stay_apart_in_one_dask_graph(tmp_path):
    dask = pytest.importorskip("dask")
    store = RunStore.create(tmp_path / "store", LAYOUT)
    seen = []
    with store.writer() as w:
        w.append("train", train(1, 10))
        w.commit("10")
    for scale in (1, -1):
        with store.writer() as w:
            rows = train(11, 15)
            w.append("train", rows | {"loss": scale * rows["loss"]})
            w.seal()
            ds = open_run_at(tmp_path / "store", group="train", chunks={})
            seen.append(ds.loss)
            again = open_run_at(tmp_path / "store", group="train", chunks={})
            assert ds.loss.data.name == again.loss.data.name
            w.commit("15")
            w.tag_checkpoint(15)
        store.repository.reset_branch("main", store._history("main")[1])
    assert (seen[0] - seen[1])[-5:].values.tolist() == (2 * train(11, 15)["loss"]).tolist()
    one, other = dask.compute(*seen)
    assert np.array_equal(one[-5:], -other[-5:])


@pytest.mark.parametrize("chunks", [None, {}])
def test_what_is_not_read_yet_pickles(folder, chunks):
    if chunks is not None:
        pytest.importorskip("dask")
    ds = open_run_at(folder, chunks=chunks)
    packed = pickle.dumps(ds)
    assert len(packed) < 200_000
    xr.testing.assert_identical(pickle.loads(packed).load(), ds.load())


def test_rows_of_the_journal_follow_the_committed_ones(tmp_path):
    store = RunStore.create(tmp_path / "store", LAYOUT)
    with store.writer() as w:
        for group, rows in (("router", router(1, 60)), ("train", train(1, 60))):
            w.append(group, rows)
        w.commit("60")
        for group, rows in (("router", router(61, 85)), ("train", train(61, 85))):
            w.append(group, rows)
        w.sync()
        live = open_run_at(tmp_path / "store")
        committed = open_run_at(tmp_path / "store", tail=False)
        assert live.sizes["step"] == 85 and committed.sizes["step"] == 60  # noqa: PT018
        assert (live.assignments == live.step).all()
        assert live.sizes["sample"] == 9
        assert np.isnan(live.entropy).sum() == 0
        w.commit("85")
    after = open_run_at(tmp_path / "store")
    for name in after.variables:
        assert np.array_equal(after[name], live[name])
        assert after[name].dtype == live[name].dtype


def test_a_variable_of_the_tail_alone_is_missing_before_and_one_that_stopped_after(small_store):
    with small_store.writer() as w:
        w.append("train", train(1, 5))
    steps = np.array([6, 7])
    rows = {
        "step": steps, "loss": np.ones(2, "float32"), "lr": np.ones(1, "float32"),
        "captured_every": np.ones(2, "int32"),
    }  # fmt: skip
    tail = {"train": {"step": rows}}
    snapshot = Snapshot(small_store.repository, small_store.tip("main"), tail)
    ds = open_group(snapshot, "train")
    assert ds.step.values.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert ds.tokens_seen.values.tolist() == [100, 200, 300, 400, 500, -1, -1]
    assert ds.captured_every.values.tolist() == [-1] * 5 + [1, 1]
    assert np.isnan(ds.lr.values).tolist() == [True] * 6 + [False]
    assert ds.lr.attrs["units"] == "1"
    assert rows_after(SimpleNamespace(tail=tail), "train", "step")["lr"].shape == (2,)


ROWS, TAIL = 23, 9


axis_of_rows = st.one_of(
    st.integers(-ROWS - TAIL, ROWS + TAIL - 1),
    st.slices(ROWS + TAIL),
    st.lists(st.integers(0, ROWS + TAIL - 1), max_size=12).map(lambda i: np.array(i, int)),
)
axis_of_layers = st.one_of(st.integers(-3, 2), st.slices(3), st.just(np.array([2, 0])))


@given(rows=axis_of_rows, layers=axis_of_layers, tailed=st.booleans())
@settings(max_examples=80, deadline=None)
def test_any_selection_of_a_live_array_is_that_of_the_whole(rows, layers, tailed):
    whole = np.arange((ROWS + TAIL) * 3).reshape(-1, 3)
    array = zarr.create_array(
        zarr.storage.MemoryStore(), data=whole if not tailed else whole[:ROWS], chunks=(5, 2)
    )
    lazy = StoredArray(array, whole[ROWS:] if tailed else None)
    data = xr.Variable(("row", "layer"), xr.core.indexing.LazilyIndexedArray(lazy))
    plain = xr.Variable(("row", "layer"), whole)
    picked = {"row": rows, "layer": layers}
    assert np.array_equal(data.isel(picked), plain.isel(picked))
    points = xr.Variable("p", np.array([0, ROWS - 1, ROWS, ROWS + TAIL - 1]))
    by_point = {"row": points, "layer": xr.Variable("p", np.array([0, 1, 2, 0]))}
    assert np.array_equal(data.isel(by_point), plain.isel(by_point))
