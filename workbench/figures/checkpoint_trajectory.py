"""Which way did training go, and where did the arms part? Checkpoints in a plane.

Needs   distance (checkpoint, other), each from each, with coordinates checkpoint (steps) and, for
        several arms, branch; or score (checkpoint, component) of the probe "essential-dynamics".
Yields  a figure: a dot a checkpoint, joined in the order of training, an arm a colour, the fork
        marked; axes of one scale, so that what looks far is far. Beside the whole way what came
        after the fork in a plane of its own, which the long way before it would hide.

A bend is no event: a smooth path through many dimensions shows an arc in its first two.
Source: Antognini & Sohl-Dickstein 2018, arXiv:1806.08805.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench.errors import SchemaError
from workbench.figures.caption import Caption, Table, provenance_of
from workbench.figures.figure import Figure, finish
from workbench.figures.panels import LEGEND_PX
from workbench.figures.placing import Placed, placed
from workbench.figures.strands import SHARED
from workbench.figures.template import INK, MUTED, TRUNK, arm_colors
from workbench.figures.wording import count, label, listed, many, number, plain


@dataclass(frozen=True)
class Path:
    """The checkpoints of one arm, or the history that all share, in the order of training."""

    name: str
    at: np.ndarray
    """Places among all checkpoints."""


def trajectory(
    apart: xr.Dataset, *, colors: Mapping[str, str] | None = None,
    code: str = "workbench.figures.trajectory(apart)",
) -> go.Figure:  # fmt: skip
    """Checkpoints in a plane, by how far they are from each other.

    Args:
        apart: distance (checkpoint, other) with coordinates checkpoint, the steps, and branch
            ("" for the history that all arms share); or what the probe "essential-dynamics" found.
        colors: arm name -> hex colour; by default each arm's own.
        code: Python that makes the figure, for the caption.

    Raises:
        SchemaError: neither is there, or the distances are none.

    Example:
        >>> line = np.array([0.0, 1.0, 3.0])
        >>> apart = xr.Dataset(
        ...     {"distance": (("checkpoint", "other"), abs(line[:, None] - line))},
        ...     coords={"checkpoint": [0, 10, 20]},
        ... )
        >>> trajectory(apart).layout.meta["caption"]["sentence"][:68]
        'The plane holds 100 % of the squared distances between 3 checkpoints'
    """
    ds = _ordered(apart)
    where, distance_CC = _places(ds)
    paths = _paths(ds)
    names = [p.name for p in paths if p.name != SHARED]
    hues = {**arm_colors(names), **(colors or {}), SHARED: TRUNK}
    panels = _panels(ds, where, distance_CC, paths)
    fig = Figure(
        make_subplots(
            rows=1, cols=len(panels), horizontal_spacing=0.09,
            subplot_titles=[p.title for p in panels] if len(panels) > 1 else None,
        )
    )  # fmt: skip
    fig.update_annotations(font={"size": 12, "color": INK})
    for col, panel in enumerate(panels, start=1):
        for path in paths:
            _draw_path(fig, ds, panel, paths, path, hues[path.name], col)
        _draw_words(fig, ds, panel, paths, len(panels), col)
        _axes(fig, ds, panel, col, len(panels))
    top = 10 + 20 * (len(panels) > 1)
    fig.update_layout(
        showlegend=len(paths) > 1,
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1 + top / 430,
                "yanchor": "bottom"},
    )  # fmt: skip
    caption = Caption(
        name="trajectory",
        title=f"The way of training: checkpoints by {_of(ds)}",
        sentence=trajectory_sentence(ds, where, distance_CC, paths),
        notes=_notes(ds, where),
        table=trajectory_table(ds, where, distance_CC, paths),
        code=code,
        provenance=provenance_of(apart),
    )
    return finish(fig, caption, height=430, top=top + LEGEND_PX * (len(paths) > 1))


@dataclass(frozen=True)
class Panel:
    """One plane: the places of some checkpoints."""

    title: str
    at: np.ndarray
    """Which of all checkpoints."""
    where: Placed

    def points(self, at: np.ndarray) -> np.ndarray:
        """(n, 2) of those of `at` that are in this plane."""
        place = {int(i): k for k, i in enumerate(self.at)}
        return self.where.points_C2[[place[int(i)] for i in at]]


def _panels(
    ds: xr.Dataset, where: Placed, distance_CC: np.ndarray, paths: list[Path]
) -> list[Panel]:
    whole = Panel("the whole way", np.arange(ds.sizes["checkpoint"]), where)
    trunk = _shared(paths)
    arms = [p.at for p in paths if p is not trunk]
    if trunk is None or len(trunk.at) < 2 or not arms or sum(map(len, arms)) < 2:
        return [whole]
    late = np.concatenate([trunk.at[-1:], *arms])
    step = int(_steps(ds)[trunk.at[-1]])
    title = f"from the fork at step {step:,} on, in a plane of its own"
    return [whole, Panel(title, late, placed(distance_CC[np.ix_(late, late)]))]


def _ordered(apart: xr.Dataset) -> xr.Dataset:
    """Checked, with steps, arms one after the other and each in the order of training."""
    name = next((n for n in ("distance", "score") if n in apart), None)
    dims = {"distance": {"checkpoint", "other"}, "score": {"checkpoint", "component"}}
    if name is None or set(map(str, apart[name].dims)) != dims[name] or not apart[name].size:
        have = {str(n): tuple(v.dims) for n, v in apart.data_vars.items()}
        raise SchemaError(
            f"found {have or 'an empty dataset'}; expected distance (checkpoint, other), or score "
            "(checkpoint, component) of the probe 'essential-dynamics'."
        )
    if "checkpoint" not in apart.coords:
        apart = apart.assign_coords(checkpoint=np.arange(apart.sizes["checkpoint"]))
    steps = apart["checkpoint"].values
    order = np.argsort(steps, kind="stable")
    if "branch" in apart.coords and apart["branch"].dims == ("checkpoint",):
        arms = list(dict.fromkeys(str(b) for b in apart["branch"].values if str(b)))
        rank = {"": -1, **{arm: i for i, arm in enumerate(arms)}}
        places = np.array([rank[str(b)] for b in apart["branch"].values])
        order = np.lexsort((steps, places))
    found = apart.isel(checkpoint=order)
    return found.isel(other=order) if "other" in found.dims else found


def _places(ds: xr.Dataset) -> tuple[Placed, np.ndarray]:
    """The plane, and the distances that it shows."""
    if "distance" in ds:
        distance = ds["distance"].transpose("checkpoint", "other").values.astype("float64")
        return placed(distance), distance
    score = ds["score"].transpose("checkpoint", "component").values.astype("float64")
    if not np.isfinite(score).all():
        raise SchemaError("a checkpoint has a score that is no number; leave it out.")
    distance = np.linalg.norm(score[:, None] - score, axis=-1)
    points = np.zeros((len(score), 2))
    points[:, : score.shape[1]] = score[:, :2]
    told = ds["explained"].values if "explained" in ds else np.full(2, np.nan)
    shares = tuple(float(told[i]) if i < len(told) else 0.0 for i in range(2))
    drawn = np.linalg.norm(points[:, None] - points, axis=-1)
    size = float((distance**2).sum())
    stress = float(np.sqrt(((drawn - distance) ** 2).sum() / size)) if size > 0 else 0.0
    return Placed(points, (shares[0], shares[1]), stress), distance


def _paths(ds: xr.Dataset) -> list[Path]:
    n = ds.sizes["checkpoint"]
    if "branch" not in ds.coords or ds["branch"].dims != ("checkpoint",):
        return [Path(str(ds.attrs.get("branch", "training")), np.arange(n))]
    branch = np.array([str(b) for b in ds["branch"].values])
    names = dict.fromkeys(branch.tolist())
    return [Path(name or SHARED, np.flatnonzero(branch == name)) for name in names]


def _shared(paths: list[Path]) -> Path | None:
    return next((p for p in paths if p.name == SHARED), None)


def _steps(ds: xr.Dataset) -> np.ndarray:
    return ds["checkpoint"].values


def _draw_path(
    fig: Figure, ds: xr.Dataset, panel: Panel, paths: list[Path], path: Path, color: str, col: int
) -> None:
    """Its dots and the line through them, which sets out from the last that all share."""
    trunk = _shared(paths)
    at = path.at
    if trunk is not None and path is not trunk and len(trunk.at):
        at = np.concatenate([trunk.at[-1:], at])
    at = at[np.isin(at, panel.at)]
    if path is trunk and col > 1:
        return  # one dot of it is left, which the mark of the fork stands for
    x, y = panel.points(at).T
    # Dots grow with time, so that the way is seen without an arrow.
    sizes = np.linspace(5, 10, len(at)) if path.name != SHARED else np.linspace(4, 7, len(at))
    fig.add_trace(
        go.Scatter(
            x=x, y=y, mode="lines+markers", name=label(path.name), legendgroup=label(path.name),
            showlegend=col == 1,
            line={"color": color, "width": 1.6}, marker={"size": sizes, "color": color},
            text=[_hover(ds, path.name, int(i)) for i in at],
            hovertemplate="%{text}<extra></extra>",
        ),
        row=1, col=col,
    )  # fmt: skip


def _hover(ds: xr.Dataset, name: str, i: int) -> str:
    told = f"{label(name)}<br>step {int(_steps(ds)[i]):,}"
    if "tokens_seen" in ds.coords and ds["tokens_seen"].dims == ("checkpoint",):
        told += f", {count(float(ds['tokens_seen'].values[i]))} tokens"
    return told


def _draw_words(
    fig: Figure, ds: xr.Dataset, panel: Panel, paths: list[Path], panels: int, col: int
) -> None:
    """Words at the beginning, at the fork and, where there is room, at the end of every arm."""
    steps = _steps(ds)
    trunk = _shared(paths)
    first = int(paths[0].at[0])
    words = [(first, f"step {int(steps[first]):,}")] if first in panel.at else []
    if trunk is not None and len(paths) > 1 and len(trunk.at):
        fork = int(trunk.at[-1])
        words = [w for w in words if w[0] != fork] + [(fork, f"fork, step {int(steps[fork]):,}")]
        x, y = panel.points(np.array([fork]))[0]
        fig.add_trace(
            go.Scatter(
                x=[x], y=[y], mode="markers", hoverinfo="skip", showlegend=False,
                marker={"size": 13, "symbol": "diamond-open", "color": INK, "line": {"width": 2}},
            ),
            row=1, col=col,
        )  # fmt: skip
    if col == panels:
        for path in paths:
            last = int(path.at[-1])
            if last == first or (path is trunk and len(paths) > 1):
                continue
            name = f"{plain(path.name, 24)}, " if len(paths) > 1 else ""
            words.append((last, f"{name}step {int(steps[last]):,}"))
    after = np.concatenate([p.at for p in paths if p is not trunk and col < panels] or [panel.at])
    for i, text in words:
        x, y = panel.points(np.array([i]))[0]
        # Away from what else is drawn: of the fork in the whole way, from the crowd after it.
        others = after if trunk is not None and i == trunk.at[-1] else panel.at
        up = y >= panel.points(others)[:, 1].mean()
        fig.add_annotation(
            x=x, y=y, text=label(text), showarrow=False, font={"size": 11, "color": MUTED},
            xanchor="center", yanchor="bottom" if up else "top", yshift=9 if up else -9,
            bgcolor="rgba(255,255,255,0.7)", borderpad=0, row=1, col=col,
        )  # fmt: skip


def _axes(fig: Figure, ds: xr.Dataset, panel: Panel, col: int, panels: int) -> None:
    unit = f" ({_unit(ds)})" if _unit(ds) else ""
    points = panel.where.points_C2
    low, high = points.min(0), points.max(0)
    wide = float((high - low).max()) or 1.0
    names = ("first axis", "second axis")
    for i, update in enumerate((fig.update_xaxes, fig.update_yaxes)):
        share = panel.where.shares[i]
        held = f": {100 * share:.0f} % of the squares{unit}" if np.isfinite(share) else unit
        # The sides have room for words; the words at the points need some of the plane.
        room = (0.24 if panels > 1 else 0.14) if i == 0 else 0.1
        update(
            title_text=f"{names[i]}{held}", zeroline=False, nticks=6,
            range=[low[i] - room * wide, high[i] + room * wide], row=1, col=col,
        )  # fmt: skip
    fig.update_yaxes(scaleanchor=f"x{col if col > 1 else ''}", scaleratio=1, row=1, col=col)


def _of(ds: xr.Dataset) -> str:
    """What the distance is, in words."""
    if "distance" in ds:
        told = str(ds["distance"].attrs.get("long_name", "distance"))
    else:
        told = "what they predict"
    return plain(told, 80)


def _unit(ds: xr.Dataset) -> str:
    attrs = ds["distance" if "distance" in ds else "score"].attrs
    unit = plain(attrs.get("units", ""), 16)
    return "" if unit in ("1", "dimensionless") else unit


def _say(value: float, ds: xr.Dataset) -> str:
    return f"{number(value, 3)}{' ' + _unit(ds) if _unit(ds) else ''}"


def trajectory_sentence(
    ds: xr.Dataset, where: Placed, distance_CC: np.ndarray, paths: list[Path]
) -> str:
    """How much the plane holds; how far each arm went from the fork, and how far apart they end."""
    n = ds.sizes["checkpoint"]
    share = sum(where.shares)
    told: list[str] = []
    if n < 2:
        return "One checkpoint alone: there is no way to be shown."
    if np.isfinite(share):
        told.append(
            f"The plane holds {100 * share:.0f} % of the squared distances between "
            f"{many(n, 'checkpoint')}."
        )
    arms = [p for p in paths if p.name != SHARED]
    trunk = _shared(paths)
    start = int(trunk.at[-1]) if trunk is not None and len(trunk.at) and arms else 0
    steps = _steps(ds)
    moved = {p.name: float(distance_CC[start, p.at[-1]]) for p in arms}
    if trunk is None:
        from_step = f"from where it was at step {int(steps[start]):,}"
        away = listed([f"{_say(v, ds)} {from_step}" for v in moved.values()])
        where_ends = int(steps[arms[0].at[-1]])
        told.append(f"At step {where_ends:,} it lies {away}.")
        return " ".join(told)
    ends = listed([f"{plain(arm)} moves by {_say(v, ds)}" for arm, v in moved.items()])
    told.append(f"From the fork at step {int(steps[start]):,} to the end {ends}.")
    if len(arms) > 1:
        pairs = [
            (float(distance_CC[a.at[-1], b.at[-1]]), a.name, b.name)
            for i, a in enumerate(arms) for b in arms[i + 1 :]
        ]  # fmt: skip
        far, a, b = max(pairs)
        which = "The ends" if len(arms) == 2 else f"The ends of {plain(a)} and {plain(b)}"
        told.append(f"{which} lie {_say(far, ds)} from each other.")
    return " ".join(told)


def _notes(ds: xr.Dataset, where: Placed) -> tuple[str, ...]:
    notes = [f"Stress of the whole way, 0 where the plane is true: {number(where.stress)}."]
    if "explained_low" in ds and ds.sizes.get("component", 0) > 1:
        low, high = (100 * ds[f"explained_{end}"].values for end in ("low", "high"))
        ends = [f"{low[i]:.0f}–{high[i]:.0f} %" for i in range(2)]
        notes.append(f"Shares of the axes with other text (95 %): {ends[0]} and {ends[1]}.")
    if "distance" in ds and (said := ds["distance"].attrs.get("interval")):
        notes.append(f"Distances: {plain(said, 200)}.")
    if n := ds.attrs.get("n"):
        notes.append(f"n = {int(n):,} {plain(ds.attrs.get('n_meaning', ''), 40)}.")
    notes.append("A bend is no event: any smooth path through many dimensions shows one.")
    return tuple(notes)


def trajectory_table(
    ds: xr.Dataset, where: Placed, distance_CC: np.ndarray, paths: list[Path]
) -> Table:
    """A row a checkpoint: its place, and how far it is from the first and the one before."""
    unit = f" ({_unit(ds)})" if _unit(ds) else ""
    trunk = _shared(paths)
    rows: list[tuple[Any, ...]] = []
    for path in paths:
        for k, i in enumerate(path.at):
            before = path.at[k - 1] if k else None
            if before is None and trunk is not None and path is not trunk and len(trunk.at):
                before = trunk.at[-1]
            step = None if before is None else float(distance_CC[i, before])
            rows.append((
                plain(path.name), int(_steps(ds)[i]), *map(float, where.points_C2[i]),
                float(distance_CC[i, 0]), step,
            ))  # fmt: skip
    ends = (f"first axis{unit}", f"second axis{unit}", f"from the first{unit}",
            f"from the one before{unit}")  # fmt: skip
    return Table(("arm", "step", *ends), tuple(rows))
