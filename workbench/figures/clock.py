"""The x axis of a training: steps, tokens or UTC of the same samples, and the marks on it.

Needs   a dataset along `step` or `checkpoint`, with `tokens_seen` and `utc` beside it where those
        clocks are wanted.
Yields  Clock: the x of every sample, the axis' title and number format; Mark: a fork or the start
        of a phase.

A mark is given as a step and lands on the other clocks by linear interpolation between the samples
around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench.errors import SchemaError, UsageError
from workbench.figures.template import MUTED
from workbench.figures.wording import label

ClockName = Literal["step", "tokens", "utc"]
_TITLES = {"step": "optimizer step", "tokens": "training tokens", "utc": "UTC"}
_COLUMNS = {"tokens": "tokens_seen", "utc": "utc"}


@dataclass(frozen=True)
class Mark:
    """A place in the training that a figure points at."""

    step: int
    """Optimizer step at which it stands; for a phase the last step before the phase."""

    text: str
    """Two or three words; shown as text whatever they hold."""

    kind: Literal["fork", "phase"] = "phase"
    """A fork is a dotted line, a phase a dashed one."""


@dataclass(frozen=True)
class Clock:
    """Where on the chosen clock every sample stands."""

    name: ClockName
    steps: np.ndarray
    """(sample,) int64, optimizer steps."""
    x: np.ndarray
    """(sample,) position on the axis: steps, tokens, or datetime64[ms]."""
    tokens: np.ndarray | None
    """(sample,) training tokens seen, where the record says."""

    @property
    def title(self) -> str:
        return _TITLES[self.name]

    @property
    def axis(self) -> dict[str, Any]:
        """Title and number format for plotly's x axis."""
        formats = {"step": ",d", "tokens": "~s", "utc": None}
        return {"title_text": self.title, "tickformat": formats[self.name]}

    def at(self, step: float) -> Any:
        """The place of `step` on this clock.

        Example:
            >>> ds = xr.Dataset(coords={"step": [10, 20], "tokens_seen": ("step", [1000, 2000])})
            >>> float(clock_of(ds, "tokens").at(15))
            1500.0
        """
        if self.name == "step" or not len(self.steps):
            return step
        found = np.interp(step, self.steps, self.x.astype("float64"))
        return found.astype("int64").astype(self.x.dtype) if self.name == "utc" else float(found)

    def within(self, step: float) -> bool:
        """Whether a mark at `step` falls into the stretch that is drawn."""
        return bool(len(self.steps)) and self.steps[0] <= step <= self.steps[-1]


def along(source: xr.Dataset | xr.DataArray) -> str:
    """The dim of `source` that training runs along: `step` or `checkpoint`."""
    for dim in ("step", "checkpoint"):
        if dim in source.dims:
            return dim
    raise SchemaError(
        f"dims are {tuple(source.dims)}; a figure over training needs 'step' or 'checkpoint' "
        "among them. Pass what the probe returned, before any mean over training."
    )


def clock_of(source: xr.Dataset | xr.DataArray, name: ClockName = "step") -> Clock:
    """The clock `name` of the samples of `source`.

    Raises:
        SchemaError: no dim `step` or `checkpoint`.
        UsageError: the clock is unknown, or the dataset does not carry it.

    Example:
        >>> clock_of(xr.Dataset(coords={"step": [10, 20]})).x.tolist()
        [10, 20]
    """
    if name not in _TITLES:
        raise UsageError(f"clock {name!r}; the clocks are {', '.join(_TITLES)}.")
    dim = along(source)
    steps = (
        source[dim].values if dim in source.coords else np.arange(source.sizes[dim], dtype="int64")
    )
    column = _column(source, "tokens_seen", dim)
    if name == "step":
        return Clock(name, steps, steps, column)
    x = _column(source, _COLUMNS[name], dim)
    if x is None:
        raise UsageError(
            f"x={name!r} needs {_COLUMNS[name]!r} along {dim!r} and the data has none; "
            f"use x='step', or attach it: data.assign_coords({_COLUMNS[name]}=('{dim}', ...))."
        )
    if name == "utc" and np.issubdtype(x.dtype, np.floating):
        x = (x * 1000).astype("datetime64[ms]")
    return Clock(name, steps, x, column)


def _column(source: xr.Dataset | xr.DataArray, name: str, dim: str) -> np.ndarray | None:
    inside = name in source.coords or (isinstance(source, xr.Dataset) and name in source)
    return source[name].values if inside and source[name].dims == (dim,) else None


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
            late = _share(mark, clock) > 0.85
            fig.add_annotation(
                xref=xref, yref=f"{yref} domain", x=clock.at(mark.step), y=1,
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


def _share(mark: Mark, clock: Clock) -> float:
    span = float(clock.steps[-1] - clock.steps[0])
    return (mark.step - float(clock.steps[0])) / span if span else 0.0


def _rows(marks: Sequence[Mark], clock: Clock, width: int) -> list[list[Mark]]:
    """Marks split over rows so that no two texts of a row meet on a panel of `width` pixels."""
    rows: list[list[Mark]] = []
    ends: list[float] = []
    for mark in marks:
        start = _share(mark, clock) * width
        long = min(len(mark.text), _LONGEST) * _LETTER_PX + 10
        if _share(mark, clock) > 0.85:
            start -= long
        row = next((i for i, end in enumerate(ends) if end <= start), len(rows))
        if row == len(rows):
            rows.append([])
            ends.append(0.0)
        rows[row].append(mark)
        ends[row] = start + long
    return rows
