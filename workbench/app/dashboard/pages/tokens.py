"""Tokens: which tokens, and which domains, go to one expert in the steps that are shown.

Needs   a Moment, whose view names the layer and the expert.
Yields  `panels`.

Two sources beside each other: tokens of the training stream that were traced, and the fixed tokens
of the probe set at the last checkpoint of the steps shown.
"""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
import xarray as xr

import probes
from workbench import figures
from workbench.app.dashboard.live_run import Moment
from workbench.app.dashboard.panel import Chart, Panel
from workbench.app.dashboard.traced_tokens import MOST, traced_vocabulary
from workbench.errors import RunNotFound

TITLE = "Tokens"


def panels(moment: Moment) -> list[Panel]:
    """Traced tokens, fixed tokens, and domains of one expert."""
    layer, expert = moment.view.layer, moment.view.expert
    who = f"expert {expert} of layer {layer}"
    return [
        Chart(
            "traced", f"Training tokens that go to {who}",
            lambda: _words(moment, _traced(moment)),
            foot=f"Of the training tokens that were traced in these steps, the last {MOST:,} at "
            "most.",
        ),
        Chart(
            "fixed", f"Fixed tokens that go to {who}",
            lambda: _words(moment, _fixed(moment)),
            foot="Of the probe set, at the last checkpoint in these steps.",
        ),
        Chart(
            "domains", f"Domains that go to the experts of layer {layer}",
            lambda: figures.domains(_domains(moment)),
        ),
    ]  # fmt: skip


def _words(moment: Moment, found: xr.Dataset) -> go.Figure:
    layer = int(found["layer"][0])
    return figures.vocabulary(
        found, layer=layer, expert=moment.view.expert, tokens=moment.tokenizer
    )


def _traced(moment: Moment) -> xr.Dataset:
    view = moment.view
    traces = moment.window.traces
    # After a rollback as many may be there again: the last of them say whether they are the same.
    last = traces.isel(trace=slice(-8, None))
    same = tuple(last[name].values.tobytes() for name in ("step", "token", "expert_ids"))
    key = (moment.run.branch, view.layer, view.start, view.stop, traces.sizes["trace"], same)
    found = moment.live.once(
        "traced", key,
        lambda: traced_vocabulary(traces, layer=view.layer, experts=moment.sizes[1]),
    )  # fmt: skip
    return _about(found, moment)


def _fixed(moment: Moment) -> xr.Dataset:
    """What probes.vocabulary finds of the last checkpoint shown, the layer's part of it."""
    read = moment.window.activations
    if not read.sizes["checkpoint"]:
        raise RunNotFound("no checkpoint in these steps was read on the probe set.")
    last = read.isel(checkpoint=[-1])
    key = (moment.run.branch, int(last["checkpoint"][0]))
    found = moment.live.once("fixed", key, lambda: probes.vocabulary(_Read(last)))
    return _about(found.isel(checkpoint=-1, layer=[moment.view.layer]), moment)


class _Read:
    """A record with `.activations`, as probes take one."""

    def __init__(self, activations: xr.Dataset) -> None:
        self.activations = activations


def _domains(moment: Moment) -> xr.Dataset:
    """Share of every domain's tokens that each expert of the layer takes: exact counts."""
    view = moment.view
    bins = moment.run.overview(
        points=8, start=view.start or None, stop=view.stop, variables=["domain_assignments"]
    )
    counts = (bins["domain_assignments"] * bins["rows"]).sum("bin").isel(layer=[view.layer])
    assert moment.now is not None
    tokens = counts.sum("expert") / moment.now.layout.k
    share = counts / tokens.where(tokens > 0)
    load = counts.sum("domain") / tokens.sum("domain")
    return _about(xr.Dataset({"share": share, "load": load}), moment)


def _about(found: Any, moment: Moment) -> Any:
    window = f"steps {moment.view.start + 1:,} to {moment.stop:,}"
    return found.assign_attrs(run=moment.run.name, branch=moment.run.branch, window=window)
