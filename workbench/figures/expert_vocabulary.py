"""Which tokens does an expert see? The ids that go to it most surely; or a table of a whole layer.

Needs   share (layer, token_id, expert), count (token_id), of a moment or along training; bounds
        share_low, share_high and kappa (layer) where known; the text of the ids.
Yields  a figure. Of one expert: a dot an id, how much of its occurrences the expert takes, against
        the share of all these tokens that it takes. Of a layer: a row an expert, its first ids in
        words, coloured by how much more of the id than of all tokens it takes.

Ids are ranked by the lower bound of their share where there is one: of many ids seen a few times
one goes to any expert by accident every time. Where there are no bounds the dots are hollow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench.errors import UsageError
from workbench.figures.caption import Caption, Table, provenance_of
from workbench.figures.figure import Figure, finish
from workbench.figures.moment import Moment, labelled, moment, one_layer, require
from workbench.figures.ratio_map import color_axis, octaves, reach_of
from workbench.figures.template import MUTED
from workbench.figures.token_text import TokenText, token_names
from workbench.figures.wording import count, label, listed, many, number

TOP = 20
"""Ids of one expert."""

COLUMNS = 6
"""Ids of each expert in the table of a layer."""

LISTED = 50
"""Ids of one expert in its table of numbers."""

_DOT_PX, _ROW_PX = 22, 24
_CELL_LETTERS = 120
"""Letters that fit into a row of the table."""

_BLUE = "#0072B2"


@dataclass(frozen=True, eq=False)
class Words:
    """One layer's shares of every id."""

    layer: int
    experts: np.ndarray
    ids: np.ndarray
    names: Mapping[int, str]
    """Place of an id -> its text, unescaped; of those that are shown."""
    share: np.ndarray
    """(id, expert): share of the id's occurrences that chose the expert."""
    low: np.ndarray | None
    high: np.ndarray | None
    count: np.ndarray
    """(id,): occurrences."""

    @property
    def base(self) -> np.ndarray:
        """(expert,): share of all these occurrences that chose the expert."""
        total = float(self.count.sum())
        known = np.nan_to_num(self.share)
        return np.asarray(self.count @ known / total) if total else np.zeros(len(self.experts))

    def place(self, expert: int) -> int:
        found = np.flatnonzero(self.experts == expert)
        if not len(found):
            raise UsageError(
                f"no expert {expert} in layer {self.layer}; there are "
                f"{int(self.experts.min())} to {int(self.experts.max())}."
            )
        return int(found[0])

    @property
    def over(self) -> np.ndarray:
        """(id, expert): the lower bound of the share, or the share, over the expert's of all."""
        by = self.share if self.low is None else self.low
        return np.asarray(by / np.where(self.base > 0, self.base, np.nan))

    @property
    def surest(self) -> tuple[int, int] | None:
        """Places of the id and the expert with the greatest `over`."""
        over = self.over
        if not np.isfinite(over).any():
            return None
        i, place = np.unravel_index(int(np.nanargmax(over)), over.shape)
        return int(i), int(place)

    def top(self, place: int, most: int) -> np.ndarray:
        """Ids of the expert at `place`, those that it takes most surely first."""
        by = self.share[:, place] if self.low is None else self.low[:, place]
        by = np.where(np.isfinite(by), by, -1.0)
        # Of equal shares the one of more occurrences says more.
        order = np.lexsort((-self.count, -by))
        return order[self.share[order, place] > 0][:most]


