"""Space that nothing reaches is given back; nothing that can be read, or is being written, goes."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
import zarr

from workbench.errors import StoreBusy, UsageError
from workbench.store.run_store import RunStore
from workbench.store.space import collect, set_aside_tags, survey

NOW = timedelta(0)


def write(store, rows, first, last, branch="main", tag=False):
    with store.writer(branch) as w:
        for group, values in zip(("router", "train"), rows(first, last), strict=True):
            w.append(group, values)
        w.commit("rows")
        if tag:
            w.tag_checkpoint(last)


@pytest.fixture
def worn_store(small_store, rows):
    """Main 1 to 90, rolled back to 60 and gone on to 70; an arm from 30: last chunks refilled."""
    for first in (1, 31, 61):
        write(small_store, rows, first, first + 29, tag=True)
    small_store.fork("arm", "main", at_step=30)
    write(small_store, rows, 31, 40, branch="arm")
    small_store.rollback("main", 60)
    write(small_store, rows, 61, 70)
    return small_store


def everything(store):
    states = {name: store.read(name) for name in store.branches}
    states |= {tag: store.read_tag(tag) for tag in store.repository.list_tags()}
    return {
        (name, group, variable): np.asarray(array[:]).tolist()
        for name, snapshot in states.items()
        for group in snapshot.groups
        for variable, array in snapshot.root[group].arrays()
    }


def leave_garbage(store):
    """What a kill between chunks and commit leaves."""
    session = store.repository.writable_session("main")
    root = zarr.open_group(session.store, mode="r+", zarr_format=3)
    # Large and random: a small chunk would lie in its list.
    values = np.random.default_rng(0).random(4096)
    root.create_array("train/lost", shape=values.shape, dtype="f8")[:] = values


def files(store):
    return {p for p in store.path.rglob("*") if p.is_file() and "locks" not in p.parts}


def test_the_survey_touches_nothing_and_says_what_collecting_then_removes(worn_store):
    leave_garbage(worn_store)
    before = files(worn_store)
    said = survey(worn_store, older_than=NOW)
    assert files(worn_store) == before
    assert said.chunks == 1
    assert said.bytes > 20_000
    done = collect(worn_store, older_than=NOW)
    assert done.applied
    assert (done.bytes, done.chunks) == (said.bytes, said.chunks)
    assert survey(worn_store, older_than=NOW).objects == 0


def test_everything_that_can_be_read_is_there_afterwards(worn_store):
    before = everything(worn_store)
    leave_garbage(worn_store)
    collect(worn_store, older_than=NOW)
    assert everything(RunStore.open(worn_store.path)) == before
    assert worn_store.rollback("main", 30) is not None


def test_a_reader_that_was_open_reads_on(worn_store, rows):
    reader = worn_store.read("main")
    lazy = reader.dataset("router")
    write(worn_store, rows, 71, 75)
    collect(worn_store, older_than=NOW)
    assert (lazy.assignments == lazy.step).all()
    assert lazy.sizes["step"] == 70


def test_younger_objects_stay(worn_store):
    leave_garbage(worn_store)
    assert survey(worn_store).objects == 0
    assert collect(worn_store).objects == 0


def test_a_writer_in_another_process_is_named_and_keeps_its_uncommitted_rows(worn_store, start):
    writer = start("""
with store.writer("arm") as w:
    router, train = rows(41, 50)
    w.append("router", router)
    w.append("train", train)
    print("appended", flush=True)
    sys.stdin.read(1)
    w.commit("ten")
""")
    assert writer.stdout.readline() == "appended\n"
    before = files(worn_store)
    with pytest.raises(StoreBusy, match=rf"'arm' .* process {writer.pid} on host"):
        collect(worn_store, older_than=NOW)
    assert files(worn_store) == before
    writer.communicate("x")
    assert writer.returncode == 0
    collect(worn_store, older_than=NOW)
    assert worn_store.read("arm").labels("train", "step")[-1] == 50


def test_without_the_locks_uncommitted_chunks_would_go(small_store, start):
    """Why collecting refuses: the same removal, done behind the locks, breaks the commit."""
    writer = start("""
import zarr
session = store.repository.writable_session("main")
values = np.random.default_rng(0).random(4096)
root = zarr.open_group(session.store, mode="r+", zarr_format=3)
root.create_array("train/late", shape=values.shape, dtype="f8")[:] = values
print("written", flush=True)
sys.stdin.read(1)
session.commit("too late")
""")
    assert writer.stdout.readline() == "written\n"
    assert survey(small_store, older_than=NOW).chunks == 1
    from datetime import UTC, datetime

    small_store.repository.garbage_collect(datetime.now(UTC))
    writer.communicate("x")
    snapshot = RunStore.open(small_store.path).read("main")
    with pytest.raises(Exception, match="not found"):
        snapshot.root["train/late"][:]


def test_after_a_refusal_no_lock_is_left(worn_store):
    with worn_store.writer("main"), pytest.raises(StoreBusy):
        collect(worn_store, older_than=NOW)
    worn_store.writer("arm").close()
    worn_store.writer("main").close()
    collect(worn_store, older_than=NOW)


def test_what_was_set_aside_stays_until_it_is_asked_for(worn_store):
    assert collect(worn_store, older_than=NOW).tags == ()
    aside = set_aside_tags(worn_store)
    assert [tag.split(".")[0] for tag in aside] == ["aside", "at"]
    said = survey(worn_store, older_than=NOW, set_aside=True)
    assert said.tags == aside
    assert said.snapshots == 1
    assert worn_store.read_tag(aside[0]).labels("train", "step")[-1] == 90
    done = collect(worn_store, older_than=NOW, set_aside=True)
    assert (done.bytes, done.tags) == (said.bytes, aside)
    assert set_aside_tags(worn_store) == ()
    assert worn_store.read("main").labels("train", "step")[-1] == 70
    assert sorted(worn_store.checkpoints("main")) == [30, 60]


def test_weights_of_what_was_set_aside_keep_it(worn_store):
    with pytest.raises(UsageError, match=r"'main' at step 90 .* prune"):
        collect(worn_store, older_than=NOW, set_aside=True, weights={"main": [30, 60, 90]})
    assert len(set_aside_tags(worn_store)) == 2
    collect(worn_store, older_than=NOW, set_aside=True, weights={"main": [30, 60], "gone": [90]})


def test_a_fork_of_what_was_set_aside_keeps_it(small_store, rows):
    for first in (1, 31):
        write(small_store, rows, first, first + 29, tag=True)
    small_store.fork("arm", "main", at_step=60)
    small_store.rollback("main", 30)
    assert set_aside_tags(small_store) == ()
    collect(small_store, older_than=NOW, set_aside=True)
    assert small_store.read("arm").labels("train", "step")[-1] == 60


def test_a_negative_age_is_refused(small_store):
    with pytest.raises(UsageError, match="0 or more"):
        survey(small_store, older_than=timedelta(hours=-1))
