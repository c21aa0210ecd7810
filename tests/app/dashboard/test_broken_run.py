"""A run that is deleted or damaged while it is looked at is said to be, and the server lives on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr

from workbench import figures
from workbench.app.dashboard.frame import make_app
from workbench.app.dashboard.live_run import LiveRun
from workbench.app.dashboard.panel import Chart, drawing, look
from workbench.app.dashboard.view import PAGES


class Browser:
    """Asks for the page at an address, as a browser does."""

    def __init__(self, live):
        self.client = make_app(live).server.test_client()
        said = self.client.get("/_dash-dependencies").json
        self.page = next(d for d in said if d["inputs"][0]["id"] == "url")

    def opens(self, search):
        """What the page is sent, by component and property."""
        names = [n.rpartition(".") for n in self.page["output"].strip(".").split("...")]
        answer = self.client.post(
            "/_dash-update-component",
            json={
                "output": self.page["output"],
                "outputs": [{"id": id, "property": prop} for id, _, prop in names],
                "inputs": [{**self.page["inputs"][0], "value": search}],
                "state": self.page["state"],
                "changedPropIds": ["url.search"],
            },
        )
        assert answer.status_code == 200, answer.data[:300]
        return answer.json["response"]


@pytest.fixture
def broken(two_arm_run, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(two_arm_run, path)
    return path


def test_a_deleted_run_is_unreadable_and_comes_back(broken):
    browser = Browser(LiveRun(broken))
    assert browser.opens("")["state"]["children"] == "finished"
    aside = broken.with_name("aside")
    broken.rename(aside)
    for page in PAGES:
        said = browser.opens(f"?page={page}")
        assert said["state"]["children"] == "unreadable"
        assert "cannot be read" in json.dumps(said["main"])
        assert said["shown"]["data"]["sent"] == ""
    aside.rename(broken)
    assert browser.opens("")["state"]["children"] == "finished"


@pytest.mark.parametrize("text", ["[1]", "{", ""])
def test_a_run_json_that_is_spoilt_meanwhile_is_said(broken, text):
    browser = Browser(LiveRun(broken))
    (broken / "run.json").write_text(text)
    said = browser.opens("?page=overview")
    assert said["state"]["children"] == "unreadable"
    assert "Traceback" not in json.dumps(said)


def test_odd_phases_of_an_edited_run_json_are_left_out(broken):
    browser = Browser(LiveRun(broken))
    (broken / "run.json").write_text('{"phases": [1, null]}')
    said = browser.opens("?page=overview")
    assert said["state"]["children"] == "finished"
    assert "code 500" not in json.dumps(said)
    assert "could not be drawn" not in json.dumps(said)


def test_a_damaged_store_fails_in_words(broken):
    live = LiveRun(broken)
    for file in (broken / "store").rglob("*"):
        if file.is_file():
            file.write_bytes(b"\0" * 10)
    said = Browser(live).opens("")
    assert said["state"]["children"] == "unreadable"
    assert said["pulse"]["children"]


def test_one_panel_that_fails_leaves_the_others():
    def fail() -> go.Figure:
        raise ZeroDivisionError("<script>")

    found = look(Chart("x", "X", fail), "")
    assert found.missing
    assert found.words == "This could not be drawn: ZeroDivisionError: <script>"


@pytest.mark.parametrize(
    "body", ["[]", "null", "{}", '{"output":"x"}', '{"output":1,"inputs":3}', "[" * 20_000, "{"]
)
def test_a_request_that_is_no_page_s_is_refused_in_one_line(two_arm_run, body):
    client = make_app(LiveRun(two_arm_run)).server.test_client()
    said = client.post("/_dash-update-component", data=body, content_type="application/json")
    assert said.status_code == 400
    assert b"Traceback" not in said.data


def test_all_charts_count_steps_on_linear_axes():
    steps = np.arange(1, 2001)
    train = xr.Dataset({"loss": ("step", 5.0 / steps)}, coords={"step": steps})
    mark = figures.Mark(1000, "late phase")
    alone = figures.loss(train, marks=[mark])
    assert alone.layout.xaxis.type == "log"
    shown = drawing(alone, "")["layout"]
    assert shown["xaxis"].get("type") in (None, "linear")
    assert "dtick" not in shown["xaxis"]
    (text,) = [a for a in shown["annotations"] if "late" in a["text"]]
    assert text["x"] == pytest.approx(1000)


def test_an_interruption_ends_the_server_with_130_and_no_traceback(two_arm_run):
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench.app.cli", "dashboard", str(two_arm_run), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    assert process.stdout.readline().startswith("http://")
    # The first page is still being drawn: its thread reads the store.
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().count("\n") == 0
