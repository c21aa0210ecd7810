"""Filling the catalogue: every run and every checkpoint below some folders.

Needs   folders; a Catalogue.
Yields  `scan`: Scanned, what was found, read anew, gone and unreadable.

Runs of ours tell by their records (index/), everything else by its layout (layouts/). What has not
changed since the last scan is not read again: a record is known by its file's time and size, a
checkpoint without one by those of all its files. One transaction holds a whole scan, so readers see
the last finished one, and a kill leaves it as it was. What cannot be read is told and never passed
over in silence; what lies below a folder that cannot be read now stays as it was known.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from checkpoints_index.catalogue import (
    APPLICATION,
    COLUMNS,
    TABLES,
    VERSION,
    Catalogue,
    to_row,
)
from checkpoints_index.entry import Entry, label
from checkpoints_index.errors import (
    CatalogueDamaged,
    CatalogueMissing,
    CheckpointIncomplete,
    CheckpointNotFound,
    PickleRefused,
    RecordError,
)
from checkpoints_index.index import CheckpointIndex
from checkpoints_index.layouts import Found, find
from checkpoints_index.particulars import footprint
from checkpoints_index.scan_lock import scan_lock

_BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_NOT_ENTERED = {"index", "store", "checkpoints", "__pycache__", "node_modules"}
"""Folders of a run in which there is no other run."""

_WEIGHTS_UNREADABLE = (
    CheckpointIncomplete, CheckpointNotFound, PickleRefused, RecordError, OSError, ImportError,
)  # fmt: skip


@dataclass
class Scanned:
    """What a scan did."""

    folders: list[str]
    checkpoints: int = 0
    """In the catalogue now, below these folders."""

    runs: int = 0
    read: int = 0
    """New or changed since the last scan."""

    gone: int = 0
    faults: dict[str, str] = field(default_factory=dict)
    """What could not be read, by file."""

    set_aside: str | None = None
    """Where a broken catalogue was moved to; it was made anew."""

    seconds: float = 0.0


def scan(
    catalogue: Catalogue,
    folders: Sequence[str | Path] = (),
    *,
    fingerprints: bool = False,
    forget: Sequence[str | Path] = (),
    wait_s: float = 60.0,
) -> Scanned:
    """Brings the catalogue up to date with what lies below `folders`.

    Args:
        folders: none means those that were scanned before.
        fingerprints: read the weights of whole checkpoints whose fingerprint no record tells: all
            their bytes, once.
        forget: folders whose entries are taken out, whether or not they are still there.
        wait_s: seconds to wait for another process that is scanning.

    Raises:
        CheckpointNotFound: one of the folders is not there; nothing was changed.
        CatalogueMissing: no folder was given, and none is known.
        CatalogueBusy: another process is scanning still.
        CatalogueDamaged: the file is somebody else's, was made by a later version, or cannot be
            written.
        RecordError: a folder's path is not UTF-8.
    """
    began = time.monotonic()
    file = catalogue.file
    # Before the catalogue is made: a mistake must not leave an empty one.
    asked = _outermost([*folders])
    forget = [_utf8(os.path.realpath(folder)) for folder in forget]
    if not asked and not forget and not catalogue.exists:
        raise CatalogueMissing(_knows_none(file, None))
    with contextlib.ExitStack() as held:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(scan_lock(file.with_name(file.name + ".lock"), wait_s=wait_s))
        except OSError as error:
            raise CatalogueDamaged(
                f"{file}: cannot be written ({error.strerror}); name another file with --catalogue."
            ) from None
        table, set_aside, known = _open_to_write(file)
        with contextlib.closing(table):
            if not asked and not forget:
                asked = _outermost(known)
            if not asked and not forget:
                raise CatalogueMissing(_knows_none(file, set_aside))
            done = Scanned([str(folder) for folder in asked], set_aside=set_aside)
            for folder in forget:
                _forget(table, str(folder))
            for folder in asked:
                _Scan(table, folder, done, fingerprints).run()
            table.execute("commit")
            # Else the log grows with every scan that a reader keeps from being folded in.
            table.execute("pragma wal_checkpoint(passive)")
    done.seconds = time.monotonic() - began
    return done


def _knows_none(file: Path, set_aside: str | None) -> str:
    broken = f"it was broken, and was moved to {set_aside}; " if set_aside else ""
    return f"{file} knows no folder to scan; {broken}name them: workbench checkpoints scan DIR..."


def _utf8(path: str) -> str:
    """The path; RecordError where no database could hold it."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise RecordError(
            f"{label(path)}: its path is not UTF-8; rename it, or scan above it."
        ) from None
    return path


