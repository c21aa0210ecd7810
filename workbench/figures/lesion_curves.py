"""Which experts does a capability need, and since when? What is lost without each, checkpoint by
checkpoint.

Needs   lesion (checkpoint, task, layer, expert): drop, drop_logprob with bounds; those that are
        there.
Yields  a figure of one task: a line for each of the experts that matter most, with its band; all
        others as a grey range.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench.errors import SchemaError
from workbench.figures.caption import Caption, Table, provenance_of
from workbench.figures.clock import Clock, ClockName, clock_of
from workbench.figures.figure import Figure, finish
from workbench.figures.lines import Line, band_of, draw_line, hover_of
from workbench.figures.tasks import one_task
from workbench.figures.template import TRUNK, arm_colors
from workbench.figures.wording import many, plain, signed

MOST = 6
"""Experts with a line of their own."""

REAL = 0.05
"""False discovery rate at which an expert counts as needed, where the data carries q."""

Measure = Literal["drop", "drop_logprob"]
_TITLES = {
    "drop": ("accuracy lost without the expert", "accuracy", ""),
    "drop_logprob": ("log-probability lost without the expert (nats)", "log-probability", "nats"),
}
_PLACE = ("layer", "expert")


def lesions(
    lesion: xr.Dataset, task: str | None = None, *, measure: Measure = "drop", most: int = MOST,
    x: ClockName = "step", code: str = "workbench.figures.lesions(lesion, task=...)",
) -> go.Figure:  # fmt: skip
    """Lesion curves of one task.

    Args:
        lesion: what the probe "lesion" found, over checkpoints or of one.
        task: which; None takes the one with the greatest loss anywhere.
        measure: "drop" of accuracy, or "drop_logprob", nats.
        most: experts that get a line at most: of those with the greatest loss at any checkpoint
            the ones whose loss is clear at some checkpoint (by q where the data carries it).
        x, code: as for `expert_load`.

    Raises:
        SchemaError: no such measure along (task, layer, expert), or no such task.

    Example:
        >>> lost = np.zeros((2, 1, 1, 2)); lost[1, 0, 0, 1] = 0.5
        >>> ds = xr.Dataset(
        ...     {"drop": (("checkpoint", "task", "layer", "expert"), lost)},
        ...     coords={"checkpoint": [0, 100], "task": ["code/add"]},
        ... )
        >>> lesions(ds).layout.meta["caption"]["sentence"]
        'At step 100, accuracy on code/add falls most without layer 0, expert 1: by 0.50.'
    """
    ds = _checked(lesion, measure)
    names = [measure + end for end in ("", "_low", "_high", "_q") if measure + end in ds]
    one = one_task(ds[names], task, ds[measure])
    task = str(one.attrs["task"])
    one = one.stack(place=_PLACE).transpose("checkpoint", "place")
    clock = clock_of(ds, x)
    order = _order(one[measure])
    own = _own(one, measure, order[:most])
    fig = Figure(make_subplots(rows=1, cols=1))
    _draw_rest(fig, one[measure], np.setdiff1d(order, own), clock)
    for color, i in zip(_colors(most), own, strict=False):
        _draw(fig, one, int(i), measure, clock, color)
    fig.add_hline(y=0, line={"color": TRUNK, "width": 1, "dash": "dot"})
    fig.update_xaxes(**clock.axis)
    fig.update_yaxes(title_text=_TITLES[measure][0])
    caption = Caption(
        name="lesions",
        title=f"Which experts {plain(task)} needs",
        sentence=lesions_sentence(one, measure, task),
        notes=_notes(one, measure, len(own), ds),
        table=lesions_table(one, measure, order),
        code=code,
        provenance=provenance_of(lesion),
    )
    return finish(fig, caption, height=290, top=18)


def _checked(lesion: xr.Dataset, measure: str) -> xr.Dataset:
    if measure not in _TITLES or measure not in lesion:
        have = ", ".join(map(str, lesion.data_vars)) or "nothing"
        raise SchemaError(f"no {plain(measure)!r} in {have}; expected drop or drop_logprob.")
    ds = lesion
    if "checkpoint" not in lesion[measure].dims:
        step = int(lesion.attrs.get("step", 0))
        if "checkpoint" in lesion.coords:
            step = int(lesion.coords["checkpoint"].item())
        ds = lesion.drop_vars("checkpoint", errors="ignore").expand_dims(checkpoint=[step])
    lacking = {"task", *_PLACE} - set(ds[measure].dims)
    if lacking or len(ds[measure].dims) != 4:
        raise SchemaError(
            f"{measure} has dims {tuple(lesion[measure].dims)}; expected (checkpoint, task, layer, "
            "expert), as the probe 'lesion' returns it."
        )
    free = {d: np.arange(ds.sizes[d]) for d in ("task", *_PLACE) if d not in ds.coords}
    return ds.assign_coords(free)


def _order(values: xr.DataArray) -> np.ndarray:
    """Experts by their greatest loss at any checkpoint."""
    known = np.where(np.isfinite(values.values), values.values, -np.inf)
    return np.argsort(-known.max(0), kind="stable")


def _own(one: xr.Dataset, measure: str, order: np.ndarray) -> np.ndarray:
    """Those of the first whose loss is clear somewhere; the first itself in any case."""
    lost = one[measure].values > 0
    band = band_of(one, measure)
    if f"{measure}_q" in one:
        clear = lost & (one[f"{measure}_q"].values <= REAL)
    elif band is not None:
        clear = lost & (band[0] > 0)
    else:
        clear = lost
    return np.array([i for n, i in enumerate(order) if n == 0 or clear[:, i].any()], dtype=int)


def _colors(most: int) -> list[str]:
    palette = list(arm_colors(["continue", "curriculum", "code", "1", "2", "3"]).values())
    return [palette[i % len(palette)] for i in range(most)]


def _name(one: xr.Dataset, i: int) -> str:
    layer, expert = one["place"].values[i]
    return f"layer {layer}, expert {expert}"


def _draw(fig: Figure, one: xr.Dataset, i: int, measure: Measure, clock: Clock, color: str) -> None:
    single = one.isel(place=i)
    band = band_of(single, measure)
    y = single[measure].values
    hover = hover_of(
        f"without {_name(one, i)}", clock, y, f"{_TITLES[measure][2]} lost".strip(), band=band
    )
    line = Line(
        name=_name(one, i), x=clock.x, y=y, band=band, hover=hover, color=color, markers=True
    )
    draw_line(fig, line, row=1, col=1)


def _draw_rest(fig: Figure, values: xr.DataArray, rest: np.ndarray, clock: Clock) -> None:
    """From the least to the most that any other expert costs."""
    if not len(rest) or len(clock.x) < 2:
        return
    others = values.values[:, rest]
    known = np.isfinite(others).any(1)
    low = np.where(known, np.nanmin(np.where(np.isfinite(others), others, np.inf), 1), np.nan)
    high = np.where(known, np.nanmax(np.where(np.isfinite(others), others, -np.inf), 1), np.nan)
    middle = np.full(len(low), np.nan)
    hover = hover_of("", clock, middle, "")
    line = Line(
        name=f"the other {len(rest):,}", x=clock.x, y=middle, band=(low, high), hover=hover,
        color="#888888",
    )  # fmt: skip
    draw_line(fig, line, row=1, col=1)
    fig.update_traces(legendrank=2000, selector={"name": line.name})


def lesions_sentence(one: xr.Dataset, measure: str, task: str) -> str:
    """What is lost most at the last checkpoint, since when, and how many experts are needed."""
    _, what, unit = _TITLES[measure]
    values = one[measure].values
    known = np.flatnonzero(np.isfinite(values).any(1))
    if not len(known):
        return f"No lesion of {plain(task)} has a value."
    last = int(known[-1])
    steps = one["checkpoint"].values if "checkpoint" in one.coords else np.arange(len(values))
    top = int(np.nanargmax(values[last]))
    value = float(values[last, top])
    at = f"At step {int(steps[last]):,}"
    if value <= 0:
        experts = many(values.shape[1], "expert")
        return f"{at}, no single lesion of {experts} lowers {what} on {plain(task)}."
    size = f"{_size(value)}{_interval(one, measure, last, top)}{' ' + unit if unit else ''}"
    text = f"{at}, {what} on {plain(task)} falls most without {_name(one, top)}: by {size}."
    return f"{text}{_since(one, measure, top, steps)}{_needed(one, measure, last)}"


def _size(value: float) -> str:
    return signed(value).lstrip("+")


def _interval(one: xr.Dataset, measure: str, s: int, i: int) -> str:
    band = band_of(one, measure)
    if band is None or not np.isfinite(band[0][s, i]):
        return ""
    return f" [{', '.join(_size(float(bound[s, i])) for bound in band)}]"


def _since(one: xr.Dataset, measure: str, i: int, steps: np.ndarray) -> str:
    """Since which checkpoint the interval has left out 0 without a break."""
    band = band_of(one, measure)
    if band is None:
        return ""
    above = band[0][:, i] > 0
    if not above[-1]:
        return ""
    first = len(above) - int(np.argmin(above[::-1])) if not above.all() else 0
    return f" Its interval leaves out 0 from step {int(steps[first]):,} on."


def _needed(one: xr.Dataset, measure: str, s: int) -> str:
    if f"{measure}_q" not in one:
        return ""
    real = (one[f"{measure}_q"].values[s] <= REAL) & (one[measure].values[s] > 0)
    needed = "1 is" if real.sum() == 1 else f"{int(real.sum()) or 'none'} are"
    return f" Of {many(real.size, 'expert')} {needed} needed there (q ≤ {REAL:g})."


def _notes(one: xr.Dataset, measure: str, own: int, ds: xr.Dataset) -> tuple[str, ...]:
    count = one.sizes["place"]
    notes = []
    if count > own:
        lines = "Line: the expert" if own == 1 else f"Lines: the {own}"
        notes.append(
            f"{lines} of {count:,} with the greatest loss at any checkpoint, chosen after the "
            "fact, as far as it is clear; grey: the range of the others."
        )
    if band_of(one, measure) is not None:
        notes.append("Bands: 95 %, over other items; not given where few items changed.")
    way = {"zero": "taken away", "reroute": "replaced by the next best"}.get(
        str(ds.attrs.get("way", ""))
    )
    if way:
        notes.append(f"The expert's output is {way}.")
    return tuple(notes)


def lesions_table(one: xr.Dataset, measure: str, order: np.ndarray) -> Table:
    """A row an expert, those that matter most first: the loss at the last checkpoint."""
    ends = [measure + e for e in ("", "_low", "_high", "_q") if measure + e in one]
    rows: list[tuple[Any, ...]] = []
    for i in order[:200]:
        layer, expert = one["place"].values[i]
        values = [float(one[n].values[-1, i]) for n in ends]
        highest = float(np.nanmax(np.append(one[measure].values[:, i], -np.inf)))
        told = [v if np.isfinite(v) else None for v in (*values, highest)]
        rows.append((plain(layer), plain(expert), *told))
    heads = [n.removeprefix(measure + "_") if n != measure else "lost at the end" for n in ends]
    return Table(("layer", "expert", *heads, "greatest loss"), tuple(rows))
