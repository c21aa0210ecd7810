"""The catalogue: the checkpoints of many runs in one table, to be asked by any of their fields.

Needs   a file for the table; scan.py to fill it.
Yields  Catalogue: `list`, `at`, `same_weights`, `folders`, `faults`.

The table holds nothing that the runs do not: it may be deleted at any time, and a scan of the same
folders makes it again. It is SQLite with a write-ahead log, so readers see the last finished scan
while the next one goes on, and a scan that is killed leaves no trace. It belongs on a local disk: a
write-ahead log cannot be shared over a network file system.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from checkpoints_index.entry import Entry
from checkpoints_index.errors import CatalogueDamaged, CatalogueMissing

VARIABLE = "WORKBENCH_CATALOGUE"
"""Of the environment: the catalogue's file, where none is named."""

VERSION = 1
APPLICATION = 0x77626361
"""What SQLite keeps in the file's header for us: nobody else's database is ever written to."""

TABLES = """
create table if not exists folder (path text primary key, scanned_utc real, checkpoints integer);
create table if not exists fault (file text primary key, message text not null);
create table if not exists entry (
    file text primary key, stamp text not null, run_path text not null, run text not null,
    branch text not null, step integer, tokens_seen integer, utc real, phase text not null,
    trainer text, format text not null, kind text, complete integer not null, why text not null,
    path text not null, size_bytes integer not null, dtype text, fingerprint text,
    architecture_hash text, parent text, merged_from text, recorded integer not null, record text
) without rowid;
create index if not exists entry_place on entry (run_path, branch, step);
create index if not exists entry_fingerprint on entry (fingerprint);
"""

COLUMNS = tuple(field.name for field in fields(Entry))
Entries = list[Entry]
"""Named, because `Catalogue.list` hides the built-in inside the class."""


def default_file() -> Path:
    """Where the catalogue lies if nobody says otherwise: $WORKBENCH_CATALOGUE, else in the user's
    data folder ($XDG_DATA_HOME, else ~/.local/share).
    """
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "training-dynamics-workbench" / "catalogue.sqlite"


class Catalogue:
    """The table in `file`, opened for each question.

    Example:
        >>> import tempfile
        >>> from checkpoints_index.scan import scan
        >>> catalogue = Catalogue(tempfile.mkdtemp() + "/catalogue.sqlite")
        >>> scan(catalogue, [tempfile.mkdtemp()]).checkpoints, catalogue.list()
        (0, [])
    """

    def __init__(self, file: str | Path | None = None) -> None:
        self.file = default_file() if file is None else Path(file)

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Catalogue:
        """A catalogue in memory, of these entries alone; for questions to a single run."""
        return _InMemory(entries)

    @property
    def exists(self) -> bool:
        """Whether anything was ever scanned into it."""
        return os.path.exists(self.file)

    def list(
        self,
        *,
        run: str | None = None,
        branch: str | None = None,
        phase: str | None = None,
        trainer: str | None = None,
        format: str | None = None,
        kind: str | None = None,
        after: int | None = None,
        until: int | None = None,
        tokens_after: int | None = None,
        complete: bool | None = None,
        fingerprint: str | None = None,
        limit: int | None = None,
    ) -> Entries:
        """Entries that answer every filter, by run, branch and step.

        Args:
            run: the run's name, or its folder.
            branch, phase, trainer, format, kind, complete: equal to these.
            after, until: steps with after < step <= until.
            tokens_after: more training tokens than these.
            fingerprint: the first digits of it.
            limit: at most so many.

        Raises:
            CatalogueMissing: nothing was scanned yet.
            CatalogueDamaged: the file cannot be read.
        """
        exact = {"branch": branch, "phase": phase, "trainer": trainer, "format": format,
                 "kind": kind, "complete": complete}  # fmt: skip
        asked: dict[str, Any] = {f"{name} = ?": v for name, v in exact.items()}
        asked |= {"step > ?": after, "step <= ?": until, "tokens_seen > ?": tokens_after}
        if run is not None:
            asked["(run = ? or run_path = ?)"] = (run, str(Path(run).absolute()))
        if fingerprint is not None:
            # As a range, which the index serves: hexadecimal digits sort before 'g'.
            asked["fingerprint >= ? and fingerprint < ?"] = (fingerprint, fingerprint + "g")
        return self._ask({sql: v for sql, v in asked.items() if v is not None}, limit)

    def at(self, path: str | Path) -> Entries:
        """Entries of the checkpoint that lies at `path`."""
        where = str(path) if "://" in str(path) else str(Path(path).absolute())
        return self._ask({"path = ?": where})

    def same_weights(self, entry: Entry) -> Entries:
        """Other entries with this one's fingerprint: the same weights elsewhere."""
        if entry.fingerprint is None:
            return []
        return self._ask({"fingerprint = ?": entry.fingerprint, "path <> ?": entry.path})

    @property
    def folders(self) -> dict[str, float]:
        """The folders that were scanned, and when (UTC, s since 1970)."""
        with self.reading() as table:
            return dict(table.execute("select path, scanned_utc from folder order by 1"))

    @property
    def faults(self) -> dict[str, str]:
        """What the last scans could not read, by file."""
        with self.reading() as table:
            return dict(table.execute("select file, message from fault order by 1"))

    def _ask(self, filters: dict[str, Any], limit: int | None = None) -> Entries:
        values: Sequence[Any] = [
            one for v in filters.values() for one in (v if isinstance(v, tuple) else (v,))
        ]
        sql = (
            f"select {', '.join(COLUMNS)} from entry where {' and '.join(filters) or '1'} "
            f"order by run_path, branch, step, path limit ?"
        )
        with self.reading() as table:
            try:
                rows = table.execute(sql, [*values, -1 if limit is None else limit]).fetchall()
            except UnicodeEncodeError:
                # The table is UTF-8: what is not cannot be in it.
                return []
        return [from_row(row) for row in rows]

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The table as the last scan left it, not to be written.

        Raises:
            CatalogueMissing, CatalogueDamaged: as `list`.
        """
        if not self.file.is_file():
            raise CatalogueMissing(
                f"no catalogue at {self.file}; make it: workbench checkpoints scan DIR..."
            )
        remedy = "move it away and scan again: workbench checkpoints scan DIR..."
        try:
            table = open_to_read(self.file)
            try:
                check_version(table, self.file)
                yield table
            finally:
                table.close()
        except sqlite3.Error as error:
            raise CatalogueDamaged(f"{self.file}: {error}; {remedy}") from None


class _InMemory(Catalogue):
    """Entries that no file holds."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        super().__init__(":memory:")
        self._table = sqlite3.connect(":memory:")
        self._table.executescript(TABLES)
        marks = ", ".join("?" * (len(COLUMNS) + 2))
        self._table.executemany(
            f"insert into entry (file, stamp, {', '.join(COLUMNS)}) values ({marks})",
            ((f"{i}", "", *to_row(entry)) for i, entry in enumerate(entries)),
        )

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        yield self._table


