"""docs/probes.md and docs/transformer-lens.md: every Python block runs, in order, on a run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from probes import registry

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def home(tiny_run, tmp_path, monkeypatch):
    """A folder in which runs/demo is a run."""
    shutil.copytree(tiny_run, tmp_path / "runs" / "demo")
    monkeypatch.chdir(tmp_path)
    registry.names()  # what is imported once is not marked again
    before = dict(registry._KNOWN)
    yield tmp_path
    registry._KNOWN.clear()
    registry._KNOWN.update(before)


@pytest.mark.parametrize("page", ["probes.md", "transformer-lens.md"])
def test_every_python_block_of_the_page_runs(home, page):
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)
    assert blocks
    space: dict[str, object] = {}
    for block in blocks:
        # The tiny run's vocabulary and context are the demo's; its probe set is smaller.
        exec(compile(block, page, "exec"), space)


def test_the_probe_that_the_page_shows_is_kept_and_listed(home):
    import workbench as wb
    from probes.examine import examine

    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / "probes.md").read_text(), re.M | re.S)
    shown = next(block for block in blocks if "@probe" in block)
    assert len(shown.splitlines()) <= 20
    exec(compile(shown, "probes.md", "exec"), {})
    run = wb.open_run("runs/demo")
    found = examine(run, "router-norm")["router-norm"]
    assert found.sizes == {"checkpoint": len(run.checkpoints), "layer": 2}
    assert run.results.list("router-norm")


def test_every_probe_that_the_page_names_on_a_command_line_exists():
    text = (DOCS / "probes.md").read_text()
    lines = re.findall(r"^workbench probe runs/demo ([a-z -]+?)(?:  |--|$)", text, re.M)
    named = {name for line in lines for name in line.split()}
    assert len(named) >= 5
    assert named <= set(registry.names())
