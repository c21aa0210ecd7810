"""The journal of a branch: rows that wait for the next commit, safe in a file.

Needs   the rows of each append; the snapshot that the branch stands at.
Yields  Journal, for the writer: `add`, `seal`, `sync`, `begin`. `read_journal` and `read_tail`, for
        who comes after a crash and for who reads a live run.

A commit fills chunks, so it comes every fifty steps or so; a crash must not take that much. Rows
go at once into <store>/journal/<branch>.<snapshot>.log as well, in frames that carry their length
and a CRC-32: a frame is there whole or not at all. Only rows that come step by step are kept so;
what comes at a checkpoint is committed there and then.

Whoever reads a journal passes over a frame that is damaged, says so, and goes on with the next
one that is whole. What stands behind the last whole frame is what a kill cut short, and nothing to
tell.

The file's name says which commit its rows come after. A commit begins another file, and removes
the one before when the disk has the commit. Files of other commits than the branch's tip are what a
failing disk or a kill left between the two; a writer takes from them what the branch does not hold.
A rollback removes them all: their rows belong to what it set aside.

Layout of a frame: 4 bytes b"WBJ1", length of the payload (uint64, little-endian), CRC-32 of the
payload (uint32), payload. Payload: length of its header (uint32), header (JSON: a list of
{"group": ..., "rows": {name: [dtype, shape]}}), and the arrays' bytes in that order, row-major.
"""

from __future__ import annotations

import json
import math
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from workbench.store.schema import GROWING
from workbench.store.strand import variables_along

JOURNALLED = ("router", "train", "traces")
"""Groups whose rows come step by step."""

_MAGIC = b"WBJ1"
_FRAME = struct.Struct("<4sQI")
_HEADER = struct.Struct("<I")
FRAME_AT_MOST = 1 << 32

Entry = tuple[str, dict[str, np.ndarray]]
"""A group, and its rows by name."""

Tail = Mapping[str, Mapping[str, dict[str, np.ndarray]]]
"""Rows after the committed ones: group -> growing dim -> variable -> values."""


def journal_file(folder: Path, branch: str, snapshot: str) -> Path:
    """Where the rows lie that come after `snapshot` on `branch`."""
    return folder / f"{branch}.{snapshot}.log"