def open_to_read(file: Path) -> sqlite3.Connection:
    """A connection that cannot write; from a folder that cannot be written, too."""
    where = file.absolute().as_uri()
    table = sqlite3.connect(f"{where}?mode=ro", uri=True, timeout=30)
    try:
        table.execute("select 1 from sqlite_master limit 1").fetchone()
    except sqlite3.OperationalError:
        # A write-ahead log needs a file beside it, which a read-only place does not allow.
        table.close()
        table = sqlite3.connect(f"{where}?immutable=1", uri=True)
    return table


def check_version(table: sqlite3.Connection, file: Path) -> None:
    """Refuses a database that is not a catalogue, or not one of this version."""
    (application,) = table.execute("pragma application_id").fetchone()
    (version,) = table.execute("pragma user_version").fetchone()
    if not table.execute("select 1 from sqlite_master limit 1").fetchone():
        # Made by a first scan that did not come to its end.
        raise CatalogueMissing(f"{file} is empty; fill it: workbench checkpoints scan DIR...")
    if application != APPLICATION:
        raise CatalogueDamaged(
            f"{file} is a database, but not a catalogue of checkpoints; name another file with "
            f"--catalogue or ${VARIABLE}."
        )
    if version != VERSION:
        raise CatalogueMissing(
            f"{file} was made by another version ({version}, expected {VERSION}); make it again: "
            f"workbench checkpoints scan DIR..."
        )


def to_row(entry: Entry) -> tuple[Any, ...]:
    """The values of an entry in the order of COLUMNS."""
    values = {name: getattr(entry, name) for name in COLUMNS}
    values["parent"] = json.dumps(entry.parent)
    values["merged_from"] = json.dumps(entry.merged_from)
    return tuple(values.values())


def from_row(row: Sequence[Any]) -> Entry:
    """The entry of a row."""
    values = dict(zip(COLUMNS, row, strict=True))
    parent, merged = json.loads(values["parent"]), json.loads(values["merged_from"])
    values["parent"] = tuple(parent) if parent else None
    values["merged_from"] = tuple(tuple(m) if isinstance(m, list) else m for m in merged)
    values["complete"], values["recorded"] = bool(values["complete"]), bool(values["recorded"])
    return Entry(**values)
