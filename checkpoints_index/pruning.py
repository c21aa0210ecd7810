"""Deleting the weights that a plan lets go, so that a kill at any moment leaves nothing half done.

Needs   a run's folder, a Plan.
Yields  `examine`: what would be deleted, how many bytes, what is left alone and why;
        `withdraw`: their records say so and their places are empty, at once and together;
        `sweep`: the bytes are freed, of this prune and of any that was interrupted.

Nothing outside the run's folder is ever deleted, no link is followed, and nothing that holds, is
held by or is linked from a checkpoint that stays, nor what holds a run, nor what is no checkpoint
by the look of its files. A checkpoint is first renamed to a name that no
reader takes for whole, then its record is marked, then the files go. Records stay: they say that
there was a checkpoint, and why its weights are gone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from checkpoints_index.errors import (
    CheckpointIncomplete,
    CheckpointNotFound,
    PickleRefused,
    RecordError,
)
from checkpoints_index.index import CheckpointIndex
from checkpoints_index.record import CheckpointRecord
from checkpoints_index.retention import Plan

WITHDRAWN = ".partial-pruned-"
"""What the name of a folder that is being deleted begins with."""

NAME_AT_MOST = 140
"""Bytes of such a name; encrypted file systems allow fewer than the usual 255."""

LINKS_DEEP = 8
"""Levels of folders in which links of a checkpoint are looked for."""


@dataclass(frozen=True)
class Doomed:
    """A checkpoint that would be deleted."""

    record: CheckpointRecord
    path: Path
    bytes: int
    """Freed on this file system: what other names still hold does not count."""


@dataclass(frozen=True)
class Examined:
    """A plan held against the disk."""

    doomed: tuple[Doomed, ...]
    left: tuple[tuple[CheckpointRecord, str], ...]
    """What the plan lets go and must not be deleted, with the reason."""

    rest: tuple[Path, ...]
    """What an interrupted prune left half deleted."""

    @property
    def bytes(self) -> int:
        """Freed in all."""
        return sum(one.bytes for one in self.doomed) + sum(_held(path) for path in self.rest)


def examine(
    run: str | Path, records: Iterable[CheckpointRecord], plan: Plan, others: Iterable[str] = ()
) -> Examined:
    """Holds the plan for the run at `run` against its folder. Deletes nothing.

    Args:
        records: all of the run; those that stay guard their files.
        others: paths of checkpoints of other runs, which stay too.
    """
    run, records = Path(os.path.realpath(run)), list(records)
    going = {(r.branch, r.step) for r in plan.go}
    guarded = _Guarded()
    for record in records:
        if (record.branch, record.step) not in going and not record.pruned:
            _guard(guarded, record, run)
    for path in others:
        guarded.add(os.path.realpath(path))
    left: dict[tuple[str, int], tuple[CheckpointRecord, str]] = {}
    doomed, before = list(plan.go), -1
    looked_at: dict[Path, str] = {}
    # What is left alone stays, and so does what it leads to: until nothing more is left.
    while before != len(doomed):
        before = len(doomed)
        for record in doomed:
            if reason := _why_not(record, run, guarded, looked_at):
                left[record.branch, record.step] = (record, reason)
                _guard(guarded, record, run)
        doomed = [r for r in doomed if (r.branch, r.step) not in left]
    parents = {run}
    for record in records:
        if not record.is_remote and (place := record.path(run)).is_relative_to(run):
            parents.add(place.parent)
    return Examined(
        tuple(Doomed(r, r.path(run), _held(r.path(run))) for r in doomed),
        tuple(left[r.branch, r.step] for r in plan.go if (r.branch, r.step) in left),
        tuple(_rest(parents, run)),
    )


def _guard(guarded: _Guarded, record: CheckpointRecord, run: Path) -> None:
    """What a checkpoint that stays is made of: its own path, and all that its links lead to."""
    if record.is_remote:
        return
    path = os.path.realpath(record.path(run))
    guarded.add(path)
    # A path above the run guards all of it already, and may be the root of everything.
    if not run.is_relative_to(path):
        for link in _links(path):
            for hop in _hops(link):
                guarded.add(hop)


def _links(path: str) -> Iterator[str]:
    for here, below, names in os.walk(path):
        # Deeper than any checkpoint: a path that was made up.
        if here.count(os.sep) - path.count(os.sep) >= LINKS_DEEP:
            below.clear()
        places = (os.path.join(here, name) for name in [*below, *names])
        yield from (place for place in places if os.path.islink(place))


def _hops(link: str) -> Iterator[str]:
    """Every place on the way of a link, to its end."""
    for _ in range(40):
        parent = os.path.realpath(os.path.dirname(link))
        try:
            link = os.path.normpath(os.path.join(parent, os.readlink(link)))
        except OSError:
            return
        link = os.path.join(os.path.realpath(os.path.dirname(link)), os.path.basename(link))
        yield link
        if not os.path.islink(link):
            return


class _Guarded:
    """Real paths that must stay."""

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self.above: set[str] = set()

    def add(self, path: str) -> None:
        """Guards a real path."""
        self.paths.add(path)
        while (parent := os.path.dirname(path)) != path and parent not in self.above:
            self.above.add(parent)
            path = parent

    def touches(self, path: str) -> bool:
        """Whether `path` is, holds or lies inside one of them."""
        if path in self.paths or path in self.above:
            return True
        while (parent := os.path.dirname(path)) != path:
            if parent in self.paths:
                return True
            path = parent
        return False


def _why_not(
    record: CheckpointRecord, run: Path, guarded: _Guarded, looked_at: dict[Path, str]
) -> str:
    """Why a checkpoint must not be deleted; empty where it may. What lies in it is looked at
    once.
    """
    if record.is_remote:
        return "lies at a URL"
    path = record.path(run)
    if not os.path.lexists(path):
        return "is not there"
    if path.is_symlink():
        return "is a link"
    real = Path(os.path.realpath(path))
    if real == run or not real.is_relative_to(run):
        return "lies outside the run's folder"
    if Path(os.path.abspath(path)) != real:
        return "is reached through a link"
    parts = real.relative_to(run).parts
    if parts[0] in ("index", "store", "run.json", "tokenizer.json", "journal"):
        return "is a part of the run itself"
    if guarded.touches(str(real)):
        return "shares its files with a checkpoint that stays"
    if path.is_dir() and os.path.ismount(path):
        return "is another file system"
    if real not in looked_at:
        looked_at[real] = _why_not_by_content(real)
    return looked_at[real]


def _why_not_by_content(path: Path) -> str:
    """What a record calls a checkpoint may be anything: a notebook, a whole run."""
    from checkpoints_index.formats import recognise

    for here, below, names in os.walk(path):
        if "run.json" in names or ("index" in below and CheckpointIndex(here).exists):
            return "holds a run"
    try:
        recognise(path)
    except PickleRefused:
        return "is told to be a checkpoint by nothing but a pickle"
    except (CheckpointNotFound, CheckpointIncomplete, RecordError, OSError):
        return "is no checkpoint of a known format"
    return ""


def _rest(parents: Iterable[Path], run: Path) -> Iterator[Path]:
    """What an interrupted prune left, beside the places of the run's checkpoints."""
    for parent in sorted(parents):
        if not parent.is_dir() or Path(os.path.realpath(parent)) != parent:
            continue
        with os.scandir(parent) as entries:
            names = sorted(e.name for e in entries if e.name.startswith(WITHDRAWN))
        yield from (parent / name for name in names)


