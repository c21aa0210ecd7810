"""Stores of older schema versions, brought forward by whoever writes them next."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import zarr

from workbench.errors import SchemaError
from workbench.store import migration, schema
from workbench.store.run_store import RunStore
from workbench.store.verification import verify_store

OLD_STORE = Path(__file__).parent / "store_v1.tar.xz"


@pytest.fixture
def old_store(tmp_path):
    """A store as version 1 wrote it: main 1 to 100 with a checkpoint at 100, arm 101 to 130."""
    with tarfile.open(OLD_STORE) as archive:
        archive.extractall(tmp_path, filter="data")
    (refs,) = tmp_path.rglob("refs")
    return RunStore.open(refs.parent)


@pytest.fixture
def chain(monkeypatch):
    """A chain of versions 1 to 3 whose steps leave a mark; returns the calls made."""
    calls = []

    def step(version):
        def change(root: zarr.Group) -> str:
            calls.append(version)
            root.attrs[f"from {version}"] = sorted(root.group_keys())
            return f"{version} to {version + 1}: marked"

        return change

    monkeypatch.setattr(migration, "MIGRATIONS", {1: step(1), 2: step(2)})
    monkeypatch.setattr(schema, "VERSION", 3)
    monkeypatch.setattr("workbench.store.snapshot.VERSION", 3)
    return calls


def writable(store, branch="main"):
    session = store.repository.writable_session(branch)
    return session, zarr.open_group(session.store, mode="r+", zarr_format=3)


def test_a_store_of_version_1_is_read_as_it_is(old_store):
    assert old_store.read("main").note["schema"] == 1
    assert old_store.read("main").dataset("router").sizes["step"] == 100
    assert old_store.read("arm").dataset("train").step[-1] == 130


def test_every_version_before_this_one_has_a_step_of_the_chain():
    assert sorted(migration.MIGRATIONS) == list(range(1, max(schema.VERSION, 2)))


def test_the_chain_runs_in_order_and_is_one_commit_of_the_branch(old_store, chain):
    before = len(old_store._history("main"))
    session, root = writable(old_store)
    assert migration.migrate(root) == ["1 to 2: marked", "2 to 3: marked"]
    assert chain == [1, 2]
    session.commit("migrated")
    after = old_store.read("main")
    assert len(old_store._history("main")) == before + 1
    assert after.note["schema"] == 3
    assert "router" in after.root.attrs["from 1"]


def test_layout_and_attributes_of_the_run_are_kept(old_store, chain):
    before = old_store.read("main").note
    session, root = writable(old_store)
    migration.migrate(root)
    session.commit("migrated")
    assert old_store.read("main").note == {**before, "schema": 3}
    assert old_store.read("main").layout == old_store.read("arm").layout


def test_a_migration_is_not_repeated(old_store, chain):
    session, root = writable(old_store)
    migration.migrate(root)
    session.commit("migrated")
    session, root = writable(old_store)
    assert migration.migrate(root) == []
    assert not session.has_uncommitted_changes
    assert chain == [1, 2]


def test_other_branches_and_old_checkpoints_stay_as_they_were(old_store, chain):
    session, root = writable(old_store)
    migration.migrate(root)
    session.commit("migrated")
    assert old_store.read("arm").note["schema"] == 1
    saved = old_store.checkpoints("main")[100]
    assert saved != old_store.tip("main")
    session, root = writable(old_store, "arm")
    assert len(migration.migrate(root)) == 2


def test_a_step_that_fails_leaves_the_store_as_it_was(old_store, chain, monkeypatch):
    def fails(root: zarr.Group) -> str:
        root.attrs["half"] = True
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(migration.MIGRATIONS, 2, fails)
    tip = old_store.tip("main")
    session, root = writable(old_store)
    with pytest.raises(OSError, match="No space"):
        migration.migrate(root)
    session.discard_changes()
    assert old_store.tip("main") == tip
    snapshot = old_store.read("main")
    assert snapshot.note["schema"] == 1
    assert "half" not in snapshot.root.attrs
    assert np.array_equal(snapshot.labels("train", "step"), np.arange(1, 101))


@pytest.mark.parametrize("said", [0, 4, "1", None, True])
def test_a_version_that_no_chain_leads_from_is_refused(chain, said):
    root = zarr.create_group({}, zarr_format=3)
    root.attrs["workbench"] = {"schema": said}
    with pytest.raises(SchemaError, match=r"written with schema version .* writes 3; install"):
        migration.migrate(root)
    assert not chain


def test_a_gap_in_the_chain_is_told_and_changes_nothing(chain, monkeypatch):
    monkeypatch.delitem(migration.MIGRATIONS, 2)
    root = zarr.create_group({}, zarr_format=3)
    root.attrs["workbench"] = {"schema": 2}
    with pytest.raises(SchemaError, match="from schema version 2 to 3"):
        migration.migrate(root)
    assert root.attrs["workbench"] == {"schema": 2}


def old_rows(first, last):
    steps = np.arange(first, last + 1)
    return {"step": steps, "tokens_seen": 10**9 + steps, "loss": np.full(len(steps), 2, "float32")}


def test_a_writers_first_commit_migrates_and_the_next_does_not(old_store):
    before = old_store._history("main")
    with old_store.writer("main") as w:
        last = w.last("train")
        w.append("train", old_rows(last + 1, last + 1) | extra_columns(old_store, 1))
        w.commit("one step more")
        assert len(old_store._history("main")) == len(before) + 1
        w.append("train", old_rows(last + 2, last + 2) | extra_columns(old_store, 1))
        w.commit("and another")
    now = old_store.read("main")
    assert now.note["schema"] == schema.VERSION
    assert now.labels("train", "step")[-1] == last + 2
    assert old_store.read("arm").note["schema"] == 1
    assert verify_store(old_store).sound, str(verify_store(old_store))


def extra_columns(store, count):
    """Whatever else the old rows of train have: its last rows again."""
    train = store.read("main").root["train"]
    own = {"step", "tokens_seen", "loss"}
    return {
        name: np.repeat(np.asarray(array[-1:]), count)
        for name, array in train.arrays()
        if name not in own
    }


def test_rows_of_before_get_their_overviews(small_store):
    with small_store.writer("main") as w:
        w.append("train", old_rows(1, 1100))
    session, root = writable(small_store)
    del root["overviews"]
    root.attrs["workbench"] = dict(root.attrs["workbench"]) | {"schema": 1}
    session.commit("as version 1 would have left it")
    with small_store.writer("main") as w:
        w.append("train", old_rows(1101, 1101))
    snapshot = small_store.read("main")
    assert snapshot.note["schema"] == schema.VERSION
    assert snapshot.root["overviews/train/32/loss"].shape[0] == 32
    report = verify_store(small_store)
    assert report.sound, str(report)
    assert report.checked["overview blocks"] == 4


def test_a_migration_that_fails_in_a_commit_leaves_the_store_and_the_rows_wait(
    old_store, monkeypatch
):
    def fails(root):
        root.attrs["half"] = True
        raise OSError(28, "No space left on device")

    tip = old_store.tip("main")
    with old_store.writer("main") as w:
        w.append("train", old_rows(101, 101) | extra_columns(old_store, 1))
        with monkeypatch.context() as full:
            full.setattr(migration, "MIGRATIONS", {1: fails})
            with pytest.raises(OSError, match="No space"):
                w.commit("on a full disk")
        assert old_store.tip("main") == tip
        w.commit("with room again")
        assert w.waiting == 0
    now = old_store.read("main")
    assert "half" not in now.root.attrs
    assert now.note["schema"] == schema.VERSION
    assert now.labels("train", "step")[-1] == 101
