"""Overview: the loss, where the tokens go in all layers, and whether the load is even.

Needs   a Moment.
Yields  `panels`.
"""

from __future__ import annotations

from workbench import figures
from workbench.app.dashboard.live_run import Moment
from workbench.app.dashboard.load_strip import legend, load_strip
from workbench.app.dashboard.panel import Chart, Panel

TITLE = "Overview"


def panels(moment: Moment) -> list[Panel]:
    """Loss, load and balance of the arm that is shown."""
    arm, marks, x = moment.run.branch, moment.marks, moment.view.clock
    return [
        Chart(
            "loss", "Training loss",
            lambda: figures.loss(
                {arm: moment.curves_of(arm)}, marks=marks, x=x, colors=moment.colors
            ),
        ),
        Chart(
            "load", "Load of every expert, all layers",
            lambda: load_strip(moment.load_of(arm), marks=marks, x=x),
            legend=legend(),
        ),
        Chart(
            "balance", "Balance",
            lambda: figures.balance(
                {arm: moment.balance_of(arm)}, marks=marks, x=x, colors=moment.colors
            ),
            foot="Each point is measured over all of its steps together.",
        ),
    ]  # fmt: skip
