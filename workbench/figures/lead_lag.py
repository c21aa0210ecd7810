"""What moved before a capability arrived? Signals of the run by when they moved, around the onset.

Needs   lead_lag of one task (signal): lead with bounds, q; attrs task, onset.
Yields  a figure: a dot a signal at the step at which it moved, the onset at 0, time to the right;
        full where q <= 0.05.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench.errors import SchemaError
from workbench.figures.caption import Caption, Table, provenance_of
from workbench.figures.figure import Figure, finish
from workbench.figures.tasks import one_task
from workbench.figures.template import INK, MUTED, arm_colors, faint
from workbench.figures.wording import label, listed, many, number, plain

REAL = 0.05
"""False discovery rate at which a dot is drawn full."""
MOST = 36
"""Signals that are drawn; of more, those with the smallest q."""

_ROW_PX = 22


def leads(
    found: xr.Dataset, task: str | None = None, *,
    code: str = "workbench.figures.leads(probes.lead_lag(run, task))",
) -> go.Figure:  # fmt: skip
    """Dot plot of when signals moved, relative to the onset of one task.

    Args:
        found: `probes.lead_lag`: ([task], signal) lead (steps, above 0: before the onset),
            lead_low, lead_high, q and, where there, leads and lags.
        task: which, of several; None takes the one with the smallest q.
        code: Python that makes the figure, for the caption.

    Raises:
        SchemaError: lead (signal) or q is missing.

    Example:
        >>> moved = xr.Dataset(
        ...     {"lead": ("signal", [40.0, -10.0]), "lead_low": ("signal", [20.0, -60.0]),
        ...      "lead_high": ("signal", [60.0, 40.0]), "q": ("signal", [0.01, 0.8])},
        ...     coords={"signal": ["entropy, layer 2", "loss"]},
        ...     attrs={"task": "code/add", "onset": 400},
        ... )
        >>> leads(moved).layout.meta["caption"]["sentence"][:56]
        '1 of 2 signals moved before the onset of code/add (step '
    """
    if "q" in found:
        found = one_task(found, task, -found["q"])
    if "onset" in found.coords and found["onset"].ndim == 0:
        found = found.assign_attrs(onset=float(found["onset"]))
    if any(n not in found or found[n].dims != ("signal",) for n in ("lead", "q")):
        have = {str(n): tuple(v.dims) for n, v in found.data_vars.items()}
        raise SchemaError(
            f"found {have or 'nothing'}; expected lead and q (signal), as "
            "probes.lead_lag returns them."
        )
    drawn = _drawn(found)
    fig = Figure()
    for row, signal in enumerate(drawn):
        _dot(fig, found, signal, row)
    names = _names(found)
    fig.update_yaxes(
        tickvals=list(range(len(drawn))), ticktext=[label(names[i], 40) for i in drawn],
        range=[len(drawn) - 0.4, -0.6], showgrid=False, ticks="", tickfont={"color": INK},
    )  # fmt: skip
    _frame(fig, found, drawn)
    caption = Caption(
        name="lead-lag",
        title=f"What moved before {plain(found.attrs.get('task', 'the onset'))}",
        sentence=leads_sentence(found),
        notes=_notes(found, drawn),
        table=leads_table(found),
        code=code,
        provenance=provenance_of(found),
    )
    return finish(fig, caption, height=max(90, _ROW_PX * len(drawn) + 20), top=26)


def _names(found: xr.Dataset) -> list[str]:
    if "signal" in found.coords:
        return [plain(name) for name in found["signal"].values]
    return [f"signal {i}" for i in range(found.sizes["signal"])]


def _drawn(found: xr.Dataset) -> list[int]:
    """Signals whose lead is known, the clearest if there are too many, the earliest first."""
    lead, q = (found[n].values.astype("float64") for n in ("lead", "q"))
    known = np.flatnonzero(np.isfinite(lead))
    clearest = known[np.argsort(np.nan_to_num(q[known], nan=1.0), kind="stable")][:MOST]
    return [int(i) for i in clearest[np.argsort(-lead[clearest], kind="stable")]]


def _bounds(found: xr.Dataset, i: int) -> tuple[float, float]:
    ends = [f"lead{end}" for end in ("_low", "_high")]
    if not all(end in found for end in ends):
        return float("nan"), float("nan")
    low, high = (float(found[end].values[i]) for end in ends)
    return low, high


def _real(found: xr.Dataset, i: int) -> bool:
    return bool(found["q"].values[i] <= REAL)


def _dot(fig: Figure, found: xr.Dataset, i: int, row: int) -> None:
    lead, q = (float(found[n].values[i]) for n in ("lead", "q"))
    low, high = _bounds(found, i)
    real = _real(found, i)
    side = "before" if lead > 0 else "after"
    hue = arm_colors(["continue", "curriculum"])["continue" if lead > 0 else "curriculum"]
    color = hue if real else faint(hue, 0.4)
    told = (
        f"{label(_names(found)[i])}<br>{_steps(abs(lead))} {side} the onset"
        f"<br>95 %: {_interval(low, high)}<br>q = {number(q, 2)}<extra></extra>"
    )
    # Time runs to the right, so a lead of 40 steps lies at -40.
    reach = [lead - low, high - lead]
    fig.add_trace(
        go.Scatter(
            x=[-lead], y=[row], mode="markers", showlegend=False, hovertemplate=told,
            error_x={"type": "data", "array": [reach[0] if np.isfinite(low) else 0],
                     "arrayminus": [reach[1] if np.isfinite(high) else 0],
                     "color": color, "thickness": 1.8, "width": 0},
            marker={"size": 10, "symbol": "circle" if real else "circle-open", "color": color,
                    "line": {"width": 1.6, "color": color}},
        )
    )  # fmt: skip


def _interval(low: float, high: float) -> str:
    """Bounds of a lead in words: open where a bound is not known."""
    if not (np.isfinite(low) or np.isfinite(high)):
        return "unknown"
    return f"{_moment(high)} to {_moment(low)}"


def _moment(lead: float) -> str:
    if not np.isfinite(lead):
        return "open"
    return f"{_steps(abs(lead))} {'before' if lead > 0 else 'after'}" if lead else "at the onset"


def _steps(count: float) -> str:
    return f"{count:,.0f} step" + ("" if round(count) == 1 else "s")


def _frame(fig: Figure, found: xr.Dataset, drawn: list[int]) -> None:
    ends = [abs(float(found["lead"].values[i])) for i in drawn]
    ends += [abs(b) for i in drawn for b in _bounds(found, i) if np.isfinite(b)]
    reach = max(ends, default=1.0) * 1.08 or 1.0
    fig.add_vline(x=0, line={"color": INK, "width": 1})
    onset = found.attrs.get("onset")
    fig.update_xaxes(title_text="optimizer steps from the onset", range=[-reach, reach])
    at = f"onset{_step(onset, ', step ')}"
    for x, anchor, text in ((0, "left", "← before"), (0.5, "center", at), (1, "right", "after →")):
        fig.add_annotation(
            xref="x domain", yref="paper", x=x, y=1, xanchor=anchor, yanchor="bottom", text=text,
            showarrow=False, font={"size": 11, "color": MUTED},
        )  # fmt: skip


def _step(onset: Any, before: str) -> str:
    """The onset's step after the words `before`; empty where it is not known."""
    known = isinstance(onset, int | float | np.number) and np.isfinite(onset)
    return f"{before}{float(onset):,.0f}" if known else ""


