"""The catalogue: what a scan finds, what it leaves alone, and what survives its death."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import checkpoints_index
from checkpoints_index.catalogue import Catalogue, default_file
from checkpoints_index.errors import (
    CatalogueBusy,
    CatalogueDamaged,
    CatalogueMissing,
    CheckpointNotFound,
    RecordError,
)
from checkpoints_index.index import CheckpointIndex
from checkpoints_index.record import CheckpointRecord
from checkpoints_index.scan import scan
from checkpoints_index.scan_lock import scan_lock

HOME = Path(checkpoints_index.__file__).parent.parent


def record(step, branch="main", run="one", **more):
    fields = {"tokens_seen": step * 64, "utc": 1.75e9 + step, "format": "safetensors",
              "uri": f"checkpoints/{branch}/step-{step:08d}", "size_bytes": 1}  # fmt: skip
    return CheckpointRecord(run=run, branch=branch, step=step, **(fields | more))


def save(path, value, **more):
    path.mkdir(parents=True)
    save_file({"w": np.full(4, value, "float32")}, str(path / "model.safetensors"))
    for name, text in more.items():
        (path / f"{name}.json").write_text(text)


@pytest.fixture
def runs(tmp_path):
    """Two recorded runs, and a folder of transformers' Trainer with two checkpoints."""
    for run in ("one", "two"):
        for step in (10, 20, 30):
            one = record(step, run=run, phase="final" if step == 30 else "stable")
            save(tmp_path / "runs" / run / one.uri, step)
            CheckpointIndex(tmp_path / "runs" / run).add(replace(one, fingerprint=f"{step:032x}"))
    for step in (5, 10):
        state = json.dumps({"global_step": step, "log_history": [{"learning_rate": 0.5}]})
        save(tmp_path / "runs" / "hf" / f"checkpoint-{step}", step, trainer_state=state,
             config='{"model_type": "olmoe"}')  # fmt: skip
    return tmp_path / "runs"


@pytest.fixture
def catalogue(tmp_path):
    return Catalogue(tmp_path / "catalogue.sqlite")


def names(entries):
    return [(Path(e.run_path).name, e.branch, e.step) for e in entries]


def recorded(entries):
    return [e for e in entries if e.recorded]


def test_a_scan_finds_recorded_runs_and_those_of_other_trainers(runs, catalogue):
    done = scan(catalogue, [runs])
    assert (done.runs, done.read, done.gone, done.faults) == (2, 8, 0, {})
    everything = catalogue.list()
    assert names(everything) == [
        ("hf", "main", 5), ("hf", "main", 10),
        *((run, "main", step) for run in ("one", "two") for step in (10, 20, 30)),
    ]  # fmt: skip
    theirs = everything[0]
    assert (theirs.run, theirs.trainer, theirs.recorded) == ("hf", "transformers", False)
    assert theirs.architecture_hash is not None
    assert theirs.size_bytes > 0


def test_half_written_checkpoints_of_other_trainers_are_entered_as_such(tmp_path, catalogue):
    (tmp_path / "titan" / "checkpoint" / "step-1000").mkdir(parents=True)
    save(tmp_path / "titan" / "checkpoint" / ".partial-step-7", 1)
    assert scan(catalogue, [tmp_path / "titan"]).faults == {}
    half = [e for e in catalogue.list() if e.step == 1000]
    assert [(e.run, e.trainer, e.complete) for e in half] == [("titan", "torchtitan", False)]
    assert half[0].why
    assert all(not e.complete for e in catalogue.list())


def test_filters_are_answered_together(runs, catalogue):
    scan(catalogue, [runs])
    assert names(catalogue.list(run="one", after=10, until=20)) == [("one", "main", 20)]
    assert len(catalogue.list(phase="final")) == 2
    assert len(catalogue.list(run=str(runs / "two"))) == 3
    assert len(catalogue.list(trainer="transformers", complete=True)) == 2
    assert names(catalogue.list(fingerprint=f"{20:032x}")) == [
        ("one", "main", 20), ("two", "main", 20),
    ]  # fmt: skip
    assert len(catalogue.list(fingerprint="0" * 8)) == 6
    assert names(catalogue.list(tokens_after=10 * 64, limit=1)) == [("one", "main", 20)]
    assert catalogue.list(branch="nobody") == []


def test_equal_weights_are_found_wherever_they_lie(runs, catalogue):
    scan(catalogue, [runs])
    (one,) = catalogue.at(runs / "one/checkpoints/main/step-00000020")
    assert names(catalogue.same_weights(one)) == [("two", "main", 20)]
    before = catalogue.list(trainer="transformers")
    assert {e.fingerprint for e in before} == {None}
    scan(catalogue, [runs], fingerprints=True)
    assert all(e.fingerprint for e in catalogue.list(trainer="transformers"))


