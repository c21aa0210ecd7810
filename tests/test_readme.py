"""The README's snippets run as they stand."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import workbench as wb
from model.lm import MoELM
from workbench.app.cli import commands, main

README = (Path(__file__).parents[1] / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
SHELL = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.S)
    for line in block.splitlines()
]


def test_the_trainers_snippet_records_a_training(tmp_path, monkeypatch, tiny_plan):
    monkeypatch.chdir(tmp_path)
    (snippet,) = [s for s in PYTHON if "Recorder" in s]
    lm = MoELM(replace(tiny_plan.model, n_layers=1))
    given = {
        "model": lm,
        "batches": [torch.randint(0, 99, (2, 8)) for _ in range(3)],
        "train_step": lambda model, batch: model(batch, return_type="loss").backward(),
    }
    exec(snippet, given)
    assert wb.open_run("runs/mine").router.sizes["step"] == 3


def test_the_scientists_snippet_runs_on_a_run(tmp_path, monkeypatch, tiny_run):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(tiny_run)
    monkeypatch.chdir(tmp_path)
    (snippet,) = [s for s in PYTHON if "open_run" in s]
    shown = {}
    exec(snippet, shown)
    assert shown["load"].dims == ("step", "layer", "expert")
    assert shown["load"].sizes["step"] == 6  # the last fifth of thirty steps
    assert shown["skill"].sizes["checkpoint"] == len(shown["run"].checkpoints)


def test_xarray_opens_a_run_as_the_readme_says(tmp_path, monkeypatch, tiny_run):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(tiny_run)
    monkeypatch.chdir(tmp_path)
    (snippet,) = [s for s in PYTHON if "open_dataset" in s]
    shown = {}
    exec(snippet, shown)
    assert shown["router"].sizes["step"] == wb.open_run("runs/demo").router.sizes["step"]


@pytest.mark.parametrize("line", [s for s in SHELL if s.startswith("workbench")])
def test_an_analysts_line_is_a_command_that_there_is(line, tmp_path, monkeypatch, tiny_run):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(tiny_run)
    monkeypatch.chdir(tmp_path)
    _, name, *rest = shlex.split(line)
    assert name in commands.commands
    # The first two write into the run, which is shared; the third serves until it is stopped, and
    # has tests of its own.
    if name in ("report", "arms", "dashboard"):
        commands.commands[name].make_context(name, rest)
        return
    assert ends_well([name, *rest])


def ends_well(arguments):
    try:
        main(arguments)
    except SystemExit as leave:
        return leave.code in (0, None)
    return True
