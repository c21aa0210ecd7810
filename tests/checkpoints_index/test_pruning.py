"""Deleting: what goes, what never does, and what a kill in the middle leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import checkpoints_index
from checkpoints_index.errors import RecordError
from checkpoints_index.index import CheckpointIndex
from checkpoints_index.pruning import WITHDRAWN, aside_of, examine, sweep, withdraw
from checkpoints_index.record import CheckpointRecord
from checkpoints_index.retention import Plan

HOME = Path(checkpoints_index.__file__).parent.parent
WHY = "to make room"


@pytest.fixture
def run(tmp_path):
    """A run of six checkpoints, beside it something that must stay as it is."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "treasure").write_bytes(bytes(1000))
    run = tmp_path / "run"
    for step in range(1, 7):
        folder = run / "checkpoints" / "main" / f"step-{step}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes(100 * step))
        add(run, step, f"checkpoints/main/step-{step}")
    return run


def add(run, step, uri):
    fields = {"run": "run", "branch": "main", "tokens_seen": step, "utc": 0.0, "format": "native"}
    record = CheckpointRecord(step=step, uri=uri, size_bytes=1, **fields)
    CheckpointIndex(run).add(record, replace=True)


def letting_go(run, *steps):
    records = CheckpointIndex(run).list()
    return records, Plan({}, tuple(r for r in records if r.step in steps))


def prune(run, *steps):
    examined = examine(run, *letting_go(run, *steps))
    withdraw(run, examined, WHY)
    return examined, sweep(run, examined, WHY)


def there(run):
    return sorted(p.name for p in (run / "checkpoints" / "main").iterdir())


def standing(run):
    return {r.step: (r.complete, r.pruned) for r in CheckpointIndex(run).list()}


def test_a_dry_look_deletes_nothing_and_tells_the_bytes(run):
    examined = examine(run, *letting_go(run, 2, 3))
    assert examined.bytes == 500
    assert [d.record.step for d in examined.doomed] == [2, 3]
    assert len(there(run)) == 6


def test_what_goes_is_gone_and_its_record_says_why(run):
    examined, freed = prune(run, 2, 3)
    assert freed == examined.bytes == 500
    assert there(run) == ["step-1", "step-4", "step-5", "step-6"]
    found = standing(run)
    assert found[2] == found[3] == (False, WHY)
    assert found[1] == (True, None)


@pytest.mark.parametrize("depth", ["checkpoint", "parent"])
def test_links_are_not_followed(run, tmp_path, depth):
    outside = tmp_path / "outside"
    if depth == "checkpoint":
        (run / "checkpoints" / "main" / "step-9").symlink_to(outside)
        add(run, 9, "checkpoints/main/step-9")
    else:
        (outside / "step-9").mkdir()
        (run / "checkpoints" / "linked").symlink_to(outside)
        add(run, 9, "checkpoints/linked/step-9")
    examined, _ = prune(run, 9)
    ((_, reason),) = examined.left
    assert "link" in reason or "outside" in reason
    assert (outside / "treasure").exists()
    assert standing(run)[9] == (True, None)


def test_a_link_inside_a_checkpoint_goes_and_what_it_leads_to_stays(run, tmp_path):
    folder = run / "checkpoints" / "main" / "step-2"
    (folder / "shared").symlink_to(tmp_path / "outside")
    (folder / "file").symlink_to(tmp_path / "outside" / "treasure")
    _, freed = prune(run, 2)
    assert (tmp_path / "outside" / "treasure").stat().st_size == 1000
    assert freed < 500


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("{out}/treasure", "outside"), ("s3://bucket/x", "URL"), ("index/main", "part of the run"),
        ("store", "part of the run"), ("checkpoints", "shares"), ("checkpoints/main", "shares"),
        ("checkpoints/main/step-4/model.safetensors", "shares"),
        ("checkpoints/main/step-4", "shares"), ("gone/step-9", "not there"), (".", "outside"),
        ("./checkpoints/main/../main/step-4", "climbs"),
    ],
)  # fmt: skip
def test_what_must_not_be_deleted_is_left_alone_with_the_reason(run, tmp_path, uri, reason):
    (run / "store").mkdir()
    before = sorted(str(p) for p in tmp_path.rglob("*") if "index" not in p.parts)
    if reason == "climbs":
        with pytest.raises(RecordError, match=reason):
            add(run, 9, uri)
        return
    add(run, 9, uri.format(out=tmp_path / "outside"))
    examined, freed = prune(run, 9)
    assert reason in examined.left[0][1]
    assert freed == 0
    assert sorted(str(p) for p in tmp_path.rglob("*") if "index" not in p.parts) == before


def test_a_checkpoint_that_a_kept_one_leads_to_by_a_link_stays(run):
    (run / "best").symlink_to(run / "checkpoints" / "main" / "step-3")
    add(run, 9, "best")
    examined, _ = prune(run, 2, 3)
    assert [(r.step, why) for r, why in examined.left] == [
        (3, "shares its files with a checkpoint that stays")
    ]
    assert "step-3" in there(run)


def test_bytes_that_another_name_still_holds_are_not_promised(run):
    os.link(run / "checkpoints/main/step-2/model.safetensors", run / "kept.safetensors")
    examined, freed = prune(run, 2, 3)
    assert examined.bytes == freed == 300
    assert (run / "kept.safetensors").stat().st_size == 200


