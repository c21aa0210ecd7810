"""What does a step take, and what of it does capture take?

Needs   training curves (step) with utc, and capture_seconds where recorded.
Yields  a figure: seconds a step over the share of them that capture takes.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench.app.dashboard.line_stack import Row, line_stack
from workbench.errors import RunNotFound
from workbench.figures.caption import Caption
from workbench.figures.clock import ClockName
from workbench.figures.marks import Mark
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
    rows = [Row(title="seconds a step", y=seconds, unit="s", from_zero=True)]
    if "capture_seconds" in later:
        with np.errstate(divide="ignore", invalid="ignore"):
            share = 100 * later["capture_seconds"].values / seconds
        share = np.where(seconds > 0, share, np.nan)
        rows.append(Row(title="of which capture, %", y=share, unit="%", from_zero=True))
    late = seconds[-max(1, round(len(seconds) / 10)) :]
    caption = Caption(
        name="step-time",
        title="What a step takes",
        sentence=(
            f"A step takes {number(float(np.nanmedian(seconds)), 3)} s in the median, "
            f"{number(float(np.nanmedian(late)), 3)} s over the last tenth."
        ),
    )
    return line_stack(later, rows, caption, marks=marks, x=x)
