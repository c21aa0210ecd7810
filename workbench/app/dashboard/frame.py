"""Frame: the page around the panels, and what happens when a reader or the run moves.

Needs   a live run.
Yields  `make_app`, a Dash application.

The address is the view (view.py) and the only state: controls write it, what is shown follows from
it. Every two seconds the browser asks whether there is news, and is sent patches of the charts that
changed and nothing of the others.
"""

from __future__ import annotations

import contextlib
import html as markup
import logging
from collections import OrderedDict
from dataclasses import replace
from itertools import count as numbers
from pathlib import Path
from types import ModuleType
from typing import Any

from dash import ALL, ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update
from werkzeug.exceptions import HTTPException

from workbench.app.dashboard.aria import aria
from workbench.app.dashboard.controls import READ, SETTINGS, controls, settings, told
from workbench.app.dashboard.health import Health, ago
from workbench.app.dashboard.link import link
from workbench.app.dashboard.live_run import LiveRun, Moment
from workbench.app.dashboard.pages import (
    checkpoints,
    compare,
    emergence,
    health,
    layers,
    overview,
    probes,
    tokens,
)
from workbench.app.dashboard.panel import (
    Panel,
    Shown,
    changes,
    failure,
    look,
    numbers_of,
    show,
)
from workbench.app.dashboard.view import PAGES, View
from workbench.figures.wording import plain

TICK_MS = 2000
_KEPT = 32

_PAGES: dict[str, ModuleType] = {
    "overview": overview, "layers": layers, "tokens": tokens, "compare": compare,
    "emergence": emergence, "probes": probes, "checkpoints": checkpoints, "health": health,
}  # fmt: skip

_UNREADABLE = "The run cannot be read now. This page comes back by itself when it can be."

_INDEX = """<!DOCTYPE html>
<html lang="en">
<head>{%metas%}<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{%title%}</title>{%favicon%}{%css%}</head>
<body>{%app_entry%}<div id="scripts">{%config%}{%scripts%}{%renderer%}</div></body>
</html>"""


class Sent:
    """What browsers were sent last, so that the next answer can leave out what they have."""

    def __init__(self) -> None:
        self._numbers = numbers(1)
        self._kept: OrderedDict[str, list[Shown]] = OrderedDict()

    def keep(self, shown: list[Shown]) -> str:
        """A word for it, for the browser to give back."""
        word = str(next(self._numbers))
        self._kept[word] = shown
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return word

    def get(self, word: str) -> list[Shown] | None:
        """What was sent under that word; None where it is forgotten."""
        return self._kept.get(word)


def make_app(live: LiveRun, prefix: str = "/") -> Dash:
    """The dashboard of a run.

    Args:
        live: the run.
        prefix: what stands before every path in the browser, where a proxy puts something there.
    """
    app = Dash(
        "workbench-dashboard", assets_folder=str(Path(__file__).parent / "assets"),
        serve_locally=True, title=_tab(live), update_title="", index_string=_INDEX,
        suppress_callback_exceptions=True, add_log_handler=False, use_pages=False,
        requests_pathname_prefix=prefix, routes_pathname_prefix="/",
    )  # fmt: skip
    app.layout = _layout(live)
    app.server.register_error_handler(Exception, _refuse)
    sent = Sent()
    _show_the_address(app, live, sent)
    _write_the_address(app)
    _follow_the_run(app, live, sent)
    return app


def _refuse(error: Exception) -> Any:
    """One line for a request that no page of ours makes, and one in the log."""
    if isinstance(error, HTTPException):
        return error
    logging.getLogger(__name__).warning("a request was refused: %s", failure(error))
    return "This request cannot be answered.\n", 400, {"Content-Type": "text/plain"}


def warm(live: LiveRun) -> None:
    """Draws the first page once, so that nobody waits for libraries to load and for a first read.
    What fails here fails again, and says so, when somebody looks.
    """
    with contextlib.suppress(Exception), live.lock:
        moment = live.moment(View())
        for panel in _panels(moment):
            look(panel, "")


