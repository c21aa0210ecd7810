"""What a run keeps of probes is drawn on the dashboard, whoever wrote the probe."""

from __future__ import annotations

import base64
import dataclasses
import shutil

import numpy as np
import pytest
import xarray as xr

import workbench as wb
from probes import registry
from probes.examine import examine
from probes.registry import probe
from workbench.app.dashboard import later
from workbench.app.dashboard.frame import Sent, _panels, _whole
from workbench.app.dashboard.later import Computing
from workbench.app.dashboard.live_run import LiveRun
from workbench.app.dashboard.panel import look
from workbench.app.dashboard.view import View
from workbench.store import results

AT = list(range(10, 101, 10))
HEIGHT: list[float] = []


@pytest.fixture(autouse=True)
def rises():
    """A probe that somebody wrote, known in a test alone."""
    registry.names()
    before = dict(registry._KNOWN)

    @probe("rises", question="Does it rise?", reads="record")
    def rises(source):
        height = np.full(len(AT), HEIGHT[0]) if HEIGHT else np.asarray(AT, dtype=float)
        values = ("checkpoint", height, {"units": "steps"})
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
    return numbers(shown.figure["data"][0]["x"])


def values_of(shown):
    return numbers(shown.figure["data"][0]["y"])


def numbers(x):
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


def test_what_was_asked_in_a_special_way_is_said(path):
    run = wb.open_run(path, "continue")
    examine(run.window(stop=50), "balance")
    found = seen(LiveRun(path), arm="continue", probe="balance")["found"]
    assert found.words.endswith("Asked of it: steps 1 to 50.")


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
    examine(wb.open_run(path, "continue"), "rises")
    registry._KNOWN["rises"] = dataclasses.replace(registry._KNOWN["rises"], version=2)
    found = seen(LiveRun(path), arm="continue", probe="rises")["found"]
    assert found.missing
    assert "earlier state" in found.words


def test_a_probe_that_is_not_installed_here_is_said_to_be_unknown(path):
    examine(wb.open_run(path, "continue"), "rises")
    registry._KNOWN.pop("rises")
    found = seen(LiveRun(path), arm="continue", probe="rises")["found"]
    assert found.missing
    assert "not known here" in found.words


def test_what_is_computed_anew_is_drawn_anew(path, monkeypatch):
    run, live = wb.open_run(path, "continue"), LiveRun(path)
    examine(run, "rises")
    assert values_of(seen(live, arm="continue", probe="rises")["found"]) == AT
    run.results.drop("rises")
    HEIGHT.append(7.0)
    real = results.provenance
    monkeypatch.setattr(results, "provenance", lambda: {**real(), "utc": "2030-01-01T00:00:00"})
    try:
        examine(run, "rises")
        assert set(values_of(seen(live, arm="continue", probe="rises")["found"])) == {7.0}
    finally:
        HEIGHT.clear()


def test_what_comes_while_a_page_is_made_is_news(path, monkeypatch):
    examine(wb.open_run(path, "continue"), "balance")
    live = LiveRun(path)
    get = live.later.get

    def at_once(*given):
        try:
            return get(*given)
        except Computing:
            live.later.wait(120)
            raise

    monkeypatch.setattr(live.later, "get", at_once)
    page = _whole(live, Sent(), "?page=probes&arm=continue")
    moment = live.moment(View(page="probes", arm="continue"))
    assert page[2]["pulse"] != moment.pulse(moment.health)


def test_a_listing_that_fails_leaves_the_page_and_is_tried_again(path, monkeypatch):
    live, now = LiveRun(path), [0.0]
    monkeypatch.setattr(later, "monotonic", lambda: now[0])

    def fail(*given):
        raise OSError("no such chunk")

    with monkeypatch.context() as broken:
        broken.setattr(results.Results, "list", fail)
        for _ in range(2):
            found = seen(live, arm="continue")
            assert list(found) == ["kept"]
            assert "no such chunk" in found["kept"].words
    assert "no such chunk" in seen(live, arm="continue")["kept"].words
    now[0] = 31.0
    assert "workbench probe" in seen(live, arm="continue")["kept"].words


@pytest.mark.parametrize("at", [AT[::-1], [30, 10, 20, *AT[3:]], [f"c{i}" for i in AT]])
def test_checkpoints_in_no_order_or_named_are_drawn(path, at):
    @probe("odd", question="Is it odd?", reads="record")
    def odd(source):
        return xr.Dataset({"height": ("checkpoint", np.arange(10.0))}, {"checkpoint": at})

    examine(wb.open_run(path, "continue"), "odd")
    found = seen(LiveRun(path), arm="continue", probe="odd", start=15, stop=45)["found"]
    assert not found.missing, found.words


def test_what_is_kept_meanwhile_comes_by_itself(path):
    live = LiveRun(path)
    assert list(seen(live, arm="continue")) == ["kept"]
    before = live.moment(View(page="probes", arm="continue")).pulse(live.moment(View()).health)
    examine(wb.open_run(path, "continue"), "balance")
    assert seen(live, arm="continue")["found"].figure is not None
    moment = live.moment(View(page="probes", arm="continue"))
    assert moment.pulse(moment.health) != before
