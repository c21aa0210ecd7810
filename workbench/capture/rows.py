"""From samples to rows of the store.

Needs   samples of the ring (tap.py), in order.
Yields  `router_rows`, `train_rows`, `trace_rows`: the groups' arrays with the growing dim first, as
        the schema names them; SeenTokens, the clock that counts training tokens along.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from workbench.capture.accumulators import Table, as_variables
from workbench.capture.ring import Sample
from workbench.capture.traces import RouteTraces

TRAIN_VALUES = ("loss", "lr", "grad_norm")
"""Numbers that a trainer may give for a step."""

REMEMBERED = 10_000
"""Steps whose count of tokens is kept for whoever asks late, such as a checkpoint."""


class SeenTokens:
    """Training tokens up to and including each step.

    Args:
        start: tokens before the first step that is counted.
        ranks: ranks whose tokens a step adds up; used for steps whose routers were not read.

    Example:
        >>> SeenTokens(start=100).at(5)
        100
    """

    def __init__(self, start: int = 0, ranks: int = 1) -> None:
        self._ranks = ranks
        self._steps: list[int] = []
        self._totals: list[int] = []
        self.total = start
        self._start = start
        self._last = 0

    def add(self, layout: Table, sample: Sample) -> int:
        """Counts a sample's tokens in; returns the total.

        A captured step's tokens are its routers' own count. One that was left out counts as the
        trainer said, on every rank; where nothing was said, as the last captured one.
        """
        note = sample.note
        self.total += note.missed.tokens + note.missed.steps * self._last
        if note.captured:
            self._last = int(layout.parts(sample.table).tallies_L2[0, 0])
            tokens = self._last
        else:
            tokens = self._last if note.tokens is None else note.tokens * self._ranks
        self.total += tokens
        self._steps.append(note.step)
        self._totals.append(self.total)
        if len(self._steps) > 2 * REMEMBERED:
            self._start = self._totals[REMEMBERED - 1]
            del self._steps[:REMEMBERED], self._totals[:REMEMBERED]
        return self.total

    def at(self, step: int) -> int:
        """Tokens seen when `step` had ended: one of the last steps, or none before the first."""
        place = bisect_right(self._steps, step)
        return self._totals[place - 1] if place else self._start


def router_rows(
    layout: Table, samples: Sequence[Sample], *, with_domains: bool
) -> dict[str, np.ndarray]:
    """Rows of the group `router`; empty where no step among the samples was captured."""
    read = [sample for sample in samples if sample.note.captured]
    if not read:
        return {}
    rows = {"step": np.array([s.note.step for s in read])}
    tables = np.stack([s.table for s in read])
    rows |= as_variables(layout, tables, with_domains=with_domains)
    slow = [s for s in read if s.slow is not None]
    if slow:
        tables = np.stack([s.slow for s in slow if s.slow is not None])
        pairs, histogram = layout.slow_parts(tables)
        rows["sample"] = np.array([s.note.step for s in slow])
        rows |= {"coactivation": pairs, "entropy_histogram": histogram}
    return rows


def train_rows(samples: Sequence[Sample], tokens_seen: Sequence[int]) -> dict[str, np.ndarray]:
    """Rows of the group `train`; what the trainer did not say is NaN."""
    notes = [sample.note for sample in samples]
    rows = {
        "step": np.array([n.step for n in notes]),
        "tokens_seen": np.array(tokens_seen, dtype=np.int64),
        "utc": np.array([n.utc for n in notes]),
        "capture_seconds": np.array([n.seconds for n in notes], dtype=np.float32),
        "captured_every": np.array([n.every for n in notes], dtype=np.int32),
    }
    for name in TRAIN_VALUES:
        values = [n.values.get(name, np.nan) for n in notes]
        rows[name] = np.array(values, dtype=np.float32)
    return rows


def trace_rows(traces: RouteTraces, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    """Rows of the group `traces`; empty where no token of the samples was traced."""
    found = [
        rows
        for sample in samples
        if sample.extra is not None and sample.note.captured
        if (rows := traces.unpack(sample.extra, sample.note.step)) is not None
    ]
    if not found:
        return {}
    return {name: np.concatenate([rows[name] for rows in found]) for name in found[0]}