def _tab(live: LiveRun) -> str:
    # Dash fills placeholders into the page one after the other, this one first.
    return markup.escape(plain(live.run.name, 60).replace("{%", "{ %")) + " · workbench"


def _layout(live: LiveRun) -> Any:
    return html.Div(
        [
            dcc.Location(id="url", refresh="callback-nav"),
            dcc.Interval(id="tick", interval=TICK_MS),
            dcc.Store(id="shown"),
            dcc.Store(id="told"),
            html.A("Skip to the panels", href="#main", className="skip"),
            html.Header(
                [
                    html.P("Training dynamics, live", className="kicker"),
                    html.H1(plain(live.run.name, 64)),
                    html.P(
                        [
                            html.Span("reading", id="state", className="state", role="status"),
                            html.Span("", id="pulse"),
                        ],
                        className="pulse",
                    ),
                ]
            ),
            html.Nav([], id="pages", **aria(label="Pages")),
            controls(),
            html.Main([html.P("Reading the record …", className="lead")], id="main", tabIndex=-1),
            html.Footer(
                html.P(
                    "Read only: nothing here changes the run. The address holds this view; copy it "
                    "to come back to it."
                )
            ),
        ],
        id="page",
    )


def _show_the_address(app: Dash, live: LiveRun, sent: Sent) -> None:
    @app.callback(
        Output("main", "children"), Output("pages", "children"), Output("shown", "data"),
        Output("state", "children"), Output("state", "className"), Output("pulse", "children"),
        *[Output(*name) for name in SETTINGS],
        Input("url", "search"),
    )  # fmt: skip
    def show_the_address(search: str | None) -> tuple[Any, ...]:
        with live.lock:
            try:
                return _whole(live, sent, search)
            except Exception as error:  # the run was deleted, or is damaged
                said = html.P(_UNREADABLE, className="missing")
                # Nothing was sent: as soon as the run can be read, a tick brings the page.
                have = {"search": search or "", "pulse": "", "sent": ""}
                left = [no_update] * len(SETTINGS)
                return (
                    [said], _navigation(View.from_query(search)), have, *_failed(error), *left
                )  # fmt: skip


def _whole(live: LiveRun, sent: Sent, search: str | None) -> tuple[Any, ...]:
    moment = live.moment(View.from_query(search))
    found = moment.health
    # Before anything is looked at: what comes meanwhile is news.
    pulse, panels = moment.pulse(found), _panels(moment)
    shown = [look(panel, _follow(moment)) for panel in panels]
    return (
        _body(moment, panels, shown), _navigation(moment.view),
        _have(search, pulse, sent.keep(shown)), *_line(moment, found), *settings(search, moment),
    )  # fmt: skip


def _write_the_address(app: Dash) -> None:
    app.clientside_callback(
        ClientsideFunction("workbench", "write"), *[Input(*name) for name in READ],
        State("span", "max"), State("url", "search"), prevent_initial_call=True,
    )  # fmt: skip
    app.clientside_callback(
        ClientsideFunction("workbench", "settle"), *[Output(*name) for name in READ],
        Input("told", "data"), State("url", "search"), *[State(*name) for name in READ],
        prevent_initial_call=True,
    )  # fmt: skip