def leads_sentence(found: xr.Dataset) -> str:
    """Which signals moved before, which after; and that before is not because of."""
    lead = found["lead"].values.astype("float64")
    known = int(np.isfinite(lead).sum())
    task = plain(found.attrs.get("task", "the task"))
    at = _step(found.attrs.get("onset"), "step ")
    when = f"the onset of {task}" + (f" ({at})" if at else "")
    if not known:
        return f"When signals moved around {when} could not be told for any of them."
    before, after, unclear = _sides(found)
    # None found is not none there.
    found_none = f"None of {many(known, 'signal')} is shown to have moved before {when}"
    head = f"{len(before)} of {many(known, 'signal')} moved before {when}" if before else found_none
    names = _names(found)
    told = [f"{names[i]} by {_steps(lead[i])} [{_ends(found, i)}]" for i in before]
    said = f"{head}: {listed(told, most=3, longest=120)}." if told else f"{head}."
    later = f" {many(len(after), 'signal')} moved after it." if after else ""
    near = (
        f" {many(len(unclear), 'signal')} moved around it, on which side cannot be told."
        if unclear else ""
    )  # fmt: skip
    return f"{said}{later}{near} Moving before is not causing."


def _sides(found: xr.Dataset) -> tuple[list[int], list[int], list[int]]:
    """Signals that moved before, after, and where it cannot be told; as the probe calls them."""
    sides: tuple[list[int], list[int], list[int]] = ([], [], [])
    for i in (i for i in _drawn(found) if _real(found, i)):
        low, high = _bounds(found, i)
        lead = float(found["lead"].values[i])
        first, last = (low > 0, high < 0) if np.isfinite(low + high) else (lead > 0, lead < 0)
        first = bool(found["leads"].values[i]) if "leads" in found else first
        last = bool(found["lags"].values[i]) if "lags" in found else last
        sides[0 if first else 1 if last else 2].append(i)
    return sides


def _ends(found: xr.Dataset, i: int) -> str:
    return ", ".join(number(bound, 3) for bound in _bounds(found, i))


def _notes(found: xr.Dataset, drawn: list[int]) -> tuple[str, ...]:
    full = f"Full: more than chance, q ≤ {REAL:g} over all signals; pale: not more than chance."
    notes = [f"Lines: 95 %. {full}"]
    unknown = int((~np.isfinite(found["lead"].values.astype("float64"))).sum())
    left = found.sizes["signal"] - unknown - len(drawn)
    if left:
        notes.append(f"Not drawn, in the table: {many(left, 'signal')} with a greater q.")
    if unknown:
        notes.append(f"Of {many(unknown, 'signal')} the lead could not be told.")
    if isinstance(by_chance := found.attrs.get("expected_by_chance"), int | float):
        notes.append(f"By chance alone {number(by_chance)} would be called leading.")
    if null := found.attrs.get("null"):
        notes.append(f"Chance: {plain(null, 120)}.")
    return tuple(notes)


def leads_table(found: xr.Dataset) -> Table:
    """A row a signal, the smallest q first."""
    columns = [n for n in ("lead", "lead_low", "lead_high", "score", "p", "q") if n in found]
    q = np.nan_to_num(found["q"].values.astype("float64"), nan=2.0)
    names = _names(found)
    rows = []
    for i in np.argsort(q, kind="stable"):
        values = [float(found[n].values[i]) for n in columns]
        told = [value if np.isfinite(value) else None for value in values]
        rows.append((names[i], *told, "yes" if _real(found, int(i)) else "no"))
    heads = {"lead": "lead (steps)", "lead_low": "low", "lead_high": "high"}
    return Table(("signal", *(heads.get(c, c) for c in columns), "stands out"), tuple(rows))
