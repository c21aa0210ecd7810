"""The tree of runs and arms: what each line of training went on from, and what was merged into it.

Needs   entries of one run or of many; forks, where a run's store knows them.
Yields  `lineage`: Forest of Lines; `as_text`, `as_plain`.

A line is a branch of a run. It hangs below the line that it forked from; a run whose first
checkpoint holds the very weights of another run's later checkpoint hangs below that one. Records
are what people left behind, so parents may be missing and may go round in circles: both are told,
and the rest of the tree stands.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from checkpoints_index.entry import Entry

Key = tuple[str, str]
"""Folder of a run, and branch."""

Forks = Mapping[Key, tuple[str, int]]


@dataclass
class Line:
    """One branch of one run."""

    run_path: str
    run: str
    branch: str
    checkpoints: list[Entry]
    """By step; those without a step first."""

    parent: Key | None = None
    fork_step: int | None = None
    below: list[Line] = field(default_factory=list)
    """Lines that forked from it, by step of the fork."""

    notes: list[str] = field(default_factory=list)
    """What is wrong with its parentage."""

    @property
    def key(self) -> Key:
        return self.run_path, self.branch

    @property
    def merged(self) -> dict[int, tuple[Any, ...]]:
        """What was merged into its checkpoints, by step."""
        return {c.step or 0: c.merged_from for c in self.checkpoints if c.merged_from}


@dataclass
class Forest:
    """Lines that hang below no other, by run and branch, each with those below it."""

    roots: list[Line]

    def lines(self) -> list[Line]:
        """All lines, each before those below it."""
        found, waiting = [], list(reversed(self.roots))
        while waiting:
            line = waiting.pop()
            found.append(line)
            waiting += reversed(line.below)
        return found

    @property
    def notes(self) -> list[str]:
        """All that is wrong, with the line that it is about."""
        return [f"{li.run}/{li.branch}: {note}" for li in self.lines() for note in li.notes]


def lineage(entries: Iterable[Entry], forks: Forks | None = None) -> Forest:
    """The tree of the lines that `entries` belong to.

    Args:
        entries: of the catalogue, or of one run.
        forks: parent branch and step by (run folder, branch), as stores know them; they count for
            more than what records say.

    Example:
        >>> lineage([]).roots
        []
    """
    forks = forks or {}
    grouped: dict[Key, list[Entry]] = defaultdict(list)
    for entry in entries:
        grouped[entry.run_path, entry.branch].append(entry)
    lines: dict[Key, Line] = {}
    for key in sorted({*grouped, *forks}):
        saved = sorted(grouped.get(key, []), key=lambda e: -1 if e.step is None else e.step)
        run = saved[0].run if saved else key[0].rsplit("/", 1)[-1]
        lines[key] = Line(key[0], run, key[1], saved)
    origins = _first_with_weights(lines.values())
    for line in lines.values():
        _hang(line, lines, forks, origins)
    _cut_circles(lines)
    for line in lines.values():
        if line.parent is not None:
            lines[line.parent].below.append(line)
    for line in lines.values():
        line.below.sort(key=lambda below: (below.fork_step or 0, below.key))
    return Forest([line for line in lines.values() if line.parent is None])


def _hang(
    line: Line, lines: Mapping[Key, Line], forks: Forks, origins: Mapping[str, Entry]
) -> None:
    """Finds the parent of a line."""
    fork = forks.get(line.key) or _told(line)
    if fork is not None:
        branch, step = fork
        parent = (line.run_path, branch)
        if parent not in lines:
            line.notes.append(f"forked from {branch!r} at step {step}, which has no records")
            line.fork_step = step
        elif parent == line.key:
            line.notes.append("names itself as the branch it forked from")
        else:
            line.parent, line.fork_step = parent, step
            if not any(c.step == step for c in lines[parent].checkpoints) and step:
                line.notes.append(f"no record of {branch!r} at step {step}, where it forked")
        return
    first = next((c for c in line.checkpoints if c.fingerprint), None)
    origin = origins.get(first.fingerprint or "") if first else None
    if first is None or origin is None or (origin.run_path, origin.branch) == line.key:
        return
    # Two runs that begin with the same fresh weights share a seed and no history.
    if (origin.step or 0) > (first.step or 0) and origin.run_path != line.run_path:
        line.parent, line.fork_step = (origin.run_path, origin.branch), origin.step


def _told(line: Line) -> tuple[str, int] | None:
    """The fork that the earliest record tells of."""
    return next(
        (c.parent for c in line.checkpoints if c.parent and c.parent[0] != line.branch), None
    )


def _first_with_weights(lines: Iterable[Line]) -> dict[str, Entry]:
    """The checkpoint with most steps behind it, by fingerprint."""
    found: dict[str, Entry] = {}
    for line in lines:
        for entry in line.checkpoints:
            if entry.fingerprint:
                best = found.get(entry.fingerprint)
                if best is None or (entry.step or 0) > (best.step or 0):
                    found[entry.fingerprint] = entry
    return found


def _cut_circles(lines: Mapping[Key, Line]) -> None:
    """Takes one link out of every circle of parents: that of the line first by name."""
    done: set[Key] = set()
    for start in lines:
        way: dict[Key, None] = {}
        key: Key | None = start
        while key is not None and key not in done and key not in way:
            way[key] = None
            key = lines[key].parent
        if key is not None and key in way:
            circle = [*list(way)[list(way).index(key) :]]
            cut = lines[min(circle)]
            names = " -> ".join(branch for _, branch in [*circle, circle[0]])
            cut.notes.append(f"parents go round in a circle: {names}; mend 'parent'")
            cut.parent = None
        done |= way.keys()


def used_elsewhere(entries: Iterable[Entry], run_path: str) -> dict[str, str]:
    """Fingerprints that runs other than the one at `run_path` were merged from or began with, and
    by which; whole or their first digits, as the records have them.
    """
    used: dict[str, str] = {}
    for line in (li for li in lineage(entries).lines() if li.run_path != run_path):
        first = next((c for c in line.checkpoints if c.fingerprint), None)
        if first is not None and first.fingerprint is not None:
            used.setdefault(first.fingerprint, f"{line.run}/{line.branch} begins with it")
        for entry in line.checkpoints:
            for one in entry.merged_from:
                if isinstance(one, str):
                    used[one] = f"merged into {line.run}/{line.branch}@{entry.step}"
    return used


def as_text(forest: Forest) -> list[str]:
    """The tree as lines of text."""
    text: list[str] = []
    waiting = [(line, "", "", None) for line in reversed(forest.roots)]
    stack: list[tuple[Line, str, str, str | None]] = list(waiting)
    while stack:
        line, lead, rest, above = stack.pop()
        text.append(lead + _said(line, above))
        for step, merged in line.merged.items():
            sources = ", ".join(
                f"{m[0]}@{m[1]}" if isinstance(m, tuple) else m[:12] for m in merged
            )
            text.append(f"{rest}    step {step} merged from {sources}")
        text += [f"{rest}    ! {note}" for note in line.notes]
        for i, child in reversed(list(enumerate(line.below))):
            last = i == len(line.below) - 1
            stack.append(
                (child, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "),
                 line.run_path)
            )  # fmt: skip
    return text


def _said(line: Line, above: str | None) -> str:
    """One line in words: where it begins and ends, and how much of it is there."""
    name = line.branch if above == line.run_path else f"{line.run}/{line.branch}"
    steps = [c.step for c in line.checkpoints if c.step is not None]
    reach = f"steps {min(steps)} to {max(steps)}" if steps else "no steps known"
    whole = sum(c.complete for c in line.checkpoints)
    count = f"{len(line.checkpoints)} checkpoint{'' if len(line.checkpoints) == 1 else 's'}"
    count += "" if whole == len(line.checkpoints) else f", {whole} whole"
    fork = "" if line.fork_step is None else f"from step {line.fork_step}, "
    where = "" if above == line.run_path else f"   {line.run_path}"
    return f"{name}: {fork}{reach}, {count}{where}"


def as_plain(forest: Forest) -> list[dict[str, Any]]:
    """The lines as plain data, each after the one it hangs below."""
    return [
        {
            "run_path": line.run_path,
            "run": line.run,
            "branch": line.branch,
            "parent": None if line.parent is None else list(line.parent),
            "fork_step": line.fork_step,
            "steps": [c.step for c in line.checkpoints],
            "complete": [c.complete for c in line.checkpoints],
            "merged": {str(step): list(merged) for step, merged in line.merged.items()},
            "notes": line.notes,
        }
        for line in forest.lines()
    ]
