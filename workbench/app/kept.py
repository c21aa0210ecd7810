"""The results of probes that a run keeps: the ones to show, told apart, with a figure of each.

Needs   a Study.
Yields  Shown; `kept_results`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from probes.running.kept import Asking, asking
from workbench.app.asked import Asked
from workbench.app.probe_plots import Drawer, draw_found, drawer_of, plain_drawer
from workbench.app.study import Study
from workbench.errors import RunNotFound, SchemaError, UsageError
from workbench.store.results import Stored


@dataclass(frozen=True)
class Shown:
    """One kept result."""

    stored: Stored
    branch: str
    asked: Asking
    result: xr.Dataset

    @property
    def title(self) -> str:
        """Probe and branch, and what it was asked beside that."""
        words = f"; {self.asked.words}" if self.asked.words else ""
        return f"{self.stored.probe} ({self.branch}{words})"

    def figure(self, study: Study, asked: Asked | None = None) -> go.Figure:
        """Its figure: the probe's own, where that can draw this result, else one as any probe has.

        Args:
            asked: clock and stretch; layer and expert, where the figure is of one.

        Raises:
            SchemaError: neither can.
            RunNotFound: nothing of it lies in the stretch.
        """
        own, plain = drawer_of(self.stored.probe), plain_drawer(self.stored.probe)
        if own.asks == "end" and self.asked.against is None:
            # The last checkpoint against itself is no stretch: all are drawn, as they approach it.
            own = plain
        try:
            return self._drawn(study, own, asked or Asked())
        except (SchemaError, UsageError):
            return self._drawn(study, plain, asked or Asked())

    def _drawn(self, study: Study, drawer: Drawer, asked: Asked) -> go.Figure:
        found, lines = self._within(asked)
        fitting = replace(
            asked,
            layer=asked.layer if "layer" in drawer.takes else None,
            expert=asked.expert if "expert" in drawer.takes else None,
        )
        return draw_found(found, drawer, study, self.branch, lines, fitting, title=self.title)

    def _within(self, asked: Asked) -> tuple[xr.Dataset, list[str]]:
        """Of a result along checkpoints or steps those of the stretch, and Python that says so."""
        lines = self._lines()
        dim = next((d for d in ("checkpoint", "step") if d in self.result.dims), None)
        if dim is None or dim not in self.result.coords or not asked.stretch:
            return self.result, lines
        at = self.result[dim].values
        if not np.issubdtype(at.dtype, np.number):
            return self.result, lines
        # Weights at the start of a stretch are where it sets out from.
        low = (asked.start or 0) + (dim == "step" and asked.start is not None)
        stop = asked.stop if asked.stop is not None else max(at, default=0)
        found = self.result.isel({dim: (at >= low) & (at <= stop)})
        if not found.sizes[dim]:
            raise RunNotFound(f"{self.title}: nothing of it lies in these steps.")
        lines += [
            f"at = found[{dim!r}].values",
            f"found = found.isel({dim}=(at >= {low}) & (at <= {stop}))",
        ]
        return found, lines

    def _lines(self) -> list[str]:
        """Python that gives the result. What was asked in a special way is read by its key: nothing
        is computed for it anew.
        """
        name = self.stored.probe
        if self.asked.plain:
            return [f"found = probes.examine(run, {name!r})[{name!r}]"]
        return [
            "kept = {stored.key: stored for stored in run.results.list()}",
            f"found = run.results.open(kept[{self.stored.key!r}])",
        ]


def kept_results(
    study: Study, *, without: tuple[str, ...] = (), of: Iterable[Stored] | None = None
) -> list[Shown]:
    """One result of every probe and branch that still holds: that of the whole branch, asked as the
    probe's name alone asks, where there is one; else the newest.

    Args:
        without: names of probes to leave out: those that have a figure of their own.
        of: results to choose from; None takes all that are kept.
    """
    if study.run.store is None:
        return []
    best: dict[tuple[str, str], tuple[Stored, Asking]] = {}
    for stored in study.run.results.list() if of is None else of:
        if stored.probe in without:
            continue
        asked = asking(study.run, stored)
        if asked is None:
            continue
        place = stored.probe, str(stored.inputs["branch"])
        before = best.get(place)
        rank = (asked.plain, asked.own_exam, stored.utc)
        if before is None or rank > (before[1].plain, before[1].own_exam, before[0].utc):
            best[place] = stored, asked
    return [
        Shown(stored, branch, asked, study.run.results.open(stored).assign_attrs(branch=branch))
        for (_, branch), (stored, asked) in sorted(best.items())
    ]
