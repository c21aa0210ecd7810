"""When each capability came, as tables: onsets, and the evidence on every report card.

Needs   a Study.
Yields  `onset_table`; `card_table`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from workbench.app.study import Study
from workbench.figures.caption import Table
from workbench.figures.tasks import by_family


def onset_table(study: Study) -> Table:
    """A row a task and arm, or a task where the arms agree: onset, interval, verdict, reason."""
    rows: list[tuple[Any, ...]] = []
    tasks = list(dict.fromkeys(task for found in study.onsets.values() for task in found))
    for task in [t for names in by_family(tasks).values() for t in names]:
        told = {arm: _told(found[task]) for arm, found in study.onsets.items() if task in found}
        if len(told) > 1 and len(set(told.values())) == 1:
            told = {"all": next(iter(told.values()))}
        rows += [(task, arm, *cells) for arm, cells in told.items()]
    heads = ("task", "arm", "onset (step)", "95 % interval", "verdict", "because")
    return Table(heads, tuple(rows))


def _told(onset: Any) -> tuple[str, str, str, str]:
    if not onset.reached:
        return "not reached", f"not before {onset.low:,.0f}", "–", "–"
    high = "open" if onset.high == float("inf") else f"{onset.high:,.0f}"
    because = str(onset.evidence.get("reason", ""))
    return f"{onset.step:,.0f}", f"{onset.low:,.0f} to {high}", str(onset.verdict), because


def card_table(study: Study) -> Table:
    """A row a task and arm that reached the level: onset, age, change points with their p against
    smooth rises with noise that remembers, breakthroughness, verdict.
    """
    heads = (
        "task", "arm", "onset", "half acquired", "accuracy changes at", "p",
        "log-probability changes at", "p", "breakthroughness", "of log-probability", "verdict",
    )  # fmt: skip
    rows: list[tuple[Any, ...]] = []
    for arm, cards in study.cards.items():
        for task in map(str, cards["task"].values):
            card = cards.sel(task=task)
            if np.isfinite(float(card["onset"])):
                rows.append((task, arm, *_numbers(card)))
    tasks = [t for names in by_family([row[0] for row in rows]).values() for t in names]
    return Table(heads, tuple(sorted(rows, key=lambda row: tasks.index(row[0]))))


def _numbers(card: xr.Dataset) -> tuple[Any, ...]:
    def of(name: str) -> float | None:
        value = float(card[name])
        return value if np.isfinite(value) else None

    return (
        _step(of("onset")), _step(of("age")), _step(of("accuracy_change")), of("accuracy_change_p"),
        _step(of("logprob_change")), of("logprob_change_p"), of("accuracy_breakthroughness"),
        of("logprob_breakthroughness"), str(card["verdict"].values),
    )  # fmt: skip


def _step(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
