"""The working copy: what somebody edited stays, whatever happens."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from workbench.app.lab.copies import digest, make_copies, shipped
from workbench.app.lab.newest_run import VARIABLE, run_to_show
from workbench.errors import UsageError


def notebook(path, *cells, outputs=()):
    body = {
        "cells": [
            {"cell_type": "code", "source": [cell], "outputs": list(outputs)} for cell in cells
        ],
        "metadata": {}, "nbformat": 4, "nbformat_minor": 5,
    }  # fmt: skip
    path.write_text(json.dumps(body))
    return path


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "shipped"
    folder.mkdir()
    notebook(folder / "01_a.ipynb", "1 + 1")
    notebook(folder / "02_b.ipynb", "2 + 2")
    return folder


def done(source, mine, **options):
    return {copy.name: copy.done for copy in make_copies(mine, source=source, **options)}


def test_notebooks_are_copied_once(source, tmp_path):
    mine = tmp_path / "mine"
    assert done(source, mine) == {"01_a.ipynb": "copied", "02_b.ipynb": "copied"}
    assert done(source, mine) == {"01_a.ipynb": "there", "02_b.ipynb": "there"}
    assert (mine / "01_a.ipynb").read_text() == (source / "01_a.ipynb").read_text()


def test_an_edited_notebook_is_kept_and_its_name_is_told(source, tmp_path):
    mine = tmp_path / "mine"
    make_copies(mine, source=source)
    edited = notebook(mine / "01_a.ipynb", "1 + 1", "mine = 3").read_text()
    copies = make_copies(mine, source=source)
    assert (mine / "01_a.ipynb").read_text() == edited
    assert "01_a.ipynb: edited, and kept" in str(copies[0])


def test_a_newer_version_replaces_a_notebook_that_was_only_run(source, tmp_path):
    mine = tmp_path / "mine"
    make_copies(mine, source=source)
    notebook(mine / "01_a.ipynb", "1 + 1", outputs=[{"output_type": "stream", "text": ["2"]}])
    notebook(mine / "02_b.ipynb", "2 + 2 + mine")
    notebook(source / "01_a.ipynb", "1 + 1", "'new'")
    notebook(source / "02_b.ipynb", "2 + 2", "'new'")
    assert done(source, mine) == {"01_a.ipynb": "updated", "02_b.ipynb": "kept"}
    assert "'new'" in (mine / "01_a.ipynb").read_text()
    assert "mine" in (mine / "02_b.ipynb").read_text()


def test_fresh_sets_edited_notebooks_aside_under_names_that_nothing_has(source, tmp_path):
    mine = tmp_path / "mine"
    make_copies(mine, source=source)
    for number in (1, 2):
        notebook(mine / "01_a.ipynb", f"mine = {number}")
        copies = make_copies(mine, source=source, fresh=True)
        assert f"01_a.yours-{number}.ipynb" in str(copies[0])
    assert "mine = 1" in (mine / "01_a.yours-1.ipynb").read_text()
    assert "mine = 2" in (mine / "01_a.yours-2.ipynb").read_text()
    assert "1 + 1" in (mine / "01_a.ipynb").read_text()


def test_a_notebook_of_somebody_elses_by_the_same_name_is_kept(source, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "01_a.ipynb").write_text("not even json")
    (mine / ".workbench-notebooks.json").write_text("[broken")
    assert done(source, mine)["01_a.ipynb"] == "kept"
    assert (mine / "01_a.ipynb").read_text() == "not even json"


def test_the_originals_themselves_are_left_alone(source):
    before = sorted(source.iterdir())
    assert set(done(source, source).values()) == {"there"}
    assert sorted(source.iterdir()) == before


def test_a_file_in_the_way_is_refused_with_the_remedy(source, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UsageError, match="workbench lab FOLDER"):
        make_copies(tmp_path / "taken", source=source)


def test_the_clone_ships_its_notebooks_and_the_wheel_will(tmp_path):
    assert {path.name[:3] for path in shipped().glob("*.ipynb")} >= {"01_", "02_"}
    pyproject = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert '"notebooks" = "workbench/notebooks"' in pyproject


def test_the_digest_is_of_the_text_and_not_of_what_it_showed(tmp_path):
    plain = notebook(tmp_path / "a.ipynb", "1 + 1")
    ran = notebook(tmp_path / "b.ipynb", "1 + 1", outputs=[{"output_type": "stream"}])
    other = notebook(tmp_path / "c.ipynb", "1 + 2")
    assert digest(plain) == digest(ran) != digest(other)


def make_run(folder, recorded):
    """A run whose last commit was at `recorded`."""
    branch = folder / "store" / "refs" / "branch.main"
    branch.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    (branch / "ref.json").write_text("{}")
    for file in (folder / "run.json", branch / "ref.json"):
        os.utime(file, (recorded, recorded))
    return folder


def test_the_run_that_was_recorded_to_last_is_shown(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    old = make_run(tmp_path / "runs" / "old", 1_000)
    new = make_run(tmp_path / "runs" / "a-new", 2_000)
    (tmp_path / "runs" / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run_to_show() == new
    results = old / "store" / "refs" / "branch._results"
    results.mkdir()
    (results / "ref.json").write_text("{}")
    assert run_to_show() == new, "to look at a run does not make it newer"
    os.utime(old / "store" / "refs" / "branch.main" / "ref.json", (3_000, 3_000))
    assert run_to_show() == old


def test_the_run_that_the_environment_names_goes_before(tmp_path, monkeypatch):
    make_run(tmp_path / "runs" / "here", 1_000)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "elsewhere/mine")
    assert run_to_show() == tmp_path / "elsewhere" / "mine"


def test_where_there_is_no_run_there_is_none(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    assert run_to_show() is None
    (tmp_path / "runs" / "notebooks").mkdir(parents=True)
    assert run_to_show() is None
