"""File systems of a test's own: one that can lose its power, one that is small.

Needs   Linux, root, mount; for power cuts mkfs.ext4 and a loop device.
Yields  LoopDisk: an ext4 image, mounted; `cut_power` drops what was not on the disk. small_tmpfs.
        Either skips the test, with the reason, where this machine does not allow it; both are
        unmounted whatever happens.

Source: EXT4_IOC_SHUTDOWN with NOLOGFLUSH, by which xfstests ("godown") simulates a power cut: from
that moment on nothing reaches the image, not even the file system's own log.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2


def _run(*words: str | Path) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True, timeout=60)


def _unmount(place: Path) -> None:
    for _ in range(100):
        done = subprocess.run(["umount", place], capture_output=True, text=True, check=False)
        if done.returncode == 0 or not os.path.ismount(place):
            return
        # A process that was killed a moment ago may still be on its way out.
        time.sleep(0.05)
    _run("umount", "--lazy", place)


def needs(*programs: str) -> None:
    """Skips the test where this machine cannot mount."""
    if not sys.platform.startswith("linux"):
        pytest.skip("mounting file systems of one's own is for Linux")
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    if missing := [name for name in programs if shutil.which(name) is None]:
        pytest.skip(f"no {missing[0]} here")


class LoopDisk:
    """An ext4 file system in a file, mounted at `place` while this is a context."""

    def __init__(self, folder: Path, mib: int = 192) -> None:
        needs("mkfs.ext4", "mount", "umount")
        self.image, self.place = folder / "disk.img", folder / "disk"
        folder.mkdir(parents=True, exist_ok=True)
        self.place.mkdir()
        with self.image.open("wb") as file:
            file.truncate(mib << 20)
        _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", self.image)

    def mount(self) -> None:
        try:
            _run("mount", "-o", "loop", self.image, self.place)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no loop device can be mounted here: {error.stderr.strip()}")

    def cut_power(self) -> None:
        """What is not on the disk by now is gone; every later write fails."""
        fd = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def restart(self) -> None:
        """Mount again what has survived; whoever used it must be dead."""
        _unmount(self.place)
        self.mount()

    def __enter__(self) -> LoopDisk:
        self.mount()
        return self

    def __exit__(self, *exc: object) -> None:
        _unmount(self.place)
        self.image.unlink(missing_ok=True)


@contextmanager
def small_tmpfs(place: Path, mib: int) -> Iterator[Path]:
    """A file system of `mib` MiB in memory."""
    needs("mount", "umount")
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", place],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        _unmount(place)
