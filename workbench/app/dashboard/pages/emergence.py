"""Emergence: when capabilities arrive.

Needs   a Moment.
Yields  `panels`.

Capabilities are scored from what was evaluated, beside the page, which says so meanwhile.
"""

from __future__ import annotations

import plotly.graph_objects as go

from workbench import figures
from workbench.app.dashboard.live_run import Moment
from workbench.app.dashboard.panel import Chart, Panel
from workbench.errors import RunNotFound
from workbench.figures.clock import clock_of

TITLE = "Emergence"


def panels(moment: Moment) -> list[Panel]:
    """Every task through training."""
    return [Chart("emergence", "When capabilities arrive", lambda: _emergence(moment))]


def _emergence(moment: Moment) -> go.Figure:
    told = moment.evaluated()
    found, onsets, missing = told.skills, told.onsets, told.missing
    if not found:
        why = next((w for n, w in missing.items() if n.startswith("capabilities")), "")
        raise RunNotFound(why or "nothing was evaluated yet.")
    x = moment.view.clock
    fig = figures.emergence(found, onsets, marks=moment.marks, x=x, colors=moment.colors)
    if moment.view.start or moment.view.stop is not None:
        # The curves stay whole, so that an onset keeps its history; the axis shows the steps.
        longest = max(found.values(), key=lambda ds: ds["checkpoint"].values[-1])
        clock = clock_of(longest, x)
        fig.update_xaxes(range=[clock.at(moment.view.start), clock.at(moment.stop)])
    return fig