def vocabulary(
    vocabulary: xr.Dataset, *, layer: int | None = None, expert: int | None = None,
    at: int | None = None, tokens: TokenText = None, top: int | None = None,
    code: str = "workbench.figures.vocabulary(probes.vocabulary(run))",
) -> go.Figure:  # fmt: skip
    """The token ids that an expert takes most surely; without `expert`, those of a whole layer.

    Args:
        vocabulary: `probes.vocabulary`, (layer, token_id, expert): share; count (token_id); with
            `checkpoint` first or of one moment.
        layer: which; None takes the one with the highest kappa.
        expert: which; None draws all experts of the layer as a table.
        at: step of the checkpoint; None is the last.
        tokens: id -> text: a mapping, a list, a function or a tokenizer; None shows the ids.
        top: ids shown of each expert; 20 of one, 6 of all.
        code: the Python that made the data, for "copy as code".

    Raises:
        SchemaError: share or count are missing or have other dims.
        UsageError: no such layer, expert or step, or no id at all.

    Example:
        >>> share = xr.DataArray([[[0.9, 0.1], [0.2, 0.8]]], dims=("layer", "token_id", "expert"))
        >>> found = xr.Dataset({"share": share, "count": ("token_id", [10.0, 30.0])})
        >>> found = found.assign_coords(token_id=[7, 8])
        >>> fig = vocabulary(found, expert=0, tokens={7: " the", 8: "of"})
        >>> fig.layout.meta["caption"]["sentence"][:61]
        'Expert 0 of layer 0 takes 38 % of these 40 tokens. Of 2 ids i'
    """
    require(vocabulary, "share", {"layer", "token_id", "expert"}, "probes.vocabulary(run)")
    require(vocabulary, "count", {"token_id"}, "probes.vocabulary(run)")
    if top is not None and top < 1:
        raise UsageError(f"top={top}: expected 1 or more ids an expert.")
    now = moment(labelled(vocabulary, "layer", "token_id", "expert"), at)
    ds = now.values
    if not ds["share"].size:
        raise UsageError(f"shares of {dict(ds['share'].sizes)} hold no number; lower min_count.")
    words = _words(one_layer(ds, layer, _telling(ds)))
    places = range(len(words.experts)) if expert is None else [words.place(expert)]
    words = _named(words, tokens, places, max(top or 0, COLUMNS if expert is None else LISTED))
    first = "the greatest share" if words.low is None else "the surest"
    if expert is None:
        fig, height = _table_of(words, now, top or COLUMNS)
        said = layer_sentence(words, ds, now)
        title = f"What each expert of layer {words.layer} sees: its tokens, {first} first"
    else:
        place = words.place(expert)
        fig, height = _dots(words, place, now, top or TOP)
        said = expert_sentence(words, place, now)
        title = f"What expert {expert} of layer {words.layer} sees: its tokens, {first} first"
    caption = Caption(
        name="expert-vocabulary",
        title=title,
        sentence=said,
        notes=_notes(words, ds, tokens, layer, one=expert is not None),
        table=vocabulary_table(words, None if expert is None else words.place(expert)),
        code=code,
        provenance=provenance_of(vocabulary),
    )
    return finish(fig, caption, height=height, top=24)


def _telling(ds: xr.Dataset) -> int:
    """Place of the layer in which a token's id says most of its experts."""
    if "kappa" not in ds or not bool(ds["kappa"].notnull().any()):
        return 0
    return int(np.nanargmax(ds["kappa"].values))


def _named(words: Words, tokens: TokenText, places: Iterable[int], most: int) -> Words:
    """With the text of the ids that will be shown: a vocabulary may hold 100,000."""
    shown = {int(i) for place in places for i in words.top(place, most)}
    if words.surest is not None:
        shown.add(words.surest[0])
    known = sorted(shown)
    names = token_names((int(words.ids[i]) for i in known), tokens)
    return replace(words, names=dict(zip(known, names, strict=True)))


def _words(ds: xr.Dataset) -> Words:
    share, low, high = (
        ds[name].transpose("token_id", "expert").values.astype(np.float64)
        if name in ds and bool(ds[name].notnull().any())
        else None
        for name in ("share", "share_low", "share_high")
    )
    if share is None:
        raise UsageError("no share is known in this layer; widen what it was taken over.")
    ids = ds["token_id"].values
    return Words(
        layer=int(ds["layer"]), experts=ds["expert"].values, ids=ids,
        names={}, share=share, low=low, high=high,
        count=np.nan_to_num(ds["count"].values.astype(np.float64)),
    )  # fmt: skip


