"""A lock on a file that dies with its holder, and says who holds it.

Needs   a file on a local or network file system that honours flock.
Yields  FileLock; StoreBusy that names host and process.

The operating system frees a flock when its holder ends, however it ends: there is no stale lock to
clean up after a kill. A forked child (a DataLoader worker) would inherit the lock and keep it when
its parent dies, so children drop their copy as they are born; that does not free the parent's.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import weakref
from datetime import UTC, datetime
from pathlib import Path

from workbench.errors import StoreBusy

_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _drop_in_child() -> None:
    for lock in list(_held):
        lock.close()


os.register_at_fork(after_in_child=_drop_in_child)


class FileLock:
    """An exclusive lock on `path`; host, process and start are written into it for whoever is
    refused.

    Args:
        path: the lock file; made where it is missing, and left there afterwards (removing it would
            race).
        what: what is being locked, as the refusal should call it.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self.what = what
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        return self._fd is not None

    def acquire(self, *, wait: bool = False) -> None:
        """Take the lock; where another holds it, wait, or raise StoreBusy at once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(fd)
            os.close(fd)
            raise StoreBusy(
                f"{self.what} is being written by {holder}; one writer at a time. "
                f"Wait until it is done or end it, then try again."
            ) from None
        except BaseException:
            os.close(fd)
            raise
        if not wait:
            _sign(fd)
        self._fd = fd
        _held.add(self)

    def close(self) -> None:
        """Give the lock back; nothing happens where it is not held."""
        fd, self._fd = self._fd, None
        _held.discard(self)
        if fd is not None:
            os.close(fd)

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _sign(fd: int) -> None:
    note = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since_utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps(note).encode(), 0)


def _holder(fd: int) -> str:
    try:
        note = json.loads(os.pread(fd, 4096, 0))
        return f"process {note['pid']} on host {note['host']} since {note['since_utc']}"
    except (ValueError, KeyError, TypeError):
        # The holder has the lock but has not signed yet: it is a moment old.
        return "a process that has only just begun"
