"""docs/reading.md: every block of code in it runs, in order, on one run."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

from workbench.app.export_command import export_command
from workbench.store.layout import Layout, Task
from workbench.store.run_store import RunStore

PAGE = Path(__file__).parents[2] / "docs" / "reading.md"
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```", PAGE.read_text(), re.M | re.S)


def append(writer, first, last):
    steps, rng = np.arange(first, last + 1), np.random.default_rng(first)
    n = len(steps)
    writer.append("router", {
        "step": steps, "tokens": np.full(n, 64),
        "assignments": rng.multinomial(128, [0.25] * 4, (n, 2)),
        "domain_assignments": rng.multinomial(64, [0.25] * 4, (n, 2, 2)),
    })  # fmt: skip
    loss = (3 / np.sqrt(steps)).astype("float32")
    writer.append("train", {
        "step": steps, "loss": loss, "tokens_seen": steps * 64, "utc": steps * 1.0,
    })  # fmt: skip
    writer.append("evaluations", {
        "checkpoint": steps[-1:], "tokens_seen": steps[-1:] * 64,
        "correct": np.ones((1, 1, 3), "int8"),
    })  # fmt: skip
    writer.commit("rows")
    writer.tag_checkpoint(last)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("reading")
    layout = Layout(
        layers=(0, 1), experts=4, k=2, domains=("prose", "code"), tasks=(Task("a/b", 0.25, 3),)
    )
    store = RunStore.create(home / "runs/demo/store", layout)
    with store.writer() as w:
        append(w, 1, 1000)
        append(w, 1001, 2000)
    store.fork("curriculum", at_step=2000)
    with store.writer("curriculum") as w:
        append(w, 2001, 2100)
    return home


def test_every_block_of_the_page_runs(home, monkeypatch):
    for package in ("pandas", "pyarrow", "h5netcdf", "dask"):
        pytest.importorskip(package)
    monkeypatch.chdir(home)
    if "workbench" not in xr.backends.list_engines():
        pytest.skip("the engine is found by its entry point: install the package")
    names: dict = {}
    for language, block in BLOCKS:
        if language == "bash":
            for line in block.splitlines():
                program, command, *words = shlex.split(line)
                assert (program, command) == ("workbench", "export")
                done = CliRunner().invoke(export_command, words)
                assert done.exit_code == 0, done.output
            continue
        for statement in ast.parse(block).body:
            code = ast.unparse(statement)
            if isinstance(statement, ast.Expr):
                assert eval(code, names) is not None, code
            else:
                exec(code, names)
    assert names["then"].step[-1] == 1000
    assert names["train"].sizes["step"] == 2100
    assert 25 <= names["seen"].sizes["bin"] <= 200
    assert names["end"].sizes["step"] == 1000


def test_the_page_has_blocks_of_both_languages():
    assert {language for language, _ in BLOCKS} == {"python", "bash"}
    assert len(BLOCKS) >= 8
