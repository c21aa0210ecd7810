"""Holder: whether the process that writes a branch still lives, asked without touching its lock.

Needs   the lock file of a branch (workbench/store/lock.py).
Yields  `holder_of`: Holder, alive, gone or not to be told.

Taking the lock to see whether it is free would refuse a writer that begins at that moment, so the
kernel's list of locks is read instead (/proc/locks, Linux). Where it does not show them, as inside
some containers, the note in the file says which process of which host to look for. Of a writer on
another host nothing can be told from here.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

LOCKS = Path("/proc/locks")
_NOTE_BYTES = 4096


@dataclass(frozen=True)
class Holder:
    """Who writes a branch."""

    state: Literal["alive", "gone", "unknown"]
    """gone: a writer was there and ended, however it did. unknown: it is on another host."""
    pid: int | None = None
    host: str = ""
    since_utc: str = ""


def holder_of(lock: Path) -> Holder | None:
    """Who holds the lock file, or held it last; None where there was never one.

    Example:
        >>> import tempfile
        >>> from workbench.store.lock import FileLock
        >>> path = Path(tempfile.mkdtemp()) / "main.lock"
        >>> with FileLock(path, "a branch") as held:
        ...     held.acquire()
        ...     holder_of(path).state
        'alive'
        >>> holder_of(path).state
        'gone'
    """
    try:
        with lock.open("rb") as file:
            note, place = _note(file.read(_NOTE_BYTES)), os.fstat(file.fileno())
    except OSError:
        return None
    pid, host = note.get("pid"), str(note.get("host", ""))[:64]
    pid = pid if type(pid) is int and pid > 0 else None
    since = str(note.get("since_utc", ""))[:40]
    if _is_listed(place, pid):
        return Holder("alive", pid, host, since)
    if host and host != socket.gethostname():
        return Holder("unknown", pid, host, since)
    if not _lists_locks() and pid is not None and _lives(pid):
        return Holder("alive", pid, host, since)
    return Holder("gone", pid, host, since)


def _note(text: bytes) -> dict[str, Any]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _locks() -> list[list[str]]:
    try:
        return [line.split() for line in LOCKS.read_text().splitlines()]
    except OSError:
        return []


def _is_listed(place: os.stat_result, pid: int | None) -> bool:
    """Whether some process holds a flock on that file."""
    device = f"{os.major(place.st_dev):02x}:{os.minor(place.st_dev):02x}"
    for words in _locks():
        if len(words) < 6 or words[1] != "FLOCK":
            continue
        there, _, inode = words[5].rpartition(":")
        # Some file systems list a device of their own: then the process decides.
        if inode == str(place.st_ino) and (there == device or words[4] == str(pid)):
            return True
    return False


@cache
def _lists_locks() -> bool:
    """Whether the list can be trusted: a lock of our own is in it."""
    with tempfile.TemporaryFile() as own:
        fcntl.flock(own, fcntl.LOCK_EX)
        return _is_listed(os.fstat(own.fileno()), os.getpid())


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True
