"""Link: one of a few views, as a link that has it in its address: a key reaches it, and it copies.

Needs   words, and the view's query.
Yields  `link`; `links`, a list of them under a title.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dash import dcc, html

from workbench.app.dashboard.aria import aria


def link(words: str, query: str, current: bool = False, kind: str = "true") -> Any:
    """A link to a view; the one that is shown says so."""
    href = query or "?"
    if current:
        return html.A(words, href=href, **aria(current=kind))
    return dcc.Link(words, href=href)


def links(title: str, options: Iterable[tuple[str, str, bool]]) -> Any:
    """Words, query and whether it is shown, of each, as one list."""
    return html.Ul([html.Li(link(*option)) for option in options], **aria(label=title))
