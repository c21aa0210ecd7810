"""The tree of runs and arms, also where records are missing or contradict each other."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints_index.entry import Entry
from checkpoints_index.lineage import as_plain, as_text, lineage, used_elsewhere


def entry(step, branch="main", run="one", **more):
    fields = {"format": "native", "path": f"/{run}/{branch}/{step}", "utc": float(step)}
    return Entry(run_path=f"/{run}", run=run, branch=branch, step=step, **(fields | more))


def test_arms_hang_below_the_line_that_they_forked_from():
    forest = lineage([
        *(entry(s) for s in (20, 40, 60)), entry(50, "code", parent=("main", 40)),
        entry(60, "code", parent=("code", 50)), entry(55, "deep", parent=("code", 50)),
        entry(30, "early", parent=("main", 20)),
    ])  # fmt: skip
    assert as_text(forest) == [
        "one/main: steps 20 to 60, 3 checkpoints   /one",
        "├─ early: from step 20, steps 30 to 30, 1 checkpoint",
        "└─ code: from step 40, steps 50 to 60, 2 checkpoints",
        "   └─ deep: from step 50, steps 55 to 55, 1 checkpoint",
    ]
    assert not forest.notes
    plain = json.loads(json.dumps(as_plain(forest)))
    assert [(p["branch"], p["parent"], p["fork_step"]) for p in plain] == [
        ("main", None, None), ("early", ["/one", "main"], 20), ("code", ["/one", "main"], 40),
        ("deep", ["/one", "code"], 50),
    ]  # fmt: skip


def test_a_store_knows_forks_that_no_record_tells():
    forest = lineage([entry(20), entry(40)], {("/one", "young"): ("main", 40)})
    assert as_text(forest)[1] == "└─ young: from step 40, no steps known, 0 checkpoints"


def test_what_was_merged_is_told_with_its_sources():
    forest = lineage([entry(20), entry(40, merged_from=(("main", 20), "ab" * 16))])
    assert as_text(forest)[1] == "    step 40 merged from main@20, abababababab"
    assert as_plain(forest)[0]["merged"] == {"40": [("main", 20), "ab" * 16]}


def test_a_run_that_begins_with_the_weights_of_another_hangs_below_it():
    forest = lineage([
        entry(20), entry(40, fingerprint="ab" * 16),
        entry(0, run="two", fingerprint="ab" * 16), entry(10, run="two", fingerprint="cd" * 16),
    ])  # fmt: skip
    assert as_text(forest)[1] == "└─ two/main: from step 40, steps 0 to 10, 2 checkpoints   /two"


def test_runs_that_begin_with_the_same_fresh_weights_share_no_history():
    forest = lineage([entry(0, run=run, fingerprint="ab" * 16) for run in ("one", "two")])
    assert len(forest.roots) == 2


def test_missing_parents_are_told_and_the_rest_stands():
    forest = lineage([
        entry(50, "a", parent=("gone", 40)), entry(60, "b", parent=("a", 45)),
    ])  # fmt: skip
    assert forest.notes == [
        "one/a: forked from 'gone' at step 40, which has no records",
        "one/b: no record of 'a' at step 45, where it forked",
    ]
    assert [line.branch for line in forest.lines()] == ["a", "b"]


def test_circles_are_cut_and_told():
    forest = lineage([
        entry(10, "a", parent=("b", 20)), entry(20, "b", parent=("c", 30)),
        entry(30, "c", parent=("a", 10)), entry(40, "d", parent=("c", 30)),
        entry(5, "self", parent=("self", 4)),
    ])  # fmt: skip
    assert [line.branch for line in forest.lines()] == ["a", "c", "b", "d", "self"]
    (note,) = forest.notes
    assert note == "one/a: parents go round in a circle: a -> b -> c -> a; mend 'parent'"


names = st.sampled_from("abcdef")


@given(st.dictionaries(names, st.none() | st.tuples(names, st.integers(0, 5)), min_size=1))
def test_every_line_is_in_the_tree_once_however_parents_are_told(parents):
    entries = [entry(3, branch, parent=parent) for branch, parent in parents.items()]
    forest = lineage(entries)
    assert sorted(line.branch for line in forest.lines()) == sorted(parents)
    assert len(as_text(forest)) == len(parents) + len(forest.notes)


def test_weights_that_other_runs_need_are_told_by_fingerprint():
    entries = [
        entry(40, fingerprint="ab" * 8), entry(0, run="two", fingerprint="ab" * 8),
        entry(9, run="three", merged_from=("cd" * 8, ("main", 3))),
        entry(50, merged_from=("ef" * 8,)),
    ]  # fmt: skip
    assert used_elsewhere(entries, "/one") == {
        "ab" * 8: "two/main begins with it",
        "cd" * 8: "merged into three/main@9",
    }


@pytest.mark.parametrize("count", [3000])
def test_a_chain_of_thousands_of_arms_is_drawn(count):
    entries = [entry(1, "b0")]
    entries += [entry(i + 1, f"b{i}", parent=(f"b{i - 1}", i)) for i in range(1, count)]
    assert len(lineage(entries).lines()) == count
