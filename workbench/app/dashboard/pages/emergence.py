"""Emergence: when capabilities arrive, and which results of probes are kept with the run.

Needs   a Moment.
Yields  `panels`.

Capabilities are scored from what was evaluated, beside the page, which says so meanwhile. What
needs models is shown where it is kept.
"""

from __future__ import annotations

import plotly.graph_objects as go

from workbench import figures
from workbench.app.dashboard.live_run import Moment
from workbench.app.dashboard.panel import Chart, Listing, Panel
from workbench.errors import RunNotFound
from workbench.figures.caption import Table
from workbench.figures.clock import clock_of
from workbench.store.results import Stored

TITLE = "Emergence"


def panels(moment: Moment) -> list[Panel]:
    """Every task through training, and what is kept."""
    return [
        Chart("emergence", "When capabilities arrive", lambda: _emergence(moment)),
        Listing(
            "kept", "Results of probes that are kept with the run", lambda: _kept(moment),
            "`workbench probe` computes and keeps them; `workbench report` draws them.",
        ),
    ]  # fmt: skip


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


def _kept(moment: Moment) -> Table:
    if moment.run.store is None:
        raise RunNotFound("this run has no record that could keep results.")
    kept: dict[tuple[str, str], list[Stored]] = {}
    for stored in moment.run.results.list():
        branch = stored.inputs.get("branch")
        kept.setdefault((stored.probe, str(branch or "–")), []).append(stored)
    rows = [
        (probe, arm, len(found), max(s.utc for s in found), f"{sum(s.nbytes for s in found):,}")
        for (probe, arm), found in sorted(kept.items())
    ]
    if not rows:
        raise RunNotFound("no result of a probe is kept with this run yet: `workbench probe RUN`.")
    return Table(("probe", "arm", "results", "the last computed (UTC)", "bytes"), tuple(rows))
