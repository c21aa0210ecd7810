"""The results of probes that a run keeps: the ones to show, told apart, with the code of each.

Needs   a Study.
Yields  Shown; `kept_results`.
"""

from __future__ import annotations

from dataclasses import dataclass

import xarray as xr

from probes.running.kept import Asking, asking
from workbench.app.study import Study
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

    def code(self, study: Study) -> str:
        """Python that draws it again. What was asked in a special way is read by its key: nothing
        is computed for it anew.
        """
        name = self.stored.probe
        lines = [
            "import probes" if self.asked.plain else "",
            "from workbench import figures, open_run",
            "",
            f"run = open_run({str(study.run.path)!r}, {self.branch!r})",
        ]
        if self.asked.plain:
            lines.append(f"found = probes.examine(run, {name!r})[{name!r}]")
        else:
            lines.append("kept = {stored.key: stored for stored in run.results.list()}")
            lines.append(f"found = run.results.open(kept[{self.stored.key!r}])")
        title = name if self.asked.plain else self.title
        lines.append(f"figures.probe_result(found, name={title!r}, marks=figures.marks_of(run))")
        return "\n".join(lines).lstrip("\n")


def kept_results(study: Study, *, without: tuple[str, ...] = ()) -> list[Shown]:
    """One result of every probe and branch that still holds: that of the whole branch, asked as the
    probe's name alone asks, where there is one; else the newest.

    Args:
        without: names of probes to leave out: those that have a figure of their own.
    """
    if study.run.store is None:
        return []
    best: dict[tuple[str, str], tuple[Stored, Asking]] = {}
    for stored in study.run.results.list():
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
