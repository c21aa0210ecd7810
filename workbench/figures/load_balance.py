"""Is the load balanced? Measures of evenness through training, for every layer or every arm.

Needs   balance (step, layer): max_violation, normalized_entropy, dead_experts, balance_loss; those
        that are there.
Yields  a figure: one panel a measure, one x axis; a line a layer, or the median layer with the
        range of all layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import xarray as xr
from plotly.colors import sample_colorscale

from workbench.errors import SchemaError
from workbench.figures.bins import binned, width_for
from workbench.figures.caption import Caption, Table, provenance_of
from workbench.figures.clock import Clock, ClockName, clock_of
from workbench.figures.figure import finish
from workbench.figures.lines import Band, Line, draw_line, hover_of, say_thinned
from workbench.figures.marks import Mark, draw_marks, forks
from workbench.figures.panels import LEGEND_PX, Stack
from workbench.figures.strands import arms_of, strands
from workbench.figures.template import MAGNITUDE, MUTED
from workbench.figures.thinning import single_steps
from workbench.figures.wording import count, listed, many, number, per_arm, plain

_RIGHT_PX = 60
"""Room for the word "balanced" beside the panels."""

MOST_LINES = 6
"""Layers that are drawn as a line each; more become a median and a range."""


@dataclass(frozen=True)
class Measure:
    """One panel: what it shows and where balance lies on it."""

    name: str
    title: str
    balanced: float


MEASURES = (
    Measure("max_violation", "MaxVio: the busiest expert's load over the mean, less 1", 0),
    Measure("normalized_entropy", "entropy of the load, as a share of ln E", 1),
    Measure("dead_experts", "dead experts: no token", 0),
    Measure("balance_loss", "balance loss E·Σ f·P", 1),
)


def balance(
    balance: xr.Dataset | Mapping[str, xr.Dataset], *, marks: Sequence[Mark] = (),
    x: ClockName = "step", colors: Mapping[str, str] | None = None,
    code: str = "workbench.figures.balance(probes.balance(run))",
) -> go.Figure:  # fmt: skip
    """Load balance through training.

    Args:
        balance: (step, layer) variables of `probes.balance`, of one arm; or arm name -> such a
            dataset.
        marks, x, code: as for `expert_load`.
        colors: arm name -> hex colour; by default each arm's own.

    Returns:
        Figure. One arm with up to 6 layers: a line a layer, light to dark with depth. Otherwise the
        median layer as a line and the range over layers as a band, a colour an arm. Long records
        are averaged into bins.

    Raises:
        SchemaError: none of the measures is there along (step, layer).

    Example:
        >>> even = xr.Dataset({"max_violation": (("step", "layer"), [[0.0], [0.5]])})
        >>> balance(even).layout.meta["caption"]["sentence"][:62]
        'Over the last tenth of the steps, in the median layer the busi'
    """
    arms = arms_of(balance)
    measures = _present(arms)
    arms = {name: ds[[m.name for m in measures]] for name, ds in arms.items()}
    layers = max(ds.sizes["layer"] for ds in arms.values())
    by_layer = len(arms) == 1 and layers <= MOST_LINES
    flat = [m.name == "dead_experts" and _highest(arms, m.name, by_layer) == 0 for m in measures]
    stack = Stack(heights=[48 if still else 132 for still in flat], gap=36)
    fig = stack.figure([_panel_title(m, arms) for m in measures])
    draw = _draw_layers if by_layer else _draw_arms
    clock = clock_of(_longest(arms), x).for_axis(forks(marks), alone=len(arms) == 1)
    notes = draw(fig, arms, measures, clock, colors)
    for row, measure in enumerate(measures, start=1):
        _axis(fig, row, measure, _highest(arms, measure.name, by_layer))
    fig.update_xaxes(type=clock.axis.get("type"))
    fig.update_xaxes(**clock.axis, row=len(measures), col=1)
    top = draw_marks(fig, marks, clock, stack.axes, above=18)
    top = max(20, top)
    fig.update_layout(legend=stack.legend(top), margin_r=_RIGHT_PX)
    caption = Caption(
        name="balance",
        title="Load balance: how evenly the experts are used",
        sentence=balance_sentence(arms),
        notes=tuple(n for n in notes if n),
        table=balance_table(arms),
        code=code,
        provenance=provenance_of(*arms.values()),
    )
    return finish(fig, caption, height=stack.height, top=top + LEGEND_PX)


def _panel_title(measure: Measure, arms: Mapping[str, xr.Dataset]) -> str:
    if measure.name != "dead_experts":
        return measure.title
    return measure.title + _dead_window(next(iter(arms.values())))


def _present(arms: Mapping[str, xr.Dataset]) -> list[Measure]:
    found = [
        m for m in MEASURES
        if all(m.name in ds and set(ds[m.name].dims) == {"step", "layer"} for ds in arms.values())
    ]  # fmt: skip
    if not found:
        have = {str(n): tuple(v.dims) for ds in arms.values() for n, v in ds.data_vars.items()}
        raise SchemaError(
            f"no measure of balance along (step, layer) in {have or 'an empty dataset'}; expected "
            f"one of {', '.join(m.name for m in MEASURES)}. probes.balance(run) returns them."
        )
    return found


def _longest(arms: Mapping[str, xr.Dataset]) -> xr.Dataset:
    return max(arms.values(), key=lambda ds: ds.sizes["step"])


def _draw_layers(
    fig: go.Figure, arms: Mapping[str, xr.Dataset], measures: Sequence[Measure], axis: Clock,
    colors: Mapping[str, str] | None,
) -> list[str]:  # fmt: skip
    (whole,) = arms.values()
    short = binned(whole, log_x=axis.log_x)
    clock = clock_of(short.mean, axis.name)
    layers = (
        short.mean["layer"].values if "layer" in short.mean.coords else range(whole.sizes["layer"])
    )
    shades = _shades(len(layers))
    for row, measure in enumerate(measures, start=1):
        for i, layer in enumerate(layers):
            y = short.mean[measure.name].isel(layer=i).values
            head = f"layer {int(layer)}\n{measure.title}"
            line = Line(
                name=f"layer {int(layer)}", x=clock.x, y=y, color=shades[i], legend=row == 1,
                hover=hover_of(head, clock, y, "", short=short),
            )  # fmt: skip
            draw_line(fig, line, row=row, col=1)
    singles = _draw_single(fig, whole, measures, axis, MUTED) if short.note else ""
    return [short.note, singles, _peak(arms) if short.note else ""]


def _shades(n: int) -> list[str]:
    """Shallow layers light, deep ones dark; the lightest fifth would vanish on white."""
    places = [0.8 * (1 - i / max(1, n - 1)) for i in range(n)]
    found = sample_colorscale(MAGNITUDE, places, colortype="tuple")
    return ["#" + "".join(f"{round(255 * c):02x}" for c in color) for color in found]


def _draw_arms(
    fig: go.Figure, arms: Mapping[str, xr.Dataset], measures: Sequence[Measure], axis: Clock,
    colors: Mapping[str, str] | None,
) -> list[str]:  # fmt: skip
    each = width_for(_longest(arms).sizes["step"])
    singles = ""
    for strand in strands(arms, [m.name for m in measures], colors):
        short = binned(strand.values, each=each, log_x=axis.log_x)
        clock = clock_of(short.mean, axis.name)
        if short.note:
            singles = _draw_single(fig, strand.values, measures, axis, strand.color, strand.name)
        for row, measure in enumerate(measures, start=1):
            over = short.mean[measure.name].transpose("step", "layer")
            if measure.name == "dead_experts":
                y = over.sum("layer", skipna=False).values
                band: Band | None = None
                what = "all layers together"
            else:
                y = over.median("layer").values
                band = (over.min("layer").values, over.max("layer").values)
                what = "median layer"
            line = Line(
                name=strand.name, x=clock.x, y=y, color=strand.color, legend=row == 1, band=band,
                hover=hover_of(
                    f"{plain(strand.name)}, {what}\n{measure.title}", clock, y, "", short=short,
                    band=band, band_is="lowest and highest layer",
                    n=f"n = {many(over.sizes['layer'], 'layer')}",
                ),
            )  # fmt: skip
            draw_line(fig, line, row=row, col=1)
    note = binned(_longest(arms), each=each, log_x=axis.log_x).note
    reading = "Line: median layer, band: lowest to highest layer; the dead: all layers."
    return [note, reading, singles, _peak(arms) if note else ""]


def _draw_single(
    fig: go.Figure, ds: xr.Dataset, measures: Sequence[Measure], axis: Clock, color: str,
    name: str = "",
) -> str:  # fmt: skip
    """MaxVio of the most uneven layer at single steps, faint behind the means."""
    rows = [i for i, measure in enumerate(measures, start=1) if measure.name == "max_violation"]
    if not rows:
        return ""
    over = ds["max_violation"].max("layer").rename("max_violation").to_dataset()
    drawn, kept = single_steps(over, "max_violation", log_x=axis.log_x)
    say_thinned(fig, kept)
    clock, y = clock_of(drawn, axis.name), drawn.values
    head = f"{plain(name)}, most uneven layer" if name else "most uneven layer"
    line = Line(
        name=name or "single steps", x=clock.x, y=y, color=color, legend=False, width=0.7,
        opacity=0.4, hover=hover_of(f"{head}\nMaxVio of a single step", clock, y, ""),
    )  # fmt: skip
    draw_line(fig, line, row=rows[0], col=1)
    return "Faint: the most uneven layer at single steps."


def _peak(arms: Mapping[str, xr.Dataset]) -> str:
    """What averaging into bins hides: the highest single step."""
    peaks = [float(ds["max_violation"].max()) for ds in arms.values() if "max_violation" in ds]
    return f"The highest MaxVio of a single step is {number(max(peaks))}." if peaks else ""


def _highest(arms: Mapping[str, xr.Dataset], name: str, by_layer: bool) -> float:
    drawn = [ds[name] if by_layer else ds[name].sum("layer") for ds in arms.values()]
    return max(float(d.max()) for d in drawn)


def _axis(fig: go.Figure, row: int, measure: Measure, highest: float) -> None:
    fig.add_hline(
        y=measure.balanced, row=row, col=1, line={"color": MUTED, "width": 1, "dash": "dot"},
        annotation={
            "text": "balanced", "font": {"size": 10, "color": MUTED},
            "x": 1, "xanchor": "left", "yanchor": "middle",
        },
    )  # fmt: skip
    axis: dict[str, Any] = {"rangemode": "tozero" if measure.balanced == 0 else "normal"}
    if measure.name == "dead_experts":
        axis = {"range": [-0.08 * max(1.0, highest), 1.1 * max(1.0, highest)], "tickformat": ",d"}
        if highest < 5:
            axis["dtick"] = 1
    fig.update_yaxes(**axis, row=row, col=1)


def balance_sentence(arms: Mapping[str, xr.Dataset]) -> str:
    """How uneven the median layer is over the last tenth of the steps; and the dead."""
    late = {arm: _late(ds) for arm, ds in arms.items()}
    have = set.intersection(*(set(map(str, ds.data_vars)) for ds in late.values()))
    said = []
    if "max_violation" in have:
        top = {a: number(1 + float(ds["max_violation"].median("layer"))) for a, ds in late.items()}
        said.append(f"the busiest expert's load over the mean is {per_arm(top)}")
    if "normalized_entropy" in have:
        even = {
            a: number(float(ds["normalized_entropy"].median("layer")), 3) for a, ds in late.items()
        }
        said.append(f"the entropy of the load over the most possible is {per_arm(even)}")
    layer = f"in the median layer {listed(said, longest=300)}" if said else ""
    gone = ""
    if "dead_experts" in have:
        dead = {
            a: f"{number(float(ds['dead_experts'].sum('layer')))}{_experts(ds)}"
            for a, ds in late.items()
        }
        window = _dead_window(next(iter(arms.values())))
        gone = f"experts of any layer without a token{window}: {per_arm(dead)}"
    parts = "; ".join(part for part in (layer, gone) if part)
    return f"Over the last tenth of the steps, {parts}."


def _dead_window(ds: xr.Dataset) -> str:
    """The window within which an expert without a token counts as dead, where the data says."""
    tokens = ds.attrs.get("dead_window_tokens")
    return f" for {count(float(tokens))} tokens" if tokens else ""


def _late(ds: xr.Dataset) -> xr.Dataset:
    last = max(1, round(ds.sizes["step"] / 10))
    return ds.isel(step=slice(-last, None)).mean("step", keep_attrs=True)


def _experts(ds: xr.Dataset) -> str:
    each = ds.attrs.get("experts")
    return f" of {int(each) * ds.sizes['layer']}" if each else ""


def balance_table(arms: Mapping[str, xr.Dataset]) -> Table:
    """A row an arm and layer: each measure's mean over the last tenth of the steps."""
    rows = []
    names = [str(n) for n in next(iter(arms.values())).data_vars]
    for arm, ds in arms.items():
        late = _late(ds)
        for i in range(ds.sizes["layer"]):
            layer = int(ds["layer"][i]) if "layer" in ds.coords else i
            rows.append((arm, layer, *(float(late[n].isel(layer=i)) for n in names)))
    units = {"dead_experts": " (experts)"}
    return Table(("arm", "layer", *(n + units.get(n, "") for n in names)), tuple(rows))
