"""Health: is it still writing, how fast, what is missing, and what a step takes.

Needs   a Moment.
Yields  `panels`.
"""

from __future__ import annotations

from workbench.app.dashboard.live_run import Moment
from workbench.app.dashboard.panel import Chart, Facts, Panel
from workbench.app.dashboard.step_time import step_time

TITLE = "Health"


def panels(moment: Moment) -> list[Panel]:
    """The state with its reason, all facts, and the time that steps take."""
    arm = moment.run.branch
    return [
        Facts("state", "Is it still writing?", lambda: _state(moment)),
        Chart(
            "step-time", "What a step takes",
            lambda: step_time(moment.curves_of(arm), marks=moment.marks, x=moment.view.clock),
        ),
    ]  # fmt: skip


def _state(moment: Moment) -> list[tuple[str, str]]:
    found = moment.health
    return [("State", found.state), ("Because", found.why), *found.facts]
