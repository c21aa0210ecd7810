"""The index of a run's checkpoints: a record for each, and a catalogue to ask them by.

Needs   a run's folder.
Yields  CheckpointIndex: add, get, list, lineage.

On disk  <run>/index/<branch>/step-00000400.json, one record each: the truth, written whole or not
         at all. <run>/index/catalogue.sqlite: the same in a table. It is brought up to date with
         the files at every question, so it may be deleted, be older than the files or come from
         another machine; where it cannot be written (a shared, read-only run) it is made in memory.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from checkpoints_index.errors import CheckpointNotFound, RecordError
from checkpoints_index.record import BRANCH_NAME, CheckpointRecord

Records = list[CheckpointRecord]
Paths = list[Path]
"""Named, because `CheckpointIndex.list` hides the built-in inside the class."""

CATALOGUE = "catalogue.sqlite"
RECORD_AT_MOST = 16 << 20
"""Bytes of a record file."""

VERSION = 1
"""Of the table; another version is thrown away and made again."""

APPLICATION = 0x77626978
"""What SQLite keeps in the file's header for us: nobody else's database is ever written to."""

_TABLE = """
create table if not exists checkpoint (
    file text primary key, stamp text not null, branch text not null, step integer not null,
    phase text not null, format text not null, complete integer not null, record text not null
)"""
_COLUMNS = ("file", "stamp", "branch", "step", "phase", "format", "complete", "record")


class _NotOurs(Exception):
    """A database that lies where the catalogue should, and is somebody else's."""


