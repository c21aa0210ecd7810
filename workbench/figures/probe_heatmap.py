"""In which layer, and since when? Any probe's quantity over checkpoints and layers as a map.

Needs   a dataset with a variable along (checkpoint, layer), and at most one more dim; beside it,
        where there are, <name>_low and <name>_high, units, interval, chance_level.
Yields  a figure: training across, layers up, the value as colour; a map for each label of the
        further dim; a dot where the interval includes the chance level.

A quantity between layers (layer, other_layer) is shown for each layer with itself at the other
checkpoint; where that is 1 by definition, with the layer after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench.errors import SchemaError
from workbench.figures.caption import Caption, provenance_of
from workbench.figures.clock import ClockName
from workbench.figures.figure import Figure, finish
from workbench.figures.marks import Mark, draw_marks
from workbench.figures.panels import axis_names
from workbench.figures.result_view import View, variables, view_of
from workbench.figures.result_words import result_notes, result_table
from workbench.figures.template import INK, MAGNITUDE
from workbench.figures.wording import count, label, listed, many, number, plain

PLANE = ("checkpoint", "layer")
MOST_MAPS = 8
"""Labels with a map of their own; of more, those in which the value varies most."""

_GAP_PX, _ACROSS = 34, 2


@dataclass(frozen=True)
class Sheet:
    """One map. L layers, S samples."""

    text: str
    """Which label; empty where there is one map."""
    values_LS: np.ndarray
    band_LS: tuple[np.ndarray, np.ndarray] | None
    chance_L: np.ndarray

    @property
    def unclear_LS(self) -> np.ndarray:
        """Where the interval includes the chance level."""
        if self.band_LS is None:
            return np.zeros(self.values_LS.shape, bool)
        level = self.chance_L[:, None]
        return (self.band_LS[0] <= level) & (level <= self.band_LS[1])


def fits(ds: xr.Dataset, variable: str) -> bool:
    """Whether `by_layer` draws a variable well: of two layers and checkpoints or more, and with
    few labels beside them.

    Example:
        >>> fits(xr.Dataset({"x": (("checkpoint", "layer"), np.ones((3, 4)))}), "x")
        True
    """
    array = ds[variable]
    dims = set(map(str, array.dims))
    rest = dims - set(PLANE) - {"other_layer"}
    if array.dtype.kind not in "fiu" or not set(PLANE) <= dims or len(dims) > 3:
        return False
    few = all(array.sizes[dim] <= MOST_MAPS for dim in rest)
    return few and all(array.sizes[dim] > 1 for dim in PLANE)


def by_layer(
    ds: xr.Dataset, variable: str | None = None, *, name: str = "", marks: Sequence[Mark] = (),
    x: ClockName = "step", code: str = "workbench.figures.by_layer(result)",
) -> go.Figure:  # fmt: skip
    """A quantity over checkpoints and layers.

    Args:
        ds: what the probe returned.
        variable: which; None takes the first that lies along (checkpoint, layer).
        name: of the probe, for the title.
        marks, x, code: as for `probe_result`.

    Raises:
        SchemaError: no variable lies along (checkpoint, layer) and at most one more dim.

    Example:
        >>> read = xr.Dataset(
        ...     {"accuracy": (("checkpoint", "layer"), [[0.25, 0.25], [0.5, 0.75]])},
        ...     coords={"checkpoint": [0, 80]},
        ... )
        >>> by_layer(read).layout.meta["caption"]["sentence"]
        'At step 80 accuracy is greatest in layer 1, 0.75, and smallest in layer 0, 0.5.'
    """
    variable = _variable(ds, variable)
    plane, how = _between(ds, variable)
    view = view_of(plane, variable, x)
    if view.clock is None:
        raise SchemaError(f"{plain(variable)}: its checkpoints are no numbers.")
    layers, sheets = _sheets(view)
    shown = _most_varied(sheets)
    fig, height = _draw(view, layers, shown, marks)
    others = [v for v in variables(ds) if v not in (variable, "chance")]
    quantity = f"{plain(name)}: {plain(variable)}" if name else view.title
    caption = Caption(
        name="probe-heatmap",
        title=f"{quantity[:1].upper()}{quantity[1:]}, by layer and checkpoint",
        sentence=heatmap_sentence(view, layers, sheets),
        notes=_notes(view, shown, sheets, how, others),
        table=result_table(view),
        code=code,
        provenance=provenance_of(ds),
    )
    top = 52 if len(shown) > 1 and marks else 34 if marks or len(shown) > 1 else 12
    return finish(fig, caption, height=height, top=top)


def _variable(ds: xr.Dataset, variable: str | None) -> str:
    if variable is not None:
        view_of(ds, variable)  # refuses what is not there
    every = [variable] if variable is not None else variables(ds)
    along = [
        v for v in every
        if set(PLANE) <= set(map(str, ds[v].dims)) and ds[v].ndim <= 3
        and ds[v].dtype.kind in "fiu" and ds[v].size
    ]  # fmt: skip
    if not along:
        have = {v: tuple(ds[v].dims) for v in every}
        raise SchemaError(
            f"found {have or 'an empty dataset'}; expected a quantity along (checkpoint, layer) "
            "and at most one more dim. probe_result draws any other."
        )
    return along[0]


def _between(ds: xr.Dataset, variable: str) -> tuple[xr.Dataset, str]:
    """Of a quantity between layers, each layer's with itself or with the next."""
    if "other_layer" not in ds[variable].dims:
        return ds, ""
    n = min(ds.sizes["layer"], ds.sizes["other_layer"])

    def pairs(shift: int) -> xr.Dataset:
        at = xr.DataArray(np.arange(n - shift), dims="layer")
        found = ds.isel(layer=at, other_layer=at + shift).drop_vars("other_layer", errors="ignore")
        if "layer" in ds.coords:
            found = found.assign_coords(layer=ds["layer"].values[: n - shift])
        return found

    same = pairs(0)
    if n > 2 and bool((same[variable].fillna(1) == 1).all()):
        return pairs(1), "Each layer with the layer after it: with itself it is 1 by definition."
    return same, "Each layer with the same layer of the other checkpoint."


