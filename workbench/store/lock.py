"""A lock on a file that dies with its holder, and says who holds it.

Needs   a file on a local or network file system that honours flock.
Yields  FileLock; StoreBusy that names host and process.

The operating system frees a flock when its holder ends, however it ends: there is no stale lock to
clean up after a kill. A forked child (a DataLoader worker) would inherit the lock and keep it when
its parent dies, so children drop their copy as they are born; that does not free the parent's.

Network file systems: NFS (Linux 2.6.12 and later) and Lustre mounted with `-o flock` pass the lock
on to the server, so it holds among hosts; an NFS server frees it when the host that held it comes
back or its lease there runs out, not at once. Mounted with `nolock`, `local_lock=flock` or
`-o localflock` the lock holds within one host only, which no program can see: then let one host
write. A file system without locks is refused.

What the lock file says is for people. It decides nothing, so a file with any content is no danger.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import time
import weakref
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench.errors import StoreBusy, UsageError

WAIT_SECONDS = 60
"""How long a lock that is waited for is waited for."""
SIGNED_WITHIN = 20
"""Hundredths of a second after which a lock without a signature is taken for one that has none."""

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
        """Take the lock; where another holds it, wait for WAIT_SECONDS, or raise StoreBusy at once.

        Raises:
            StoreBusy: another process, or another lock in this one, has it, and keeps it.
            UsageError: something that is no lock file lies at `path`, or the file system has no
                locks.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = self._open()
        while True:
            try:
                self._lock(fd, wait)
                if _is_at(fd, self.path):
                    break
            except BaseException:
                os.close(fd)
                raise
            # Somebody removed the file meanwhile: that lock would keep nobody out.
            os.close(fd)
            fd = self._open()
        _sign(fd)
        self._fd = fd
        _held.add(self)

    def _open(self) -> int:
        """The lock file, opened; never a link, which would sign a file elsewhere."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        if not self.path.parent.is_symlink():
            try:
                fd = os.open(self.path, flags, 0o644)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                    raise
            else:
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    return fd
                os.close(fd)
        raise UsageError(
            f"{self.path} or its folder is a link, a folder or a device, not the plain file that "
            f"locks {self.what}; remove it, then try again."
        )

    def _lock(self, fd: int, wait: bool) -> None:
        # A holder that was stopped must not stop those who wait for it.
        until = time.monotonic() + (WAIT_SECONDS if wait else 0)
        pause = 0.001
        while not self._try_lock(fd):
            if time.monotonic() >= until:
                raise StoreBusy(
                    f"{self.what} is being written by {_holder(fd)}; one writer at a time. "
                    f"Wait until it is done or end it, then try again."
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.05)

    def _try_lock(self, fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            raise UsageError(
                f"the file system of {self.path} has no file locks ({error.strerror}), so two "
                f"writers could not be kept apart; keep the run on another, or mount this one "
                f"with locks (NFS: without nolock; Lustre: -o flock)."
            ) from error
        return True

    def check(self) -> None:
        """StoreBusy where the lock is not held any more: closed, or its file was taken away."""
        if self._fd is None or not _is_at(self._fd, self.path):
            raise StoreBusy(
                f"the lock of {self.what} was {'closed' if self._fd is None else 'removed'} while "
                f"it was needed; another process may write there now. Open it again and go on."
            )

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


def holder_note() -> dict[str, Any]:
    """Who this process is, as its locks say it."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since_utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def read_holder(text: bytes) -> str:
    """The holder as a refusal names it; whatever else the note may hold, one short line.

    Example:
        >>> read_holder(b'{"pid": 7, "host": "node3", "since_utc": "2026-01-01T00:00:00+00:00"}')
        'process 7 on host node3 since 2026-01-01T00:00:00+00:00'
    """
    try:
        note = json.loads(text)
        pid, host, since = (_plain(note[key]) for key in ("pid", "host", "since_utc"))
    except (ValueError, KeyError, TypeError, RecursionError):
        # Mostly: the holder has the lock and has not signed yet.
        return "a process that has not signed the lock"
    return f"process {pid} on host {host} since {since}"


def _plain(value: object) -> str:
    if not isinstance(value, str | int):
        raise TypeError
    return "".join(c for c in str(value)[:64] if c.isascii() and c.isprintable())


def _is_at(fd: int, path: Path) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)


def _sign(fd: int) -> None:
    """Best effort: on a full disk the lock holds without a name in it."""
    text = json.dumps(holder_note()).encode()
    with contextlib.suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, text, 0)


def _holder(fd: int) -> str:
    """Who signed the lock; one that has just been taken is signed a moment later."""
    text = b""
    for _ in range(SIGNED_WITHIN):
        with contextlib.suppress(OSError):
            text = os.pread(fd, 4096, 0)
        if text:
            break
        time.sleep(0.01)
    return read_holder(text)
