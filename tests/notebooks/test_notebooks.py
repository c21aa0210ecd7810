"""The notebooks: the script and the .ipynb say the same, and both run on a small run."""

from __future__ import annotations

import os
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
SCRIPTS = sorted(FOLDER.glob("[0-9]*.py"))


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_the_ipynb_is_in_step_with_its_script_and_holds_no_outputs(script):
    twin = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    assert cells(twin) == cells(jupytext.read(script)), (
        f"make it again: jupytext --to ipynb {script.relative_to(FOLDER.parent)}"
    )
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in twin.cells)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_a_notebook_begins_with_a_question_and_ends_with_an_asserted_number(script):
    notebook = jupytext.read(script)
    assert notebook.cells[0].source.splitlines()[0].endswith("?")
    assert "assert " in notebook.cells[-1].source


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_a_notebook_runs_and_its_figures_cannot_be_sent_away(script, tiny_run, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUN", str(tiny_run))
    path = os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    # The debugger's notice about frozen modules is no concern of ours.
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    notebook = jupytext.read(script)
    client = NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    )
    client.execute()
    shown = [
        output.data["application/vnd.plotly.v1+json"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "application/vnd.plotly.v1+json" in output.get("data", {})
    ]
    assert len(shown) == 3
    assert all(figure["config"]["showSendToCloud"] is False for figure in shown)
