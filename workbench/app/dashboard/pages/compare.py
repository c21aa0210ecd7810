"""Compare: what the arms of the run do differently, and what that bought.

Needs   a Moment.
Yields  `panels`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
import plotly.graph_objects as go

from workbench import figures
from workbench.app.dashboard.live_run import Moment
from workbench.app.dashboard.panel import Chart, Panel, Words
from workbench.errors import RunNotFound
from workbench.figures.wording import plain

TITLE = "Compare arms"

T = TypeVar("T")


def panels(moment: Moment) -> list[Panel]:
    """Loss and balance of all arms, and for each arm its gain over the baseline."""
    marks, x, colors = moment.marks, moment.view.clock, moment.colors
    if len(moment.arms) < 2:
        return [Words("This run has one arm. `workbench arms` forks others from a checkpoint.")]
    baseline, *others = moment.arms
    return [
        Chart(
            "arms-loss", "Training loss of every arm",
            lambda: figures.loss(_each(moment, moment.curves_of), marks=marks, x=x, colors=colors),
        ),
        *[
            Chart(
                f"gain-{arm}", f"What {plain(arm)} bought over {plain(baseline)}",
                partial(_gain, moment, arm),
                foot="At the last checkpoint in these steps that both arms were evaluated at.",
            )
            for arm in others
        ],
        Chart(
            "arms-balance", "Balance of every arm",
            lambda: figures.balance(
                _each(moment, moment.balance_of), marks=marks, x=x, colors=colors
            ),
            foot="Each point is measured over all of its steps together.",
        ),
    ]  # fmt: skip


def _each(moment: Moment, measure: Callable[[str], T]) -> dict[str, T]:
    """The measure of every arm that has anything in these steps."""
    found = {}
    for arm in moment.arms:
        try:
            found[arm] = measure(arm)
        except RunNotFound:
            continue
    if not found:
        raise RunNotFound("no arm has a record of these steps.")
    return found


def _gain(moment: Moment, arm: str) -> go.Figure:
    told = moment.evaluated()
    found, missing = told.differences, told.missing
    if arm not in found:
        why = next((w for n, w in missing.items() if n == f"difference of {arm}"), "")
        raise RunNotFound(why or f"{arm!r} and the baseline were not both evaluated.")
    gap = found[arm]
    steps = gap["checkpoint"].values
    shown = steps[(steps > moment.view.start) & (steps <= moment.stop)]
    if not np.size(shown):
        raise RunNotFound("no checkpoint in these steps was evaluated in both arms.")
    return figures.arms(gap, checkpoint=int(shown[-1]), colors=moment.colors)
