"""Records and names that somebody made up: a clear error, and nothing outside the run touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import checkpoints_index
from checkpoints_index.catalogue import Catalogue
from checkpoints_index.errors import CheckpointNotFound, RecordError
from checkpoints_index.index import CheckpointIndex
from checkpoints_index.layouts import find
from checkpoints_index.lineage import as_text, lineage
from checkpoints_index.pruning import examine, sweep, withdraw
from checkpoints_index.record import CheckpointRecord
from checkpoints_index.retention import Rule, plan
from checkpoints_index.scan import scan

HOME = Path(checkpoints_index.__file__).parent.parent
GOOD = {"run": "demo", "branch": "main", "step": 5, "tokens_seen": 5, "utc": 0.0,
        "format": "native", "uri": "checkpoints/main/step-5", "size_bytes": 1}  # fmt: skip
HOSTILE = [
    "../../outside/treasure", "..", ".", "/", "/etc/passwd", "a\0b", "x" * 10_000, "~", "~root",
    "<script>alert(1)</script>", "a\x1b[2Jb", "a\nb", "\ud800", "C:\\x", "..\\..\\outside",
    "checkpoints/../../outside", "file:///etc/passwd", "index", "index/main", "store/../index",
    "%2e%2e/outside", "a/" * 2000 + "b", "'; drop table entry; --", "\u202egpj", "",
]  # fmt: skip
hostile = st.sampled_from(HOSTILE) | st.text(max_size=30)


@pytest.fixture
def world(tmp_path):
    """A run, and a treasure outside of it."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "treasure").write_text("gold")
    (tmp_path / "run").mkdir()
    return tmp_path


def beside(world, run):
    """Everything that is not below the run, with its bytes."""
    return {
        str(p): p.read_bytes() if p.is_file() else None
        for p in world.rglob("*")
        if not p.is_relative_to(run) and ".sqlite" not in p.name
    }


def make_world(folder):
    world = Path(folder)
    (world / "outside").mkdir()
    (world / "outside" / "treasure").write_text("gold")
    return world


@given(st.fixed_dictionaries({}, optional={f.name: hostile for f in fields(CheckpointRecord)}))
def test_adding_a_record_with_hostile_values_is_refused_or_stays_inside(values):
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(folder)
        before = beside(world, world / "run")
        refusal, record = "", None
        try:
            record = CheckpointRecord(**{**GOOD, **values})
        except RecordError as error:
            refusal = str(error)
        if record is None:
            assert refusal.isprintable()
            assert len(refusal) < 3000
        else:
            file = CheckpointIndex(world / "run").add(record)
            assert file.resolve().is_relative_to((world / "run" / "index").resolve())
            assert CheckpointIndex(world / "run").list() == [record]
        assert beside(world, world / "run") == before


@given(branch=hostile, step=st.integers(-5, 10**20))
def test_asking_for_hostile_names_finds_nothing_and_touches_nothing(branch, step):
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(folder)
        with pytest.raises((RecordError, CheckpointNotFound)) as refused:
            CheckpointIndex(world / "run").get(branch, step)
        assert len(str(refused.value)) < 500
        assert not (world / "run").exists()


@settings(max_examples=60)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"uri": hostile, "complete": st.booleans()},
            optional={"run": hostile, "format": hostile, "merged_from": st.just([["main", 3]])},
        ),
        max_size=5,
    ),
    st.lists(st.sampled_from(["checkpoints/main/step-1", "link", "checkpoints"]), max_size=3),
)
def test_a_run_of_hostile_records_is_scanned_drawn_and_pruned_without_harm(records, places):
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(folder)
        run = world / "run"
        (run / "checkpoints" / "main" / "step-1").mkdir(parents=True)
        (run / "checkpoints" / "main" / "step-1" / "w").write_bytes(b"1")
        (run / "link").symlink_to(world / "outside")
        index = run / "index" / "main"
        index.mkdir(parents=True)
        all_records = [*records, *({"uri": uri, "complete": True} for uri in places)]
        for step, values in enumerate(all_records):
            text = json.dumps({**GOOD, **values, "step": step})
            (index / f"step-{step:08d}.json").write_text(text)
        before = beside(world, run)
        catalogue = Catalogue(world / "catalogue.sqlite")
        done = scan(catalogue, [run])
        for step in range(len(all_records)):
            file = index / f"step-{step:08d}.json"
            if str(file) in done.faults:
                assert done.faults[str(file)].isprintable()
                file.unlink()
        as_text(lineage(catalogue.list()))
        known = CheckpointIndex(run).list()
        made = plan(known, Rule(dense_last=1, elsewhere=0))
        examined = examine(run, known, made)
        withdraw(run, examined, "no room")
        sweep(run, examined, "no room")
        assert beside(world, run) == before
        assert (run / "index" / "main").is_dir()