def test_a_recorded_checkpoint_without_a_fingerprint_can_have_one_in_the_catalogue(runs, catalogue):
    CheckpointIndex(runs / "one").add(record(20), replace=True)
    scan(catalogue, [runs])
    assert catalogue.list(run="one", after=10, until=20)[0].fingerprint is None
    assert scan(catalogue, fingerprints=True).faults == {}
    assert catalogue.list(run="one", after=10, until=20)[0].fingerprint is not None
    assert scan(catalogue, fingerprints=True).read == 0


def test_what_has_not_changed_is_not_read_again(runs, catalogue):
    scan(catalogue, [runs])
    assert scan(catalogue).read == 0
    CheckpointIndex(runs / "one").add(record(20, phase="other"), replace=True)
    CheckpointIndex(runs / "one").add(record(40))
    (runs / "hf/checkpoint-5/config.json").write_text('{"model_type": "mixtral"}')
    done = scan(catalogue)
    assert (done.read, done.gone) == (3, 0)
    assert catalogue.list(run="one", after=10, until=20)[0].phase == "other"


def test_what_is_gone_is_taken_out_and_weights_that_are_gone_are_told(runs, catalogue):
    import shutil

    scan(catalogue, [runs])
    shutil.rmtree(runs / "hf/checkpoint-5")
    shutil.rmtree(runs / "two/checkpoints/main/step-00000010")
    CheckpointIndex(runs / "one").record_file("main", 10).unlink()
    shutil.rmtree(runs / "one/checkpoints/main/step-00000010")
    done = scan(catalogue)
    assert (done.gone, done.checkpoints) == (2, 6)
    (lost,) = catalogue.list(complete=False)
    assert (lost.run, lost.step, lost.why) == ("two", 10, "recorded, but nothing lies there")


def test_a_folder_that_is_not_there_changes_nothing_until_it_is_to_be_forgotten(runs, catalogue):
    scan(catalogue, [runs / "one", runs / "two"])
    (runs / "two").rename(runs / "away")
    with pytest.raises(CheckpointNotFound, match="scan --forget DIR"):
        scan(catalogue)
    assert len(catalogue.list()) == 6
    scan(catalogue, forget=[runs / "two"])
    assert list(catalogue.folders) == [str(runs / "one")]
    assert len(catalogue.list()) == 3


def test_a_record_that_cannot_be_read_is_told_and_the_rest_entered(runs, catalogue):
    file = CheckpointIndex(runs / "one").record_file("main", 20)
    file.write_text("{")
    done = scan(catalogue, [runs])
    assert list(done.faults) == [str(file)]
    assert "not JSON" in done.faults[str(file)]
    assert len(recorded(catalogue.list())) == 5
    assert catalogue.faults == done.faults
    CheckpointIndex(runs / "one").add(record(20), replace=True)
    assert scan(catalogue).faults == {}
    assert catalogue.faults == {}


def test_what_lies_below_a_folder_that_cannot_be_entered_stays_known(runs, catalogue, monkeypatch):
    scan(catalogue, [runs])
    real = os.scandir

    def refuse(path="."):
        # By the call, since whoever runs the tests may be allowed everything.
        if str(path) == str(runs / "one"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    done = scan(catalogue)
    assert len(catalogue.list(run="one")) == 3
    assert "Permission denied" in done.faults[str(runs / "one")]


def test_a_folder_of_a_run_stands_for_the_run_and_nested_folders_are_scanned_once(runs, catalogue):
    done = scan(catalogue, [runs / "one" / "checkpoints", runs, runs / "two"])
    assert done.folders == [str(runs)]
    assert scan(catalogue, [runs / "one" / "checkpoints"]).folders == [str(runs / "one")]
    assert len(recorded(catalogue.list())) == 6


def test_links_to_folders_are_not_followed(runs, catalogue):
    (runs / "again").symlink_to(runs / "one")
    (runs / "one" / "up").symlink_to(runs)
    scan(catalogue, [runs])
    assert len(recorded(catalogue.list())) == 6


@pytest.mark.parametrize(
    "harm",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"not a database" * 400),
        lambda file: file.write_bytes(file.read_bytes()[:9000]),
        lambda file: file.write_bytes(file.read_bytes()[:4096] + bytes(12288)),
    ],
    ids=["deleted", "emptied", "overwritten", "cut", "zeroed"],
)
def test_the_catalogue_is_made_again_whatever_happened_to_it(runs, catalogue, harm):
    scan(catalogue, [runs])
    before = catalogue.list()
    harm(catalogue.file)
    done = scan(catalogue, [runs])
    assert catalogue.list() == before
    assert done.set_aside is None or Path(done.set_aside).exists()