class CheckpointIndex:
    """The checkpoints of one run.

    Example:
        >>> import tempfile
        >>> index = CheckpointIndex(tempfile.mkdtemp())
        >>> _ = index.add(CheckpointRecord(run="demo", branch="main", step=400, tokens_seen=1600,
        ...     utc=1.7e9, format="native", uri="checkpoints/main/step-00000400", size_bytes=1))
        >>> [record.step for record in index.list(branch="main")]
        [400]
    """

    def __init__(self, run_path: str | Path) -> None:
        self.run_path = Path(run_path)
        self.folder = self.run_path / "index"

    def record_file(self, branch: str, step: int) -> Path:
        """Where the record of a checkpoint lies."""
        if not BRANCH_NAME.fullmatch(branch):
            raise RecordError(f"branch {ascii(branch)[:60]}: not a branch name.")
        return self.folder / branch / f"step-{step:08d}.json"

    def add(self, record: CheckpointRecord, *, replace: bool = False) -> Path:
        """Enter a checkpoint; durable when it returns. Entering the same record again does nothing.

        Args:
            record: checked already, by being one.
            replace: overwrite another record of that branch and step: the checkpoint was made
                again.

        Returns:
            The record's file.

        Raises:
            RecordError: there is another record of that branch and step.
        """
        file = self.record_file(record.branch, record.step)
        self._make_folder(file.parent)
        try:
            _write_whole(file, record.to_json(), replace=replace)
        except FileExistsError:
            if _read(file) == record:
                return file
            raise RecordError(
                f"{file} records another checkpoint of branch {record.branch!r} at step "
                f"{record.step}; use replace=True where it was made again."
            ) from None
        return file

    def _make_folder(self, folder: Path) -> None:
        """The folder of a branch's records; one that is a link to elsewhere is refused."""
        folder.mkdir(parents=True, exist_ok=True)
        for part in (self.folder, folder):
            if part.is_symlink():
                raise RecordError(
                    f"{part} is a link to {ascii(str(part.resolve()))[:200]}; records are written "
                    f"inside the run's folder only. Put a folder in the link's place."
                )

    def get(self, branch: str, step: int) -> CheckpointRecord:
        """The record of a checkpoint; CheckpointNotFound that tells the steps near it."""
        file = self.record_file(branch, step)
        if file.exists():
            return _read(file)
        steps = [record.step for record in self.list(branch=branch)]
        near = sorted(sorted(steps, key=lambda s: abs(s - step))[:5])
        have = f"near it: {', '.join(map(str, near))}" if near else "the branch has none"
        raise CheckpointNotFound(
            f"no checkpoint of branch {branch!r} at step {step} in {self.run_path}; {have}."
        )

    @property
    def branches(self) -> list[str]:
        """Branches that have records, by name."""
        with self._catalogue() as table:
            return [
                b for (b,) in table.execute("select distinct branch from checkpoint order by 1")
            ]

    def list(
        self,
        *,
        branch: str | None = None,
        after: int | None = None,
        until: int | None = None,
        phase: str | None = None,
        format: str | None = None,
        complete: bool | None = None,
    ) -> Records:
        """Records that answer every filter, by branch and step.

        Args:
            branch, phase, format, complete: equal to these.
            after, until: steps with after < step <= until.

        Raises:
            RecordError: a record file cannot be read; it is named.
        """
        asked = {
            "branch = ?": branch,
            "step > ?": after,
            "step <= ?": until,
            "phase = ?": phase,
            "format = ?": format,
            "complete = ?": complete,
        }
        filters = {sql: value for sql, value in asked.items() if value is not None}
        where = " and ".join(filters) or "1"
        with self._catalogue() as table:
            rows = table.execute(
                f"select record from checkpoint where {where} order by branch, step",
                list(filters.values()),
            ).fetchall()
        return [CheckpointRecord.from_json(text) for (text,) in rows]

    def lineage(self, branch: str, forks: Mapping[str, tuple[str, int]] | None = None) -> Records:
        """The checkpoints that lead to the end of `branch`, its trunk's up to the fork included, by
        step.

        Args:
            branch: the arm.
            forks: parent and step by branch, where the store knows them; else the records' parents
                say it.
        """
        records: dict[str, Records] = {}
        for record in self.list():
            records.setdefault(record.branch, []).append(record)
        line: Records = []
        until, seen = 2**63, set()
        while branch not in seen:
            seen.add(branch)
            mine = [record for record in records.get(branch, []) if record.step <= until]
            line = mine + line
            fork = (forks or {}).get(branch) or _fork(mine, branch)
            if fork is None:
                return line
            branch, until = fork[0], min(until, fork[1])
        raise RecordError(
            f"the branches {', '.join(sorted(seen))} of {self.run_path} are each other's parents; "
            f"mend 'parent' in their records under {self.folder}."
        )

    def rebuild(self) -> int:
        """Make the catalogue anew from the records; returns how many there are."""
        if self._holds_its_catalogue:
            (self.folder / CATALOGUE).unlink(missing_ok=True)
        with self._catalogue() as table:
            return int(table.execute("select count(*) from checkpoint").fetchone()[0])

    @contextlib.contextmanager
    def _catalogue(self) -> Iterator[sqlite3.Connection]:
        """The table, up to date with the files."""
        table = self._open_table()
        try:
            yield table
        finally:
            table.close()

    @property
    def _holds_its_catalogue(self) -> bool:
        """Whether the catalogue lies inside the run, and not behind a link somewhere else."""
        links = self.folder.is_symlink() or (self.folder / CATALOGUE).is_symlink()
        return self.folder.is_dir() and not links

    def _open_table(self) -> sqlite3.Connection:
        """The catalogue on disk; a broken one is made again. One that cannot be written, or is
        somebody else's, is left as it is, and made in memory.
        """
        file = self.folder / CATALOGUE
        if self._holds_its_catalogue:
            for attempt in range(2):
                try:
                    return self._up_to_date(sqlite3.connect(file, timeout=30))
                except (sqlite3.OperationalError, _NotOurs):
                    break
                except sqlite3.DatabaseError:
                    if attempt == 0:
                        file.unlink(missing_ok=True)
        return self._up_to_date(sqlite3.connect(":memory:"))

    def _up_to_date(self, table: sqlite3.Connection) -> sqlite3.Connection:
        try:
            with table:
                # Taken before the files are looked at: two processes must not both bring it up to
                # date.
                table.execute("begin immediate")
                _claim_table(table)
                self._follow_files(table)
        except BaseException:
            table.close()
            raise
        return table

    def _follow_files(self, table: sqlite3.Connection) -> None:
        found = dict(self.files())
        known = dict(table.execute("select file, stamp from checkpoint"))
        gone = [(file,) for file in known.keys() - found.keys()]
        table.executemany("delete from checkpoint where file = ?", gone)
        for file, stamp in found.items():
            if known.get(file) == stamp:
                continue
            record = self.read_file(file)
            table.execute(
                "insert or replace into checkpoint values (?, ?, ?, ?, ?, ?, ?, ?)",
                (file, stamp, record.branch, record.step, record.phase, record.format,
                 record.complete, record.to_json()),
            )  # fmt: skip

    def read_file(self, file: str) -> CheckpointRecord:
        """The record in a file of the index folder; RecordError where it is not the one that
        belongs there.
        """
        record = _read(self.folder / file)
        place = self.record_file(record.branch, record.step)
        if place != self.folder / file:
            raise RecordError(
                f"{self.folder / file} says branch {record.branch!r}, step {record.step}; "
                f"move it to {place} or mend it."
            )
        return record

    @property
    def exists(self) -> bool:
        """Whether there is any record."""
        return any(any(map(_is_record, os.listdir(folder))) for folder in self._folders())

    def _folders(self) -> Paths:
        if not self.folder.is_dir():
            return []
        return [folder for folder in sorted(self.folder.iterdir()) if folder.is_dir()]

    def files(self) -> Iterator[tuple[str, str]]:
        """Record files below the index folder, with what changes when they do."""
        for folder in self._folders():
            with os.scandir(folder) as entries:
                found = [entry for entry in entries if _is_record(entry.name)]
            for entry in found:
                # Gone since it was listed, or a link to nothing: not there.
                with contextlib.suppress(FileNotFoundError):
                    yield f"{folder.name}/{entry.name}", stamp_of(entry)


