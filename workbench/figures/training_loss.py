"""How did training go? The loss of every arm, and the learning rate under it.

Needs   arm name -> train (step): loss, nats/token; lr where recorded.
Yields  a figure: the loss over the learning rate on one x.

A loss is measured on the arm's own training mix. After a fork the mixes may differ, and then the
two losses are not
comparable: the evaluations are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench.errors import SchemaError
from workbench.figures.bins import binned, by_step, width_for
from workbench.figures.caption import Caption, Table, provenance_of
from workbench.figures.clock import ClockName, clock_of
from workbench.figures.figure import finish
from workbench.figures.lines import Line, draw_line, hover_of, say_thinned
from workbench.figures.marks import Mark, draw_marks, forks
from workbench.figures.panels import LEGEND_PX, Stack
from workbench.figures.strands import Strand, arms_of, strands
from workbench.figures.thinning import single_steps
from workbench.figures.wording import many, number, per_arm, plain

_PANELS = (("loss", "training loss (nats/token)", "nats/token"), ("lr", "learning rate", ""))


def loss(
    train: xr.Dataset | Mapping[str, xr.Dataset], *, marks: Sequence[Mark] = (),
    x: ClockName = "step", colors: Mapping[str, str] | None = None,
    code: str = "workbench.figures.loss(run.train)",
) -> go.Figure:  # fmt: skip
    """Training loss per arm, with the learning rate under it.

    Args:
        train: (step) loss and, where recorded, lr, or an overview of them; or arm name -> such a
            dataset.
        marks, x, code: as for `expert_load`. colors: arm name -> hex colour.

    Raises:
        SchemaError: no loss.

    Example:
        >>> loss(xr.Dataset({"loss": ("step", [5.0, 2.0])})).layout.meta["caption"]["sentence"]
        'In nats/token, the loss goes from 5 to 2.'
    """
    arms = {name: by_step(ds) for name, ds in arms_of(train).items()}
    for name, ds in arms.items():
        if "loss" not in ds or "step" not in ds["loss"].dims:
            raise SchemaError(
                f"{plain(name)}: found {', '.join(map(str, ds.variables)) or 'nothing'}; expected "
                "loss (step), as run.train has it."
            )
    panels = [p for p in _PANELS if all(p[0] in ds for ds in arms.values())]
    arms = {name: _numbers(ds, [n for n, _, _ in panels]) for name, ds in arms.items()}
    longest = max(arms.values(), key=lambda ds: ds.sizes["step"])
    each = width_for(longest.sizes["step"])
    axis = clock_of(longest, x).for_axis(forks(marks), alone=len(arms) == 1)
    stack = Stack(heights=[240, 80][: len(panels)], gap=34)
    fig = stack.figure([title for _, title, _ in panels])
    for part in strands(arms, [n for n, _, _ in panels], colors):
        short = binned(part.values, each=each, log_x=axis.log_x)
        clock = clock_of(short.mean, x)
        for row, (name, _, unit) in enumerate(panels, start=1):
            if short.note and name == "loss":
                _draw_single(fig, part, x, axis.log_x)
            y = short.mean[name].values
            line = Line(
                name=part.name, x=clock.x, y=y, color=part.color, dash=part.dash, legend=row == 1,
                hover=hover_of(f"{plain(part.name)}: {name}", clock, y, unit, short=short),
            )  # fmt: skip
            draw_line(fig, line, row=row, col=1)
    fig.update_xaxes(type=axis.axis.get("type"))
    fig.update_xaxes(**axis.axis, row=len(panels), col=1)
    if len(panels) == 2:
        fig.update_yaxes(rangemode="tozero", exponentformat="power", nticks=4, row=2, col=1)
    top = max(20, draw_marks(fig, marks, axis, stack.axes, above=18))
    fig.update_layout(legend=stack.legend(top))
    caption = Caption(
        name="loss",
        title="Training loss",
        sentence=loss_sentence(arms),
        notes=tuple(n for n in (_averaged(longest, each, axis.log_x), _caution(arms)) if n),
        table=loss_table(arms),
        code=code,
        provenance=provenance_of(*arms.values()),
    )
    return finish(fig, caption, height=stack.height, top=top + LEGEND_PX)


def _numbers(ds: xr.Dataset, names: list[str]) -> xr.Dataset:
    # set_coords: the clocks stay beside the numbers.
    beside = [n for n in ("tokens_seen", "utc", "rows", "first_step") if n in ds.variables]
    ends = [f"loss_{end}" for end in ("min", "max") if f"loss_{end}" in ds]
    return ds[[*names, *ends, *beside]].set_coords(beside).load()


def _draw_single(
    fig: go.Figure, part: Strand, x: ClockName, log_x: np.ndarray | None
) -> None:  # fmt: skip
    """The loss of single steps, faint behind its mean: what averaging hides is seen."""
    drawn, kept = single_steps(part.values, "loss", log_x=log_x)
    say_thinned(fig, kept)
    clock, y = clock_of(drawn, x), drawn.values
    line = Line(
        name=part.name, x=clock.x, y=y, color=part.color, legend=False, width=0.7, opacity=0.35,
        hover=hover_of(f"{plain(part.name)}: loss of a single step", clock, y, "nats/token"),
    )  # fmt: skip
    draw_line(fig, line, row=1, col=1)


def _averaged(longest: xr.Dataset, each: int, log_x: np.ndarray | None) -> str:
    note = binned(longest, each=each, log_x=log_x).note
    return f"{note} Faint behind them: single steps." if note else ""


def loss_sentence(arms: Mapping[str, xr.Dataset]) -> str:
    """The loss at both ends, each the mean over a twentieth of the steps."""
    ends = {arm: _ends(ds["loss"]) for arm, ds in arms.items()}
    start = next(iter(ends.values()))[0]
    last = {arm: number(end, 3) for arm, (_, end) in ends.items()}
    return f"In nats/token, the loss goes from {number(start, 3)} to {per_arm(last)}."


def _ends(loss: xr.DataArray) -> tuple[float, float]:
    n = max(1, round(loss.sizes["step"] / 20))
    return float(loss.isel(step=slice(0, n)).mean()), float(loss.isel(step=slice(-n, None)).mean())


def loss_table(arms: Mapping[str, xr.Dataset]) -> Table:
    """A row an arm: its steps, the loss at both ends, its lowest and its highest single step."""
    rows = []
    for arm, ds in arms.items():
        start, end = _ends(ds["loss"])
        least, most = (
            float(getattr(ds[f"loss_{end}" if f"loss_{end}" in ds else "loss"], end)())
            for end in ("min", "max")
        )
        steps = int(ds["rows"].sum()) if "rows" in ds.variables else ds.sizes["step"]
        rows.append((arm, steps, start, end, least, most))
    ends = ("first twentieth", "last twentieth", "lowest step", "highest step")
    return Table(("arm", "steps", *(f"{end} (nats/token)" for end in ends)), tuple(rows))


def _caution(arms: Mapping[str, xr.Dataset]) -> str:
    if len(arms) < 2:
        return ""
    return (
        f"{many(len(arms), 'arm').capitalize()}, each on its own training mix: after the fork "
        "their losses are of different text."
    )
