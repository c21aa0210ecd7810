"""When do capabilities arrive? Every task through training, discrete and continuous side by side.

Needs   arm name -> capability (checkpoint, task): accuracy and logprob with bounds; coordinates
        chance, family.
Yields  a figure: a pair of panels a task, accuracy over log-probability on one x; a row of pairs a
        family.

Discrete and continuous stand together because a threshold on a smooth quantity looks like a jump
(Schaeffer et al. 2023, arXiv:2304.15004).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench.errors import SchemaError
from workbench.figures.caption import Caption, provenance_of
from workbench.figures.clock import Clock, ClockName, clock_of
from workbench.figures.emergence_caption import (
    Onset,
    Onsets,
    emergence_notes,
    emergence_sentence,
    emergence_table,
    floor_of,
    tasks_of,
)
from workbench.figures.figure import Figure, finish
from workbench.figures.lines import Line, band_of, draw_line, hover_of
from workbench.figures.marks import Mark, draw_marks
from workbench.figures.panels import LEGEND_PX, axis_names
from workbench.figures.strands import SHARED, Strand, arms_of, strands
from workbench.figures.tasks import by_family, family_of, short_name
from workbench.figures.template import INK, MUTED, TRUNK, arm_colors
from workbench.figures.wording import label, many, plain

ACROSS = 4
"""Tasks side by side at most; a family with more goes on in the next row."""

_ACCURACY_PX, _LOGPROB_PX, _INNER_PX, _OUTER_PX = 112, 58, 8, 58


def emergence(
    skills: xr.Dataset | Mapping[str, xr.Dataset], onsets: Onsets | None = None, *,
    marks: Sequence[Mark] = (), x: ClockName = "step", colors: Mapping[str, str] | None = None,
    code: str = "workbench.figures.emergence({'main': probes.capability(run)})",
) -> go.Figure:  # fmt: skip
    """Small multiples of capability through training, grouped by family.

    Args:
        skills: arm name -> `probes.capability` of it, (checkpoint, task); or one dataset.
        onsets: arm name -> task -> `probes.onset`; each is drawn as a diamond on the level that it
            crossed with a bar for its interval. An onset in the history that arms share is drawn
            once.
        marks, x, code: as for `expert_load`. colors: arm name -> hex colour.

    Returns:
        Figure. Bands are the 95 % intervals over items that the data carries; the dotted line is
        chance.

    Raises:
        SchemaError: accuracy or chance is missing, or there is no dim `task`.

    Example:
        >>> skill = xr.Dataset(
        ...     {"accuracy": (("checkpoint", "task"), [[0.1], [0.9]])},
        ...     coords={"checkpoint": [0, 100], "task": ["code/add"], "chance": ("task", [0.1])},
        ... )
        >>> emergence(skill).layout.meta["caption"]["sentence"]
        '1 task. At the last checkpoint the model is half-way from chance to perfect on 1.'
    """
    arms = {name: _checked(ds) for name, ds in arms_of(skills).items()}
    grid = Grid.of(tasks_of(arms))
    fig = grid.figure()
    colors = {**arm_colors(arms), **(colors or {})}
    parts = strands(arms, ["accuracy", "logprob"], colors)
    for place in grid.places:
        _draw_task(fig, place, parts, arms, onsets or {}, colors, x)
    _legend_of_signs(fig, bool(onsets))
    longest = clock_of(max(arms.values(), key=lambda ds: ds.sizes["checkpoint"]), x)
    for place in grid.lowest:
        fig.update_xaxes(**longest.axis, showticklabels=True, row=place.row + 1, col=place.col)
    top = draw_marks(fig, marks, longest, grid.axes, width=960 // grid.columns, above=18)
    top = max(34, top)
    fig.update_layout(legend=_legend(top, grid.height))
    caption = Caption(
        name="emergence",
        title="Capabilities through training: accuracy, and the log-probability behind it",
        sentence=emergence_sentence(arms, onsets or {}),
        notes=emergence_notes(arms),
        table=emergence_table(arms, onsets or {}),
        code=code,
        provenance=provenance_of(*arms.values()),
    )
    return finish(fig, caption, height=grid.height, top=top + LEGEND_PX)


def _checked(ds: xr.Dataset) -> xr.Dataset:
    if "task" not in ds.dims and "task" in ds.coords:
        ds = ds.expand_dims("task")
        for name in ("chance", "family"):
            if name in ds.coords and "task" not in ds[name].dims:
                ds = ds.assign_coords({name: ("task", [ds[name].item()])})
    if "accuracy" not in ds or "chance" not in ds.coords or "task" not in ds.dims:
        raise SchemaError(
            f"found {', '.join(map(str, ds.variables)) or 'nothing'}; expected accuracy "
            "(checkpoint, task) with the coordinates task and chance, as probes.capability gives."
        )
    return ds


@dataclass(frozen=True)
class Place:
    """The pair of panels of one task: accuracy at `row`, log-probability right under it."""

    task: str
    row: int
    col: int
    index: int
    """Of the accuracy's axes among all panels, from 0."""