def _held(path: Path) -> int:
    """Bytes that deleting `path` frees; links and files with further names free none."""
    total = 0
    for file in _files(path):
        with contextlib.suppress(FileNotFoundError):
            stat = os.lstat(file)
            total += stat.st_size if stat.st_nlink == 1 else 0
    return total


def _files(path: Path) -> Iterator[str]:
    if path.is_symlink() or not path.is_dir():
        yield str(path)
        return
    for folder, _, names in os.walk(path):
        yield from (os.path.join(folder, name) for name in names)


def withdraw(run: str | Path, examined: Examined, why: str) -> list[CheckpointRecord]:
    """Takes the doomed out of use: renames each, then marks its record. Frees no bytes yet.

    Fast, so that it may be done under a lock of the store.

    Args:
        why: kept in the records.

    Returns:
        The marked records.

    Raises:
        RecordError: a record was changed since it was examined; what was done until then stays
            done, and the rest is as it was.
    """
    index = CheckpointIndex(run)
    marked = []
    for one in examined.doomed:
        record = one.record
        if index.get(record.branch, record.step) != record:
            raise RecordError(
                f"the record of step {record.step} of branch {record.branch!r} was changed while "
                f"it was being pruned; nothing more was deleted. Look at the plan again."
            )
        aside = aside_of(one.path)
        # Two records may name one place: it is gone with the first.
        if os.path.lexists(one.path):
            _delete(aside)
            os.rename(one.path, aside)
            _sync(aside.parent)
        gone = replace(record, complete=False, pruned=why)
        index.add(gone, replace=True)
        marked.append(gone)
    return marked


def sweep(run: str | Path, examined: Examined, why: str) -> int:
    """Frees the bytes of what was withdrawn now or by an earlier, interrupted prune; returns them.

    Where a prune ended between a rename and its mark, the record is marked now.
    """
    index = CheckpointIndex(run)
    folder = Path(os.path.realpath(run))
    unmarked = {aside_of(r.path(folder)): r for r in index.list(complete=True) if not r.is_remote}
    freed = 0
    now = [aside_of(one.path) for one in examined.doomed]
    for path in [*examined.rest, *now]:
        record = unmarked.get(path)
        if record is not None and not os.path.lexists(record.path(folder)):
            index.add(replace(record, complete=False, pruned=why), replace=True)
        if not os.path.lexists(path):
            continue
        freed += _held(path)
        _delete(path)
    return freed


def aside_of(path: Path) -> Path:
    """Where a checkpoint lies while it is being deleted: its name marked, or a digest of it where
    that would be longer than a file system takes.
    """
    name = WITHDRAWN + path.name
    if len(os.fsencode(name)) > NAME_AT_MOST:
        name = WITHDRAWN + hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]
    return path.with_name(name)


def _delete(path: Path) -> None:
    while path.is_dir() and not path.is_symlink():
        # A trainer that sweeps away what looks half-written may be deleting the same folder.
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
