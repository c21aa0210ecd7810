"""The commands that look after a store: what they print, and what they leave with."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import timedelta

import click
import numpy as np
import pytest
import xarray as xr

from checkpoints_index.index import CheckpointIndex
from checkpoints_index.record import CheckpointRecord
from workbench.app import cli, store_commands
from workbench.app.store_commands import Duration, gc, results, verify
from workbench.store.layout import Layout
from workbench.store.results import Results
from workbench.store.run_store import RunStore


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """As the command line has them, whether or not it has taken them in yet."""
    for command in (verify, gc, results):
        monkeypatch.setitem(cli.commands.commands, command.name, command)


def append(store, first, last):
    steps = np.arange(first, last + 1)
    counts = np.random.default_rng(last).permuted(np.tile(np.arange(8), (len(steps), 2, 1)), axis=2)
    with store.writer("main") as w:
        w.append("router", {
            "step": steps, "tokens": np.full(len(steps), 14), "assignments": counts,
        })  # fmt: skip
        w.commit("rows")
        w.tag_checkpoint(last)


@pytest.fixture
def run(tmp_path):
    """Main 1 to 120 in two stretches, a record of weights that are not there at 60."""
    path = tmp_path / "run"
    store = RunStore.create(path / "store", Layout(layers=(0, 1), experts=8, k=2))
    append(store, 1, 60)
    append(store, 61, 120)
    (path / "run.json").write_text('{"name": "run"}')
    return path


def call(capsys, *words):
    code = 0
    try:
        cli.main([str(word) for word in words])
    except SystemExit as left:
        code = left.code or 0
    said = capsys.readouterr()
    return code, said.out, said.err


def record(run, step):
    index = CheckpointIndex(run)
    index.add(CheckpointRecord(
        run="run", branch="main", step=step, tokens_seen=step, utc=1.7e9, format="native",
        uri=f"checkpoints/main/step-{step:08d}", size_bytes=1,
    ))  # fmt: skip


def test_a_sound_run_leaves_with_0_and_says_what_was_read(run, capsys):
    code, out, err = call(capsys, "verify", run)
    assert code == 0
    assert "1 branches" in out
    assert "120 router rows along step" in out
    assert out.endswith("no fault\n")
    assert err == "reading main\n"
    code, out, err = call(capsys, "verify", run, "--deep", "--json")
    assert code == 0
    assert json.loads(out)["sound"]
    assert err == ""


def test_a_damaged_run_leaves_with_1_and_says_what_where_and_what_to_do(run, capsys):
    file = max((run / "store" / "chunks").iterdir(), key=lambda p: p.stat().st_size)
    held = bytearray(file.read_bytes())
    held[20] ^= 4
    file.write_bytes(held)
    code, out, _ = call(capsys, "verify", run)
    assert code == 1
    assert re.search(r"chunk: main, router/assignments, chunk \(\d, 0, 0\), rows \d+ to \d+, ", out)
    assert f"in chunks/{file.name}: found" in out
    assert "restore the store from a copy" in out
    code, out, _ = call(capsys, "verify", run, "--json")
    assert code == 1
    fault = json.loads(out)["faults"][0]
    assert (fault["kind"], fault["variable"], fault["files"]) == (
        "chunk", "assignments", [f"chunks/{file.name}"],
    )  # fmt: skip


def test_records_are_held_against_marks_and_weights(run, capsys):
    record(run, 60)
    record(run, 90)
    code, out, _ = call(capsys, "verify", run)
    assert code == 1
    assert "step 90, in index/main/step-00000090.json: found a record of weights without" in out
    assert "step 120: found a mark in the store without a record" in out
    assert "checkpoint: main, step 60, in checkpoints/main/step-00000060: found" in out
    (run / "run.json").write_text("{")
    (run / "index" / "main" / "step-00000060.json").write_text("[]")
    code, out, _ = call(capsys, "verify", run)
    assert code == 1
    assert "record: in run.json: found" in out
    assert "record: in index/main/step-00000060.json: found" in out


def test_a_store_that_does_not_open_is_one_line(run, capsys):
    (run / "store" / "refs" / "branch.main" / "ref.json").write_bytes(b"")
    code, out, err = call(capsys, "verify", run)
    assert (code, out) == (1, "")
    assert err.startswith(f"workbench: the store {run}/store cannot be read (IcechunkError")
    assert "restore its refs and config.yaml from a copy" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["verify", "gc"])
def test_no_such_run_or_branch_leaves_with_3(run, tmp_path, capsys, command):
    assert call(capsys, command, tmp_path / "nothing")[0] == 3
    if command == "verify":
        code, _, err = call(capsys, command, run, "--branch", "mian")
        assert code == 3
        assert "did you mean 'main'" in err


def test_a_store_by_itself_can_be_looked_after(run, capsys):
    assert call(capsys, "verify", run / "store")[0] == 0
    assert call(capsys, "gc", run / "store")[0] == 0


def test_gc_touches_nothing_without_apply(run, capsys):
    store = RunStore.open(run / "store")
    store.rollback("main", 60)
    before = {p for p in (run / "store").rglob("*") if p.is_file()}
    code, out, _ = call(capsys, "gc", run, "--older-than", "0s", "--set-aside")
    assert code == 0
    assert "would remove" in out
    assert "2 tags of what was set aside" in out
    assert "add --apply" in out
    assert {p for p in (run / "store").rglob("*") if p.is_file()} == before
    code, out, _ = call(capsys, "gc", run, "--older-than", "0s", "--set-aside", "--apply", "--json")
    assert code == 0
    assert json.loads(out)["applied"]
    assert json.loads(out)["snapshots"] == 1
    assert call(capsys, "verify", run)[0] == 0


def test_gc_keeps_what_was_set_aside_while_its_weights_are_there(run, capsys):
    record(run, 120)
    RunStore.open(run / "store").rollback("main", 60)
    code, _, err = call(capsys, "gc", run, "--older-than", "0s", "--set-aside", "--apply")
    assert code == 2
    assert "'main' at step 120" in err


def test_gc_is_refused_while_a_branch_is_written_and_says_by_whom(run, capsys):
    import os

    with RunStore.open(run / "store").writer("main"):
        code, _, err = call(capsys, "gc", run, "--apply")
    assert code == 1
    assert f"is being written by process {os.getpid()} on host" in err


def test_results_are_listed_and_dropped(run, capsys):
    kept = Results(RunStore.open(run / "store"))
    kept.fetch("load", 3, {"router": "x"}, lambda: xr.Dataset({"a": 1}), params={"q": 0.5})
    code, out, _ = call(capsys, "results", "list", run)
    assert code == 0
    assert out.startswith("load ")
    assert '{"q": 0.5}' in out
    code, out, _ = call(capsys, "results", "list", run, "--json")
    assert json.loads(out)[0]["inputs"] == {"router": "x"}
    assert call(capsys, "results", "drop", run, "--probe", "../x")[0] == 2
    assert call(capsys, "results", "drop", run, "--probe", "load")[1] == "1 results dropped\n"
    assert call(capsys, "results", "list", run)[1] == "0 results\n"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("7d", 604800), ("0s", 0)]
)
def test_durations_are_read(text, seconds):
    assert Duration().convert(text, None, None) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "1", "h", "-1h", "1y", "1h30m", "nan", "9" * 400 + "w"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(click.BadParameter, match=r"expected a number|longer than"):
        Duration().convert(text, None, None)


def test_help_does_not_wait_for_the_store_to_load():
    code = (
        "import sys, workbench.app.store_commands\n"
        "heavy = {'torch', 'zarr', 'icechunk', 'xarray', 'numpy'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert store_commands.__doc__
