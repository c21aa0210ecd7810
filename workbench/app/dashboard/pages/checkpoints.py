"""Checkpoints: the saved weights of the arm that is shown, as the index has them.

Needs   a Moment.
Yields  `panels`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from workbench.app.dashboard.live_run import Moment
from workbench.app.dashboard.panel import Listing, Panel
from workbench.errors import RunNotFound
from workbench.figures.caption import Table
from workbench.figures.wording import count, many

TITLE = "Checkpoints"


def panels(moment: Moment) -> list[Panel]:
    """One table, newest first."""
    return [
        Listing(
            "checkpoints", "Saved weights in these steps", lambda: _table(moment),
            "The trunk's checkpoints up to the fork are this arm's too. Newest first.",
        )
    ]  # fmt: skip


def _table(moment: Moment) -> Table:
    view = moment.view
    # The one at step 0 is the weights that training began with.
    low = view.start if view.start else -1
    saved = [c for c in moment.run.checkpoints if low < c.step <= max(moment.stop, 0)]
    if not saved:
        every = many(len(moment.run.checkpoints), "checkpoint")
        raise RunNotFound(f"no checkpoint was saved in these steps; the arm has {every} in all.")
    evaluated = _evaluated(moment)
    rows: list[tuple[Any, ...]] = [
        (
            f"{c.step:,}", count(c.tokens_seen), _utc(c.record.utc),
            c.branch, c.record.phase, c.record.format, f"{c.record.size_bytes / 1e6:,.1f} MB",
            "yes" if c.step in evaluated else "no", c.record.uri,
        )
        for c in reversed(saved)
    ]  # fmt: skip
    return Table(
        ("step", "tokens", "saved (UTC)", "on", "phase", "format", "size", "evaluated", "where"),
        tuple(rows),
    )


def _utc(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"


def _evaluated(moment: Moment) -> set[int]:
    if moment.now is None:
        return set()
    return set(moment.now.labels("evaluations", "checkpoint").tolist())
