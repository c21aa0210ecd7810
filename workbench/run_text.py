"""A run in a few lines of text: clocks, branches, sites, checkpoints.

Needs   an open run; reads only its clock and labels.
Yields  `describe`, the text of its repr; the lines that it is made of.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import xarray as xr

if TYPE_CHECKING:
    from workbench.run import Run

NAMES = 16
"""Variables of a group that are named; sites can be hundreds."""


def describe(run: Run) -> str:
    """What a scientist wants to know first about a run.

    One line each for the clocks, the phases, the branches, every recorded group and the
    checkpoints; what was not recorded says so.
    """
    lines = [f"Run {run.name!r}, branch {run.branch!r}, at {place_of(run)}"]
    rows = [
        ("clocks", clocks_line(run)),
        ("phases", phases_line(run)),
        ("branches", branches_line(run)),
    ]
    rows += [(name, _sites(getattr(run, name))) for name in run.tree.children]
    if not run.tree.children:
        rows.append(("record", "nothing yet"))
    rows.append(("checkpoints", checkpoints_line(run)))
    lines += [f"  {name:<12} {text}" for name, text in rows if text]
    return "\n".join(lines)


def place_of(run: Run) -> str:
    """Where it lies, seen from the working folder where it is below that."""
    here = Path.cwd()
    return str(run.path.relative_to(here) if run.path.is_relative_to(here) else run.path)


def clocks_line(run: Run) -> str:
    """Its steps, tokens and UTC, as far as each is known."""
    clock = run.clock
    if not len(clock):
        return "not started"
    parts = [f"steps {clock.step[0]:,} to {clock.step[-1]:,}"]
    if clock.tokens is not None:
        parts.append(f"{_scaled(int(clock.tokens[-1]))} tokens")
    if clock.utc is not None:
        first, last = (datetime.fromtimestamp(float(t), UTC) for t in clock.utc[[0, -1]])
        parts.append(f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC")
    return " · ".join(parts)


def _scaled(count: int) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:,}"


def phases_line(run: Run) -> str:
    """The phases of its schedule with their steps; "" where there are none."""
    return ", ".join(f"{p.get('name')} {p.get('start')}–{p.get('stop')}" for p in run.phases)


def branches_line(run: Run) -> str:
    """Its branches, each with where it forked."""
    names = []
    for name in run.branches:
        fork = run.store.lineage(name) if run.store and name in run.store.branches else None
        names.append(f"{name} (from {fork[0]} at step {fork[1]:,})" if fork else name)
    return ", ".join(names)


def _sites(group: xr.Dataset) -> str:
    sizes = " x ".join(
        f"{size:,} {dim}" for dim, size in group.sizes.items()
        if dim not in ("expert2", "sample", "bin", "bound") and not str(dim).startswith("dim_")
    )  # fmt: skip
    names = sorted(map(str, group.data_vars))
    more = f", and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return f"{sizes}: {', '.join(names[:NAMES])}{more}"


def checkpoints_line(run: Run) -> str:
    """How many weights were saved, and their steps."""
    saved = run.checkpoints
    if not saved:
        return "none"
    return f"{len(saved)}, steps {saved[0].step:,} to {saved[-1].step:,}"
