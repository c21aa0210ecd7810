"""What did a probe find? Any result over checkpoints or steps, drawn without knowing what it is.

Needs   the dataset that a probe returned; beside a variable, where there are, <name>_low and
        <name>_high, attributes units, long_name, interval and chance_level.
Yields  a figure: a line a label (layer, task, ...) with its band and its chance level; small panels
        where there are many labels, a map where there are more, or many layers
        (probe_heatmap.py); without checkpoints a dot a label.

It makes a probe that somebody has just written visible. Figures that know what they show say more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from workbench.figures.caption import Caption, provenance_of
from workbench.figures.clock import ClockName
from workbench.figures.figure import Figure, finish
from workbench.figures.lines import Line, draw_line, hover_of
from workbench.figures.marks import Mark, draw_marks, forks
from workbench.figures.panels import axis_names
from workbench.figures.probe_dots import ROWS, colorbar, each, value_axis, without_training
from workbench.figures.probe_heatmap import by_layer, fits
from workbench.figures.result_view import View, variables, view_of
from workbench.figures.result_words import result_notes, result_sentence, result_table
from workbench.figures.template import INK, MAGNITUDE, MUTED, TRUNK, arm_colors
from workbench.figures.wording import label, plain

TOGETHER = 6
"""Lines of one panel; more get a panel each."""
PANELS = 24
"""Panels at most; more labels become rows of a map."""

_ACROSS, _PANEL_PX, _GAP_PX = 4, 108, 40


def probe_result(
    ds: xr.Dataset, variable: str | None = None, *, name: str = "", marks: Sequence[Mark] = (),
    x: ClockName = "step", code: str = "workbench.figures.probe_result(result)",
) -> go.Figure:  # fmt: skip
    """One variable of a probe's result.

    Args:
        ds: what the probe returned.
        variable: which; None takes the first that is no bound of another. The table holds all its
            values, the note says which others there are.
        name: of the probe, for the title.
        marks: places in training that are pointed at.
        x: "step", "tokens" or "utc"; steps where the result has not the clock asked for.
        code: Python that makes the figure, for the caption.

    Raises:
        SchemaError: the dataset has no such variable, or none.

    Example:
        >>> norm = xr.Dataset(
        ...     {"norm": (("checkpoint", "layer"), [[1.0, 2.0], [1.5, 2.5]])},
        ...     coords={"checkpoint": [0, 80]},
        ... )
        >>> probe_result(norm).layout.meta["caption"]["sentence"][:52]
        'From step 0 to 80 the median of norm over 2 layers g'
    """
    view = view_of(ds, variable, x)
    if view.clock is not None and fits(ds, view.name) and ds.sizes["layer"] > TOGETHER:
        return by_layer(ds, view.name, name=name, marks=marks, x=x, code=code)
    others = [v for v in variables(ds) if v != view.name]
    if not np.isfinite(view.values_LS).any():
        fig, height, drawn = _nothing(view), 90, ""
    elif view.clock is None:
        fig, height, drawn = without_training(view)
    elif len(view.keys) <= TOGETHER:
        fig, height, drawn = _together(view, marks)
    elif len(view.keys) <= PANELS:
        fig, height, drawn = _panels(view, marks)
    else:
        fig, height, drawn = _map(view)
    quantity = view.name.replace("_", " ")
    title = f"{plain(name)}: {plain(quantity)}" if name else view.title
    caption = Caption(
        name="probe-result",
        title=title[:1].upper() + title[1:],
        sentence=result_sentence(view),
        notes=result_notes(view, drawn, others),
        table=result_table(view),
        code=code,
        provenance=provenance_of(ds),
    )
    return finish(fig, caption, height=height, top=34 if marks else 18)


def _nothing(view: View) -> Figure:
    fig = Figure()
    why = "no value" if view.values_LS.size else "no entry"
    fig.add_annotation(
        text=f"{label(view.name)}: {why} that could be drawn", showarrow=False,
        xref="paper", yref="paper", x=0.5, y=0.5, font={"size": 13, "color": MUTED},
    )  # fmt: skip
    fig.update_xaxes(visible=False).update_yaxes(visible=False)
    return fig


def colors_of(view: View) -> list[str]:
    """A colour a label: light to dark along a number, else each name's own."""
    if len(view.keys) == 1:
        return [arm_colors(["continue"])["continue"]]
    if len(view.dims) == 1 and all(isinstance(key[0], int | float) for key in view.keys):
        places = [0.8 * (1 - i / (len(view.keys) - 1)) for i in range(len(view.keys))]
        found = sample_colorscale(MAGNITUDE, places, colortype="tuple")
        return ["#" + "".join(f"{round(255 * c):02x}" for c in color) for color in found]
    by_name = arm_colors(view.labels)
    return [by_name[text] for text in view.labels]


def _line(view: View, i: int, color: str, legend: bool) -> Line:
    assert view.clock is not None
    y = view.values_LS[i]
    band = None if view.band_LS is None else (view.band_LS[0][i], view.band_LS[1][i])
    text = view.labels[i]
    head = f"{text}\n{plain(view.title, 80)}" if text else plain(view.title, 80)
    hover = hover_of(head, view.clock, y, view.unit, band=band, short=view.short)
    if view.words:
        hover = type(hover)(hover.template, hover.where, [view.say(v) for v in y])
    return Line(
        name=text or view.name, x=view.clock.x, y=y, band=band, hover=hover, color=color,
        markers=len(y) <= 60, legend=legend,
    )  # fmt: skip


