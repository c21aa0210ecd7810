"""Branch names, tags and layouts: what may be stored and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import RunExists, RunNotFound, SchemaError, UsageError
from workbench.store.layout import Layout, ProbeTokens, Task
from workbench.store.names import (
    AsideTag,
    CheckpointTag,
    ForkTag,
    check_branch,
    read_tag,
)
from workbench.store.run_store import RunStore

names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,63}", fullmatch=True)
steps = st.integers(0, 10**15)
ids = st.text("0123456789ABCDEFGHJKMNPQRSTVWXYZ", min_size=20, max_size=20)

HOSTILE = ["", "..", "../up", "/abs", "a/b", "a b", "A", "é", "-x", "_x", "a.b", "a\0b", "a\n",
           "x" * 65, "x" * 10_000, "<script>", "main.lock", "1" * 64 + "\n", None, 7]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_branch_name_is_refused_and_nothing_outside_is_touched(small_store, name):
    before = sorted(small_store.path.parent.parent.rglob("*"))
    for act in (
        lambda: check_branch(name),
        lambda: small_store.fork(name, "main", at_step=0),
        lambda: small_store.writer(name),
    ):
        with pytest.raises(UsageError, match="a branch name is") as refused:
            act()
        assert len(str(refused.value)) < 250
    with pytest.raises(RunNotFound):
        small_store.read(name)
    assert sorted(small_store.path.parent.parent.rglob("*")) == before


@given(names)
def test_every_allowed_name_is_a_plain_folder_name(name):
    assert check_branch(name) == name
    assert Path(name).name == name
    assert "." not in name


@given(names, names, steps, ids)
def test_a_tag_says_the_same_after_it_was_written(branch, parent, step, snapshot):
    for tag in (
        CheckpointTag(branch, step, snapshot),
        ForkTag(branch, parent, step, snapshot),
        AsideTag(branch, step, snapshot),
    ):
        assert read_tag(str(tag)) == tag
        assert "/" not in str(tag)
        assert len(str(tag)) < 250


@pytest.mark.parametrize(
    "tag", ["", "v1.0", "at.main", "at.main.x.S", "fork.a.b.c.d", "at.main.-1.S"]
)
def test_somebody_else_s_tags_are_left_alone(tag):
    assert read_tag(tag) is None


def test_the_newest_of_two_fork_tags_counts_when_a_fork_was_cut_short(small_store, rows):
    with small_store.writer("main") as w:
        for step in (1, 2):
            w.append("router", rows(step, step)[0])
            w.commit("one")
            w.tag_checkpoint(step)
    # What a process leaves that died between the tag and the branch.
    first = small_store.checkpoints("main")[1]
    small_store.repository.create_tag(str(ForkTag("arm", "main", 1, first)), first)
    assert "arm" not in small_store.branches
    small_store.fork("arm", "main", at_step=2)
    assert small_store.lineage("arm") == ("main", 2)
    with pytest.raises(RunExists, match="exists already"):
        small_store.fork("arm", "main", at_step=1)


def test_an_arm_cannot_go_back_into_its_parent_s_history(small_store, rows):
    with small_store.writer("main") as w:
        for step in (1, 2):
            w.append("router", rows(step, step)[0])
            w.commit("one")
            w.tag_checkpoint(step)
    small_store.fork("arm", "main", at_step=2)
    with small_store.writer("arm") as w:
        w.append("router", rows(3, 4)[0])
    with pytest.raises(UsageError, match="fork a new branch from 'main'"):
        small_store.rollback("arm", 1)
    assert small_store.rollback("arm", 2).steps == (3, 4)
    assert small_store.read("arm").dataset("router").sizes["step"] == 2


def test_a_checkpoint_is_tagged_after_its_commit_and_before_the_next_step(small_store, rows):
    with small_store.writer("main") as w:
        w.append("router", rows(1, 5)[0])
        with pytest.raises(UsageError, match="5 rows wait; commit first"):
            w.tag_checkpoint(5)
        w.commit("five")
        with pytest.raises(UsageError, match="already holds router up to step 5"):
            w.tag_checkpoint(4)
        assert w.tag_checkpoint(5) == w.tag_checkpoint(5)
    with pytest.raises(UsageError, match="closed"):
        w.commit("late")
    assert list(small_store.checkpoints("main")) == [5]


@pytest.mark.parametrize(
    "wrong",
    [
        {"layers": ()}, {"layers": (1, 0)}, {"layers": (0, 0)}, {"layers": (-1, 0)}, {"k": 0},
        {"k": 5}, {"domains": ("a", "a")}, {"domains": ("",)},
        {"tasks": (Task("code/x", 0, 1), Task("code/x", 0.5, 2))},
    ],
)  # fmt: skip
def test_a_layout_that_cannot_be_is_refused(wrong):
    with pytest.raises(UsageError):
        Layout(**{"layers": (0, 1), "experts": 4, "k": 2, **wrong})


@pytest.mark.parametrize(
    ("name", "chance", "items"),
    [("adding", 0, 1), ("/x", 0, 1), ("code/", 0, 1), ("code/x", 1.1, 1), ("code/x", 0, 0)],
)
def test_a_task_that_cannot_be_is_refused(name, chance, items):
    with pytest.raises(UsageError, match="task"):
        Task(name, chance, items)


def test_a_layout_is_the_same_after_a_trip_through_the_store(tmp_path):
    layout = Layout(
        layers=(1, 5), experts=4, k=2, domains=("a", "é"), tasks=(Task("code/x", 0.25, 3),),
        tokens=ProbeTokens((1, 2), ("a", "é")),
    )  # fmt: skip
    store = RunStore.create(tmp_path / "s", layout, {"seed": 3})
    assert store.read().layout == layout
    assert store.read().attrs == {"seed": 3}


def test_a_store_of_a_later_schema_is_refused_by_version(small_store):
    session = small_store.repository.writable_session("main")
    root = zarr.open_group(session.store, mode="r+")
    root.attrs["workbench"] = {**root.attrs["workbench"], "schema": 99}
    session.commit("from the future")
    with pytest.raises(SchemaError, match=r"schema version 99, this installation reads 1 to"):
        small_store.read("main")