def _dots(words: Words, place: int, now: Moment, top: int) -> tuple[Figure, int]:
    """One expert: ids down, share across."""
    chosen = words.top(place, top)
    share = words.share[chosen, place]
    bounds = None
    if words.low is not None and words.high is not None:
        bounds = (words.low[chosen, place], words.high[chosen, place])
    base = float(words.base[place])
    rows = np.arange(len(chosen))
    told = [
        _told(words, int(i), place, base) + (f"<br>{now.clause}" if now.clause else "")
        for i in chosen
    ]
    fig = Figure(
        go.Scatter(
            x=share, y=rows, mode="markers", showlegend=False, text=told,
            hovertemplate="%{text}<extra></extra>",
            marker={"size": 9, "color": _BLUE, "symbol": "circle" if bounds else "circle-open",
                    "line": {"width": 1.5, "color": _BLUE}},
            error_x=None if bounds is None else {
                "type": "data", "symmetric": False, "array": bounds[1] - share,
                "arrayminus": share - bounds[0], "color": _BLUE, "thickness": 1.4, "width": 0,
            },
        )
    )  # fmt: skip
    fig.add_vline(
        x=base, line={"color": MUTED, "width": 1, "dash": "dot"},
        annotation={"text": "of all these tokens", "font": {"size": 10, "color": MUTED},
                    "yanchor": "bottom", "y": 1, "xanchor": "left" if base < 0.7 else "right"},
    )  # fmt: skip
    names = [f"{label(words.names[i])}  ({count(float(words.count[i]))}×)" for i in chosen]
    fig.update_yaxes(
        tickvals=rows, ticktext=names, range=[len(chosen) - 0.5, -0.5],
        tickfont={"size": 12, "color": "#222222"},
    )  # fmt: skip
    fig.update_xaxes(
        range=[-0.02, 1.03], tickformat=".0%",
        title_text="share of the token's occurrences that chose this expert",
    )  # fmt: skip
    return fig, max(80, _DOT_PX * len(chosen))


def _told(words: Words, i: int, place: int, base: float) -> str:
    """Hover of one id: text, id, share with bounds, ratio to the expert's load, n."""
    share = words.share[i, place]
    said = f"{share:.0%} of its occurrences"
    if words.low is not None and words.high is not None:
        said += f" [{words.low[i, place]:.0%}, {words.high[i, place]:.0%}] (95 %)"
    lines = [
        f"{label(words.names[i])} (id {int(words.ids[i])})",
        f"expert {int(words.experts[place])} of layer {words.layer}", said,
    ]  # fmt: skip
    if base > 0:
        lines.append(f"{number(share / base)} × its share of all these tokens")
    lines.append(f"n = {many(round(float(words.count[i])), 'occurrence')}")
    return "<br>".join(lines)


