"""Which part of a model did a capability come from? The gap between two checkpoints by part.

Needs   transplant (part): shapley with bounds; before, after, gap with bounds; attrs task, measure,
        from_step, to_step, n, coalitions.
Yields  a figure: from `before` to `after`, a bar a part, the greatest first; pale where the
        interval includes 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench.errors import SchemaError
from workbench.figures.caption import Caption, Table, provenance_of
from workbench.figures.figure import Figure, finish
from workbench.figures.tasks import one_task
from workbench.figures.template import INK, MUTED, arm_colors, faint
from workbench.figures.wording import label, listed, many, number, plain, signed

MOST = 14
"""Parts with a bar of their own; the others are added up."""

_ROW_PX = 27
_MEASURES = {
    "logprob": ("mean log-probability of the right answer", "nats"),
    "accuracy": ("accuracy", ""),
}


@dataclass(frozen=True)
class Step:
    """One bar."""

    text: str
    value: float
    low: float
    high: float
    start: float
    """Where the bar begins: what all parts above it give together."""

    @property
    def clear(self) -> bool:
        """Whether its interval leaves out 0."""
        return bool(self.low > 0 or self.high < 0)


def transplant(
    parts: xr.Dataset, task: str | None = None, *, checkpoint: int | None = None,
    code: str = "workbench.figures.transplant(probes.transplant(a, b, task))",
) -> go.Figure:  # fmt: skip
    """Waterfall of Shapley values from the earlier to the later checkpoint.

    Args:
        parts: `probes.transplant`: ([task], part) shapley, shapley_low, shapley_high; before,
            after, gap and where there gap_low, gap_high; over checkpoints, what the probe
            "transplant" found.
        task: which, of several; None takes the one with the greatest gap.
        checkpoint: which step, of several; None takes the last.
        code: Python that makes the figure, for the caption.

    Raises:
        SchemaError: shapley (part), before or after is missing.

    Example:
        >>> one = xr.Dataset(
        ...     {"shapley": ("part", [0.5, 0.1]), "shapley_low": ("part", [0.4, -0.1]),
        ...      "shapley_high": ("part", [0.6, 0.3]), "before": 0.2, "after": 0.8, "gap": 0.6},
        ...     coords={"part": ["experts", "router"]}, attrs={"task": "code/add"},
        ... )
        >>> transplant(one).layout.meta["caption"]["sentence"][:55]
        'On code/add the score rises by 0.60. By part: experts +'
    """
    parts = _one(parts, task, checkpoint)
    title, unit = _MEASURES.get(str(parts.attrs.get("measure", "")), ("score", ""))
    steps = _steps(parts)
    before, after = float(parts["before"]), float(parts["after"])
    fig = Figure()
    ends = [f"before{_where(parts, 'from')}", f"after{_where(parts, 'to')}"]
    names = [ends[0], *(step.text for step in steps), ends[1]]
    for row, step in enumerate(steps, start=1):
        _bar(fig, step, row, unit)
    _end(fig, 0, before, ends[0], unit, len(names))
    _end(fig, len(names) - 1, after, ends[1], unit, len(names))
    _connect(fig, steps, before)
    fig.update_yaxes(
        tickvals=list(range(len(names))), ticktext=[label(name, 40) for name in names],
        range=[len(names) - 0.4, -0.6], showgrid=False, ticks="", tickfont={"color": INK},
    )  # fmt: skip
    fig.update_xaxes(title_text=f"{title} ({unit})" if unit else title)
    caption = Caption(
        name="transplant",
        title=f"Where {plain(parts.attrs.get('task', 'the capability'))} came from",
        sentence=transplant_sentence(parts),
        notes=_notes(parts, steps),
        table=transplant_table(parts),
        code=code,
        provenance=provenance_of(parts),
    )
    return finish(fig, caption, height=_ROW_PX * len(names) + 10, top=14)


def _one(parts: xr.Dataset, task: str | None, checkpoint: int | None) -> xr.Dataset:
    """The transplant of one task into one checkpoint."""
    lacking = [n for n in ("shapley", "before", "after") if n not in parts]
    if not lacking and "checkpoint" in parts.dims:
        parts = (
            parts.isel(checkpoint=-1) if checkpoint is None else parts.sel(checkpoint=checkpoint)
        )
        parts = parts.assign_attrs(to_step=int(parts["checkpoint"]))
    if not lacking:
        parts = one_task(parts, task, abs(parts["after"] - parts["before"]))
    if lacking or parts["shapley"].dims != ("part",):
        have = {str(n): tuple(v.dims) for n, v in parts.data_vars.items()}
        raise SchemaError(
            f"found {have or 'nothing'}; expected shapley (part), before and after, as "
            "probes.transplant returns them."
        )
    return parts


def _steps(parts: xr.Dataset) -> list[Step]:
    """The bars: parts by size, the small ones together at the end."""
    values = parts["shapley"].values.astype("float64")
    bounds = [
        parts[f"shapley{end}"].values.astype("float64")
        if f"shapley{end}" in parts else np.full(len(values), np.nan)
        for end in ("_low", "_high")
    ]  # fmt: skip
    order = np.argsort(-np.abs(np.nan_to_num(values)), kind="stable")
    names = [plain(name) for name in _names(parts)]
    own = order if len(order) <= MOST else order[: MOST - 1]
    steps, start = [], float(parts["before"])
    for i in own:
        value = float(np.nan_to_num(values[i]))
        steps.append(Step(names[i], value, float(bounds[0][i]), float(bounds[1][i]), start))
        start += value
    if len(rest := order[len(own) :]):
        together = float(np.nansum(values[rest]))
        steps.append(Step(f"{len(rest)} other parts", together, np.nan, np.nan, start))
    return steps


def _names(parts: xr.Dataset) -> list[str]:
    if "part" in parts.coords:
        return [str(name) for name in parts["part"].values]
    return [f"part {i}" for i in range(parts.sizes["part"])]


def _where(parts: xr.Dataset, side: str) -> str:
    """Step and branch of one end, as far as they are known."""
    step, branch = (parts.attrs.get(f"{side}_{what}") for what in ("step", "branch"))
    other = parts.attrs.get("to_branch" if side == "from" else "from_branch")
    told = [f"step {int(step):,}"] if step is not None else []
    if branch is not None and branch != other:
        told.append(plain(branch, 20))
    return f" ({', '.join(told)})" if told else ""


def _bar(fig: Figure, step: Step, row: int, unit: str) -> None:
    hue = arm_colors(["continue", "curriculum"])["continue" if step.value >= 0 else "curriculum"]
    interval = f" [{signed(step.low)}, {signed(step.high)}]" if np.isfinite(step.low) else ""
    verdict = "its interval includes 0" if interval and not step.clear else ""
    told = (
        f"{label(step.text)}<br>{signed(step.value)}{interval} {unit}"
        f"{'<br>' + verdict if verdict else ''}<extra></extra>"
    )
    reach = [step.high - step.value, step.value - step.low]
    fig.add_trace(
        go.Bar(
            orientation="h", x=[step.value], y=[row], base=[step.start], width=0.62,
            showlegend=False, hovertemplate=told,
            marker={"color": hue if step.clear else faint(hue, 0.28), "line": {"width": 0}},
            error_x={"type": "data", "array": [reach[0]], "arrayminus": [reach[1]],
                     "color": INK, "thickness": 1.2, "width": 3, "visible": bool(interval)},
        )
    )  # fmt: skip


def _end(fig: Figure, row: int, value: float, text: str, unit: str, rows: int) -> None:
    """A dot where the gap begins or ends, and its guide down or up through the bars."""
    fig.add_shape(
        type="line", x0=value, x1=value, y0=-0.5, y1=rows - 0.5, layer="below",
        line={"color": "#c9c9c9", "width": 1, "dash": "dot"},
    )  # fmt: skip
    fig.add_trace(
        go.Scatter(
            x=[value], y=[row], mode="markers+text", text=[f"  {number(value, 3)}"],
            textposition="middle right", textfont={"size": 11, "color": MUTED}, showlegend=False,
            marker={"size": 10, "color": INK}, cliponaxis=False,
            hovertemplate=f"{label(text, 60)}<br>{number(value, 3)} {unit}<extra></extra>",
        )
    )  # fmt: skip


def _connect(fig: Figure, steps: list[Step], before: float) -> None:
    """A hair line from the end of each bar to the beginning of the next."""
    at = before
    for row, step in enumerate([*steps, None]):
        fig.add_shape(
            type="line", x0=at, x1=at, y0=row, y1=row + 1, layer="below",
            line={"color": MUTED, "width": 0.8},
        )  # fmt: skip
        at += step.value if step is not None else 0.0


def transplant_sentence(parts: xr.Dataset) -> str:
    """The gap with its interval, and the parts that account for it."""
    title, unit = _MEASURES.get(str(parts.attrs.get("measure", "")), ("score", ""))
    before, after = float(parts["before"]), float(parts["after"])
    gap = float(parts["gap"]) if "gap" in parts else after - before
    low, high = (
        float(parts[f"gap{e}"]) if f"gap{e}" in parts else np.nan for e in ("_low", "_high")
    )
    sign = 1 if gap >= 0 else -1
    ends = sorted((sign * low, sign * high))
    interval = f" [{signed(ends[0]).lstrip('+')}, {signed(ends[1]).lstrip('+')}]"
    size = f"{abs(gap):.2f}{interval if np.isfinite(low) else ''}{' ' + unit if unit else ''}"
    task = plain(parts.attrs.get("task", "this task"))
    when = ""
    if "from_step" in parts.attrs and "to_step" in parts.attrs:
        start, end = (int(parts.attrs[k]) for k in ("from_step", "to_step"))
        when = f", from step {start:,} to {end:,},"
    said = f"On {task}{when} the {title} {'rises' if gap >= 0 else 'falls'} by {size}."
    if np.isfinite(low) and low <= 0 <= high:
        return f"{said} The interval includes 0: there is no gap to be explained."
    return said + _accounts(parts, gap)


def _accounts(parts: xr.Dataset, gap: float) -> str:
    steps = [s for s in _steps(parts) if np.isfinite(s.low)]
    clear = [s for s in steps if s.clear]
    if not clear:
        return " No part's interval leaves out 0."
    told = [f"{s.text} {signed(s.value)} [{signed(s.low)}, {signed(s.high)}]" for s in clear]
    if 0 < clear[0].value / (gap or np.nan) <= 1:
        told[0] += f" ({100 * clear[0].value / gap:.0f} % of it)"
    said = f" By part: {listed(told, most=3, longest=120)}."
    unclear = len(steps) - len(clear)
    one = "The interval of 1 part includes 0."
    rest = one if unclear == 1 else f"The intervals of {unclear} parts include 0."
    return f"{said} {rest}" if unclear else said


def _notes(parts: xr.Dataset, steps: list[Step]) -> tuple[str, ...]:
    notes = [
        "Bar: a part's Shapley value, its mean effect over all orders in which the later parts "
        "are put in; together the gap. Lines on the bars: 95 %; pale: the interval includes 0."
    ]
    total = sum(step.value for step in steps)
    gap = float(parts["after"]) - float(parts["before"])
    if abs(total - gap) > 0.01 * max(abs(gap), 1e-9):
        notes.append(f"The bars add up to {signed(total)}, the gap is {signed(gap)}: sampling.")
    known = [(k, w) for k, w in (("n", "item"), ("coalitions", "mixed model")) if k in parts.attrs]
    if known:
        notes.append(f"From {listed(many(int(parts.attrs[k]), w) for k, w in known)}.")
    return tuple(notes)


def transplant_table(parts: xr.Dataset) -> Table:
    """A row a part: Shapley value with bounds, its effect alone and as the last."""
    columns = [
        n for n in ("shapley", "shapley_low", "shapley_high", "shapley_se", "alone", "last")
        if n in parts and parts[n].dims == ("part",)
    ]  # fmt: skip
    rows: list[tuple[Any, ...]] = []
    for i, name in enumerate(_names(parts)):
        rows.append((name, *(_cell(parts[n].values[i]) for n in columns)))
    return Table(("part", *(n.replace("shapley_", "") for n in columns)), tuple(rows))


def _cell(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