def _follow_the_run(app: Dash, live: LiveRun, sent: Sent) -> None:
    @app.callback(
        Output({"chart": ALL}, "figure"), Output({"words": ALL}, "children"),
        Output({"numbers": ALL}, "children"), Output("main", "children", allow_duplicate=True),
        Output("shown", "data", allow_duplicate=True),
        Output("state", "children", allow_duplicate=True),
        Output("state", "className", allow_duplicate=True),
        Output("pulse", "children", allow_duplicate=True),
        Output("span", "max", allow_duplicate=True),
        Output("told", "data", allow_duplicate=True),
        Input("tick", "n_intervals"), State("url", "search"), State("shown", "data"),
        State({"chart": ALL}, "id"), State({"words": ALL}, "id"), State({"numbers": ALL}, "id"),
        prevent_initial_call=True,
    )  # fmt: skip
    def follow_the_run(
        _: int, search: str | None, have: dict[str, Any] | None,
        charts: list[Any], words: list[Any], tables: list[Any],
    ) -> tuple[Any, ...]:  # fmt: skip
        nothing = [[no_update] * len(ids) for ids in (charts, words, tables)]
        with live.lock:
            try:
                moment = live.moment(View.from_query(search))
                found = moment.health
                pulse, line, panels = moment.pulse(found), _line(moment, found), _panels(moment)
            except Exception as error:  # what was shown stays, under a line that says so
                return (*nothing, no_update, no_update, *_failed(error), no_update, no_update)
            news = have is not None and have["pulse"] != pulse
            if have is None or have["search"] != (search or "") or not news:
                return (*nothing, no_update, no_update, *line, no_update, no_update)
            new = [look(panel, _follow(moment)) for panel in panels]
            old = sent.get(have["sent"])
            said = _have(search, pulse, sent.keep(new))
            span = (moment.last_step, told(search, moment))
            if old is None or [(s.title, s.missing) for s in old] != [
                (s.title, s.missing) for s in new
            ]:
                return (*nothing, _body(moment, panels, new), said, *line, *span)
            was, by_id = {}, {}
            for panel, before, after in zip(panels, old, new, strict=True):
                id = getattr(panel, "id", "")
                was[id], by_id[id] = before, (panel, after)
            return (
                [_figure(was[c["chart"]], by_id[c["chart"]][1]) for c in charts],
                [_words(was[w["words"]], by_id[w["words"]][1]) for w in words],
                [_numbers(was[t["numbers"]], *by_id[t["numbers"]]) for t in tables],
                no_update, said, *line, *span,
            )  # fmt: skip


def _figure(old: Shown, new: Shown) -> Any:
    if old.figure is None or new.figure is None:
        return no_update
    patch = changes(old.figure, new.figure)
    return no_update if patch is None else patch


def _words(old: Shown, new: Shown) -> Any:
    return no_update if old.words == new.words else new.words


def _numbers(old: Shown, panel: Panel, new: Shown) -> Any:
    if old.rows == new.rows:
        return no_update
    return numbers_of(panel, new)


def _panels(moment: Moment) -> list[Panel]:
    return list(_PAGES[moment.view.page].panels(moment))


def _body(moment: Moment, panels: list[Panel], shown: list[Shown]) -> list[Any]:
    title = html.H2(_PAGES[moment.view.page].TITLE, className="page-title")
    return [title, *(show(p, s) for p, s in zip(panels, shown, strict=True))]


def _navigation(view: View) -> Any:
    links = [
        link(_PAGES[page].TITLE, replace(view, page=page).query, page == view.page, "page")
        for page in PAGES
    ]
    return html.Ul([html.Li(one) for one in links])


def _have(search: str | None, pulse: str, word: str) -> dict[str, Any]:
    return {"search": search or "", "pulse": pulse, "sent": word}


def _follow(moment: Moment) -> str:
    """What a reader's zoom into a chart is tied to."""
    return moment.view.query


def _failed(error: Exception) -> tuple[str, str, str]:
    """The line under the name of a run that cannot be read."""
    return "unreadable", "state unreadable", failure(error)


def _line(moment: Moment, found: Health) -> tuple[str, str, str]:
    """The state, its class, and the rest of the line under the run's name."""
    parts = [f"arm {moment.run.branch}", f"step {moment.last_step:,}"]
    if found.age_s is not None:
        parts.append(f"the last one {ago(found.age_s)}")
    parts += [f"{value}" for name, value in found.facts if name == "Left"]
    return found.state, f"state {found.state}", " · ".join([*parts, found.why])