class Journal:
    """The open journal of a branch's one writer.

    Args:
        folder: of all journals of the store; made with the first rows.
        branch: whose rows these are.
        snapshot: the commit that they come after.

    Raises (any method that writes):
        OSError: the disk is full or fails. What was added still waits, the file ends with its last
            whole frame, and the next call tries again.
    """

    def __init__(self, folder: Path, branch: str, snapshot: str) -> None:
        self.folder = folder
        self.branch = branch
        self._snapshot = snapshot
        self._fd: int | None = None
        self._end = 0
        self._waiting: list[Entry] = []
        self._offered = 0
        self._dirty = False
        self._old: list[Path] = []

    @property
    def file(self) -> Path:
        """The file of the rows since the last commit; there may be none."""
        return journal_file(self.folder, self.branch, self._snapshot)

    def entries(self) -> list[Entry]:
        """What a writer that is gone has left here; the file is cut after its last whole frame.
        Where others are damaged, a copy of all of it is kept beside it.
        """
        if not self.file.exists():
            return []
        found, end = _read_kept(self.file)
        self._open()
        assert self._fd is not None
        os.ftruncate(self._fd, end)
        self._end, self._dirty = end, True
        return found

    def older_entries(self) -> list[Entry]:
        """What lies in files of other commits, by the first step in each; most of it is committed.
        The files stay until `retire`.
        """
        files = self.folder.glob(f"{self.branch}.*.log") if self.folder.is_dir() else ()
        self._old = [file for file in files if file != self.file]
        held = [found for file in self._old if (found := _read_kept(file)[0])]
        held.sort(key=_first_step)
        return [entry for entries in held for entry in entries]

    def add(self, group: str, rows: Mapping[str, np.ndarray]) -> None:
        """Rows of one append, copied, to be written with the next `seal`."""
        if group in JOURNALLED and any(len(values) for values in rows.values()):
            self._waiting.append((group, {name: np.array(v) for name, v in rows.items()}))

    def seal(self) -> None:
        """Write what was added as one frame: from here on a kill of the process does not lose it,
        and readers see it.
        """
        if not self._waiting:
            return
        if self._fd is None:
            self._open()
        assert self._fd is not None
        frame = _frame(self._waiting)
        try:
            done = 0
            while done < len(frame):
                done += os.pwrite(self._fd, memoryview(frame)[done:], self._end + done)
        except BaseException:
            os.ftruncate(self._fd, self._end)
            raise
        self._end += len(frame)
        self._waiting.clear()
        self._offered = 0
        self._dirty = True

    def sync(self) -> None:
        """Seal, and wait until the disk has it: from here on a power cut does not lose it."""
        self.seal()
        if self._dirty and self._fd is not None:
            os.fsync(self._fd)
            self._dirty = False

    def offer(self) -> None:
        """What was added up to now is about to be committed."""
        self._offered = len(self._waiting)

    def begin(self, snapshot: str) -> None:
        """What was offered is committed as `snapshot`: the next rows begin another file. That of
        the rows before stays until `retire`: should the commit not outlive a power cut, they are
        needed.
        """
        del self._waiting[: self._offered]
        self._offered = 0
        if self._fd is not None:
            self._old.append(self.file)
        self.close()
        self._snapshot = snapshot

    def retire(self) -> None:
        """The disk has the last commit: remove the files of rows that are in it."""
        while self._old:
            self._old[-1].unlink(missing_ok=True)
            self._old.pop()

    def refuse(self) -> Path:
        """Put the files aside, whose rows the branch cannot take; returns the first one's place."""
        self.close()
        kept = [file.rename(file.with_suffix(".refused")) for file in (self.file, *self._old)
                if file.exists()]  # fmt: skip
        self._old = []
        return kept[0]

    def close(self) -> None:
        """Close the file and leave it where it is; what was not sealed is dropped."""
        fd, self._fd = self._fd, None
        self._end, self._dirty = 0, False
        if fd is not None:
            os.close(fd)

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)
        # A file whose name is not on the disk is lost with all that was synced in it.
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _first_step(entries: list[Entry]) -> int:
    labels = [rows[dim] for _, rows in entries for dim in ("step", "sample") if dim in rows]
    return min((int(steps[0]) for steps in labels if len(steps)), default=0)


def _read_kept(file: Path) -> tuple[list[Entry], int]:
    """The entries in `file`, and where its last whole frame ends; of damage a copy is kept."""
    data = file.read_bytes()
    found, end, lost = _frames(data)
    if lost:
        file.with_suffix(".damaged").write_bytes(data)
        _tell_damage(file, lost)
    return found, end


def _frame(entries: list[Entry]) -> bytes:
    header, arrays = [], []
    for group, rows in entries:
        held = {name: np.ascontiguousarray(values) for name, values in rows.items()}
        shapes = {name: [a.dtype.newbyteorder("<").str, a.shape] for name, a in held.items()}
        header.append({"group": group, "rows": shapes})
        arrays += [a.astype(a.dtype.newbyteorder("<"), copy=False).tobytes() for a in held.values()]
    text = json.dumps(header).encode()
    payload = b"".join([_HEADER.pack(len(text)), text, *arrays])
    return _FRAME.pack(_MAGIC, len(payload), zlib.crc32(payload)) + payload


def _frames(data: bytes) -> tuple[list[Entry], int, int]:
    """Entries of the whole frames in `data`, where the last of these ends, and how many bytes
    before that belong to none.
    """
    found: list[Entry] = []
    end, lost = 0, 0
    at = 0
    while at >= 0:
        payload = _payload(data, at)
        if payload is None:
            # Only behind damage is there a whole frame further on.
            at = data.find(_MAGIC, at + 1)
            continue
        found += _entries(payload)
        lost += at - end
        end = at = at + _FRAME.size + len(payload)
    return found, end, lost


