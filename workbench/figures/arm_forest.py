"""What did the arms buy? The paired difference between two arms, task by task, with its interval.

Needs   difference (checkpoint, task): accuracy and logprob, b less a, with bounds; n; attrs arm_a,
        arm_b.
Yields  a forest plot: a row a task, grouped by family; accuracy on the left, log-probability on the
        right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench.errors import SchemaError
from workbench.figures.caption import Caption, Table, provenance_of
from workbench.figures.figure import Figure, finish
from workbench.figures.tasks import by_family, family_of, short_name
from workbench.figures.template import INK, MUTED, arm_colors
from workbench.figures.wording import label, many, number, plain, signed

_ROW_PX = 26
_SIDES = (
    ("accuracy", "difference in accuracy", ""),
    ("logprob", "difference in log-probability (nats)", "nats"),
)


def arms(
    difference: xr.Dataset, *, checkpoint: int | None = None, colors: dict[str, str] | None = None,
    code: str = "workbench.figures.arms(probes.arm_difference(a, b))",
) -> go.Figure:  # fmt: skip
    """Forest plot of arm b less arm a at one checkpoint.

    Args:
        difference: `probes.arm_difference(a, b)`: (checkpoint, task) accuracy, accuracy_low,
            accuracy_high, and the same of logprob; n (items); where there, `accuracy_real` (task)
            says which differences survive the correction for many comparisons, and those are drawn
            full, the others hollow.
        checkpoint: which step; by default the last.
        colors: arm name -> hex colour. A difference is drawn in the colour of the arm that it
            favours.

    Raises:
        SchemaError: the accuracy or its bounds are missing, or there is no dim `task`.

    Example:
        >>> gap = xr.Dataset(
        ...     {n: ("task", [v]) for n, v in
        ...      {"accuracy": 0.3, "accuracy_low": 0.1, "accuracy_high": 0.5}.items()},
        ...     coords={"task": ["code/add"]}, attrs={"arm_a": "continue", "arm_b": "curriculum"},
        ... )
        >>> arms(gap).layout.meta["caption"]["sentence"][:45]
        '1 task, curriculum less continue: better on 1'
    """
    last = _at(difference, checkpoint)
    a, b = (str(difference.attrs.get(k, d)) for k, d in (("arm_a", "a"), ("arm_b", "b")))
    rows = _rows(last)
    sides = [s for s in _SIDES if all(f"{s[0]}{end}" in last for end in ("", "_low", "_high"))]
    fig = Figure(
        make_subplots(
            rows=1, cols=len(sides), shared_yaxes=True, horizontal_spacing=0.06,
        )
    )  # fmt: skip
    colors = {**arm_colors([a, b]), **(colors or {})}
    for col, (name, title, unit) in enumerate(sides, start=1):
        for row in rows:
            if row.task is not None:
                _draw(fig, last.sel(task=row.task), row, name, unit, (a, b), colors, col)
        _frame(fig, last, name, title, (a, b), col)
    _label_rows(fig, rows, len(sides))
    caption = Caption(
        name="arms",
        title=f"What {plain(b)} bought over {plain(a)}",
        sentence=arms_sentence(last, a, b),
        notes=_notes(last),
        table=arms_table(last),
        code=code,
        provenance=provenance_of(difference),
    )
    return finish(fig, caption, height=len(rows) * _ROW_PX + 16, top=26)


def _at(difference: xr.Dataset, checkpoint: int | None) -> xr.Dataset:
    missing = [n for n in ("accuracy", "accuracy_low", "accuracy_high") if n not in difference]
    if missing or "task" not in difference.dims:
        raise SchemaError(
            f"found {', '.join(map(str, difference.variables)) or 'nothing'}; expected accuracy, "
            "accuracy_low and accuracy_high by task, as probes.arm_difference(a, b) gives."
        )
    if "checkpoint" not in difference.dims:
        return difference
    if checkpoint is None:
        return difference.isel(checkpoint=-1)
    return difference.sel(checkpoint=checkpoint)


@dataclass(frozen=True)
class Row:
    """A line of the forest, from the top: a task, or the heading of a family."""

    y: int
    text: str
    task: str | None = None


def _rows(last: xr.Dataset) -> list[Row]:
    rows: list[Row] = []
    for family, tasks in by_family(str(t) for t in last["task"].values).items():
        rows.append(Row(len(rows), family))
        # The greatest gain first: the order carries the message.
        order = sorted(tasks, key=lambda t: -float(last["accuracy"].sel(task=t).fillna(-9)))
        first = len(rows)
        rows.extend([Row(first + i, short_name(t), t) for i, t in enumerate(order)])
    return rows


def _real(one: xr.Dataset, name: str) -> bool:
    """Does it stand out? By the corrected test where there is one, else by its interval."""
    if f"{name}_real" in one:
        return bool(one[f"{name}_real"])
    return bool(one[f"{name}_low"] > 0) or bool(one[f"{name}_high"] < 0)


def _draw(
    fig: go.Figure, one: xr.Dataset, row: Row, name: str, unit: str, arms: tuple[str, str],
    colors: dict[str, str], col: int,
) -> None:  # fmt: skip
    value, low, high = (float(one[name + end]) for end in ("", "_low", "_high"))
    if not np.isfinite(value):
        return
    real = _real(one, name)
    color = colors[arms[1] if value > 0 else arms[0]] if real else MUTED
    n = f"<br>n = {many(int(one['n']), 'item')}, paired" if "n" in one else ""
    told = (
        f"{label(row.task)}<br>{label(arms[1])} less {label(arms[0])}: {signed(value)} {unit}"
        f"<br>95 % [{signed(low)}, {signed(high)}]{n}"
        f"<br>{'stands out' if real else 'does not stand out'}<extra></extra>"
    )
    fig.add_trace(
        go.Scatter(
            x=[value], y=[row.y], mode="markers", showlegend=False, hovertemplate=told,
            error_x={"type": "data", "array": [high - value], "arrayminus": [value - low],
                     "color": color, "thickness": 1.8, "width": 0},
            marker={"size": 10, "symbol": "circle" if real else "circle-open", "color": color,
                    "line": {"width": 1.8, "color": color}},
        ),
        row=1, col=col,
    )  # fmt: skip


def _frame(
    fig: go.Figure, last: xr.Dataset, name: str, title: str, arms: tuple[str, str], col: int
) -> None:
    ends = [abs(v) for end in ("_low", "_high") for v in last[name + end].values.ravel()]
    reach = max([v for v in ends if np.isfinite(v)], default=0.1) * 1.12 or 0.1
    fig.add_vline(x=0, row=1, col=col, line={"color": INK, "width": 1})
    fig.update_xaxes(title_text=title, range=[-reach, reach], row=1, col=col)
    for x, anchor, text in (
        (0, "left", f"← {label(arms[0], 22)} better"),
        (1, "right", f"{label(arms[1], 22)} better →"),
    ):
        fig.add_annotation(
            xref=f"x{col if col > 1 else ''} domain", yref="paper", x=x, y=1, xanchor=anchor,
            yanchor="bottom", text=text, showarrow=False, font={"size": 11, "color": MUTED},
        )  # fmt: skip


def _label_rows(fig: go.Figure, rows: Sequence[Row], columns: int) -> None:
    text = [label(row.text, 34) if row.task else f"<b>{label(row.text, 34)}</b>" for row in rows]
    fig.update_yaxes(
        range=[len(rows) - 0.4, -0.6], tickvals=[r.y for r in rows], ticktext=text, ticks="",
        showgrid=False, showline=False, tickfont={"color": INK, "size": 12},
    )  # fmt: skip
    for row in rows:
        if row.task is None:
            for col in range(1, columns + 1):
                fig.add_hline(
                    y=row.y, row=1, col=col, line={"color": "#efefef", "width": 14}, layer="below"
                )


def arms_sentence(last: xr.Dataset, a: str, b: str) -> str:
    """On how many tasks b is better, and worse; and the greatest difference."""
    tasks = [str(t) for t in last["task"].values]
    real = [t for t in tasks if _real(last.sel(task=t), "accuracy")]
    up = [t for t in real if float(last["accuracy"].sel(task=t)) > 0]
    head = (
        f"{many(len(tasks), 'task')}, {plain(b)} less {plain(a)}: better on {len(up)}, "
        f"worse on {len(real) - len(up)}, no clear difference on {len(tasks) - len(real)}."
    )
    known = last["accuracy"].dropna("task")
    if not known.sizes["task"]:
        return head
    top = str(known["task"].values[np.abs(known.values).argmax()])
    one = last.sel(task=top)
    value, low, high = (float(one["accuracy" + end]) for end in ("", "_low", "_high"))
    return (
        f"{head} The greatest is {signed(value)} [{signed(low)}, {signed(high)}] in accuracy on "
        f"{plain(top)}.{_continuous_side(last)}"
    )


def _continuous_side(last: xr.Dataset) -> str:
    """What the log-probability says, which can tell arms apart where accuracy cannot."""
    if not all(f"logprob{end}" in last for end in ("", "_low", "_high")):
        return ""
    tasks = [str(t) for t in last["task"].values]
    real = [t for t in tasks if _real(last.sel(task=t), "logprob")]
    up = [t for t in real if float(last["logprob"].sel(task=t)) > 0]
    return f" By log-probability it is better on {len(up)}, worse on {len(real) - len(up)}."


def _notes(last: xr.Dataset) -> tuple[str, ...]:
    tasks = last.sizes["task"]
    if "accuracy_real" in last:
        rate = 100 * float(last.attrs.get("fdr", 0.05))
        over = many(tasks, "task")
        stands = f"full dots survive a false discovery rate of {rate:g} % over {over}"
    else:
        stands = (
            f"full dots leave out zero; of {many(tasks, 'interval')} about {number(0.05 * tasks)} "
            "would by chance alone"
        )
    return (f"Bars: 95 %, paired by item; {stands}. One seed an arm.",)


def arms_table(last: xr.Dataset) -> Table:
    """A row a task: both differences with bounds, n, and whether the first stands out."""
    rows: list[tuple[Any, ...]] = []
    names = [n for n, _, _ in _SIDES if n in last]
    for row in _rows(last):
        if row.task is None:
            continue
        one = last.sel(task=row.task)
        cells = [
            float(one[n + end]) if n + end in one else None
            for n in names
            for end in ("", "_low", "_high")
        ]
        rows.append(
            (family_of(row.task), row.task, *cells, int(one["n"]) if "n" in one else None,
             "yes" if _real(one, "accuracy") else "no")
        )  # fmt: skip
    heads = {"accuracy": "accuracy", "logprob": "log-probability (nats)"}
    columns = [c for n in names for c in (heads[n], "low", "high")]
    return Table(("family", "task", *columns, "items", "accuracy stands out"), tuple(rows))
