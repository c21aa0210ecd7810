"""Files of a store that were cut short, emptied, flipped or made up: told, and never believed."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import workbench
from checkpoints_index.errors import RecordError
from checkpoints_index.index import CheckpointIndex
from checkpoints_index.record import CheckpointRecord
from workbench.errors import WorkbenchError
from workbench.run import open_run
from workbench.store.layout import Layout
from workbench.store.run_store import RunStore
from workbench.store.verification import verify_run

HOME = Path(workbench.__file__).parent.parent
SCRIPT = Path(__file__).parent / "fuzzed_reader.py"


def rows(first, last, seed):
    """Rows whose chunks do not shrink to nothing, of a router of 2 layers and 8 experts, k 2."""
    chance = np.random.default_rng(seed)
    steps = np.arange(first, last + 1)
    ids = chance.integers(0, 8, (len(steps), 2, 256))
    counts = (ids[..., None] == np.arange(8)).sum(2)
    router = {
        "step": steps, "tokens": np.full(len(steps), 128), "assignments": counts,
        "gate_mass": chance.random((len(steps), 2, 8)).astype("float32"),
        "entropy": chance.random((len(steps), 2)).astype("float32"),
        "near_tie": chance.random((len(steps), 2)).astype("float32"),
    }  # fmt: skip
    loss = chance.random(len(steps)).astype("float32")
    return router, {"step": steps, "tokens_seen": 128 * steps, "loss": loss}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "run" / "store"
    store = RunStore.create(path, Layout(layers=(0, 1), experts=8, k=2), {"drops": False})
    for branch, stretches in (("main", [(1, 80), (81, 120)]), ("arm", [(81, 100)])):
        if branch == "arm":
            store.fork("arm", "main", at_step=80)
        with store.writer(branch) as w:
            for first, last in stretches:
                for group, values in zip(("router", "train"), rows(first, last, last), strict=True):
                    w.append(group, values)
                w.commit("rows")
                w.tag_checkpoint(last)
    w = store.writer("main")
    w.append("train", rows(121, 130, 0)[1])
    w.sync()
    w._journal.close()
    w.close()
    return path


def outcomes(made, tmp_path, seed, cases):
    shutil.copytree(made.parent, tmp_path / "run")
    (tmp_path / "beside").write_text("not ours")
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "run" / "store", str(seed), str(cases)],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-300:]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["beside", "run"]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["store"]
    # Icechunk tells of its panics on the same stream.
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"file"')]


@pytest.mark.parametrize(("seed", "cases"), [(1, 60), pytest.param(2, 600, marks=pytest.mark.slow)])
def test_a_damaged_file_is_told_and_never_gives_another_number(made, tmp_path, seed, cases):
    found = outcomes(made, tmp_path, seed, cases)
    assert len(found) > cases * 0.9
    unread = [case for case in found if case["read"] not in ("same", "different")]
    assert unread
    # What reads as another number may not pass as sound, nor what cannot be read.
    # A journal without its end is what a kill leaves: fewer rows, each of them whole.
    silent = [
        case
        for case in found
        if case["read"] != "same"
        and not case["faults"]
        and not (case["file"].startswith("journal/") and case["harm"] in ("cut", "empty"))
    ]
    assert not silent, json.dumps(silent, indent=1)
    # A file that harms nobody is no fault of the record's, save where the record is doubled.
    chunks = [case for case in found if case["file"].startswith("chunks/")]
    assert chunks
    assert not [case for case in chunks if case["read"] == "different"]


def made_up(chance, depth=0):
    kinds = "snbfd" + ("" if depth > 3 else "lo")
    match chance.choice(kinds):
        case "s":
            return "".join(
                map(chr, (chance.randrange(1, 0x2FF) for _ in range(chance.randrange(9))))
            )
        case "n":
            return chance.choice([None, 0, -1, 2**70, 1e308, -0.0, "../..", "/etc", "main"])
        case "b":
            return chance.random() < 0.5
        case "f":
            return chance.uniform(-1e9, 1e9)
        case "d":
            return chance.randrange(-5, 500)
        case "l":
            return [made_up(chance, depth + 1) for _ in range(chance.randrange(4))]
    names = ["step", "branch", "uri", "parent", "name", "phases", "arms", "<b>", ""]
    return {chance.choice(names): made_up(chance, depth + 1) for _ in range(chance.randrange(5))}


def test_made_up_records_and_descriptions_are_told_and_lead_nowhere(made, tmp_path):
    chance = random.Random(3)
    run = tmp_path / "run"
    shutil.copytree(made.parent, run)
    record = CheckpointRecord(
        run="run", branch="main", step=80, tokens_seen=10240, utc=1.7e9, format="native",
        uri="checkpoints/main/step-00000080", size_bytes=1,
    )  # fmt: skip
    file = CheckpointIndex(run).add(record)
    (run / "run.json").write_text("{}")
    plain = json.loads(record.to_json())
    for case in range(60):
        changed = dict(plain)
        for _ in range(chance.randrange(1, 4)):
            changed[chance.choice(list(plain))] = made_up(chance)
        text = json.dumps(made_up(chance) if case % 5 == 0 else changed)
        text = text[: chance.randrange(len(text))] if case % 7 == 0 else text
        file.write_text(text)
        (run / "run.json").write_text(json.dumps(made_up(chance)) if case % 2 else "{" * 5000)
        report = verify_run(run, None)
        try:
            opened = open_run(run)
            repr(opened)
            opened.index.list()
        except (WorkbenchError, RecordError):
            assert not report.sound
        try:
            CheckpointRecord.from_json(text)
        except RecordError:
            assert any(f.files == ("index/main/step-00000080.json",) for f in report.faults)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("uri", ["../../etc/passwd", "/etc/passwd", "a\\b", "a\0b", "x" * 10_000])
def test_a_record_that_points_out_of_the_run_is_told(tmp_path, uri):
    folder = tmp_path / "run" / "index" / "main"
    folder.mkdir(parents=True)
    plain = {"run": "run", "branch": "main", "step": 1, "tokens_seen": 1, "utc": 1.0,
             "format": "native", "size_bytes": 1, "uri": uri}  # fmt: skip
    (folder / "step-00000001.json").write_text(json.dumps(plain))
    report = verify_run(tmp_path / "run", None)
    assert [fault.kind for fault in report.faults] in (["record"], ["checkpoint"])
    assert len(str(report.faults[0])) < 1000
