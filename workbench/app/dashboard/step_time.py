"""What does a step take, and what of it does capture take?

Needs   training curves (step) with utc, and capture_seconds where recorded.
Yields  a figure: seconds a step over the share of them that capture takes.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench.errors import RunNotFound
from workbench.figures.bins import binned
from workbench.figures.caption import Caption, Table, provenance_of
from workbench.figures.clock import ClockName, clock_of
from workbench.figures.figure import finish
from workbench.figures.lines import Line, draw_line, hover_of
from workbench.figures.marks import Mark, draw_marks
from workbench.figures.panels import Stack
from workbench.figures.wording import number


def step_time(
    train: xr.Dataset, *, marks: tuple[Mark, ...] = (), x: ClockName = "step"
) -> go.Figure:
    """Seconds from the end of one step to the end of the next.

    Args:
        train: (step) utc, the end of each point's last step; capture_seconds, a mean.

    Raises:
        RunNotFound: no times were recorded, or of one step only.

    Example:
        >>> train = xr.Dataset({"utc": ("step", [0.0, 2.0, 4.0])}, coords={"step": [1, 2, 3]})
        >>> step_time(train).layout.meta["caption"]["sentence"]
        'A step takes 2 s in the median, 2 s over the last tenth.'
    """
    if "utc" not in train or train.sizes["step"] < 2:
        raise RunNotFound("no times of two steps or more are recorded in these steps.")
    seconds = np.diff(train["utc"].values) / np.diff(train["step"].values)
    later = train.isel(step=slice(1, None))
    rows = {"seconds": ("seconds a step", seconds, "s")}
    if "capture_seconds" in later:
        with np.errstate(divide="ignore", invalid="ignore"):
            share = 100 * later["capture_seconds"].values / seconds
        rows["capture"] = ("of which capture, %", np.where(seconds > 0, share, np.nan), "%")
    stack = Stack(heights=[150, 90][: len(rows)], gap=34)
    fig = stack.figure([title for title, _, _ in rows.values()])
    clock = clock_of(later, x)
    short = binned(later, each=1)
    for row, (title, y, unit) in enumerate(rows.values(), start=1):
        line = Line(
            name=title, x=clock.x, y=y, color="#0072B2", legend=False,
            hover=hover_of(title, clock, y, unit, short=short),
        )  # fmt: skip
        draw_line(fig, line, row=row, col=1)
        fig.update_yaxes(rangemode="tozero", row=row, col=1)
    fig.update_xaxes(**clock.axis, row=len(rows), col=1)
    top = max(20, draw_marks(fig, marks, clock, stack.axes, above=18))
    late = seconds[-max(1, round(len(seconds) / 10)) :]
    steps = later["step"].values
    values = [
        (float(step), *(float(y[i]) for _, y, _ in rows.values())) for i, step in enumerate(steps)
    ]
    caption = Caption(
        name="step-time",
        title="What a step takes",
        sentence=(
            f"A step takes {number(float(np.nanmedian(seconds)), 3)} s in the median, "
            f"{number(float(np.nanmedian(late)), 3)} s over the last tenth."
        ),
        notes=(short.note,) if short.note else (),
        table=Table(("step", *(title for title, _, _ in rows.values())), tuple(values)),
        provenance=provenance_of(train),
    )
    return finish(fig, caption, height=stack.height, top=top)
