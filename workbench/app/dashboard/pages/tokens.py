"""Tokens: to come.

Needs   a Moment.
Yields  `panels`.
"""

from __future__ import annotations

from workbench.app.dashboard.live_run import Moment
from workbench.app.dashboard.panel import Panel

TITLE = "Tokens"


def panels(moment: Moment) -> list[Panel]:
    """Nothing yet."""
    return []