def test_a_catalogue_of_an_older_version_is_made_again_from_the_folders_it_knew(runs, catalogue):
    scan(catalogue, [runs])
    before = catalogue.list()
    table = sqlite3.connect(catalogue.file)
    table.execute("drop table entry")
    table.execute("create table entry (colour text)")
    table.execute("pragma user_version = 0")
    table.close()
    with pytest.raises(CatalogueMissing, match="made by another version"):
        catalogue.list()
    scan(catalogue)
    assert catalogue.list() == before


@pytest.mark.parametrize("version", [(0, 0), (0x77626361, 99)])
def test_somebody_else_s_database_and_a_later_version_are_refused_untouched(
    runs, catalogue, version
):
    table = sqlite3.connect(catalogue.file)
    table.execute("create table treasure (gold integer)")
    table.execute(f"pragma application_id = {version[0]}")
    table.execute(f"pragma user_version = {version[1]}")
    table.close()
    before = catalogue.file.read_bytes()
    with pytest.raises(CatalogueDamaged, match=r"not a catalogue|later version"):
        scan(catalogue, [runs])
    with pytest.raises((CatalogueDamaged, CatalogueMissing)):
        catalogue.list()
    assert catalogue.file.read_bytes() == before


def test_asking_before_a_scan_says_what_to_do(catalogue):
    with pytest.raises(CatalogueMissing, match="workbench checkpoints scan DIR"):
        catalogue.list()
    with pytest.raises(CatalogueMissing, match="knows no folder to scan"):
        scan(catalogue)
    assert not catalogue.exists
    # What a first scan leaves that is killed.
    catalogue.file.touch()
    with pytest.raises(CatalogueMissing, match="is empty; fill it"):
        catalogue.list()


def test_a_catalogue_in_a_place_that_cannot_be_written_is_read(runs, catalogue, tmp_path):
    scan(catalogue, [runs])
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    copy = Catalogue(shelf / "catalogue.sqlite")
    copy.file.write_bytes(catalogue.file.read_bytes())
    shelf.chmod(0o555)
    try:
        assert len(copy.list()) == 8
    finally:
        shelf.chmod(0o755)


