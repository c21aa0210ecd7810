"""What a run keeps of probes is drawn on the dashboard, whoever wrote the probe."""

from __future__ import annotations

import base64
import shutil

import numpy as np
import pytest
import xarray as xr

import workbench as wb
from probes import registry
from probes.examine import examine
from probes.registry import probe
from workbench.app.dashboard.frame import _panels
from workbench.app.dashboard.live_run import LiveRun
from workbench.app.dashboard.panel import look
from workbench.app.dashboard.view import View

AT = list(range(10, 101, 10))


@pytest.fixture(autouse=True)
def rises():
    """A probe that somebody wrote, known in a test alone."""
    registry.names()
    before = dict(registry._KNOWN)

    @probe("rises", question="Does it rise?", reads="record")
    def rises(source):
        values = ("checkpoint", np.asarray(AT, dtype=float), {"units": "steps"})
        return xr.Dataset({"height": values}, {"checkpoint": AT})

    yield
    registry._KNOWN.clear()
    registry._KNOWN.update(before)


@pytest.fixture
def path(two_arm_run, tmp_path):
    path = shutil.copytree(two_arm_run, tmp_path / "run")
    wb.open_run(path).results.drop()  # other tests may have kept some
    return path


def seen(live, **view):
    """The page's panels by id, when all that it computes is there."""
    for _ in range(4):
        moment = live.moment(View(page="probes", **view))
        found = {p.id: look(p, "") for p in _panels(moment)}
        assert live.later.wait(120)
    return found


def steps_of(shown):
    """Of a chart's first line, as plotly writes numbers into JSON."""
    x = shown.figure["data"][0]["x"]
    return np.frombuffer(base64.b64decode(x["bdata"]), x["dtype"]).tolist()


def test_a_probe_that_somebody_wrote_is_offered_and_drawn(path):
    examine(wb.open_run(path, "continue"), "rises", "balance")
    live = LiveRun(path)
    found = seen(live, arm="continue", probe="rises")
    assert [row[0] for row in found["probe"].rows] == ["balance", "rises"]
    assert [row[2] for row in found["probe"].rows] == ["", "shown"]
    assert View.from_query(found["probe"].rows[0][1]).probe == "balance"
    assert not found["found"].missing
    assert found["found"].figure["data"]
    assert {row[0] for row in found["kept"].rows} == {"balance", "rises"}


def test_what_is_drawn_are_the_steps_that_are_shown(path):
    run = wb.open_run(path, "continue")
    examine(run, "rises")
    live = LiveRun(path)
    whole = seen(live, arm="continue", probe="rises")["found"]
    part = seen(live, arm="continue", probe="rises", start=50, stop=90)["found"]
    assert steps_of(whole) == AT
    assert steps_of(part) == [50, 60, 70, 80, 90]
    none = seen(live, arm="continue", probe="rises", start=91, stop=99)["found"]
    assert none.missing
    assert "nothing of it lies in these steps" in none.words


def test_only_what_is_kept_of_the_shown_arm_is_offered(path):
    examine(wb.open_run(path, "continue"), "rises")
    live = LiveRun(path)
    assert "probe" not in seen(live, arm="curriculum")
    assert "rises" in seen(live, arm="curriculum")["kept"].rows[0]


@pytest.mark.parametrize("name", ["nobody", "<script>", "../../x", "x" * 5000])
def test_a_probe_that_an_address_names_and_nothing_is_kept_of_is_the_first(path, name):
    examine(wb.open_run(path, "continue"), "balance")
    found = seen(LiveRun(path), arm="continue", probe=name)
    assert [row[2] for row in found["probe"].rows] == ["shown"]
    assert found["found"].figure is not None


def test_a_run_that_keeps_nothing_says_how_to_begin(path):
    found = seen(LiveRun(path))
    assert list(found) == ["kept"]
    assert "workbench probe" in found["kept"].words


def test_a_result_that_holds_no_more_is_said_to_be_old(path):
    run = wb.open_run(path, "continue")
    examine(run, "rises")
    registry._KNOWN.pop("rises")
    found = seen(LiveRun(path), arm="continue", probe="rises")["found"]
    assert found.missing
    assert "earlier state" in found.words


def test_what_is_kept_meanwhile_comes_by_itself(path):
    live = LiveRun(path)
    assert list(seen(live, arm="continue")) == ["kept"]
    before = live.moment(View(page="probes", arm="continue")).pulse(live.moment(View()).health)
    examine(wb.open_run(path, "continue"), "balance")
    assert seen(live, arm="continue")["found"].figure is not None
    moment = live.moment(View(page="probes", arm="continue"))
    assert moment.pulse(moment.health) != before
