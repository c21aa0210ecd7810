"""The index: records are the truth, the catalogue a copy that always follows them."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import checkpoints_index
from checkpoints_index.errors import CheckpointNotFound, RecordError
from checkpoints_index.index import CATALOGUE, CheckpointIndex
from checkpoints_index.record import CheckpointRecord


def record(step, branch="main", **more):
    fields = {"run": "demo", "tokens_seen": step * 64, "utc": 1.75e9 + step, "format": "native",
              "uri": f"checkpoints/{branch}/step-{step:08d}", "size_bytes": 1}  # fmt: skip
    return CheckpointRecord(branch=branch, step=step, **(fields | more))


@pytest.fixture
def index(tmp_path):
    """A trunk to 100, an arm from 60, and an arm of that arm from 70."""
    index = CheckpointIndex(tmp_path)
    for step in range(20, 101, 20):
        index.add(record(step, phase="stable" if step < 80 else "final"))
    for step in (70, 80, 90):
        index.add(record(step, "code", parent=("main", 60) if step == 70 else ("code", step - 10)))
    index.add(record(75, "deep", parent=("code", 70), complete=False))
    return index


def steps(records):
    return [(r.branch, r.step) for r in records]


def test_filters_are_answered_together_and_in_order(index):
    assert len(index.list()) == 9
    assert steps(index.list(branch="main", after=40, until=80)) == [("main", 60), ("main", 80)]
    assert steps(index.list(phase="final")) == [("main", 80), ("main", 100)]
    assert steps(index.list(complete=False)) == [("deep", 75)]
    assert index.list(branch="nobody") == []
    assert index.branches == ["code", "deep", "main"]


def test_lineage_runs_through_the_forks_to_the_root(index):
    assert steps(index.lineage("main")) == [("main", s) for s in (20, 40, 60, 80, 100)]
    assert steps(index.lineage("deep")) == [
        ("main", 20), ("main", 40), ("main", 60), ("code", 70), ("deep", 75),
    ]  # fmt: skip


def test_lineage_of_an_arm_without_checkpoints_comes_from_the_store_s_forks(index):
    forks = {"young": ("code", 80)}
    assert steps(index.lineage("young", forks))[-2:] == [("code", 70), ("code", 80)]


def test_branches_that_are_each_other_s_parents_are_refused(tmp_path):
    index = CheckpointIndex(tmp_path)
    index.add(record(10, "a", parent=("b", 20)))
    index.add(record(20, "b", parent=("a", 10)))
    with pytest.raises(RecordError, match="each other's parents"):
        index.lineage("a")


def test_adding_the_same_twice_is_once_and_another_in_its_place_needs_a_word(index):
    again = record(20, phase="stable")
    assert index.add(again) == index.record_file("main", 20)
    with pytest.raises(RecordError, match="replace=True"):
        index.add(replace(again, lr=0.5))
    index.add(replace(again, lr=0.5), replace=True)
    assert index.get("main", 20).lr == 0.5
    assert index.list(branch="main")[0].lr == 0.5
    assert len(index.list()) == 9


@pytest.mark.parametrize(
    "harm",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"not a database" * 400),
        lambda file: file.write_bytes(file.read_bytes()[:5000]),
        lambda file: file.write_bytes(b"".join([file.read_bytes()[:4096], bytes(4096)])),
    ],
    ids=["deleted", "emptied", "overwritten", "cut", "zeroed"],
)
def test_the_catalogue_is_made_again_from_the_records_whatever_happened_to_it(index, harm):
    before = index.list()
    harm(index.folder / CATALOGUE)
    assert index.list() == before
    assert index.rebuild() == 9


def test_a_catalogue_of_another_version_is_thrown_away(index):
    before = index.list()
    with sqlite3.connect(index.folder / CATALOGUE) as table:
        table.execute("drop table checkpoint")
        table.execute("create table checkpoint (colour text)")
        table.execute("pragma user_version = 99")
    table.close()
    assert index.list() == before


def test_records_that_appear_change_or_go_are_followed_without_being_told(index):
    other = CheckpointIndex(index.run_path)
    assert len(other.list()) == 9
    file = index.record_file("main", 100)
    file.write_text(replace(record(100), lr=0.25).to_json())
    index.record_file("main", 20).unlink()
    index.add(record(120))
    assert other.list(branch="main", after=80)[0].lr == 0.25
    assert [r.step for r in other.list(branch="main")] == [40, 60, 80, 100, 120]


def test_a_run_that_cannot_be_written_is_read_all_the_same(index, monkeypatch):
    before = index.list()
    (index.folder / CATALOGUE).unlink()
    real = sqlite3.connect

    def refuse(where, **options):
        if where != ":memory:":
            raise sqlite3.OperationalError("unable to open database file")
        return real(where, **options)

    monkeypatch.setattr(sqlite3, "connect", refuse)
    assert index.list() == before
    assert not (index.folder / CATALOGUE).exists()


def test_a_record_that_cannot_be_read_is_named_and_not_passed_over(index):
    file = index.record_file("main", 40)
    file.write_text(file.read_text()[:50])
    with pytest.raises(RecordError, match=r"step-00000040\.json: .*Mend or remove the file"):
        CheckpointIndex(index.run_path).list()


def test_a_record_in_another_one_s_place_is_refused(index):
    file = index.record_file("main", 40)
    said = json.loads(file.read_text()) | {"step": 60}
    file.write_text(json.dumps(said))
    with pytest.raises(RecordError, match=r"says branch 'main', step 60; move it"):
        index.list()


def test_files_that_a_dead_writer_left_are_no_records(index):
    (index.folder / "main" / ".partial-abc").write_text("{")
    (index.folder / "main" / "notes.txt").write_text("mine")
    assert len(index.list()) == 9


def test_a_missing_checkpoint_is_answered_with_the_steps_near_it(index):
    with pytest.raises(CheckpointNotFound, match="near it: 20, 40, 60, 80, 100"):
        index.get("main", 61)
    with pytest.raises(CheckpointNotFound, match="the branch has none"):
        index.get("nobody", 61)
    with pytest.raises(RecordError, match="not a branch name"):
        index.get("../../etc", 61)


def test_asking_a_run_without_an_index_writes_nothing(tmp_path):
    assert CheckpointIndex(tmp_path).list() == []
    assert list(tmp_path.iterdir()) == []


def test_processes_that_ask_and_add_at_once_see_every_record(tmp_path):
    code = (
        "import sys; from checkpoints_index.index import CheckpointIndex\n"
        "from checkpoints_index.record import CheckpointRecord\n"
        "index = CheckpointIndex(sys.argv[1])\n"
        "for step in range(1, 26):\n"
        "    index.add(CheckpointRecord(run='r', branch=sys.argv[2], step=step, tokens_seen=0,\n"
        "        utc=0.0, format='native', uri='x', size_bytes=0))\n"
        "    assert len(index.list(branch=sys.argv[2])) == step\n"
    )
    home = Path(checkpoints_index.__file__).parent.parent
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], cwd=home)
        for name in ("a", "b", "c")
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert len(CheckpointIndex(tmp_path).list()) == 75


def somebody_else_s(file):
    with sqlite3.connect(file) as table:
        table.execute("create table checkpoint (precious)")
        table.execute("insert into checkpoint values (42)")
    table.close()
    return file


def test_a_catalogue_that_is_a_link_to_somebody_else_s_database_leaves_it_alone(index, tmp_path):
    before, place = index.list(), index.folder / CATALOGUE
    place.unlink()
    theirs = somebody_else_s(tmp_path / "theirs.db")
    place.symlink_to(theirs)
    raw = theirs.read_bytes()
    assert index.list() == before
    assert index.rebuild() == 9
    assert theirs.read_bytes() == raw
    assert place.is_symlink()


def test_a_database_of_somebody_else_s_is_not_written_by_a_question(index):
    raw = somebody_else_s(index.folder / CATALOGUE).read_bytes()
    assert len(index.list()) == 9
    assert (index.folder / CATALOGUE).read_bytes() == raw


def test_an_index_that_is_a_link_to_elsewhere_is_read_and_not_written(index, tmp_path):
    before = index.list()
    index.folder.joinpath(CATALOGUE).unlink()
    elsewhere = tmp_path / "elsewhere"
    index.folder.rename(elsewhere)
    index.folder.symlink_to(elsewhere)
    assert index.list() == before
    assert index.rebuild() == 9
    assert not (elsewhere / CATALOGUE).exists()


def test_a_catalogue_from_before_it_was_marked_is_taken_over(index):
    index.list()
    with sqlite3.connect(index.folder / CATALOGUE) as table:
        table.execute("pragma application_id = 0")
        table.execute("update checkpoint set phase = 'old' where step = 20")
    table.close()
    assert index.list(phase="old")
