"""Verification finds every planted fault, says where it is, and finds none in a store without."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from whole_store import LAYERS, ROUTER, STEPS, make, plain

from workbench.errors import RunNotFound
from workbench.store.layout import Layout
from workbench.store.run_store import RunStore
from workbench.store.snapshot import ROOT
from workbench.store.verification import verify_store
from workbench.store.verification.chunk_reader import ChunkReader


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("made") / "store").path


@pytest.fixture
def store(made, tmp_path):
    import shutil

    shutil.copytree(made, tmp_path / "store")
    return RunStore.open(tmp_path / "store")


def change(store, path, place, value, branch="main"):
    """Writes over what is there, checksum and all, as no writer of ours would."""
    session = store.repository.writable_session(branch)
    array = zarr.open_group(session.store, mode="r+", zarr_format=3)[path]
    values = np.array(array[:])
    values[place] = value
    array[:] = values
    session.commit("changed behind the writer's back")


def faults(store, **how):
    return verify_store(RunStore.open(store.path), **how).faults


def test_a_store_without_fault_has_none_and_the_report_says_what_was_read(store):
    report = verify_store(store)
    assert report.sound, str(report)
    assert report.checked["branches"] == 2
    assert report.checked["tags"] == 6
    assert report.checked["chunks"] > 100
    assert str(report).endswith("no fault")
    assert verify_store(store, deep=True).sound


PLANTED = [
    ("router/assignments", (70, 1, 3), 10_000, "step 71 (row 70), layer 1", "tokens x k"),
    ("router/assignments", (70, 1), -1, "step 71 (row 70), layer 1", "0 or more"),
    ("router/assignments", 70, -1, "step 71 (row 70)", "wherever `tokens` were counted"),
    ("router/tokens", 70, 65, "step 71 (row 70), layer 0", "tokens x k"),
    ("router/domain_assignments", (9, 0, 2, 1), 60, "step 10 (row 9), layer 0, expert 1",
     "over domains"),
    ("router/gate_mass", (5, 1, 7), -2.5, "step 6 (row 5), layer 1, expert 7", "0 or more"),
    ("router/entropy", (119, 0), 2.2, "step 120 (row 119), layer 0", "0 to ln E, 2.0794"),
    ("router/entropy", (0, 0), -0.1, "step 1 (row 0), layer 0", "0 to ln E"),
    ("router/near_tie", (3, 1), 1.2, "step 4 (row 3), layer 1", "a share"),
    ("router/step", 60, 500, "step", "labels that ascend"),
    ("router/sample", 3, 29, "sample 29 (row 3)", "labels that ascend"),
    ("router/coactivation", (2, 1, 0, 5), 63, "sample 30 (row 2), layer 1", "symmetric"),
    ("router/coactivation", (2, 1, 4, 4), 63, "sample 30 (row 2), layer 1, expert", "diagonal"),
    ("router/entropy_histogram", (1, 0, 0), 64, "sample 20 (row 1), layer 0", "over bins"),
    ("train/tokens_seen", 33, 1, "step 34 (row 33)", "do not decrease"),
    ("train/tokens_seen", slice(33, None), 64 * np.arange(34, 121) + 5, "step 34 (row 33)",
     "router's `tokens`"),
    ("traces/expert_ids", (50, 1, 0), 8, "step 51 (row 50), layer 1, k 0", "below 8"),
    ("traces/expert_ids", (50, 1, 0), -2, "step 51 (row 50), layer 1, k 0", "-1, or"),
    ("traces/domain", 3, 9, "step 4 (row 3)", "a place among the 4 domains"),
    ("evaluations/correct", (1, 0, 2), 3, "checkpoint 80 (row 1), task 0", "-1, 0 or 1"),
    ("evaluations/correct", (1, 1, 8), 1, "checkpoint 80 (row 1), task 1", "beyond the items"),
    ("evaluations/logprob", (2, 1, 9), -1.0, "checkpoint 120 (row 2), task 1", "NaN beyond"),
    ("evaluations/tokens_seen", 1, 0, "checkpoint 80 (row 1)", "do not descend"),
    ("activations/expert_ids", (1, 5, 0, 0), 99, "row 1", "below 8"),
    ("activations/router_probs", (1, 5, 0, 0), 1.5, "row 1", "probabilities"),
    ("activations/checkpoint", 1, 7, "row 1", "labels that ascend"),
    ("interiors/offsets", (1, 0, 3), 99, "row 1", "without a gap"),
    ("interiors/token", 7, 16, "row 7", "16 probe tokens"),
]  # fmt: skip
"""Array, place, number planted there; where it is told, and what is told to be expected."""


@pytest.mark.parametrize("batch", range(4))
def test_a_number_that_contradicts_another_is_found_and_located(store, batch):
    # Every fourth: faults of one rule are told together, and would hide each other's places.
    planted = PLANTED[batch::4]
    for path, place, value, _, _ in planted:
        change(store, path, place, value)
    found = faults(store, branch="main")
    assert {fault.kind for fault in found} == {"values"}
    for path, _, _, where, told in planted:
        group, _, name = path.rpartition("/")
        mine = [f for f in found if told in f.expected and f.group == group]
        mine = [f for f in mine if f.variable == name or name == "tokens"]
        assert mine, f"{path}: {told} not among\n" + "\n".join(map(str, found))
        assert any(f.place.startswith(where) for f in mine), "\n".join(map(str, mine))


def test_a_router_that_drops_may_send_a_token_to_fewer_experts_never_to_more(tmp_path):
    rows = {"step": np.arange(1, 4), "tokens": np.full(3, 10)}
    for drops, sums in ((True, 12), (None, 12), (False, 12), (True, 24)):
        path = tmp_path / f"{drops}-{sums}"
        layout = Layout(layers=(0,), experts=4, k=2)
        store = RunStore.create(path, layout, {} if drops is None else {"drops": drops})
        with store.writer("main") as w:
            w.append("router", rows | {"assignments": np.full((3, 1, 4), sums // 4)})
        assert verify_store(store).sound == (drops is not False and sums <= 20)


def test_a_diverged_model_is_a_true_record(store):
    for name in ("entropy", "gate_mass", "prob_mass", "topk_mass", "z_squared"):
        change(store, f"router/{name}", slice(80, None), np.nan)
    change(store, "train/loss", slice(80, None), np.nan)
    assert not faults(store)


def test_a_fault_that_many_rows_show_is_told_once_with_its_first_place(store):
    change(store, "router/near_tie", (slice(30, 90), 0), 3.0)
    (fault,) = [f for f in faults(store) if f.branch == "main"]
    assert fault.times == 60
    assert "step 31" in str(fault)
    assert "and 59 more like it" in str(fault)


# Damaged files


def chunk_files(store):
    return sorted((store.path / "chunks").iterdir(), key=lambda p: -p.stat().st_size)


@pytest.mark.parametrize("harm", ["flipped", "cut short", "emptied", "gone"])
def test_a_damaged_chunk_is_told_with_its_variable_rows_and_file(store, harm):
    file = chunk_files(store)[0]
    held = bytearray(file.read_bytes())
    if harm == "gone":
        file.unlink()
    else:
        held[len(held) // 2] ^= 16
        file.write_bytes({"flipped": held, "cut short": held[:-7], "emptied": b""}[harm])
    found = [f for f in faults(store) if f.kind == "chunk"]
    assert found
    for fault in found:
        assert fault.files == (f"chunks/{file.name}",)
        assert fault.place.startswith("chunk (")
        assert "rows" in fault.place
        assert fault.variable
        assert "restore" in fault.remedy


def test_only_the_damaged_chunk_is_told_and_not_its_neighbours(store):
    for file in chunk_files(store)[:2]:
        held = bytearray(file.read_bytes())
        held[9] ^= 1
        file.write_bytes(held)
    places = [(f.branch, f.group, f.variable, f.place) for f in faults(store, branch="main")]
    assert len(set(places)) == len(places) <= 3


def test_a_branch_that_points_nowhere_and_a_tag_that_does_are_told(store):
    refs = {ref.name: ref / "ref.json" for ref in (store.path / "refs").iterdir()}
    refs["branch.arm"].write_text('{"snapshot":"00000000000000000000"}')
    tag = next(name for name in refs if name.startswith("tag.at.main.000000000040"))
    refs[tag].write_bytes(b"")
    found = {(f.kind, f.branch) for f in faults(store)}
    assert found == {("branch", "arm"), ("tag", tag.removeprefix("tag."))}


def test_a_tag_that_was_moved_is_told(store):
    main = store.tip("main")
    tag = "at.main.000000000041.00000000000000000000"
    store.repository.create_tag(tag, main)
    (fault,) = faults(store)
    assert (fault.kind, fault.branch, fault.found) == ("tag", tag, f"snapshot {main}")


# Descriptions


@pytest.mark.parametrize(
    ("path", "attrs", "told"),
    [("router/entropy", {"units": "bits"}, "'nats'"), ("train/loss", {"units": "1"}, "nats/token")],
)
def test_a_unit_that_is_not_the_schemas_is_told(store, path, attrs, told):
    session = store.repository.writable_session("main")
    zarr.open_group(session.store, mode="r+")[path].attrs.update(attrs)
    session.commit("another unit")
    found = [f for f in faults(store) if f.branch == "main"]
    assert {(f.kind, f"{f.group}/{f.variable}") for f in found} == {("schema", path)}
    assert told in found[-1].expected
    assert found[0].expected.endswith("as one commit earlier")


def test_an_array_that_the_commit_before_had_is_missed(store):
    session = store.repository.writable_session("main")
    root = zarr.open_group(session.store, mode="r+")
    del root["activations/expert"]
    session.commit("one array less")
    (fault,) = faults(store, branch="main")
    assert (fault.group, fault.variable, fault.found) == ("activations", "expert", "no such array")


def test_arrays_of_unequal_length_foreign_ones_and_those_without_checksum_are_told(store):
    session = store.repository.writable_session("main")
    root = zarr.open_group(session.store, mode="r+")
    root["router/margin"].resize((119, LAYERS))
    root["train"].create_array("mine", shape=(3,), dtype="f4", dimension_names=("step",))
    del root["router/entropy"]
    root["router"].create_array(
        "entropy", shape=(STEPS, LAYERS), chunks=(50, 2), dtype="f8", fill_value=np.nan,
        dimension_names=("step", "layer"), attributes={"units": "nats"},
    )  # fmt: skip
    session.commit("by hand")
    told = {(f.variable, f.expected) for f in faults(store, branch="main") if f.kind == "schema"}
    assert ("margin", "120, as its group has") in told
    assert ("mine", "a variable of 'train', which knows none of that name") in told
    assert {("entropy", "float32"), ("entropy", "CRC-32C as the last codec")} <= told


def test_labels_and_attributes_that_are_not_the_layouts_are_told(store):
    change(store, "router/layer", 1, 5)
    session = store.repository.writable_session("arm")
    root = zarr.open_group(session.store, mode="r+")
    note = dict(root.attrs["workbench"])
    note["layout"] = note["layout"] | {"k": 3}
    root.attrs["workbench"] = note
    session.commit("another k")
    found = faults(store)
    assert any(f.variable == "layer" and f.found == "label 1 is [5]" for f in found)
    assert any(f.found == "layout, k = 3" and f.branch == "arm" for f in found)


def test_a_chunk_that_is_missing_from_the_list_is_told(store):
    """Zarr would read it as fill values, without a word."""
    session = store.repository.writable_session("main")
    session.store.delete_sync = None
    import asyncio

    asyncio.run(session.store.delete("router/assignments/c/1/0/0"))
    session.commit("a chunk less")
    found = [f for f in faults(store, branch="main") if f.kind == "missing"]
    assert [(f.group, f.variable) for f in found] == [("router", "assignments")]
    assert "no chunk (1, 0, 0)" in found[0].found


# Journals


def test_a_journal_that_a_kill_cut_short_is_sound_and_a_damaged_one_is_told(store):
    w = store.writer("main")
    router = plain(ROUTER, "step", slice(1, 4))
    for first in (121, 125):
        w.append("router", router | {"step": np.arange(first, first + 4)})
        w.sync()
    w._journal.close()
    w.close()
    (file,) = (store.path / "journal").glob("*.log")
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    assert not faults(store)
    last = whole.rindex(b"WBJ1")
    # In the first frame's rows; in the length of the last one, which then seems to be cut short.
    for at, bytes_lost in ((40, last), (last + 7, len(whole) - last)):
        held = bytearray(whole)
        held[at] ^= 1
        file.write_bytes(held)
        (fault,) = faults(store)
        assert fault.kind == "journal"
        assert fault.files == (f"journal/{file.name}",)
        assert fault.found.startswith(f"{bytes_lost} bytes ")


# How much is read


def test_what_a_fork_shares_is_read_once(store, monkeypatch):
    read = []
    real = ChunkReader._read

    def counted(self, array, region):
        read.append((self.branch, array.path, region[0].start))
        return real(self, array, region)

    monkeypatch.setattr(ChunkReader, "_read", counted)
    verify_store(store)
    wide = [(branch, row) for branch, path, row in read if path == "router/assignments"]
    rows = {name: min(row for branch, row in wide if branch == name) for name, _ in wide}
    aside = next(name for name in rows if name.startswith("aside"))
    # Chunks of 250 rows: one of this length, refilled in each state.
    assert rows["main"] == 0
    assert set(rows) == {"main", "arm", aside}
    labels = [branch for branch, path, _ in read if path == "router/layer"]
    assert len(labels) == 3


def test_one_branch_alone_is_verified_where_it_is_asked_for(store):
    change(store, "router/near_tie", (3, 1), 1.2, branch="main")
    assert not faults(store, branch="arm")
    with pytest.raises(RunNotFound, match="no branch 'amr'"):
        verify_store(store, branch="amr")


def test_verifying_changes_no_file(store):
    before = {p: p.read_bytes() for p in store.path.rglob("*") if p.is_file()}
    verify_store(store, deep=True)
    assert {p: p.read_bytes() for p in store.path.rglob("*") if p.is_file()} == before


# Overviews


@pytest.fixture
def long_store(tmp_path):
    """9,000 steps of train: overviews of two levels."""
    store = RunStore.create(tmp_path / "long", Layout(layers=(0,), experts=4, k=2))
    steps = np.arange(1, 9001)
    loss = np.random.default_rng(0).normal(size=9000).astype("float32")
    loss[5:40] = np.nan
    with store.writer("main") as w:
        w.append("train", {"step": steps, "tokens_seen": steps, "loss": loss})
    return store


@pytest.mark.parametrize(
    ("path", "place", "where"),
    [
        ("overviews/train/32/loss", (31, 0), "bin 31, mean"),
        ("overviews/train/32/loss", (255, 2), "bin 255, max"),
        ("overviews/train/256/loss", (0, 3), "bin 0, valid"),
        ("overviews/train/32/tokens_seen", (0, 1), "bin 0, min"),
        ("overviews/train/256/last_step", 31, "bin 31"),
    ],
)
def test_an_overview_that_is_not_its_rows_is_told(long_store, path, place, where):
    assert verify_store(long_store, deep=True).sound
    change(long_store, path, place, 12)
    told = [f for f in faults(long_store) if f"{f.group}/{f.variable}" == path]
    assert [(f.kind, f.place) for f in told] == [("overview", where)]


def test_all_overviews_are_held_against_their_rows_where_that_is_asked(long_store):
    change(long_store, "overviews/train/32/loss", (80, 0), 12)
    assert not [f for f in faults(long_store) if f.place == "bin 80, mean"]
    assert [f for f in faults(long_store, deep=True) if f.place == "bin 80, mean"]


def test_a_name_that_nobody_writes_is_found_even_of_what_is_empty(store):
    session = store.repository.writable_session("main")
    root = zarr.open_group(session.store, mode="r+", zarr_format=3)
    note = dict(root.attrs[ROOT])
    layout = dict(note["layout"])
    layout["tas]s"] = layout.pop("tasks")
    root.attrs[ROOT] = note | {"layout": layout}
    session.commit("changed behind the writer's back")
    [fault] = [fault for fault in faults(store) if "tas]s" in fault.found]
    assert "tasks" in fault.expected