def _together(view: View, marks: Sequence[Mark]) -> tuple[Figure, int, str]:
    """All labels in one panel."""
    assert view.clock is not None
    fig = Figure(make_subplots(rows=1, cols=1))
    several = len(view.keys) > 1
    for i, color in enumerate(colors_of(view)):
        draw_line(fig, _line(view, i, color, several), row=1, col=1)
    _chance_lines(fig, view, range(len(view.keys)), 1, 1)
    clock = view.clock.for_axis(forks(marks))
    fig.update_xaxes(**clock.axis)
    fig.update_yaxes(**value_axis(view, 44))
    _stepped(fig, view)
    draw_marks(fig, marks, clock, [("x", "y")])
    fig.update_layout(showlegend=several)
    return fig, 260, ""


def _panels(view: View, marks: Sequence[Mark]) -> tuple[Figure, int, str]:
    """A small panel a label, all on the same axes."""
    assert view.clock is not None
    count = len(view.keys)
    rows = math.ceil(count / _ACROSS)
    height = rows * _PANEL_PX + (rows - 1) * _GAP_PX
    fig = Figure(
        make_subplots(
            rows=rows, cols=_ACROSS, shared_xaxes=True, shared_yaxes=True,
            horizontal_spacing=0.02, vertical_spacing=_GAP_PX / height if rows > 1 else 0,
            subplot_titles=[label(text, 30) for text in view.labels],
        )
    )  # fmt: skip
    fig.update_annotations(font={"size": 11, "color": INK})
    color = arm_colors(["continue"])["continue"]
    clock = view.clock.for_axis(forks(marks))
    for i in range(count):
        row, col = i // _ACROSS + 1, i % _ACROSS + 1
        draw_line(fig, _line(view, i, color, False), row=row, col=col)
        _chance_lines(fig, view, [i], row, col)
        # The last panel of a column bears the axis, though the row under it may be begun.
        lowest = i + _ACROSS >= count
        axis = clock.axis if lowest else {"type": "log"} if clock.log else {}
        fig.update_xaxes(**axis, showticklabels=lowest, nticks=4, row=row, col=col)
    for i in range(count, rows * _ACROSS):
        row, col = i // _ACROSS + 1, i % _ACROSS + 1
        fig.update_xaxes(visible=False, row=row, col=col)
        fig.update_yaxes(visible=False, row=row, col=col)
    names = [axis_names(i) for i in range(count)]
    fig.update_yaxes(**{**value_axis(view, 30), "title_text": ""}, nticks=4)
    draw_marks(fig, marks, clock, names, width=200, above=16)
    _stepped(fig, view)
    return fig, height, f"A panel {each(view)}: {view.with_unit}."


def _map(view: View) -> tuple[Figure, int, str]:
    """A row a label, training across, the value as colour."""
    assert view.clock is not None
    kept, note = _most_varied(view)
    values = view.values_LS[kept]
    labels = view.labels
    texts = [labels[i] for i in kept]
    told = [[view.say(v) for v in row] for row in values]
    heat = go.Heatmap(
        x=view.clock.x, y=np.arange(len(kept)), z=values, colorscale=MAGNITUDE,
        text=[[label(text)] * values.shape[1] for text in texts], customdata=told,
        hovertemplate="%{text}<br>%{x}<br>%{customdata} " + label(view.unit) + "<extra></extra>",
        colorbar=colorbar(view), hoverongaps=False,
    )  # fmt: skip
    fig = Figure(heat)
    height = int(np.clip(16 * len(kept), 220, 620))
    every = max(1, math.ceil(len(kept) / (height / 14)))
    places = list(range(0, len(kept), every))
    fig.update_yaxes(
        tickvals=places, ticktext=[label(texts[i], 34) for i in places], autorange="reversed",
        showgrid=False, ticks="",
    )  # fmt: skip
    fig.update_xaxes(**view.clock.axis)
    return fig, height, f"A row {each(view)}{note}; colour: {view.with_unit}."


def _most_varied(view: View) -> tuple[np.ndarray, str]:
    """Labels that are drawn, in their order; a note where some are left to the table."""
    count = len(view.keys)
    if count <= ROWS:
        return np.arange(count), ""
    there = np.isfinite(view.values_LS)
    highest = np.where(there, view.values_LS, -np.inf).max(1)
    lowest = np.where(there, view.values_LS, np.inf).min(1)
    spread = np.where(there.any(1), highest - lowest, -1.0)
    kept = np.sort(np.argsort(-spread, kind="stable")[:ROWS])
    return kept, f"; of {count:,} the {ROWS} that vary most"


def _stepped(fig: Figure, view: View) -> None:
    """Between two words there is nothing: the line holds until the next sample."""
    if view.words:
        fig.update_traces(line_shape="hv")


def _chance_lines(fig: Figure, view: View, drawn: Sequence[int], row: int, col: int) -> None:
    """A dotted line at each chance level of the labels in a panel."""
    levels = view.chance_L[list(drawn)]
    for level in np.unique(levels[np.isfinite(levels)]):
        fig.add_hline(
            y=float(level), row=row, col=col, line={"color": TRUNK, "width": 1, "dash": "dot"}
        )