def test_folders_with_hostile_names_are_scanned_as_they_are(world):
    for name in ("<b>x", "a\x1b[31mb", "x" * 200, "..x", "$(reboot)", "a\nb", "-rf", "ü"):
        folder = world / "run" / name / "checkpoint-7"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text('{"global_step": 7}')
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    bad = os.fsencode(world / "run") + b"/\xff\xfe"
    os.mkdir(bad)
    os.rename(os.fsencode(world / "run" / "ü" / "checkpoint-7"), bad + b"/checkpoint-7")
    catalogue = Catalogue(world / "catalogue.sqlite")
    done = scan(catalogue, [world / "run"])
    runs = {entry.run for entry in catalogue.list()}
    assert all(run.isprintable() for run in runs)
    assert {"<b>x", "a?[31mb", "..x", "$(reboot)", "a?b", "-rf"} <= runs
    assert len(list(find(world / "run"))) == len(runs) + len(done.faults)


def test_a_branch_folder_that_is_a_link_to_elsewhere_is_not_written_through(world):
    index = CheckpointIndex(world / "run")
    index.folder.mkdir()
    (index.folder / "main").symlink_to(world / "outside")
    with pytest.raises(RecordError, match="is a link to"):
        index.add(CheckpointRecord(**GOOD))
    assert sorted(os.listdir(world / "outside")) == ["treasure"]


def test_what_is_no_plain_file_is_not_read_as_a_record(world):
    index = CheckpointIndex(world / "run")
    index.add(CheckpointRecord(**GOOD))
    os.mkfifo(index.folder / "main" / "step-00000007.json")
    (index.folder / "main" / "step-00000008.json").symlink_to(world / "nothing")
    with pytest.raises(RecordError, match="step-00000007"):
        index.list()
    done = scan(Catalogue(world / "catalogue.sqlite"), [world])
    assert done.checkpoints == 1
    assert list(done.faults) == [str(index.folder / "main" / "step-00000007.json")]


def test_four_processes_that_enter_the_same_steps_lose_none_and_agree_on_the_first(world):
    code = (
        "import sys; from checkpoints_index.index import CheckpointIndex\n"
        "from checkpoints_index.record import CheckpointRecord\n"
        "from checkpoints_index.errors import RecordError\n"
        "index, won = CheckpointIndex(sys.argv[1]), 0\n"
        "for step in range(40):\n"
        "    try:\n"
        "        index.add(CheckpointRecord(run=sys.argv[2], branch='main', step=step,\n"
        "            tokens_seen=0, utc=0.0, format='native', uri='x', size_bytes=0))\n"
        "        won += 1\n"
        "    except RecordError: pass\n"
        "print(won)\n"
    )
    run = world / "run"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(run), str(name)], cwd=HOME, stdout=subprocess.PIPE
        )
        for name in range(4)
    ]
    won = {str(name): int(writer.communicate()[0]) for name, writer in enumerate(writers)}
    records = CheckpointIndex(run).list()
    assert sum(won.values()) == len(records) == 40
    # Who was told that its record was entered finds it there: none was written over.
    assert {n: sum(r.run == n for r in records) for n in won} == won
    assert not list((run / "index" / "main").glob(".partial-*"))


def test_a_file_system_without_hard_links_enters_records_all_the_same(world, monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    index = CheckpointIndex(world / "run")
    index.add(CheckpointRecord(**GOOD))
    with pytest.raises(RecordError, match="replace=True"):
        index.add(replace(CheckpointRecord(**GOOD), lr=1.0))
