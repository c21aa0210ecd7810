"""The notebooks: the script and the .ipynb say the same, and each runs, on a small run and on none.

They are executed as a user would, in a kernel of their own; a cell that warns, a figure that could
be sent away and a number that is not what it says fail.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
SCRIPTS = sorted(FOLDER.glob("[0-9]*.py"))
FIGURES = {
    "01_first_look": 3,
    "02_the_final_week": 4,
    "03_the_life_of_an_expert": 5,
    "04_write_a_probe": 1,
    "05_capture_your_own_model": 2,
}
PLOTLY = "application/vnd.plotly.v1+json"
# Told by tqdm where ipywidgets, of the extra [lab], is not installed.
BENIGN = "IProgress not found"


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_there_are_five_tutorials():
    assert [script.stem for script in SCRIPTS] == list(FIGURES)


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


@pytest.fixture(scope="module")
def own_run(tiny_run, tmp_path_factory):
    """A trained run that may be written: what a notebook finds is kept in it."""
    return shutil.copytree(tiny_run, tmp_path_factory.mktemp("own") / "tiny")


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Runs a script as a notebook, in an empty folder or where `run` is named; its outputs."""

    def run_it(script, run=None):
        path = os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
        monkeypatch.setenv("PYTHONPATH", path)
        # The debugger's notice about frozen modules is no concern of ours.
        monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
        monkeypatch.delenv("PLOTLY_RENDERER", raising=False)
        monkeypatch.delenv("WORKBENCH_RUN", raising=False)
        if run is not None:
            monkeypatch.setenv("WORKBENCH_RUN", str(run))
        notebook = jupytext.read(script)
        resources = {"metadata": {"path": str(tmp_path)}}
        NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
        return [output for cell in notebook.cells for output in cell.get("outputs", [])]

    return run_it


def check(outputs, script):
    told = [o["text"] for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    assert not [text for text in told if BENIGN not in text]
    shown = [o.data[PLOTLY] for o in outputs if PLOTLY in o.get("data", {})]
    assert len(shown) == FIGURES[script.stem]
    assert all(figure["config"]["showSendToCloud"] is False for figure in shown)


def says(outputs):
    """All text that a reader sees first: what was printed, and cards."""
    return " ".join(
        str(o.get("text", "")) + str(o.get("data", {}).get("text/html", "")) for o in outputs
    )


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS[:4], ids=lambda p: p.stem)
def test_a_notebook_runs_on_a_trained_run(script, own_run, execute):
    outputs = execute(script, own_run)
    check(outputs, script)
    assert "tiny" in says(outputs)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_a_notebook_runs_where_there_is_no_run_and_says_which_it_made(script, execute, tmp_path):
    outputs = execute(script)
    check(outputs, script)
    assert ("mine" if script.stem.startswith("05") else "planted") in says(outputs)
    assert not list(tmp_path.iterdir()), "nothing is left in the working folder"
