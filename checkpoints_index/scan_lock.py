"""The lock under which one process scans into a catalogue; it ends with its holder.

Needs   a path beside the catalogue.
Yields  `scan_lock`, a context; CatalogueBusy names host and process of the holder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from checkpoints_index.errors import CatalogueBusy

POLL_S = 0.05


@contextlib.contextmanager
def scan_lock(file: Path, *, wait_s: float) -> Iterator[None]:
    """Holds the lock on `file` while the context lasts.

    Args:
        file: made where it is missing, and left there.
        wait_s: seconds to wait for another holder before refusing.

    Raises:
        CatalogueBusy: another process still holds it.
    """
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _take(fd, file, time.monotonic() + wait_s)
        note = {"host": socket.gethostname(), "pid": os.getpid()}
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(note).encode(), 0)
        yield
    finally:
        os.close(fd)


def _take(fd: int, file: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise CatalogueBusy(
                    f"{_holder(fd)} is scanning into {file.with_suffix('')}; wait until it is "
                    f"done, or name another file with --catalogue."
                ) from None
            time.sleep(POLL_S)


def _holder(fd: int) -> str:
    try:
        note = json.loads(os.pread(fd, 4096, 0))
        return f"process {int(note['pid'])} on host {str(note['host'])[:80]}"
    except (ValueError, KeyError, TypeError):
        return "another process"
