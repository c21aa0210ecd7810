"""Controls: arm, clock, layer, expert and the scrubber, which lead from one view to another.

Needs   a moment, for what there is to choose from.
Yields  `controls`, the components; `choices` and `settings`, what a moment puts into them.

What is one of a few is a link to the view that has it: a key reaches it, and it can be copied. The
scrubber is two numbers with labels, for the keyboard and for exact steps, and a slider between
them. All charts show the steps between; an empty last step follows the run. What they are moved to
is written into the address in the browser, and what an answer says of them is put into them there,
so that no answer that comes late undoes a move (assets/address.js).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dash import dcc, html

from workbench.app.dashboard.aria import aria
from workbench.app.dashboard.link import link, links
from workbench.app.dashboard.live_run import Moment
from workbench.app.dashboard.view import View
from workbench.figures.clock import ClockName

_CLOCKS: dict[ClockName, str] = {"step": "steps", "tokens": "tokens", "utc": "UTC"}

SETTINGS = (
    ("layer", "max"), ("expert", "max"), ("span", "max"), ("choices", "children"),
    ("whole", "children"), ("where", "hidden"), ("told", "data"),
)  # fmt: skip
"""Ids and properties that a view sets."""

WHERE = ("layers", "tokens", "probes")
"""Pages on which layer and expert say something."""

READ = (
    ("layer", "value"), ("expert", "value"), ("start", "value"), ("stop", "value"),
    ("span", "value"),
)  # fmt: skip
"""Ids and properties that make a view: the reader's, which an answer reaches by way of `told`."""


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
                    _step("start", "After step"),
                    html.Div(
                        slider,
                        className="slider",
                        role="group",
                        **aria(label="Steps that all charts show"),
                    ),
                    _step("stop", "up to", placeholder="the end"),
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


def settings(search: str | None, moment: Moment) -> list[Any]:
    """Values of SETTINGS, in their order."""
    layers, experts = moment.sizes
    whole = replace(moment.view, start=0, stop=None)
    return [
        max(layers - 1, 0), max(experts - 1, 0), max(moment.last_step, 1), choices(moment),
        link("Whole run", whole.query, moment.view == whole), moment.view.page not in WHERE,
        told(search, moment),
    ]  # fmt: skip


def told(search: str | None, moment: Moment) -> dict[str, Any]:
    """What an address asks of READ, with the address, for the browser to see if it still holds."""
    view = moment.view
    stop = "" if view.stop is None else str(view.stop)
    values = [view.layer, view.expert, str(view.start), stop, [view.start, max(moment.stop, 1)]]
    return {"search": search or "", "values": values}


def _choice(title: str, options: list[tuple[str, View, bool]]) -> Any:
    there = links(title, [(words, view.query, current) for words, view, current in options])
    return html.Div([html.Span(title), there], className="choice")


def _number(id: str, title: str) -> Any:
    """A number that has neighbours worth a look: with a button for the next and the last."""
    field = dcc.Input(id=id, type="number", min=0, step=1, debounce=True, value=0)
    return html.Label([html.Span(title), field], className="number", htmlFor=id)


def _step(id: str, title: str, placeholder: str = "") -> Any:
    """A step, or nothing: a field of text, because Dash empties one of numbers with "NaN"."""
    field = dcc.Input(
        id=id, type="text", inputMode="numeric", debounce=True, placeholder=placeholder, value="",
        maxLength=20,
    )  # fmt: skip
    return html.Label([html.Span(title), field], className="number step", htmlFor=id)
