"""Controls: arm, clock, layer, expert and the scrubber, which lead from one view to another.

Needs   a moment, for what there is to choose from.
Yields  `controls`, the components; `choices` and `settings`, what a moment puts into them;
        `view_of`, the view that the numbers make.

What is one of a few is a link to the view that has it: a key reaches it, and it can be copied. The
scrubber is two numbers with labels, for the keyboard and for exact steps, and a slider between
them. All charts show the steps between; an empty last step follows the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dash import dcc, html

from workbench.app.dashboard.aria import aria
from workbench.app.dashboard.live_run import Moment
from workbench.app.dashboard.view import View
from workbench.errors import UsageError
from workbench.figures.clock import ClockName

_CLOCKS: dict[ClockName, str] = {"step": "steps", "tokens": "tokens", "utc": "UTC"}

SETTINGS = (
    ("layer", "value"), ("layer", "max"), ("expert", "value"), ("expert", "max"),
    ("start", "value"), ("start", "max"), ("stop", "value"), ("stop", "max"),
    ("span", "max"), ("span", "value"), ("choices", "children"), ("whole", "children"),
    ("where", "hidden"),
)  # fmt: skip
"""Ids and properties that a view sets."""

WHERE = ("layers", "tokens")
"""Pages on which layer and expert say something."""

READ = (
    ("layer", "value"), ("expert", "value"), ("start", "value"), ("stop", "value"),
    ("span", "value"),
)  # fmt: skip
"""Ids and properties that make a view."""


def controls() -> Any:
    """The components, empty: a view fills them."""
    slider = dcc.RangeSlider(
        id="span", min=0, max=1, step=1, value=[0, 1], marks=None, allowCross=False,
        allow_direct_input=False, updatemode="mouseup",
    )  # fmt: skip
    return html.Section(
        [
            html.Div(
                [
                    html.Div([], id="choices"),
                    html.Div(
                        [_number("layer", "Layer"), _number("expert", "Expert")],
                        id="where",
                        className="where",
                    ),
                ],
                className="choosing",
            ),
            html.Div(
                [
                    _number("start", "After step"),
                    html.Div(
                        slider,
                        className="slider",
                        role="group",
                        **aria(label="Steps that all charts show"),
                    ),
                    _number("stop", "up to", placeholder="the end"),
                    html.Span([], id="whole"),
                ],
                className="scrubber",
            ),
        ],
        className="controls",
        **aria(label="What is shown"),
    )


def choices(moment: Moment) -> list[Any]:
    """Arms and clocks as links."""
    view = moment.view
    arms = [(a, replace(view, arm=a), a == moment.run.branch) for a in moment.arms]
    clocks = [(w, replace(view, clock=c), c == view.clock) for c, w in _CLOCKS.items()]
    return [_choice("Arm", arms), _choice("Clock", clocks)]


def settings(moment: Moment) -> list[Any]:
    """Values of SETTINGS, in their order."""
    view, last = moment.view, moment.last_step
    layers, experts = moment.sizes
    whole = replace(view, start=0, stop=None)
    return [
        view.layer, max(layers - 1, 0), view.expert, max(experts - 1, 0), view.start,
        max(last - 1, 0), view.stop, last, max(last, 1), [view.start, max(moment.stop, 1)],
        choices(moment), link("Whole run", whole, view == whole), view.page not in WHERE,
    ]  # fmt: skip


def link(words: str, view: View, current: bool = False, kind: str = "true") -> Any:
    """A link to a view; the one that is shown says so."""
    href = view.query or "?"
    if current:
        return html.A(words, href=href, **aria(current=kind))
    return dcc.Link(words, href=href)


def view_of(before: View, said: Mapping[str, Any], asked: set[str], last: int | None) -> View:
    """The view after some controls moved.

    Args:
        before: the view of the address.
        said: value of every control of READ, by id.
        asked: ids of those that moved.
        last: the slider's greatest step.

    Example:
        >>> view_of(View(layer=1), {"span": [10, 90]}, {"span"}, 100)
        View(page='overview', arm='', layer=1, expert=0, start=10, stop=90, clock='step')
    """
    new: dict[str, Any] = {n: said[n] for n in asked & {"layer", "expert"} if said[n] is not None}
    if "span" in asked and said["span"]:
        start, stop = (int(s) for s in said["span"])
        new |= {"start": start, "stop": stop if last is None or stop < last else None}
    if "start" in asked:
        new["start"] = said["start"] or 0
    if "stop" in asked:
        new["stop"] = said["stop"]
    try:
        return replace(before, **new)
    except UsageError:
        # A last step at or before the first: the address stays, and puts right what was typed.
        return before


def _choice(title: str, options: list[tuple[str, View, bool]]) -> Any:
    links = [html.Li(link(words, view, current)) for words, view, current in options]
    return html.Div([html.Span(title), html.Ul(links, **aria(label=title))], className="choice")


def _number(id: str, title: str, placeholder: str = "") -> Any:
    field = dcc.Input(
        id=id, type="number", min=0, step=1, debounce=True, placeholder=placeholder, value=None
    )
    return html.Label([html.Span(title), field], className="number", htmlFor=id)