def _claim_table(table: sqlite3.Connection) -> None:
    """Makes the table where it is missing or of another version; _NotOurs for a database that is
    not a run's catalogue.
    """
    (application,) = table.execute("pragma application_id").fetchone()
    (version,) = table.execute("pragma user_version").fetchone()
    if application != APPLICATION:
        names = [
            name for (name,) in table.execute("select name from sqlite_master where sql <> ''")
        ]
        columns = tuple(row[1] for row in table.execute("pragma table_info(checkpoint)"))
        # Ours had no mark at first; whoever has this very table and no other made it with us.
        if application or (names and (names, columns) != (["checkpoint"], _COLUMNS)):
            raise _NotOurs
        table.execute(f"pragma application_id = {APPLICATION}")
    if version != VERSION:
        table.execute("drop table if exists checkpoint")
        table.execute(f"pragma user_version = {VERSION}")
    table.execute(_TABLE)


def _is_record(name: str) -> bool:
    return name.startswith("step-") and name.endswith(".json")


def _fork(records: Records, branch: str) -> tuple[str, int] | None:
    """Where the earliest record says that the branch came from."""
    parents = [r.parent for r in records if r.parent and r.parent[0] != branch]
    return parents[0] if parents else None


def stamp_of(file: os.DirEntry[str] | Path) -> str:
    """What changes when a file is written anew."""
    stat = file.stat()
    return f"{stat.st_mtime_ns}.{stat.st_size}.{stat.st_ino}"


def _read(file: Path) -> CheckpointRecord:
    try:
        # A pipe would never end, and no record is that long.
        if not file.is_file() or file.stat().st_size > RECORD_AT_MOST:
            raise RecordError(f"no file of at most {RECORD_AT_MOST} bytes.")
        return CheckpointRecord.from_json(file.read_bytes())
    except RecordError as error:
        raise RecordError(f"{file}: {error} Mend or remove the file.") from None


def _write_whole(file: Path, text: str, *, replace: bool) -> None:
    """Write beside, sync, then give it its name: a reader and a power cut see the old file or the
    new one.

    Raises:
        FileExistsError: there is one, and `replace` is False.
    """
    handle, partial = tempfile.mkstemp(prefix=".partial-", dir=file.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(partial, 0o644)
        if not replace:
            _claim(partial, file)
        else:
            os.replace(partial, file)
    finally:
        Path(partial).unlink(missing_ok=True)
    for folder in (file.parent, file.parent.parent):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _claim(partial: str, file: Path) -> None:
    """Names the file, unless another process was first."""
    try:
        # A link never takes the place of what is there, which a rename silently does.
        os.link(partial, file)
    except FileExistsError:
        raise
    except OSError:
        # A file system without links.
        if file.exists():
            raise FileExistsError(str(file)) from None
        os.replace(partial, file)