def _payload(data: bytes, at: int) -> memoryview | None:
    """The payload of the frame that begins at `at`; None where no whole one does."""
    if at + _FRAME.size > len(data):
        return None
    magic, length, crc = _FRAME.unpack_from(data, at)
    start = at + _FRAME.size
    payload = memoryview(data)[start : start + length]
    whole = magic == _MAGIC and len(payload) == length and zlib.crc32(payload) == crc
    return payload if whole else None


def _entries(payload: memoryview) -> Iterator[Entry]:
    (length,) = _HEADER.unpack_from(payload)
    at = _HEADER.size + length
    for note in json.loads(bytes(payload[_HEADER.size : at])):
        rows = {}
        for name, (dtype, shape) in note["rows"].items():
            values = np.frombuffer(payload, dtype, count=math.prod(shape), offset=at)
            at += values.nbytes
            rows[name] = values.reshape(shape)
        yield note["group"], rows


class Found(NamedTuple):
    """What a journal holds."""

    entries: list[Entry]
    lost: int
    """Bytes before the last whole frame that belong to none: damage."""
    rest: bytes
    """What stands behind it: what a kill cut short."""


def is_cut_short(rest: bytes) -> bool:
    """Whether the bytes behind the last whole frame are the beginning of one, as a kill leaves it;
    otherwise they are damaged.
    """
    if len(rest) < _FRAME.size:
        return _MAGIC.startswith(rest[: len(_MAGIC)])
    magic, length, crc = _FRAME.unpack_from(rest)
    if magic != _MAGIC or _MAGIC in rest[len(_MAGIC) :]:
        return False
    payload = rest[_FRAME.size :]
    # A whole frame whose length alone is damaged is not cut short.
    return len(payload) < length and zlib.crc32(payload) != crc


def read_journal(file: Path) -> Found:
    """What the journal in `file` holds.

    Raises:
        FileNotFoundError: there is none, or its rows were committed meanwhile.
    """
    data = file.read_bytes()
    entries, end, lost = _frames(data)
    return Found(entries, lost, data[end:])


def read_tail(folder: Path, branch: str, snapshot: str) -> Tail:
    """Rows that come after `snapshot` on `branch`, by now; empty where there are none."""
    try:
        found = read_journal(journal_file(folder, branch, snapshot))
    except FileNotFoundError:
        return {}
    if found.lost:
        _tell_damage(journal_file(folder, branch, snapshot), found.lost)
    return tail_of(found.entries)


def _tell_damage(file: Path, lost: int) -> None:
    warnings.warn(
        f"{file}: {lost} bytes are damaged, and the steps in them are lost; those before and after "
        f"are there. Go on from the last checkpoint where they matter.",
        RuntimeWarning,
        stacklevel=4,
    )


def tail_of(entries: list[Entry]) -> Tail:
    """Entries joined by group and growing dim, as they will stand after the committed rows.

    Example:
        >>> step = np.array([1])
        >>> tail = tail_of([("train", {"step": step}), ("train", {"step": step + 1})])
        >>> tail["train"]["step"]["step"]
        array([1, 2])
    """
    pieces: dict[str, dict[str, dict[str, list[np.ndarray]]]] = {}
    for group, rows in entries:
        for dim in GROWING[group]:
            for name in variables_along(group, dim).keys() & rows.keys():
                of_dim = pieces.setdefault(group, {}).setdefault(dim, {})
                of_dim.setdefault(name, []).append(rows[name])
    joined: dict[str, dict[str, dict[str, Any]]] = {
        group: {
            dim: {name: np.concatenate(values) for name, values in of_dim.items()}
            for dim, of_dim in dims.items()
        }
        for group, dims in pieces.items()
    }
    return joined