def _sheets(view: View) -> tuple[list[float], list[Sheet]]:
    """The layers, and a map for each label of the further dim."""
    at = view.dims.index("layer")
    layers = list(dict.fromkeys(key[at] for key in view.keys))
    groups: dict[str, list[int]] = {}
    for i, key in enumerate(view.keys):
        rest = [(dim, part) for dim, part in zip(view.dims, key, strict=True) if dim != "layer"]
        text = ", ".join(
            f"{plain(dim, 24)} {part:g}" if isinstance(part, int | float) else plain(part)
            for dim, part in rest
        )
        groups.setdefault(text, []).append(i)
    sheets = [
        Sheet(
            text, view.values_LS[rows],
            None if view.band_LS is None else (view.band_LS[0][rows], view.band_LS[1][rows]),
            view.chance_L[rows],
        )
        for text, rows in groups.items()
    ]  # fmt: skip
    return layers, sheets


def _most_varied(sheets: list[Sheet]) -> list[Sheet]:
    if len(sheets) <= MOST_MAPS:
        return sheets
    spread = [
        float(np.ptp(v)) if len(v := s.values_LS[np.isfinite(s.values_LS)]) else -1.0
        for s in sheets
    ]
    kept = np.sort(np.argsort(-np.array(spread), kind="stable")[:MOST_MAPS])
    return [sheets[i] for i in kept]


