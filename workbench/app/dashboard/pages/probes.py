"""Probes: what they found of the arm that is shown, as the run keeps it, one at a time.

Needs   a Moment, whose view names the probe, the layer and the expert.
Yields  `panels`.

Nothing is computed of models here: `workbench probe` does that. A figure is drawn beside the page,
which says so meanwhile; of results along checkpoints or steps it takes those that are shown.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import plotly.graph_objects as go

from probes import registry
from workbench.app.asked import Asked
from workbench.app.dashboard.live_run import Moment
from workbench.app.dashboard.panel import Chart, Links, Listing, Panel
from workbench.app.kept import kept_results
from workbench.app.study import Study
from workbench.errors import RunNotFound
from workbench.figures.caption import Table, caption_of
from workbench.figures.wording import plain
from workbench.run import open_run
from workbench.store.results import Stored

TITLE = "Probes"


def panels(moment: Moment) -> list[Panel]:
    """Which probe, its figure, and all that is kept."""
    try:
        kept = moment.kept()
    except Exception:  # it is being listed, or cannot be, and the listing says so
        kept = []
    names = _names(moment, kept)
    shown = moment.view.probe if moment.view.probe in names else next(iter(names), "")
    listing = Listing(
        "kept", "Results that are kept with the run", lambda: _table(moment.kept()),
        "`workbench probe` computes and keeps them.",
    )  # fmt: skip
    if not names:
        return [listing]
    return [
        Links(
            "probe", "Which probe",
            lambda: [(name, replace(moment.view, probe=name), name == shown) for name in names],
        ),
        Chart("found", plain(shown, 80), lambda: _figure(moment, shown, kept)),
        listing,
    ]  # fmt: skip


def _names(moment: Moment, kept: list[Stored]) -> list[str]:
    """Of probes that have a result of the whole of the arm, or of a stretch of it."""
    arm = moment.run.branch
    return sorted({stored.probe for stored in kept if stored.inputs.get("branch") == arm})


def _figure(moment: Moment, name: str, kept: list[Stored]) -> go.Figure:
    view, arm = moment.view, moment.run.branch
    layers = moment.now.layout.layers if moment.now else ()
    asked = Asked(
        x=view.clock, layer=int(layers[view.layer]) if len(layers) else None, expert=view.expert,
        start=view.start or None, stop=view.stop,
    )  # fmt: skip
    own = [s for s in kept if s.probe == name]
    # What decides which of them holds, and what its title says. Steps that come change neither.
    state = (
        sorted((s.key, s.utc, s.inputs.get("stop", 0) >= moment.last_step) for s in own),
        [(c.branch, c.step, c.record.utc, c.record.complete) for c in moment.run.checkpoints],
    )
    return moment.live.later.get(
        f"probe {name} {arm} {asked}", repr(state),
        partial(_draw, moment.live.run.path, arm, own, asked),
    )  # fmt: skip


def _draw(path: Path, arm: str, kept: list[Stored], asked: Asked) -> go.Figure:
    if kept[0].probe not in registry.names():
        raise RunNotFound(
            f"the probe {kept[0].probe} is not known here: install the package that it is of "
            f"beside the dashboard."
        )
    # A run of its own: the pages refresh theirs meanwhile.
    study = Study(open_run(path).arm(arm))
    found = [shown for shown in kept_results(study, of=kept) if shown.branch == arm]
    if not found:
        raise RunNotFound(
            f"what is kept of {kept[0].probe} belongs to an earlier state of the run, or of the "
            f"probe; `workbench probe` computes it anew."
        )
    figure = found[0].figure(study, asked)
    if said := found[0].asked.words:
        # The figure's own title says it, and is not shown on a page.
        caption = caption_of(figure)
        caption = replace(caption, notes=(*caption.notes, f"Asked of it: {plain(said)}."))
        figure.layout.meta = {**figure.layout.meta, "caption": asdict(caption)}
    return figure


def _table(kept: list[Stored]) -> Table:
    found: dict[tuple[str, str], list[Stored]] = {}
    for stored in kept:
        branch = stored.inputs.get("branch")
        found.setdefault((stored.probe, str(branch or "–")), []).append(stored)
    rows = [
        (probe, arm, len(of), max(s.utc for s in of), f"{sum(s.nbytes for s in of):,}")
        for (probe, arm), of in sorted(found.items())
    ]
    if not rows:
        raise RunNotFound("no result of a probe is kept with this run yet: `workbench probe RUN`.")
    return Table(("probe", "arm", "results", "the last computed (UTC)", "bytes"), tuple(rows))