def test_the_default_file_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_CATALOGUE", str(tmp_path / "mine"))
    assert default_file() == tmp_path / "mine"
    monkeypatch.delenv("WORKBENCH_CATALOGUE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_file() == tmp_path / "training-dynamics-workbench" / "catalogue.sqlite"


def test_a_second_scanner_waits_and_is_refused_by_name(runs, catalogue):
    with (
        scan_lock(Path(f"{catalogue.file}.lock"), wait_s=0),
        pytest.raises(CatalogueBusy, match=f"process {os.getpid()} on host"),
    ):
        scan(catalogue, [runs], wait_s=0.1)
    assert scan(catalogue, [runs], wait_s=0.1).checkpoints == 8


SLOW_SCAN = """
import os, sys
import checkpoints_index.scan as scanning
from checkpoints_index.catalogue import Catalogue

stop_at, count = int(sys.argv[3]), 0
enter = scanning._Scan._enter

def slowly(self, *rest):
    global count
    enter(self, *rest)
    count += 1
    if count == stop_at:
        print("here", flush=True)
        sys.stdin.read()

scanning._Scan._enter = slowly
if stop_at == 0:
    opened = scanning._open_to_write
    def held(file):
        table = opened(file)
        print("here", flush=True)
        sys.stdin.read()
        return table
    scanning._open_to_write = held
scanning.scan(Catalogue(sys.argv[1]), [sys.argv[2]])
if stop_at < 0:
    print("here", flush=True)
    sys.stdin.read()
"""


def scanner_at(catalogue, folder, moment):
    """A process that scans and stands still at a moment: 0 before it begins, n after n entries, -1
    at its end."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_SCAN, str(catalogue.file), str(folder), str(moment)],
        cwd=HOME, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "here\n"
    return process


@pytest.mark.parametrize("moment", [0, 1, 3, 5, -1])
def test_a_scan_killed_at_any_moment_leaves_the_old_catalogue_whole(runs, catalogue, moment):
    scan(catalogue, [runs])
    before = catalogue.list()
    for run in ("one", "two"):
        for step in (10, 20, 30):
            CheckpointIndex(runs / run).add(record(step, run=run, phase="new"), replace=True)
    process = scanner_at(catalogue, runs, moment)
    # While it stands there, readers see the last finished scan and another scanner is refused.
    if moment >= 0:
        assert catalogue.list() == before
        with pytest.raises(CatalogueBusy):
            scan(catalogue, wait_s=0)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if moment >= 0:
        assert catalogue.list() == before
    done = scan(catalogue)
    assert done.set_aside is None
    assert done.read == (0 if moment < 0 else 6)
    assert {e.phase for e in recorded(catalogue.list())} == {"new"}


def test_a_scanner_killed_at_random_moments_never_breaks_the_catalogue(runs, catalogue):
    code = (
        "import sys; from checkpoints_index.catalogue import Catalogue\n"
        "from checkpoints_index.scan import scan\n"
        "catalogue = Catalogue(sys.argv[1])\n"
        "print('here', flush=True)\n"
        "while True: scan(catalogue, [sys.argv[2]]); scan(catalogue, forget=[sys.argv[2]])\n"
    )
    scan(catalogue, [runs])
    rng = np.random.default_rng(0)
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(catalogue.file), str(runs)], cwd=HOME,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout.readline() == "here\n"
        time.sleep(rng.uniform(0, 0.1))  # any moment will do
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert len(catalogue.list()) in (0, 8)
    assert scan(catalogue, [runs]).set_aside is None
    assert len(catalogue.list()) == 8


def test_readers_and_four_scanners_at_once_see_finished_scans_only(runs, catalogue):
    scan(catalogue, [runs])
    code = (
        "import sys; from checkpoints_index.catalogue import Catalogue\n"
        "from checkpoints_index.scan import scan\n"
        "catalogue = Catalogue(sys.argv[1])\n"
        "for _ in range(5):\n"
        "    if sys.argv[3] == 'scan': scan(catalogue, [sys.argv[2]], fingerprints=True)\n"
        "    assert len(catalogue.list()) == 8\n"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(catalogue.file), str(runs), what], cwd=HOME
        )
        for what in ("scan", "scan", "scan", "scan", "read", "read")
    ]
    assert [worker.wait() for worker in workers] == [0] * 6


@pytest.mark.slow
def test_ten_thousand_records_are_scanned_and_listed_in_time_that_grows_with_them(tmp_path):
    seconds = {}
    for count in (1000, 10_000):
        folder = tmp_path / str(count)
        index = CheckpointIndex(folder / "run")
        for step in range(count):
            file = index.record_file("main", step)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(record(step, fingerprint=f"{step:032x}").to_json())
        catalogue = Catalogue(folder / "catalogue.sqlite")
        took = [scan(catalogue, [folder / "run"]).seconds for _ in range(2)]
        began = time.monotonic()
        assert len(catalogue.list()) == count
        seconds[count] = [*took, time.monotonic() - began]
    # Ten times as many: were it quadratic, a hundred times as long.
    for few, many in zip(seconds[1000], seconds[10_000], strict=True):
        assert many < 40 * few + 0.5, seconds


def test_checkpoints_beside_the_model_that_a_trainer_finished_with_are_entered(tmp_path, catalogue):
    out = tmp_path / "out"
    for step in (500, 1000):
        state = json.dumps({"global_step": step})
        save(out / f"checkpoint-{step}", step, trainer_state=state, config="{}")
    save_file({"w": np.ones(4, "float32")}, str(out / "model.safetensors"))
    (out / "config.json").write_text("{}")
    scan(catalogue, [tmp_path])
    assert sorted(str(e.step) for e in catalogue.list()) == ["1000", "500", "None"]
    # A record of the finished model is no reason to lose the others.
    CheckpointIndex(out).add(record(2000, uri="model.safetensors"))
    CheckpointIndex(tmp_path / "run").add(record(2000, uri=str(out)))
    scan(catalogue, [tmp_path])
    assert {500, 1000} <= {e.step for e in catalogue.list()}


def test_a_folder_whose_path_is_not_utf_8_is_refused_by_name(tmp_path, catalogue):
    folder = os.fsencode(tmp_path) + b"/bad\xff"
    os.mkdir(folder)
    with pytest.raises(RecordError, match=r"bad\?: its path is not UTF-8"):
        scan(catalogue, [os.fsdecode(folder)])
    assert not catalogue.exists


def test_a_scan_that_was_refused_leaves_no_catalogue(tmp_path, catalogue):
    with pytest.raises(CheckpointNotFound):
        scan(catalogue, [tmp_path / "none"])
    assert not catalogue.exists
