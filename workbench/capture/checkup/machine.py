"""The machine that would record: what serves the op, and what the run's folder can be trusted with.

Needs   the folder that runs would be recorded into; a device.
Yields  Machine, looked at by `look`: software, threads, disk. Sizes in bytes, times in seconds.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from workbench.store.durable import sync_tree

SYNCS = 5
"""Times that the disk is asked to sync."""
PACKAGES = ("torch", "numpy", "zarr", "icechunk")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One machine, with one folder of it."""

    python: str
    packages: dict[str, str]
    """Version of each of PACKAGES."""
    device: str
    """Of the training: "cpu" or "cuda:0"."""
    device_name: str
    triton: bool
    """Whether Triton can be imported."""
    op: str
    """What will serve `route_stats` there: "numpy", "triton" or "plain torch"."""
    cores: int
    """That this process may use."""
    threads: int
    """Of torch, on the CPU."""
    load: float
    """Processes that wanted a core, mean of the last minute."""
    omp_wait_policy: str | None
    """As the environment had it when asked."""
    world_size: int
    """Processes of the training, as the environment says (WORLD_SIZE); 1 where it says nothing."""
    joined: bool
    """Whether torch.distributed is initialised in this one."""
    folder: str
    """Where runs would be recorded: what was asked for, absolute."""
    file_system: str
    """Its kind, such as "ext4"; "unknown" where the system does not tell."""
    free_bytes: int
    writable: bool
    blocked_by: str | None
    """A file that lies where the folder, or one above it, should be."""
    locks: bool | None
    """Whether a second lock on a locked file is refused there; None: not writable, not tried."""
    sync_seconds: float | None
    """Until a small file is on the disk for sure, median."""


def look(folder: Path, device: torch.device, omp_wait_policy: str | None = None) -> Machine:
    """The machine as it is now.

    Args:
        folder: need not exist; then the nearest one above it that does is tried.
        device: of the training.
        omp_wait_policy: as the training's environment will have it.

    Example:
        >>> look(Path("."), torch.device("cpu")).op
        'numpy'
    """
    there = nearest(folder)
    cuda = device.type == "cuda"
    triton = find_spec("triton") is not None
    locks, sync = _try_disk(there)
    return Machine(
        python=platform.python_version(),
        packages={name: v for name in PACKAGES if (v := _version(name))},
        device=str(device),
        device_name=torch.cuda.get_device_name(device) if cuda else _processor(),
        triton=triton,
        op=("triton" if triton else "plain torch") if cuda else "numpy",
        cores=_cores(),
        threads=torch.get_num_threads(),
        load=os.getloadavg()[0],
        omp_wait_policy=omp_wait_policy,
        world_size=_world_size(),
        joined=torch.distributed.is_available() and torch.distributed.is_initialized(),
        folder=str(folder.absolute()),
        file_system=file_system(there),
        free_bytes=shutil.disk_usage(there).free,
        writable=sync is not None,
        blocked_by=_in_the_way(folder),
        locks=locks,
        sync_seconds=sync,
    )


def nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists.

    Example:
        >>> nearest(Path("/no/such/folder"))
        PosixPath('/')
    """
    there = folder.absolute()
    while not there.is_dir() and there != there.parent:
        there = there.parent
    return there


def _in_the_way(folder: Path) -> str | None:
    there = folder.absolute()
    for place in (there, *there.parents):
        try:
            if place.exists() and not place.is_dir():
                return str(place)
        except OSError:  # below a folder that cannot be looked into
            continue
    return None


def file_system(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Kind of the file system that a folder lies on, as Linux names it; else "unknown"."""
    if not mounts.is_file():
        return "unknown"
    path = folder.resolve()
    kind, depth = "unknown", -1
    for line in mounts.read_text().splitlines():
        _, point, found, *_ = line.split(" ")
        # The kernel writes a space in a path as \040.
        mounted = Path(point.encode().decode("unicode_escape"))
        # Of two mounts on one point the later one is on top.
        if (path == mounted or mounted in path.parents) and len(mounted.parts) >= depth:
            kind, depth = found, len(mounted.parts)
    return kind


def _try_disk(folder: Path) -> tuple[bool | None, float | None]:
    """Whether locks hold, and how long a sync takes; None where nothing can be written."""
    seconds = []
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as made:
            file = Path(made, "try")
            for _ in range(SYNCS):
                file.write_bytes(os.urandom(4096))
                began = perf_counter()
                sync_tree(Path(made))
                seconds.append(perf_counter() - began)
            return _locks_hold(file), median(seconds)
    except OSError:
        return None, None


def _locks_hold(file: Path) -> bool:
    with file.open("rb") as first, file.open("rb") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX)
        except OSError:
            return False
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cores() -> int:
    if sys.platform.startswith("linux"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    if about.is_file():
        for line in about.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _world_size() -> int:
    said = os.environ.get("WORLD_SIZE", "1")
    return int(said) if said.isdigit() else 1