def _table_of(words: Words, now: Moment, top: int) -> tuple[Figure, int]:
    """A layer: an expert a row, its ids in words."""
    size = (len(words.experts), top)
    ratio = np.full(size, np.nan)
    shown, told = (np.full(size, "", dtype=object) for _ in range(2))
    base = words.base
    for row in range(size[0]):
        for column, i in enumerate(words.top(row, top)):
            if base[row] > 0:
                ratio[row, column] = words.share[i, row] / base[row]
            name = label(words.names[i], max(8, _CELL_LETTERS // top - 5))
            shown[row, column] = f"{name}  {words.share[i, row]:.0%}"
            told[row, column] = _told(words, int(i), row, float(base[row]))
            told[row, column] += f"<br>{now.clause}" if now.clause else ""
    z = octaves(ratio).astype("float32")
    fig = Figure(
        go.Heatmap(
            z=z, text=shown, customdata=told, texttemplate="%{text}", coloraxis="coloraxis",
            hovertemplate="%{customdata}<extra></extra>", hoverongaps=False, xgap=1, ygap=1,
            textfont={"size": 11},
        )
    )  # fmt: skip
    rows = list(range(size[0]))
    fig.update_yaxes(
        tickvals=rows, ticktext=[f"{int(e)}" for e in words.experts], showgrid=False,
        title_text="expert", range=[size[0] - 0.5, -0.5],
    )  # fmt: skip
    fig.update_xaxes(
        tickvals=list(range(top)), ticktext=[f"{i + 1}." for i in range(top)], showgrid=False,
        side="top", range=[-0.5, top - 0.5],
    )  # fmt: skip
    height = max(80, _ROW_PX * size[0])
    fig.update_layout(coloraxis=color_axis("share ÷<br>of all", reach_of(ratio), height=height))
    return fig, height


def expert_sentence(words: Words, place: int, now: Moment) -> str:
    """What share of all tokens the expert takes, how many ids lie over it, and the surest."""
    base = float(words.base[place])
    expert = f"Expert {int(words.experts[place])} of layer {words.layer}"
    when = f" {now.clause}" if now.clause else ""
    chosen = words.top(place, 3)
    n = f"these {round(float(words.count.sum())):,} tokens"
    if not len(chosen):
        return f"{expert} takes none of {n}{when}."
    head = f"{expert} takes {100 * base:.0f} % of {n}{when}."
    ids = many(len(words.ids), "id")
    if words.low is None:
        over = int((words.share[:, place] > base).sum())
        said = f"Of {ids} it takes {over:,} more often than that; how surely is not known"
    else:
        over = int((words.low[:, place] > base).sum())
        said = f"Of {ids} it takes {over:,} more often than that, by their 95 % intervals"
        if not over:
            return f"{head} {said}."
    first = listed([_quoted(words, int(i), place) for i in chosen], longest=60)
    return f"{head} {said}. First {first}."


def _quoted(words: Words, i: int, place: int) -> str:
    return f"“{words.names[i]}” ({100 * words.share[i, place]:.0f} % of it)"


def layer_sentence(words: Words, ds: xr.Dataset, now: Moment) -> str:
    """How far the id decides, and the expert that most surely has a token of its own."""
    when = f" {now.clause}" if now.clause else ""
    said = (
        f"{many(len(words.experts), 'expert')} of layer {words.layer}{when}, "
        f"{many(len(words.ids), 'id')}."
    )
    said = f"{said} {_kappa(ds, words.layer)}".strip()
    if words.surest is None:
        return said
    i, place = words.surest
    if words.over[i, place] <= 1:
        return f"{said} No expert surely takes more of a token than of all tokens."
    times = number(words.share[i, place] / words.base[place])
    how = "Furthest over its load" if words.low is not None else "By the shares alone, furthest up"
    return (
        f"{said} {how} is expert {int(words.experts[place])} on {_quoted(words, i, place)}: "
        f"{times} times its share of all these tokens."
    )


def _kappa(ds: xr.Dataset, layer: int) -> str:
    names = ("kappa", "kappa_low", "kappa_high")
    if any(n not in ds for n in names):
        return ""
    kappa, low, high = (float(ds[n].values[ds["layer"].values == layer][0]) for n in names)
    if not np.isfinite(low):
        return ""
    told = f"kappa {number(kappa)} [{number(low)}, {number(high)}]; 1: it decides alone"
    if low <= 0:
        return f"It is not shown that a token's id says anything of its experts ({told})."
    return f"A token's id says something of its experts ({told})."


def vocabulary_table(words: Words, place: int | None, most: int = LISTED) -> Table:
    """The ids of one expert, or the first ids of each, with shares and counts."""
    places = range(len(words.experts)) if place is None else [place]
    rows: list[tuple[Any, ...]] = []
    base = words.base
    for p in places:
        for i in words.top(p, most if place is not None else COLUMNS):
            bounds: tuple[float | None, float | None] = (None, None)
            if words.low is not None and words.high is not None:
                bounds = (float(words.low[i, p]), float(words.high[i, p]))
            rows.append(
                (int(words.experts[p]), words.names[i], int(words.ids[i]),
                 float(words.share[i, p]), *bounds, float(base[p]), round(float(words.count[i])))
            )  # fmt: skip
    columns = ("expert", "token", "id", "share", "low", "high", "share of all", "occurrences")
    return Table(columns, tuple(rows))


def _notes(
    words: Words, ds: xr.Dataset, tokens: TokenText, layer: int | None, *, one: bool
) -> tuple[str, ...]:
    notes = []
    if "min_count" in ds.attrs:
        left = int(ds.attrs.get("ids_left_out", 0))
        rest = f"; {many(left, 'rarer id', 'rarer ids')} left out" if left else ""
        notes.append(f"Ids seen {int(ds.attrs['min_count'])} times or more{rest}.")
    if words.low is None:
        notes.append(
            "Ranked by the share itself, of which no interval is known: the first of many rare ids "
            "are partly there by accident."
        )
    else:
        notes.append("Ranked by the lower end of the 95 % interval.")
    if not one:
        notes.append("Percent: share of the token's occurrences that chose the expert.")
    if tokens is None:
        notes.append("Ids are shown, as the text behind them was not given.")
    else:
        notes.append("␣ is a space, ↵ a line break.")
    if layer is None and ds.sizes["layer"] > 1 and "kappa" in ds:
        notes.append("Of all layers this is the one in which the id says most.")
    return tuple(notes)
