"""The chain of marks tells of every history what walking all its commits tells."""

from __future__ import annotations

import random

import pytest
import zarr

from workbench.store.history import AFTER, History
from workbench.store.layout import Layout
from workbench.store.names import CheckpointTag
from workbench.store.run_store import RunStore


def walked(store, branch):
    """Checkpoints of a branch, by looking at every commit."""
    tags = store.history.tags(CheckpointTag)
    found = {}
    for snapshot in store.repository.ancestry(branch=branch):
        for mark in tags:
            if mark.snapshot == snapshot.id:
                found.setdefault(mark.step, snapshot.id)
    return dict(sorted(found.items()))


def commit(store, branch, *, note=True):
    """A commit without rows; `note=False` as an older version wrote it."""
    session = store.repository.writable_session(branch)
    root = zarr.open_group(session.store, mode="r+")
    root.attrs["count"] = root.attrs.get("count", 0) + 1
    marked = store.history.last_mark(session.snapshot_id)
    session.commit("more", metadata={AFTER: marked} if note else {})


def tag(store, branch, step):
    mark = CheckpointTag(branch, step, store.tip(branch))
    if str(mark) not in store.repository.list_tags():
        store.repository.create_tag(str(mark), mark.snapshot)


@pytest.mark.parametrize("seed", range(6))
def test_random_histories_have_the_same_checkpoints_both_ways(tmp_path, seed):
    chance = random.Random(seed)
    store = RunStore.create(tmp_path / "store", Layout(layers=(0,), experts=2, k=1))
    steps = {"main": 0}
    for turn in range(60):
        branch = chance.choice(list(steps))
        match chance.choice(["commit"] * 4 + ["tag", "tag", "fork", "rollback"]):
            case "commit":
                steps[branch] += 1
                # Some stores begin under an older version.
                commit(store, branch, note=turn > 25 or seed % 2 == 0)
            case "tag":
                # The same step twice now and then: an evaluation that came late.
                tag(store, branch, steps[branch] // 2)
            case "fork" if len(steps) < 5:
                known = store.checkpoints(branch)
                at = chance.choice([0, *known])
                new = f"arm{len(steps)}"
                store.fork(new, branch, at_step=at)
                steps[new] = at * 2
            case "rollback":
                fork = store.lineage(branch)
                known = [s for s in store.checkpoints(branch) if not fork or s >= fork[1]]
                at = chance.choice(known or [fork[1] if fork else 0])
                store.rollback(branch, at)
                steps[branch] = at * 2
        for name in steps:
            assert store.checkpoints(name) == walked(store, name)
            assert store.history.first(store.tip(name)) == store._history(name)[-2]


def test_two_hundred_commits_between_checkpoints_are_not_looked_at(tmp_path):
    store = RunStore.create(tmp_path / "store", Layout(layers=(0,), experts=2, k=1))
    for step in range(1, 201):
        commit(store, "main")
        if step % 100 == 0:
            tag(store, "main", step)
    commit(store, "main")
    marks = list(store.history.marks(store.tip("main")))
    assert len(marks) == 5
    assert list(store.checkpoints("main")) == [100, 200]


def test_a_branch_without_a_checkpoint_leads_to_its_first_commit_at_once(tmp_path):
    store = RunStore.create(tmp_path / "store", Layout(layers=(0,), experts=2, k=1))
    first = store.tip("main")
    assert store.history.last_mark(first) == first
    for _ in range(20):
        commit(store, "main")
    assert store.history.last_mark(store.tip("main")) == first
    assert len(list(store.history.marks(store.tip("main")))) == 3


def test_two_checkpoints_without_rows_between_them_are_both_found(small_store, rows):
    with small_store.writer() as w:
        w.append("train", rows(1, 2)[1])
        w.commit("two steps")
        w.tag_checkpoint(2)
        w.tag_checkpoint(4)
    tip = small_store.tip("main")
    assert small_store.checkpoints("main") == {2: tip, 4: tip}
    for step in (2, 4):
        assert small_store.fork(f"arm{step}", at_step=step) == tip
        assert small_store.lineage(f"arm{step}") == ("main", step)


def test_the_first_commit_may_be_tagged_after_others_have_followed_it(tmp_path):
    store = RunStore.create(tmp_path / "store", Layout(layers=(0,), experts=2, k=1))
    store.fork("arm", "main", at_step=0)
    commit(store, "main")
    tag(store, "arm", 0)
    assert store.checkpoints("main") == walked(store, "main") == {0: store.tip("arm")}


@pytest.mark.parametrize("lie", ["8CS5FCHSCM3JVS2PHSN0", "../x", "", 7, None, "itself"])
def test_a_note_that_leads_nowhere_is_not_followed(tmp_path, lie):
    store = RunStore.create(tmp_path / "store", Layout(layers=(0,), experts=2, k=1))
    tag(store, "main", 1)
    session = store.repository.writable_session("main")
    zarr.open_group(session.store, mode="r+").attrs["more"] = 1
    lie = session.snapshot_id if lie == "itself" else lie
    session.commit("a lie", metadata={AFTER: lie})
    assert History(store.repository).checkpoints(store.tip("main")) == walked(store, "main")


def test_the_writer_leaves_the_chain_through_checkpoints_forks_and_rollbacks(small_store, rows):
    def record(branch, first, last):
        with small_store.writer(branch) as w:
            for step in range(first, last + 1):
                w.append("train", rows(step, step)[1])
                w.commit("step")
                if step % 5 == 0:
                    w.tag_checkpoint(step)

    record("main", 1, 12)
    small_store.fork("arm", "main", at_step=5)
    record("arm", 6, 17)
    small_store.rollback("main", 10)
    record("main", 11, 16)
    small_store.rollback("arm", 15)
    record("arm", 16, 19)
    for branch in ("main", "arm"):
        assert small_store.checkpoints(branch) == walked(small_store, branch)
        marks = list(small_store.history.marks(small_store.tip(branch)))
        assert set(small_store.checkpoints(branch).values()) < set(marks)
        assert len(marks) < len(small_store._history(branch))
