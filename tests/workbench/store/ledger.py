"""Rows whose every number follows from their step, and what a store shows of them.

Needs   a store that a doomed writer (doomed_writer.py) has written.
Yields  `rows_of`, what a step's rows must be; `shown`, what a snapshot holds of them, after
        checking that no step is missing, torn, twice or wrong; `states`, all that a store still
        holds.

`lr` says which life recorded a step: after a rollback a step is recorded again, and the one must
not be taken for the other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from workbench.store.layout import Layout
from workbench.store.names import AsideTag, read_tag
from workbench.store.run_store import RunStore
from workbench.store.snapshot import Snapshot

LAYERS, EXPERTS, K = 2, 4, 2
LAYOUT = Layout(layers=tuple(range(LAYERS)), experts=EXPERTS, k=K)
CHECKED = 300
"""Rows at the end that a quick look compares."""


def tokens_of(steps: np.ndarray | int) -> np.ndarray:
    """Training tokens of each step: from 8 to 12."""
    return np.asarray(8 + steps % 5)


def assignments_of(steps: np.ndarray) -> np.ndarray:
    """(step, layer, expert): token t of step s goes to the experts s + t and s + t + 1, modulo."""
    counts = np.zeros((len(steps), LAYERS, EXPERTS), np.int64)
    for row, (step, tokens) in enumerate(zip(steps, tokens_of(steps), strict=True)):
        for place in range(K):
            np.add.at(counts[row], (slice(None), (step + np.arange(tokens) + place) % EXPERTS), 1)
    return counts


def loss_of(steps: np.ndarray | int) -> np.ndarray:
    return np.asarray(1 / steps, np.float32)


def rows_of(first: int, last: int, life: int) -> tuple[dict, dict]:
    """Router and train rows of the steps `first` to `last`."""
    steps = np.arange(first, last + 1)
    seen = np.cumsum(tokens_of(np.arange(1, last + 1)))[first - 1 :]
    router = {"step": steps, "tokens": tokens_of(steps), "assignments": assignments_of(steps)}
    train = {
        "step": steps,
        "tokens_seen": seen,
        "loss": loss_of(steps),
        "lr": np.full(len(steps), life, np.float32),
    }
    return router, train


def held(snapshot: Snapshot, group: str, name: str, start: int = 0) -> np.ndarray:
    """A variable along the steps from row `start` on, the journal's rows included."""
    parts = []
    count = 0
    stored = snapshot.root.get(f"{group}/{name}")
    if stored is not None:
        count = stored.shape[0]
        parts.append(np.asarray(stored[min(start, count) :]))
    tail = snapshot.tail.get(group, {}).get("step", {}).get(name)
    if tail is not None:
        parts.append(tail[max(start - count, 0) :])
    return np.concatenate(parts) if parts else np.empty(0)


def shown(snapshot: Snapshot, *, whole: bool = True) -> np.ndarray:
    """The life that recorded each step from 1 to the last; asserts that every number is the step's.

    Args:
        whole: False compares the last rows only.
    """
    steps = held(snapshot, "train", "step")
    count = len(steps)
    assert np.array_equal(steps, np.arange(1, count + 1))
    assert np.array_equal(held(snapshot, "router", "step"), steps)
    if not count:
        return np.empty(0)
    start = 0 if whole else max(0, count - CHECKED)
    router, train = rows_of(start + 1, count, 0)
    lives = held(snapshot, "train", "lr")
    for group, rows in (("router", router), ("train", train)):
        for name in rows.keys() - {"lr"}:
            got = held(snapshot, group, name, start)
            assert np.array_equal(got, rows[name]), f"{group}/{name} of {start + 1} to {count}"
    assert len(lives) == count
    # Lives follow each other: nothing of an earlier one comes after a later one.
    assert (lives >= 1).all()
    assert (np.diff(lives) >= 0).all()
    return lives


class State(NamedTuple):
    """One thing that the store holds: its branch, or what a rollback has set aside."""

    name: str
    lives: np.ndarray

    def holds(self, step: int, life: int) -> bool:
        return step <= len(self.lives) and self.lives[step - 1] == life


def states(store: RunStore, known: dict[str, State] | None = None) -> list[State]:
    """The branch as it is shown now, and everything that was set aside; all of it checked.

    Args:
        known: states under tags that were checked before; those never change. Added to.
    """
    known = {} if known is None else known
    for tag in store.repository.list_tags():
        if isinstance(read_tag(tag), AsideTag) and tag not in known:
            known[tag] = State(tag, shown(store.read_tag(tag)))
    return [State("main", shown(store.read("main"))), *known.values()]
