"""Panels: what a page is made of, as Dash components: every chart with its words and its numbers.

Needs   figures with their captions, tables, facts.
Yields  Chart, Listing, Facts, Links, Words; `show`, a panel as components; `drawing`, a figure as
        what the browser is sent; `changes`, from one such to the next as a patch.

Text goes into components as text and is never read as markup; names in figures are disarmed where
they are drawn (figures/wording.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import plotly.graph_objects as go
from dash import Patch, dcc, html

from workbench.app.dashboard.aria import aria
from workbench.app.dashboard.linear_axis import linear
from workbench.app.dashboard.link import links
from workbench.app.dashboard.view import View
from workbench.errors import RunNotFound, SchemaError, UsageError
from workbench.figures.caption import Table, caption_of
from workbench.figures.figure import show_config, unframed
from workbench.figures.page import cell_text
from workbench.figures.wording import plain

MOST_ROWS = 400
"""Rows of a table that are shown."""
_CELL = 160


@dataclass(frozen=True)
class Chart:
    """A figure, drawn when it is shown."""

    id: str
    title: str
    draw: Callable[[], go.Figure]
    legend: Sequence[tuple[str, str]] = ()
    """Words and colours of a scale, beside the title."""
    foot: str = ""
    """What is to be known of it, said under its sentence."""


@dataclass(frozen=True)
class Listing:
    """A table that stands open."""

    id: str
    title: str
    table: Callable[[], Table]
    words: str = ""


@dataclass(frozen=True)
class Facts:
    """Names and values, a line each."""

    id: str
    title: str
    rows: Callable[[], Sequence[tuple[str, str]]]


@dataclass(frozen=True)
class Links:
    """Views to choose one of."""

    id: str
    title: str
    entries: Callable[[], Sequence[tuple[str, View, bool]]]
    """Words, view, and whether it is the one that is shown."""


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    text: str


Panel = Chart | Listing | Facts | Links | Words


@dataclass
class Shown:
    """What of a panel can change: as plain data, so that two moments can be compared."""

    words: str = ""
    figure: dict[str, Any] | None = None
    rows: tuple[tuple[str, ...], ...] = ()
    columns: tuple[str, ...] = ()
    missing: bool = field(default=False)
    """Whether there is nothing to show; `words` say why."""
    title: str = ""


def look(panel: Panel, follow: str) -> Shown:
    """What the panel shows now, or why it cannot.

    Args:
        follow: names what was asked for; while it stays, a reader's zoom stays.
    """
    shown = _look(panel, follow)
    shown.title = getattr(panel, "title", "")
    return shown


def _look(panel: Panel, follow: str) -> Shown:
    try:
        if isinstance(panel, Chart):
            figure = panel.draw()
            caption = caption_of(figure)
            words = " ".join([caption.sentence, *caption.notes])
            columns, rows = _cells(caption.table)
            return Shown(words, drawing(figure, follow), rows, columns)
        if isinstance(panel, Listing):
            columns, rows = _cells(panel.table())
            return Shown(panel.words, None, rows, columns)
        if isinstance(panel, Facts):
            return Shown(rows=tuple((plain(n, 80), plain(v, 400)) for n, v in panel.rows()))
        if isinstance(panel, Links):
            entries = panel.entries()
            return Shown(rows=tuple((plain(w, 80), v.query, "shown" * c) for w, v, c in entries))
        return Shown(panel.text)
    except (RunNotFound, UsageError, SchemaError) as error:
        return Shown(plain(str(error), 600), missing=True)
    except Exception as error:  # one panel that fails leaves the others of its page
        return Shown(f"This could not be drawn: {failure(error)}", missing=True)


def failure(error: Exception) -> str:
    """An error in a line, for somebody who may have to tell it to somebody else.

    Example:
        >>> failure(ValueError("no such chunk"))
        'ValueError: no such chunk'
    """
    words = " ".join(plain(str(error), 600).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def drawing(figure: go.Figure, follow: str) -> dict[str, Any]:
    """The figure without its frame, as plain JSON."""
    # As plain data: another plotly figure would be checked whole, which takes longer than this.
    found = json.loads(str(figure.to_json()))
    layout = linear(unframed(found["layout"]))
    margin = {**layout["margin"], "r": max(24, layout["margin"].get("r", 0))}
    layout |= {"uirevision": follow, "autosize": True, "margin": margin}
    return found | {"layout": layout}


def changes(old: dict[str, Any], new: dict[str, Any]) -> Any:
    """A patch that makes `new` of `old`; None where they are equal; `new` where another shape."""
    if old == new:
        return None
    traces = list(zip(old["data"], new["data"], strict=False))
    if len(old["data"]) != len(new["data"]) or any(a.keys() != b.keys() for a, b in traces):
        return new
    if old["layout"].keys() != new["layout"].keys():
        return new
    patch = Patch()
    for i, (a, b) in enumerate(traces):
        for key in b:
            if a[key] != b[key]:
                patch["data"][i][key] = b[key]
    for key, value in new["layout"].items():
        if old["layout"][key] != value:
            patch["layout"][key] = value
    return patch


def show(panel: Panel, shown: Shown) -> Any:
    """The panel as components."""
    if isinstance(panel, Words):
        return html.P(shown.words, className="lead")
    head = html.H2(panel.title, id=f"title-{panel.id}")
    if shown.missing:
        words = html.P(shown.words, className="missing", id={"words": panel.id})
        return html.Section([head, words], **_named(panel.id))
    if isinstance(panel, Chart):
        return _chart(panel, shown, head)
    inside: list[Any] = [head]
    if shown.words:
        inside.append(html.P(shown.words, className="words"))
    inside.append(_numbers(panel.id, numbers_of(panel, shown), f"Numbers: {panel.title}"))
    return html.Section(inside, **_named(panel.id))


def _chart(panel: Chart, shown: Shown, head: Any) -> Any:
    assert shown.figure is not None
    height = shown.figure["layout"].get("height", 300)
    graph = dcc.Graph(
        id={"chart": panel.id}, figure=shown.figure, config=cast(Any, show_config()),
        style={"height": f"{height}px"}, responsive=True,
    )  # fmt: skip
    inside: list[Any] = [head]
    if panel.legend:
        inside.append(_legend(panel.legend))
    inside.append(
        html.Figure(
            [
                html.Figcaption(
                    [html.P(shown.words, className="words", id={"words": panel.id})]
                    + ([html.P(panel.foot, className="note")] if panel.foot else [])
                ),
                html.Div(graph, className="plot"),
            ]
        )
    )
    inside.append(
        html.Details(
            [
                html.Summary("The numbers as a table"),
                _numbers(panel.id, _table(shown), f"Numbers of {panel.title}"),
            ]
        )
    )
    return html.Section(inside, **_named(panel.id))


def _numbers(id: str, body: Any, name: str) -> Any:
    # Focusable, so that a key can scroll it.
    return html.Div(
        body, id={"numbers": id}, className="wide", tabIndex=0, role="region",
        **aria(label=name),
    )  # fmt: skip


def _named(id: str) -> dict[str, Any]:
    return {"id": f"panel-{id}", "className": "panel", **aria(labelledby=f"title-{id}")}


def _legend(entries: Sequence[tuple[str, str]]) -> Any:
    def entry(words: str, color: str) -> Any:
        swatch = html.Span(className="swatch", style={"background": color})
        return html.Li([swatch, words])

    return html.Ul([entry(w, c) for w, c in entries], className="scale")


def numbers_of(panel: Panel, shown: Shown) -> Any:
    """What stands in a panel beside its words and its chart."""
    if isinstance(panel, Links):
        return html.Div(
            links(panel.title, [(words, query, bool(said)) for words, query, said in shown.rows]),
            className="choice",
        )
    return _facts(shown) if isinstance(panel, Facts) else _table(shown)


def _facts(shown: Shown) -> Any:
    """Names and values as a list of definitions."""
    return html.Dl([part for name, value in shown.rows for part in (html.Dt(name), html.Dd(value))])


def _table(shown: Shown) -> Any:
    """Rows and columns as a table; what is beyond MOST_ROWS is counted."""
    rows = shown.rows[:MOST_ROWS]
    left = len(shown.rows) - len(rows)
    body = [html.Tr([html.Td(cell) for cell in row]) for row in rows]
    whole = html.Table(
        [html.Thead(html.Tr([html.Th(c, scope="col") for c in shown.columns])), html.Tbody(body)]
    )
    return [whole, html.P(f"{left:,} more rows.", className="note")] if left else whole


def _cells(found: Table) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    rows = tuple(tuple(plain(cell_text(c), _CELL) for c in row) for row in found.rows)
    return tuple(plain(c, 80) for c in found.columns), rows