def test_a_record_that_changes_in_between_stops_it(run):
    examined = examine(run, *letting_go(run, 2, 3))
    index = CheckpointIndex(run)
    index.add(replace(index.get("main", 3), lr=0.5), replace=True)
    with pytest.raises(RecordError, match="changed while it was being pruned"):
        withdraw(run, examined, WHY)
    assert "step-3" in there(run)
    assert standing(run)[3] == (True, None)


def test_what_a_file_of_a_staying_checkpoint_is_linked_to_stays(run):
    main = run / "checkpoints" / "main"
    (main / "step-6" / "model.safetensors").unlink()
    # By way of a link in another one: both are needed.
    (main / "step-3" / "model.safetensors").unlink()
    (main / "step-3" / "model.safetensors").symlink_to("../step-2/model.safetensors")
    (main / "step-6" / "model.safetensors").symlink_to("../step-3/model.safetensors")
    examined, _ = prune(run, 2, 3, 4)
    assert [d.record.step for d in examined.doomed] == [4]
    assert (main / "step-6" / "model.safetensors").stat().st_size == 200


def test_what_one_that_is_left_alone_is_linked_to_stays(run, tmp_path):
    (tmp_path / "outside" / "w").symlink_to(run / "checkpoints/main/step-2/model.safetensors")
    add(run, 9, str(tmp_path / "outside"))
    prune(run, 2, 3, 9)
    assert "step-2" in there(run)
    assert "step-3" not in there(run)


def test_checkpoints_of_other_runs_guard_their_files(run):
    shared = run / "checkpoints" / "main" / "step-2"
    examined = examine(run, *letting_go(run, 2, 3), others=[str(shared)])
    assert [d.record.step for d in examined.doomed] == [3]


@pytest.mark.parametrize("inside", ["", "sub/"])
def test_a_run_inside_a_checkpoint_that_goes_stays(run, inside):
    nested = run / "checkpoints" / "main" / "step-2" / f"{inside}nested"
    add(nested, 1, "checkpoints/main/step-1")
    examined, _ = prune(run, 2, 3)
    assert [(r.step, why) for r, why in examined.left] == [(2, "holds a run")]
    assert CheckpointIndex(nested).exists


@pytest.mark.parametrize("uri", ["notebooks", "report.html", "weights.pt"])
def test_what_is_no_checkpoint_by_the_look_of_it_stays(run, uri):
    if uri == "notebooks":
        (run / uri).mkdir()
        (run / uri / "first_look.ipynb").write_text("{}")
    else:
        (run / uri).write_text("results")
    add(run, 9, uri)
    examined, _ = prune(run, 9)
    assert [r.step for r, _ in examined.left] == [9]
    assert (run / uri).exists()


def test_a_name_as_long_as_a_file_system_takes_is_pruned(run):
    name = "x" * 249
    folder = run / "checkpoints" / "main" / name
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(10))
    add(run, 9, f"checkpoints/main/{name}")
    examined = examine(run, *letting_go(run, 9))
    os.rename(folder, aside_of(folder))  # A prune that was killed before it marked the record.
    sweep(run, examine(run, *letting_go(run)), WHY)
    assert len(examined.doomed) == 1
    assert standing(run)[9] == (False, WHY)
    assert len(there(run)) == 6


KILLED = """
import os, sys
import checkpoints_index.pruning as pruning
from checkpoints_index.index import CheckpointIndex
from checkpoints_index.retention import Plan

at, count = int(sys.argv[2]), 0
def step(function):
    def counted(*args, **kwargs):
        global count
        if count == at:
            os.kill(os.getpid(), 9)
        count += 1
        return function(*args, **kwargs)
    return counted

# Every call that changes the disk is a moment to die at.
os.rename, os.unlink, os.rmdir = map(step, (os.rename, os.unlink, os.rmdir))
CheckpointIndex.add = step(CheckpointIndex.add)
records = CheckpointIndex(sys.argv[1]).list()
plan = Plan({}, tuple(r for r in records if r.step in (2, 3)))
examined = pruning.examine(sys.argv[1], records, plan)
pruning.withdraw(sys.argv[1], examined, "to make room")
pruning.sweep(sys.argv[1], examined, "to make room")
"""


@pytest.mark.parametrize("moment", range(8))
def test_a_prune_killed_at_any_moment_leaves_nothing_that_looks_whole_and_goes_on(run, moment):
    done = subprocess.run([sys.executable, "-c", KILLED, str(run), str(moment)], cwd=HOME)
    assert done.returncode == -signal.SIGKILL
    for name in there(run):
        if not name.startswith(WITHDRAWN):
            step = int(name.removeprefix("step-"))
            weights = run / "checkpoints" / "main" / name / "model.safetensors"
            assert weights.stat().st_size == 100 * step
    # What was begun is finished by the next prune, whatever it is for; the rest is as it was.
    examined, _ = prune(run, 2, 3)
    assert there(run) == ["step-1", "step-4", "step-5", "step-6"]
    assert {s for s, (whole, _) in standing(run).items() if not whole} == {2, 3}
    assert examine(run, *letting_go(run)).rest == ()
    assert len(examined.doomed) <= 2


def test_a_checkpoint_that_was_saved_again_after_an_interrupted_prune_is_not_touched(run):
    folder = run / "checkpoints" / "main"
    (folder / "step-2").rename(folder / f"{WITHDRAWN}step-2")
    (folder / "step-2").mkdir()
    (folder / "step-2" / "model.safetensors").write_bytes(bytes(7))
    prune(run)
    assert standing(run)[2] == (True, None)
    assert there(run) == [f"step-{s}" for s in range(1, 7)]