def _outermost(folders: Iterable[str | Path]) -> list[Path]:
    """The folders, real and absolute, none below another; inside a run of ours, the run."""
    real: list[Path] = []
    for folder in folders:
        if not os.path.isdir(folder):
            raise CheckpointNotFound(
                f"no folder {label(str(folder))}; where it is gone for good: "
                f"workbench checkpoints scan --forget DIR."
            )
        path = Path(_utf8(os.path.realpath(folder)))
        real.append(next((p for p in path.parents if CheckpointIndex(p).exists), path))
    return sorted(p for p in set(real) if not any(q in set(real) for q in p.parents))


def _forget(table: sqlite3.Connection, folder: str) -> None:
    for name, column in (("entry", "file"), ("fault", "file"), ("folder", "path")):
        table.execute(
            f"delete from {name} where {column} = ? or ({column} > ? and {column} < ?)",
            _below(folder),
        )


def _below(folder: str) -> tuple[str, str, str]:
    """The folder, and bounds of all paths below it: '0' follows '/'."""
    folder = folder.rstrip("/")
    return folder, folder + "/", folder + "0"


class _Scan:
    """One folder, scanned inside a transaction."""

    def __init__(
        self, table: sqlite3.Connection, folder: Path, done: Scanned, fingerprints: bool
    ) -> None:
        self.table, self.folder, self.done = table, folder, done
        self.fingerprints = fingerprints
        rows = table.execute(
            "select file, stamp, path, fingerprint from entry where file = ? or "
            "(file > ? and file < ?)",
            _below(str(folder)),
        )
        self.known = {file: tuple(rest) for file, *rest in rows}
        self.seen: set[str] = set()
        self.faults: dict[str, str] = {}
        self.unreadable: list[str] = []
        self.places: set[str] = set()
        """Where the checkpoints lie that were seen, and..."""
        self.recorded: set[str] = set()
        """...those of them that records tell of."""
        self.runs: list[Path] = []
        self._parents: dict[str, str] = {}

    def run(self) -> None:
        for run in self._runs():
            self.runs.append(run)
            self._records(run)
        self._layouts()
        kept = tuple(path + "/" for path in self.unreadable)
        gone = [f for f in self.known.keys() - self.seen if not f.startswith(kept)]
        self.table.executemany("delete from entry where file = ?", [(file,) for file in gone])
        where = _below(str(self.folder))
        for name, column in (("fault", "file"), ("folder", "path")):
            self.table.execute(
                f"delete from {name} where {column} = ? or ({column} > ? and {column} < ?)", where
            )
        self.table.executemany("insert or replace into fault values (?, ?)", self.faults.items())
        (count,) = self.table.execute(
            "select count(*) from entry where file = ? or (file > ? and file < ?)", where
        ).fetchone()
        self.table.execute(
            "insert into folder values (?, ?, ?)", (str(self.folder), time.time(), count)
        )
        done = self.done
        done.checkpoints += count
        done.runs += len(self.runs)
        done.gone += len(gone)
        done.faults |= self.faults

    def _fault(self, file: str | Path, error: object) -> None:
        self.faults[label(str(file))] = label(str(error))

    def _cannot_enter(self, error: OSError) -> None:
        self.unreadable.append(str(error.filename))
        self._fault(error.filename, f"{error.strerror}; what was known below it is kept")

    def _runs(self) -> Iterator[Path]:
        """Folders at or below the scanned one that have records."""
        for here, below, _ in os.walk(self.folder, onerror=self._cannot_enter):
            run = Path(here)
            is_run = "index" in below and CheckpointIndex(run).exists
            below[:] = [
                name for name in below
                if not name.startswith(".") and not (is_run and name in _NOT_ENTERED)
            ]  # fmt: skip
            if is_run:
                yield run

    def _records(self, run: Path) -> None:
        index = CheckpointIndex(run)
        for name, stamp in index.files():
            file = f"{index.folder}/{name}"
            before = self.known.get(file)
            lacking = self.fingerprints and (before is None or before[2] is None)
            if before is not None and before[0] == self._stamp(stamp, before[1]) and not lacking:
                self._keep(file, before[1])
                self.recorded.add(self._real(before[1]))
                continue
            try:
                record = index.read_file(name)
            except (RecordError, OSError) as error:
                self._fault(file, error)
                continue
            where = record.uri if record.is_remote else str(record.path(run))
            stamp = self._stamp(stamp, where)
            entry = Entry.of_record(record, run, there=not stamp.endswith("gone"))
            if lacking and entry.complete and entry.fingerprint is None:
                entry = entry.with_fingerprint(self._fingerprint(where))
            self._enter(file, stamp, entry)
            self.recorded.add(self._real(where))

    def _stamp(self, stamp: str, path: str) -> str:
        return stamp if "://" in path or os.path.lexists(path) else f"{stamp} gone"

    def _layouts(self) -> None:
        """Checkpoints that no record tells of."""
        try:
            for found in find(self.folder):
                try:
                    self._found(found)
                except OSError as error:
                    self._fault(found.path, error)
        except OSError as error:
            error.filename = error.filename or str(self.folder)
            self._cannot_enter(error)

    def _found(self, found: Found) -> None:
        real = self._real(str(found.path))
        if real in self.places or self._is_part(found, os.path.dirname(real)):
            return
        size, stamp = footprint(found.path)
        stamp = f"{stamp} {found.complete}"
        file = str(found.path)
        before = self.known.get(file)
        readable = found.complete and found.format not in ("pickled", "unknown")
        wanted = self.fingerprints and readable
        if before is not None and before[0] == stamp and not (wanted and before[2] is None):
            self._keep(file, before[1])
            return
        run = next((r for r in reversed(self.runs) if found.path.is_relative_to(r)), None)
        entry = Entry.of_found(found, run=run, size_bytes=size)
        if wanted:
            entry = entry.with_fingerprint(self._fingerprint(found.path))
        self._enter(file, stamp, entry)

    def _is_part(self, found: Found, above: str) -> bool:
        """Whether what was found is a part of the checkpoint that lies in the folder `above`: a
        file of it, or a folder of weights inside a recorded one. Trainers leave checkpoint-500/
        beside the finished model, and that is none.
        """
        if found.path.is_file():
            return above in self.places
        return found.step is None and above in self.recorded

    def _fingerprint(self, path: str | Path) -> str | None:
        from checkpoints_index.formats import open_weights

        try:
            return open_weights(path).fingerprint()
        except _WEIGHTS_UNREADABLE as error:
            self._fault(path, f"no fingerprint: {error}")
            return None

    def _keep(self, file: str, path: str) -> None:
        self.seen.add(file)
        self.places.add(self._real(path))

    def _enter(self, file: str, stamp: str, entry: Entry) -> None:
        marks = ", ".join("?" * (len(COLUMNS) + 2))
        try:
            self.table.execute(
                f"insert or replace into entry (file, stamp, {', '.join(COLUMNS)}) "
                f"values ({marks})",
                (file, stamp, *to_row(entry)),
            )
        except UnicodeEncodeError:
            self._fault(file, "its path is not UTF-8; rename it")
            return
        self.done.read += 1
        self._keep(file, entry.path)

    def _real(self, path: str) -> str:
        """Where a path leads to; folders are looked up once."""
        if "://" in path:
            return path
        if os.path.islink(path):
            return os.path.realpath(path)
        parent, name = os.path.split(path)
        if parent not in self._parents:
            self._parents[parent] = os.path.realpath(parent)
        return os.path.join(self._parents[parent], name)


