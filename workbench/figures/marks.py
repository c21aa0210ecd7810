"""Marks: the places in a training that a figure points at, forks and the starts of phases.

Needs   a run that tells its phases and forks, or marks made by hand; the clock and the panels of a
        figure.
Yields  Mark; `marks_of`, those of a run; `draw_marks`, a line through every panel for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import plotly.graph_objects as go

from workbench.figures.clock import Clock
from workbench.figures.template import MUTED
from workbench.figures.wording import label

if TYPE_CHECKING:
    from workbench.run import Run


@dataclass(frozen=True)
class Mark:
    """A place in the training that a figure points at."""

    step: int
    """Optimizer step at which it stands; for a phase the last step before the phase."""

    text: str
    """Two or three words; shown as text whatever they hold."""

    kind: Literal["fork", "phase"] = "phase"
    """A fork is a dotted line, a phase a dashed one."""


def marks_of(run: Run) -> list[Mark]:
    """The starts of the phases of a run, and the forks of all its branches.

    A phase is marked at the last step before it, so that a fork which begins a phase falls together
    with it. The start of the training is not marked.
    """
    forks = sorted({step for b in run.branches if (step := run.arm(b).fork_step)})
    phases = []
    for phase in run.phases:
        before = int(phase.get("start", 0)) - 1
        # Trainers differ by one in what they call the start: a phase belongs to the fork beside it.
        before = next((fork for fork in forks if abs(fork - before) <= 1), before)
        if before > 0:
            phases.append(Mark(before, str(phase.get("name", "phase"))))
    return phases + [Mark(step, "fork", "fork") for step in forks]


def forks(marks: Sequence[Mark]) -> list[int]:
    """Steps of the forks among some marks, for `Clock.for_axis`."""
    return [mark.step for mark in marks if mark.kind == "fork"]


def draw_marks(
    fig: go.Figure,
    marks: Sequence[Mark],
    clock: Clock,
    axes: Sequence[tuple[str, str]],
    *,
    over: tuple[str, str] | None = None,
    width: int = 900,
    above: int = 2,
) -> int:
    """A vertical line for every mark in every panel; its text once, over the panel `over`.

    Args:
        axes: plotly axis names of the panels, ("x2", "y2") and so on.
        over: the panel that carries the texts; by default the first.
        width: pixels across that panel, so that texts which would meet go to rows of their own.
        above: pixels between the panel and the texts, for a panel title that stands there.

    Returns:
        Pixels that the texts take over the panel, 0 without marks. A mark outside the stretch drawn
        is left out.
    """
    shown = _joined([m for m in marks if clock.within(m.step)])
    for mark in shown:
        x = clock.at(mark.step)
        for xref, yref in axes:
            fig.add_shape(
                type="line", xref=xref, yref=f"{yref} domain", x0=x, x1=x, y0=0, y1=1,
                layer="above", line={"color": MUTED, "width": 1, "dash": _DASH[mark.kind]},
            )  # fmt: skip
    xref, yref = over or axes[0]
    rows = _rows(shown, clock, width)
    for row, group in enumerate(rows):
        for mark in group:
            late = clock.share(mark.step) > 0.85
            fig.add_annotation(
                xref=xref, yref=f"{yref} domain", x=clock.place(mark.step), y=1,
                text=label(mark.text, _LONGEST), showarrow=False,
                xanchor="right" if late else "left", yanchor="bottom",
                yshift=above + _ROW_PX * row, xshift=2 if late else -2,
                font={"size": 10, "color": MUTED},
            )  # fmt: skip
    return above + _ROW_PX * len(rows) if rows else 0


_DASH = {"fork": "dot", "phase": "5px,4px"}
_LONGEST = 28
_ROW_PX = 13
_LETTER_PX = 6.0


def _joined(marks: Sequence[Mark]) -> list[Mark]:
    """Marks of one step as one mark with both texts; a fork's line wins."""
    joined: dict[int, Mark] = {}
    for mark in sorted(marks, key=lambda m: (m.step, m.kind)):
        there = joined.get(mark.step)
        text = f"{there.text} · {mark.text}" if there and mark.text != there.text else mark.text
        joined[mark.step] = Mark(mark.step, text, there.kind if there else mark.kind)
    return list(joined.values())


def _rows(marks: Sequence[Mark], clock: Clock, width: int) -> list[list[Mark]]:
    """Marks split over rows so that no two texts of a row meet on a panel of `width` pixels."""
    rows: list[list[Mark]] = []
    ends: list[float] = []
    for mark in marks:
        start = clock.share(mark.step) * width
        long = min(len(mark.text), _LONGEST) * _LETTER_PX + 10
        if clock.share(mark.step) > 0.85:
            start -= long
        row = next((i for i, end in enumerate(ends) if end <= start), len(rows))
        if row == len(rows):
            rows.append([])
            ends.append(0.0)
        rows[row].append(mark)
        ends[row] = start + long
    return rows
