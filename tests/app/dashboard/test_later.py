"""What takes long is computed beside the pages: they say so, and none waits for it."""

from __future__ import annotations

import contextlib
import threading

import pytest

from workbench.app.dashboard import live_run
from workbench.app.dashboard.frame import _panels
from workbench.app.dashboard.later import MOST, Computing, Later
from workbench.app.dashboard.live_run import LiveRun
from workbench.app.dashboard.panel import look
from workbench.app.dashboard.view import View


def seen(live, page):
    """Every panel of a page, as it is now, and what a browser compares to know of news."""
    moment = live.moment(View(page=page))
    return [look(panel, "") for panel in _panels(moment)], moment.pulse(moment.health)


def test_emergence_says_that_it_computes_and_other_pages_do_not_wait(two_arm_run, monkeypatch):
    go_on, begun, counted = threading.Event(), threading.Event(), []
    real = live_run._evaluated

    def slow(path, arm):
        begun.set()
        counted.append(arm)
        assert go_on.wait(60)
        return real(path, arm)

    monkeypatch.setattr(live_run, "_evaluated", slow)
    live = LiveRun(two_arm_run)
    try:
        (emergence, *_), before = seen(live, "emergence")
        assert emergence.missing
        assert "computing" in emergence.words
        assert begun.wait(60)
        assert not seen(live, "health")[0][0].missing
        assert seen(live, "compare")[0][1].words == emergence.words
    finally:
        go_on.set()
    assert live.later.wait(60)
    (emergence, *_), after = seen(live, "emergence")
    assert emergence.figure is not None
    assert after != before
    assert seen(live, "compare")[0][1].figure is not None
    assert len(counted) == 1


def test_the_last_result_is_shown_until_the_next_one_is_there():
    later, go_on = Later(), threading.Event()
    with pytest.raises(Computing):
        later.get("it", 1, lambda: "old")
    assert later.wait(60)
    assert later.get("it", 2, lambda: go_on.wait(60) and "new") == "old"
    go_on.set()
    assert later.wait(60)
    assert later.get("it", 2, lambda: "never asked for") == "new"
    assert later.done == 2


def test_the_results_that_were_asked_for_last_are_kept():
    later = Later()

    def ask(i):
        with contextlib.suppress(Computing):
            later.get(f"it {i}", 0, lambda: i)
        assert later.wait(60)
        return later.get(f"it {i}", 0, lambda: "anew")

    for i in range(MOST):
        assert ask(i) == i
    assert ask(0) == 0
    assert ask(MOST) == MOST
    assert ask(0) == 0
    done = later.done
    ask(1)
    assert later.done == done + 1


def test_what_fails_fails_where_it_is_shown_and_is_tried_again_when_there_is_news():
    later = Later()

    def fail():
        raise ValueError("no such chunk")

    with pytest.raises(Computing):
        later.get("it", 1, fail)
    assert later.wait(60)
    with pytest.raises(ValueError, match="no such chunk"):
        later.get("it", 1, fail)
    with pytest.raises(Computing):
        later.get("it", 2, lambda: "mended")
    assert later.wait(60)
    assert later.get("it", 2, fail) == "mended"
