"""Layers: one layer's experts through training, one expert among them, and how sure the router is.

Needs   a Moment, whose view names the layer and the expert.
Yields  `panels`.
"""

from __future__ import annotations

from workbench import figures
from workbench.app.dashboard.expert_line import expert_line
from workbench.app.dashboard.live_run import Moment
from workbench.app.dashboard.panel import Chart, Panel
from workbench.app.dashboard.router_sureness import router_sureness

TITLE = "Layers"


def panels(moment: Moment) -> list[Panel]:
    """Load of the layer, load of the expert, sureness of the router."""
    arm, marks, view = moment.run.branch, moment.marks, moment.view
    x, layer, expert = view.clock, view.layer, view.expert
    return [
        Chart(
            "layer-load", f"Layer {layer}: load of its experts",
            lambda: figures.expert_load(
                moment.load_of(arm).isel(layer=[layer]), marks=marks, x=x
            ),
        ),
        Chart(
            "expert-load", f"Expert {expert} among them",
            lambda: expert_line(
                moment.load_of(arm), layer=layer, expert=expert, marks=marks, x=x
            ),
        ),
        Chart(
            "sureness", f"Layer {layer}: how sure the router is",
            lambda: router_sureness(
                moment.router_lines_of(arm), layer=layer, experts=moment.sizes[1], marks=marks,
                x=x,
            ),
        ),
    ]  # fmt: skip
