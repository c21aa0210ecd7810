"""Which checkpoints to keep when there is no room for all: a plan, and nothing is touched.

Needs   the records of a run; what must stay, and why.
Yields  `plan`: Plan, every checkpoint with the reasons to keep it, or none.

Of every branch are kept its first and its last, all in its window of interest, and a few elsewhere,
spread evenly over the logarithm of training tokens, because early training changes fast and late
training slowly. The few are chosen farthest first: each next one is the checkpoint that lies
farthest from all that are kept. So a larger budget keeps what a smaller one kept, and no checkpoint
that goes is farther from one that stays than twice what the best choice of as many could do.

Source: T. F. Gonzalez, Clustering to minimize the maximum intercluster distance, Theoretical
Computer Science 38 (1985), for the order and its bound.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from checkpoints_index.clock import Clock
from checkpoints_index.record import CheckpointRecord
from checkpoints_index.window import interval

Place = tuple[str, int]
"""Branch and step."""

Held = TypeVar("Held")
_HEAD = 8
"""Digits that a fingerprint has at least."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How many to keep."""

    window: float | str = 0.2
    """Window of interest, in which all are kept: the last share of the branch's tokens, up to 1;
    so many last tokens, above 1; or a duration such as "7d"."""

    dense_last: int | None = None
    """In place of the window, so many last checkpoints of every branch."""

    elsewhere: int = 16
    """How many to keep of every branch before the window, beside those that must stay."""

    def __post_init__(self) -> None:
        if self.elsewhere < 0 or (self.dense_last is not None and self.dense_last < 1):
            raise ValueError(
                f"elsewhere={self.elsewhere}, dense_last={self.dense_last}: expected 0 or more, "
                f"and 1 or more."
            )


@dataclass(frozen=True)
class Plan:
    """What stays, with the reasons, and what would go."""

    keep: dict[Place, tuple[str, ...]]
    go: tuple[CheckpointRecord, ...]
    """By branch and step."""


def plan(
    records: Iterable[CheckpointRecord],
    rule: Rule | None = None,
    *,
    protected: Mapping[Place, str] | None = None,
    used: Mapping[str, str] | None = None,
) -> Plan:
    """The plan for a run's checkpoints.

    Args:
        records: all of the run. Those not complete are left alone: they may be being written.
        rule: how many to keep.
        protected: further (branch, step) that must stay, with the reason: what the store needs.
        used: fingerprints that must stay, or the first 8 or more digits of them, with the reason:
            what other runs need.

    Example:
        >>> records = [CheckpointRecord(run="demo", branch="main", step=s, tokens_seen=64 * s,
        ...     utc=0.0, format="native", uri=f"s{s}", size_bytes=1) for s in range(1, 101)]
        >>> kept = plan(records, Rule(elsewhere=4)).keep
        >>> [step for _, step in kept if step <= 80]
        [1, 3, 9, 27, 47]
    """
    rule, records = rule or Rule(), sorted(records, key=lambda r: (r.branch, r.step))
    reasons: dict[Place, list[str]] = defaultdict(list)
    needed = needed_by_records(records)
    others = _Prints((used or {}).items())
    for r in records:
        place = (r.branch, r.step)
        reasons[place] += needed.get(place, [])
        if protected and place in protected:
            reasons[place].append(protected[place])
        reasons[place] += others.like(r.fingerprint or "")
    branches: dict[str, list[CheckpointRecord]] = defaultdict(list)
    for r in records:
        if r.complete:
            branches[r.branch].append(r)
    for line in branches.values():
        _keep_of(line, rule, reasons)
    keep = {(r.branch, r.step): tuple(reasons[r.branch, r.step]) for r in records}
    go = tuple(r for r in records if r.complete and not keep[r.branch, r.step])
    return Plan({place: why for place, why in keep.items() if why}, go)


def needed_by_records(records: Sequence[CheckpointRecord]) -> dict[Place, list[str]]:
    """What records themselves need: where arms forked, what was merged, where a training goes on
    from.
    """
    needed: dict[Place, list[str]] = defaultdict(list)
    prints = _Prints((r.fingerprint or "", (r.branch, r.step)) for r in records)
    newest: dict[tuple[str, bool], Place] = {}
    for r in records:
        if r.complete:
            for training in {False, r.kind != "weights"}:
                key = (r.branch, training)
                newest[key] = max(newest.get(key, ("", -1)), (r.branch, r.step))
    for place in sorted(set(newest.values())):
        needed[place].append(f"{place[0]!r} goes on from here")
    for r in records:
        # A parent on its own branch is only the checkpoint before it.
        if r.parent is not None and r.parent[0] != r.branch:
            needed[r.parent].append(f"{r.branch!r} forked here")
            needed[r.branch, r.step].append(f"{r.branch!r} begins here")
        for one in r.merged_from:
            for place in [one] if isinstance(one, tuple) else prints.like(one):
                needed[place].append(f"merged into {r.branch}@{r.step}")
    return needed