def _open_to_write(file: Path) -> tuple[sqlite3.Connection, str | None, list[str]]:
    """The table, made or made again where need be; where a broken one went; the folders it knew."""
    try:
        table, known = _open_whole(file)
        return table, None, known
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", None) not in _BROKEN:
            raise CatalogueDamaged(
                f"{file}: {error}; name another file with --catalogue."
            ) from None
    aside = file.with_name(f"{file.name}.broken-{time.time_ns()}")
    file.rename(aside)
    for suffix in ("-wal", "-shm"):
        Path(f"{file}{suffix}").unlink(missing_ok=True)
    table, known = _open_whole(file)
    return table, str(aside), known


def _open_whole(file: Path) -> tuple[sqlite3.Connection, list[str]]:
    """The table in a transaction that the scan is to end, and the folders it knew."""
    table = sqlite3.connect(file, timeout=60, isolation_level=None)
    try:
        (application,) = table.execute("pragma application_id").fetchone()
        (version,) = table.execute("pragma user_version").fetchone()
        tables = {n for (n,) in table.execute("select name from sqlite_master where type='table'")}
        if application != APPLICATION and tables:
            raise CatalogueDamaged(
                f"{file} is a database, but not a catalogue of checkpoints; name another file."
            )
        if version > VERSION:
            raise CatalogueDamaged(
                f"{file} was made by a later version ({version}, this one knows {VERSION}); "
                f"name another file with --catalogue."
            )
        if tables and table.execute("pragma quick_check(1)").fetchone() != ("ok",):
            broken = sqlite3.DatabaseError("not whole")
            broken.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise broken
        known = [p for (p,) in table.execute("select path from folder")] if tables else []
        table.execute("pragma journal_mode = wal")
        table.execute("pragma synchronous = normal")
        table.execute("begin immediate")
        if version < VERSION:
            for name in tables:
                table.execute(f'drop table "{name}"')
        for statement in filter(None, (part.strip() for part in TABLES.split(";"))):
            table.execute(statement)
        table.execute(f"pragma application_id = {APPLICATION}")
        table.execute(f"pragma user_version = {VERSION}")
    except BaseException:
        table.close()
        raise
    return table, known