@dataclass(frozen=True)
class Grid:
    """Where every task stands."""

    columns: int
    places: tuple[Place, ...]

    @classmethod
    def of(cls, tasks: Sequence[str]) -> Grid:
        groups = by_family(tasks)
        if max(len(names) for names in groups.values()) == 1:
            # A family a row would leave the page empty: all in one row after another.
            groups = {"": [name for names in groups.values() for name in names]}
        columns = min(ACROSS, max(len(names) for names in groups.values()))
        places, row = [], 1
        for names in groups.values():
            for i, task in enumerate(names):
                at, col = row + 2 * (i // columns), i % columns + 1
                places.append(Place(task, at, col, (at - 1) * columns + col - 1))
            row += 2 * math.ceil(len(names) / columns)
        return cls(columns, tuple(places))

    @property
    def bands(self) -> int:
        """Rows of pairs."""
        return max(p.row for p in self.places) // 2 + 1

    @property
    def height(self) -> int:
        return self.bands * (_ACCURACY_PX + _INNER_PX + _LOGPROB_PX) + (self.bands - 1) * _OUTER_PX

    @property
    def axes(self) -> list[tuple[str, str]]:
        return [axis_names(p.index + d) for p in self.places for d in (0, self.columns)]

    @property
    def lowest(self) -> list[Place]:
        """In every column the place at its foot, which carries the x axis."""
        return [
            max((p for p in self.places if p.col == col), key=lambda p: p.row)
            for col in sorted({p.col for p in self.places})
        ]

    def figure(self) -> go.Figure:
        """The panels, empty; those of no task are left white."""
        fig = Figure(
            make_subplots(
                rows=2 * self.bands, cols=self.columns, shared_xaxes="all",
                horizontal_spacing=0.16 / self.columns,
            )
        )  # fmt: skip
        for band in range(self.bands):
            top = 1 - band * (_ACCURACY_PX + _INNER_PX + _LOGPROB_PX + _OUTER_PX) / self.height
            middle = top - _ACCURACY_PX / self.height
            low = middle - _INNER_PX / self.height
            for col in range(1, self.columns + 1):
                fig.update_yaxes(domain=[middle, top], row=2 * band + 1, col=col)
                bottom = low - _LOGPROB_PX / self.height
                fig.update_yaxes(domain=[max(0.0, bottom), low], row=2 * band + 2, col=col)
        taken = {(p.row + d, p.col) for p in self.places for d in (0, 1)}
        for row in range(1, 2 * self.bands + 1):
            for col in range(1, self.columns + 1):
                if (row, col) not in taken:
                    fig.update_xaxes(visible=False, row=row, col=col)
                    fig.update_yaxes(visible=False, row=row, col=col)
        return fig


def _draw_task(
    fig: go.Figure, place: Place, parts: Sequence[Strand], arms: Mapping[str, xr.Dataset],
    onsets: Onsets, colors: Mapping[str, str], x: ClockName,
) -> None:  # fmt: skip
    chance = next(
        float(ds["chance"].sel(task=place.task)) for ds in arms.values() if place.task in ds["task"]
    )
    for part in parts:
        if place.task not in part.values["task"]:
            continue
        one = part.values.sel(task=place.task)
        clock = clock_of(one, x)
        for d, (name, unit) in enumerate((("accuracy", ""), ("logprob", "nats"))):
            if name in one:
                line = _line(one, name, unit, place, part, clock)
                draw_line(fig, line, row=place.row + d, col=place.col)
    dotted = {"color": MUTED, "width": 1, "dash": "dot"}
    fig.add_hline(y=chance, row=place.row, col=place.col, line=dotted)
    if chance > 0:
        fig.add_hline(y=math.log(chance), row=place.row + 1, col=place.col, line=dotted)
    lowest = min(floor_of(ds, place.task) for ds in arms.values())
    fig.update_yaxes(
        range=[1.08 * min(lowest, math.log(chance) if chance > 0 else -1.0), 0.15],
        row=place.row + 1, col=place.col,
    )  # fmt: skip
    for arm, found in _drawn_onsets(place.task, onsets, parts):
        color = TRUNK if arm == SHARED else colors.get(arm, INK)
        clock = clock_of(next(iter(arms.values())) if arm == SHARED else arms[arm], x)
        _draw_onset(fig, place, arm, found, chance, color, clock)
    _dress(fig, place)


def _line(one: xr.Dataset, name: str, unit: str, place: Place, part: Strand, clock: Clock) -> Line:
    y = one[name].values
    band = band_of(one, name)
    n = f"n = {many(int(one['n'].max()), 'item')}" if "n" in one else ""
    head = f"{plain(place.task)}\n{plain(part.name)}: {name}"
    return Line(
        name=part.name, x=clock.x, y=y, color=part.color, dash=part.dash, markers=True,
        legend=place.index == 0 and name == "accuracy", band=band,
        hover=hover_of(head, clock, y, unit, n=n, band=band),
    )  # fmt: skip


def _drawn_onsets(task: str, onsets: Onsets, parts: Sequence[Strand]) -> list[tuple[str, Onset]]:
    """The onsets of a task that were reached; one name for those within the shared history."""
    shared = next((p for p in parts if p.shared), None)
    until = float(shared.values["checkpoint"][-1]) if shared else -math.inf
    found = [(arm, of[task]) for arm, of in onsets.items() if task in of and of[task].reached]
    early = [(arm, o) for arm, o in found if o.step <= until]
    late = [(arm, o) for arm, o in found if o.step > until]
    if not early or len(early) < len(onsets):
        return early + late
    # All arms agree that it came before they parted; the interval of the first stands for all.
    return [(SHARED, early[0][1]), *late]


def _draw_onset(
    fig: go.Figure, place: Place, arm: str, found: Onset, chance: float, color: str, clock: Clock
) -> None:
    y = chance + found.level * (1 - chance)
    last = float(clock.steps[-1])
    low, high = max(found.low, float(clock.steps[0])), min(found.high, last)
    text = (
        f"{label(place.task)}<br>{label(arm)}: onset at step {found.step:,.0f}"
        f"<br>95 % interval {found.low:,.0f} to "
        + ("open" if math.isinf(found.high) else f"{found.high:,.0f}")
        + f"<br>{found.level:.0%} of the way from chance to perfect<br>verdict: {found.verdict}"
    )
    common = {
        "showlegend": False,
        "hovertemplate": text + "<extra></extra>",
        "legendgroup": label(arm, 200),
    }
    bar = go.Scatter(
        x=[clock.at(low), clock.at(high)], y=[y, y], mode="lines+markers",
        line={"color": color, "width": 2},
        marker={"symbol": "line-ns", "size": 9, "line": {"color": color, "width": 2}}, **common,
    )  # fmt: skip
    sign = go.Scatter(
        x=[clock.at(found.step)], y=[y], mode="markers",
        marker={"symbol": "diamond", "size": 9, "color": color,
                "line": {"color": "white", "width": 1}},
        **common,
    )  # fmt: skip
    fig.add_traces([bar, sign], rows=place.row, cols=place.col)


def _dress(fig: go.Figure, place: Place) -> None:
    xref, yref = axis_names(place.index)
    fig.add_annotation(
        xref=f"{xref} domain", yref=f"{yref} domain", x=0, y=1, xanchor="left", yanchor="bottom",
        text=f"{label(family_of(place.task), 14)} / <b>{label(short_name(place.task), 24)}</b>",
        showarrow=False, xshift=-2,
        font={"size": 12, "color": INK},
    )  # fmt: skip
    fig.update_xaxes(showticklabels=False, ticks="", row=place.row, col=place.col)
    fig.update_xaxes(showticklabels=False, row=place.row + 1, col=place.col)
    fig.update_yaxes(
        range=[-0.04, 1.06], tickvals=[0, 0.5, 1], ticktext=["0", "½", "1"],
        row=place.row, col=place.col,
    )  # fmt: skip
    fig.update_yaxes(nticks=3, row=place.row + 1, col=place.col)
    if place.col == 1:
        fig.update_yaxes(title_text="accuracy", row=place.row, col=1)
        fig.update_yaxes(title_text="log-prob.<br>(nats)", row=place.row + 1, col=1)


def _legend_of_signs(fig: go.Figure, onsets: bool) -> None:
    signs = [
        go.Scatter(
            x=[None],
            y=[None],
            mode="lines",
            name="chance",
            line={"color": MUTED, "dash": "dot", "width": 1},
        )
    ]
    if onsets:
        marker = {"symbol": "diamond", "size": 10, "color": MUTED}
        signs.append(
            go.Scatter(
                x=[None], y=[None], mode="markers+lines", name="onset, 95 % interval",
                marker=marker, line={"color": MUTED, "width": 3},
            )
        )  # fmt: skip
    fig.add_traces(signs)


def _legend(above: int, height: int) -> dict[str, Any]:
    return {
        "orientation": "h", "x": 1, "xanchor": "right", "y": 1 + above / height,
        "yanchor": "bottom",
    }  # fmt: skip
