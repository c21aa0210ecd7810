"""The command line: exit codes, one line for an error, and a demo that survives its death."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest

import workbench as wb
from workbench.app.cli import commands, main

ROOT = Path(__file__).parents[2]


def run(capsys, *arguments):
    """Exit code, stdout and stderr of one command line."""
    code = 0
    try:
        main([str(a) for a in arguments])
    except SystemExit as leave:
        code = leave.code or 0
    out, err = capsys.readouterr()
    return code, out, err


def spawn(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "workbench.app.cli", *map(str, arguments)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_help_imports_nothing_heavy():
    probe = (
        "import sys; from workbench.app.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'xarray', 'plotly', 'zarr', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True, capture_output=True)


def test_every_command_that_the_code_speaks_of_is_there_with_its_options():
    for file in (*ROOT.glob("workbench/**/*.py"), *ROOT.glob("probes/**/*.py")):
        for said in re.findall(r"`workbench ((?!_)[^`]*)`", file.read_text()):
            words = re.sub(r'"\s*\n\s*f?"', "", said).split()
            command = commands
            while words and isinstance(command, click.Group) and words[0].isalpha():
                assert words[0] in command.commands, f"{file.name}: workbench {said}"
                command = command.commands[words.pop(0)]
            options = {flag for p in command.params for flag in p.opts}
            for word in words:
                known = not word.startswith("--") or word in options
                assert known, f"{file.name}: workbench {said}"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "--preset", "nanno", "--into", "{tmp}/x"], 2, "Did you mean 'nano'?"),
        (["train", "--preset", "dbrx", "--into", "{tmp}/x"], 2, "no training plan"),
        (["train", "--into", "{run}"], 2, "holds a run already: resume it"),
        (["train", "--into", "{tmp}"], 2, "is not empty and holds no run"),
        (["train", "--into", "{tmp}/x", "--steps", "-3"], 2, "steps=-3"),
        (["train", "--into", "{tmp}/x", "--device", "gpu"], 2, "expected auto, cpu, cuda"),
        (["train", "--into", "{tmp}/x", "--device", "meta"], 2, "expected auto, cpu, cuda"),
        (["train", "--into", "{tmp}/x", "--seed", "-1"], 2, "seed=-1"),
        (["train", "--into", "{tmp}/x", "--until", "1.5"], 2, "between 0 and 1"),
        (["train", "--into", "{tmp}/something"], 2, "is a file"),
        (["train", "--into", "{tmp}/x", "--resume"], 3, "no run at"),
        (["train", "--into", "{run}", "--resume", "--preset", "small"], 2, "leave out"),
        (["demo", "--into", "{run}", "--steps", "9"], 2, "or add --fresh"),
        (["demo", "--into", "{run}", "--fresh", "--steps", "-3"], 2, "steps=-3"),
        (["arms", "{run}", "--arm", "code", "--fork-at", "0.9"], 2, "fork there or earlier"),
        (["plot", "loss", "{run}", "-o", "{tmp}"], 2, "expected a file"),
        (["plot", "loss", "{run}", "-o", "{tmp}/something/x.html"], 2, "expected a file"),
        (["train"], 2, "Missing option '--into'"),
        (["arms", "{run}", "--arm", "curriculm"], 2, "Did you mean 'curriculum'?"),
        (["arms", "{run}", "--arm", "code", "--fork-at", "1.5"], 2, "between 0 and 1"),
        (["arms", "{run}", "--arm", "code", "--fork-at", "0.5"], 2, "it has 0, 4, 8"),
        (["arms", "{run}", "--arm", "continue", "--fork-at", "0.4"], 2, "forked from"),
        (["arms", "{tmp}/none", "--arm", "code"], 3, "no run at"),
        (["report", "{tmp}/none"], 3, "no run at"),
        (["plot", "router-lode", "{run}"], 2, "did you mean 'router-load'"),
        (["plot", "loss", "{run}", "--branch", "curiculum"], 3, "did you mean 'curriculum'?"),
        (["checkpoints", "list", "{tmp}/none"], 3, "no run at"),
        (["checkpoints", "show", "{run}", "main", "5"], 3, "step"),
        (["demo", "--into", "{tmp}", "--fresh"], 2, "is not empty and holds no run"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_a_mistake_is_one_line_and_the_right_exit_code(
    capsys, tmp_path, tiny_run, arguments, code, message
):
    (tmp_path / "something").touch()
    before = sorted(tiny_run.rglob("*"))
    found, _, err = run(capsys, *(a.format(tmp=tmp_path, run=tiny_run) for a in arguments))
    assert (found, message in err) == (code, True), err
    assert "Traceback" not in err
    if err.startswith("workbench:"):
        assert err.count("\n") == 1
    assert sorted(tiny_run.rglob("*")) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["something"]


def test_the_report_and_a_plot_of_a_trained_run(capsys, tmp_path, tiny_run):
    code, out, _ = run(capsys, "report", tiny_run, "-o", tmp_path / "r.html", "--json")
    assert code == 0
    page = Path(json.loads(out)["report"]).read_text()
    assert "curriculum" in page
    code, _, _ = run(capsys, "plot", "router-load", tiny_run, "-o", tmp_path / "a" / "l.html")
    assert code == 0
    assert "plotly" in (tmp_path / "a" / "l.html").read_text().lower()


def test_arms_share_the_trunk_and_differ_after_the_fork(tiny_run, tiny_plan):
    fork = tiny_plan.schedule.fork_step
    lines = {a: wb.open_run(tiny_run, a).train.loss for a in ("main", "continue", "curriculum")}
    assert lines["main"].step.max() == fork
    for arm in ("continue", "curriculum"):
        assert lines[arm].step.max() == tiny_plan.schedule.steps
        shared = lines[arm].sel(step=slice(1, fork))
        np.testing.assert_array_equal(shared, lines["main"])
    after = slice(fork + 1, None)
    assert (lines["continue"].sel(step=after) != lines["curriculum"].sel(step=after)).all()


def losses(path, arm):
    return wb.open_run(path, arm).train.loss.load()


def test_a_checkpoint_that_a_stop_kept_out_of_the_index_is_entered_later(tmp_path, tiny_run):
    import shutil

    from workbench.app.experiment import Experiment

    copy = tmp_path / "copy"
    shutil.copytree(tiny_run, copy)
    (record,) = (copy / "index").rglob("*curriculum*/*28*")
    record.unlink()
    Experiment(copy, say=lambda _: None).train_arm("curriculum", 24)
    assert wb.open_run(copy, "curriculum").checkpoints.at(28).tokens_seen == 28 * 512


def test_a_run_that_is_being_written_is_not_moved_aside(capsys, tmp_path, tiny_run):
    import shutil

    from workbench.store.run_store import RunStore

    copy = tmp_path / "copy"
    shutil.copytree(tiny_run, copy)
    with RunStore.open(copy / "store").writer("curriculum"):
        code, _, err = run(capsys, "demo", "--into", copy, "--fresh")
    assert code == 1
    assert str(os.getpid()) in err
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


@pytest.mark.slow
def test_a_demo_killed_in_the_middle_goes_on_and_loses_nothing(tmp_path):
    """SIGKILL while it trains; the same command again; the same losses as an undisturbed run."""
    options = ["--steps", "20", "--device", "cpu", "--threads", "1"]
    whole = spawn("demo", "--into", tmp_path / "whole", *options)
    said, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, said

    hit = tmp_path / "hit"
    victim = spawn("demo", "--into", hit, *options)
    deadline = time.monotonic() + 200
    while not list(hit.glob("checkpoints/main/step-0000000[4-9]")):
        assert victim.poll() is None, victim.stdout.read()
        assert time.monotonic() < deadline, sorted(hit.rglob("*"))[:20]
        time.sleep(0.02)  # polls until a checkpoint is there; nothing depends on how long
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    committed = losses(hit, "main")

    going_on = options[2:]
    again = spawn("demo", "--into", hit, *going_on)
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert f"found {hit}: main up to step" in said
    assert "going on with it" in said
    assert "main: goes on from step" in said
    for arm in ("main", "continue", "curriculum"):
        np.testing.assert_array_equal(losses(hit, arm), losses(tmp_path / "whole", arm))
    np.testing.assert_array_equal(losses(hit, "main")[: len(committed)], committed)

    # Once more: nothing is left to train; afresh on request, the old one set aside.
    finished = spawn("demo", "--into", hit, *going_on)
    said, _ = finished.communicate(timeout=300)
    assert "curriculum: already there up to step 20" in said
    assert (hit / "report.html").stat().st_size > 1e6