class _Prints(Generic[Held]):
    """What lies under fingerprints, found by a whole one or by its first digits: `list` prints
    twelve of them, and that is what people copy.
    """

    def __init__(self, held: Iterable[tuple[str, Held]]) -> None:
        self._by_head: dict[str, list[tuple[str, Held]]] = defaultdict(list)
        for fingerprint, what in held:
            if len(fingerprint) >= _HEAD:
                self._by_head[fingerprint[:_HEAD]].append((fingerprint, what))

    def like(self, fingerprint: str) -> list[Held]:
        """What lies under fingerprints that begin with this one, or with which it begins."""
        return [
            what
            for known, what in self._by_head.get(fingerprint[:_HEAD], [])
            if known.startswith(fingerprint) or fingerprint.startswith(known)
        ]


def _keep_of(line: Sequence[CheckpointRecord], rule: Rule, reasons: dict[Place, list[str]]) -> None:
    """Adds the reasons of one branch, whose complete checkpoints `line` holds by step."""
    places = [(r.branch, r.step) for r in line]
    reasons[places[0]].append("first of its branch")
    reasons[places[-1]].append("last of its branch")
    start = _window_start(line, rule)
    for place in places[start:]:
        reasons[place].append("in the window")
    # The window's first is a neighbour to keep a distance from, too.
    upto = min(start + 1, len(line))
    at = log_tokens(_tokens(line))[:upto]
    fixed = [i for i in range(upto) if reasons[places[i]]]
    for i in farthest_first(at, fixed, rule.elsewhere):
        reasons[places[i]].append("log-spaced")


def _window_start(line: Sequence[CheckpointRecord], rule: Rule) -> int:
    """The place in the line where its window begins."""
    if rule.dense_last is not None:
        return max(0, len(line) - rule.dense_last)
    tokens = not isinstance(rule.window, str) and rule.window > 1
    # So many tokens are no number of steps: where they were not counted, all lie in the window.
    seen = [r.tokens_seen for r in line] if tokens else _tokens(line)
    clock = Clock(
        np.array([r.step for r in line]), np.array(seen), np.array([r.utc for r in line])
    )  # fmt: skip
    asked = interval(clock, **{"last_tokens" if tokens else "last": rule.window})  # type: ignore[arg-type]
    return next((i for i, r in enumerate(line) if r.step > asked.start), len(line) - 1)


def _tokens(line: Sequence[CheckpointRecord]) -> list[int]:
    """Training tokens of a branch's checkpoints; their steps where nobody counted tokens."""
    tokens = [r.tokens_seen for r in line]
    return tokens if any(tokens) else [r.step for r in line]


def log_tokens(tokens: Sequence[int]) -> np.ndarray:
    """Logarithms of training tokens, none of them endless: no tokens at all count as half of the
    fewest.
    """
    values = np.asarray(tokens, np.float64)
    fewest = values[values > 0].min(initial=math.inf)
    floor = fewest / 2 if math.isfinite(fewest) else 1.0
    return np.log(np.maximum(values, floor))


def farthest_first(at: np.ndarray, fixed: Sequence[int], count: int) -> list[int]:
    """Places of up to `count` further points, each the farthest from all that are taken.

    Args:
        at: positions of the points.
        fixed: places that are taken already, at least one where there are points.

    Example:
        >>> farthest_first(np.array([0.0, 1.0, 2.0, 3.0, 4.0]), [0, 4], 2)
        [2, 1]
    """
    if not len(at) or not fixed:
        return []
    known = np.sort(at[list(fixed)])
    right = np.minimum(np.searchsorted(known, at), len(known) - 1)
    left = np.maximum(right - 1, 0)
    distance = np.minimum(np.abs(at - known[right]), np.abs(at - known[left]))
    taken = np.zeros(len(at), bool)
    taken[list(fixed)] = True
    chosen: list[int] = []
    while len(chosen) < count and not taken.all():
        # Of equals the first, so that the order is the same for every count.
        best = int(np.argmax(np.where(taken, -1.0, distance)))
        chosen.append(best)
        taken[best] = True
        distance = np.minimum(distance, np.abs(at - at[best]))
    return chosen