def _draw(
    view: View, layers: list[float], sheets: list[Sheet], marks: Sequence[Mark]
) -> tuple[Figure, int]:
    assert view.clock is not None
    across = 1 if len(sheets) == 1 else _ACROSS
    rows = math.ceil(len(sheets) / across)
    panel = int(np.clip(20 * len(layers), 84, 460 if len(sheets) <= 2 else 240))
    height = rows * panel + (rows - 1) * (_GAP_PX + 8)
    fig = Figure(
        make_subplots(
            rows=rows, cols=across, shared_xaxes=True, shared_yaxes=True, horizontal_spacing=0.03,
            vertical_spacing=(_GAP_PX + 8) / height if rows > 1 else 0,
            subplot_titles=[label(s.text, 40) for s in sheets],
        )
    )  # fmt: skip
    fig.update_annotations(font={"size": 11, "color": INK})
    for i, sheet in enumerate(sheets):
        row, col = i // across + 1, i % across + 1
        fig.add_trace(_map(view, layers, sheet), row=row, col=col)
        _dots(fig, view, sheet, row, col)
        lowest = i + across >= len(sheets)
        fig.update_xaxes(**(view.clock.axis if lowest else {}), showticklabels=lowest, row=row,
                         col=col, showgrid=False, range=_edges(view.clock.x))  # fmt: skip
    for i in range(len(sheets), rows * across):
        place = {"row": i // across + 1, "col": i % across + 1}
        fig.update_xaxes(visible=False, **place)
        fig.update_yaxes(visible=False, **place)
    every = max(1, math.ceil(len(layers) * 15 / panel))
    ticks = list(range(0, len(layers), every))
    fig.update_yaxes(
        tickvals=ticks, ticktext=[_said(layers[i]) for i in ticks], showgrid=False, ticks="",
        range=[-0.5, len(layers) - 0.5],
    )  # fmt: skip
    fig.update_yaxes(title_text="layer", col=1)
    fig.update_layout(coloraxis=_scale(view, sheets, height))
    axes = [axis_names(i) for i in range(len(sheets))]
    draw_marks(
        fig, marks, view.clock, axes, width=960 // across, above=16 if len(sheets) > 1 else 2
    )
    return fig, height


def _said(layer: Any) -> str:
    """A layer as it is named: by number, or by a text of its own."""
    number = isinstance(layer, int | float | np.number)
    return f"{layer:g}" if number else label(str(layer), 24)


def _map(view: View, layers: list[float], sheet: Sheet) -> go.Heatmap:
    assert view.clock is not None
    told = [
        [_told(view, sheet, i, s) for s in range(len(view.clock.x))] for i in range(len(layers))
    ]
    head = [
        [f"layer {_said(layer)}{', ' + label(sheet.text) if sheet.text else ''}<br>{when}"
         for when in _when(view)]
        for layer in layers
    ]  # fmt: skip
    return go.Heatmap(
        x=view.clock.x, y=np.arange(len(layers)), z=sheet.values_LS, coloraxis="coloraxis",
        text=head, customdata=told, hoverongaps=False,
        hovertemplate="%{text}<br>%{customdata}<extra></extra>",
    )  # fmt: skip


def _when(view: View) -> list[str]:
    assert view.clock is not None
    found = []
    for i, step in enumerate(view.clock.steps):
        seen = view.clock.tokens
        more = f", {count(float(seen[i]))} tokens" if seen is not None else ""
        found.append(f"step {step:,.0f}{more}")
    return found


def _told(view: View, sheet: Sheet, i: int, s: int) -> str:
    text = f"{label(view.name.replace('_', ' '), 40)} {view.say(sheet.values_LS[i, s])}"
    if sheet.band_LS is not None:
        low, high = (view.say(bound[i, s]) for bound in sheet.band_LS)
        text += f" [{low}, {high}]"
    text += f" {label(view.unit)}" if view.unit else ""
    if np.isfinite(sheet.chance_L[i]):
        text += f"<br>chance {view.say(sheet.chance_L[i])}"
    return text


def _dots(fig: Figure, view: View, sheet: Sheet, row: int, col: int) -> None:
    """A dot in every cell that cannot be told from chance."""
    assert view.clock is not None
    where, when = np.nonzero(sheet.unclear_LS)
    if not len(where):
        return
    fig.add_trace(
        go.Scatter(
            x=view.clock.x[when], y=where, mode="markers", hoverinfo="skip", showlegend=False,
            marker={"size": 4, "color": "#ffffff", "line": {"width": 0.8, "color": "#222222"}},
        ),
        row=row, col=col,
    )  # fmt: skip


def _edges(x: np.ndarray) -> list[object] | None:
    """Where the first cell begins and the last one ends."""
    if len(x) < 2:
        return None
    return [x[0] - (x[1] - x[0]) / 2, x[-1] + (x[-1] - x[-2]) / 2]


def _scale(view: View, sheets: list[Sheet], height: int) -> dict[str, object]:
    """The colours over all values and the chance level, which is a tick of the bar."""
    levels = np.concatenate([s.chance_L for s in sheets])
    levels = np.unique(levels[np.isfinite(levels)])
    values = np.concatenate([s.values_LS.ravel() for s in sheets])
    known = np.concatenate([values[np.isfinite(values)], levels])
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    bar: dict[str, object] = {
        "title": {"text": label(view.unit or view.name.replace("_", " "), 20)}, "thickness": 12,
        "outlinewidth": 0, "lenmode": "pixels", "len": max(130, min(height, 420)),
    }  # fmt: skip
    if len(levels) == 1:
        ticks = _round_ticks(low, high, 6 if height > 200 else 2)
        apart = [t for t in ticks if abs(t - levels[0]) > (high - low) * 14 / max(90, height)]
        bar["tickvals"] = [*apart, float(levels[0])]
        bar["ticktext"] = [*(number(t, 3) for t in apart), f"chance {number(levels[0], 3)}"]
    return {"colorscale": MAGNITUDE, "cmin": low, "cmax": high, "colorbar": bar}


def _round_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers within an interval.

    Example:
        >>> _round_ticks(0.21, 0.93)
        [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    """
    size = 10 ** math.floor(math.log10((high - low) / most))
    step = next(size * f for f in (1, 2, 5, 10) if (high - low) / (size * f) <= most + 2)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def heatmap_sentence(view: View, layers: list[float], sheets: list[Sheet]) -> str:
    """The last checkpoint: where it is greatest and smallest, and how much is clear of chance."""
    assert view.clock is not None
    what = plain(view.name.replace("_", " "), 48)
    there = [np.isfinite(s.values_LS) for s in sheets]
    if not any(t.any() for t in there):
        return f"{what[:1].upper()}{what[1:]} has no value that could be drawn."
    last = max(int(np.flatnonzero(t.any(0))[-1]) for t in there if t.any())
    ends = [
        (float(s.values_LS[i, last]), k, i)
        for k, s in enumerate(sheets) for i in range(len(layers)) if there[k][i, last]
    ]  # fmt: skip
    top, low = max(ends), min(ends)

    def place(cell: tuple[float, int, int]) -> str:
        _, k, i = cell
        sheet = sheets[k]
        value = view.say(float(sheet.values_LS[i, last]))
        if sheet.band_LS is not None:
            value += f" [{', '.join(view.say(float(b[i, last])) for b in sheet.band_LS)}]"
        of = f" for {sheet.text}" if sheet.text else ""
        return f"in layer {_said(layers[i])}{of}, {value}{' ' + view.unit if view.unit else ''}"

    head = f"At step {view.clock.steps[last]:,.0f} {what} is "
    if top[0] == low[0]:
        said = f"{head}{view.say(top[0])}{' ' + view.unit if view.unit else ''} everywhere."
    else:
        said = f"{head}greatest {place(top)}, and smallest {place(low)}."
    return said + _against_chance(sheets, last)


def _against_chance(sheets: list[Sheet], last: int) -> str:
    known = [(s, i) for s in sheets for i in range(len(s.chance_L)) if np.isfinite(s.chance_L[i])]
    known = [
        (s, i) for s, i in known if s.band_LS is not None and np.isfinite(s.band_LS[0][i, last])
    ]
    if not known:
        return ""
    above = sum(s.band_LS[0][i, last] > s.chance_L[i] for s, i in known if s.band_LS is not None)
    below = sum(s.band_LS[1][i, last] < s.chance_L[i] for s, i in known if s.band_LS is not None)
    if len(known) == 1:
        side = "above" if above else "below" if below else "across"
        return f" Its interval lies {side} chance level."
    return f" Of {len(known)} intervals there {above} lie above chance level and {below} below."


def _notes(
    view: View, shown: list[Sheet], sheets: list[Sheet], how: str, others: list[str]
) -> tuple[str, ...]:
    notes = [f"Colour: {view.with_unit}.", how]
    if any(s.unclear_LS.any() for s in shown):
        notes.append("Dot: the interval includes the chance level.")
    if left := len(sheets) - len(shown):
        named = listed([s.text for s in sheets if s not in shown], most=4, longest=32)
        notes.append(f"In the table alone, because they vary less: {many(left, 'map')} ({named}).")
    return tuple(
        n for n in (*notes, *result_notes(view, "colour:", others)) if n and n != "colour:"
    )
