"""What it costs that a commit is durable: the orders that were weighed, side by side.

Needs   workbench; a disk (--scratch), idle or with `--beside`, a process that writes a big file.
Yields  a table: milliseconds of a commit of 50 steps of 16 layers x 64 experts, median, quartiles
        and the slowest of 100; the same for the journal's sync of 10 steps.

    python tests/benchmarks/durable.py [--commits 60] [--scratch DIR] [--into docs/measured]

Orders: nothing synced; syncfs before and after the branch moves (what the store does); fsync of the
new files and their folders in place of each syncfs. Those of a commit take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from ways import layout, router_rows  # noqa: E402

import workbench.store.location as location  # noqa: E402
from workbench.store.run_store import RunStore  # noqa: E402

SYNCFS = location.sync_tree
FILL = """
import os, sys
while True:
    with open(sys.argv[1], "wb") as file:
        for _ in range(512):
            file.write(os.urandom(1 << 20))
"""


def nothing(_: Path) -> None:
    """The control: no sync at all."""


class EachFile:
    """fsync of every file that is new or changed since the last call, and of its folder."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def __call__(self, folder: Path) -> None:
        for root, _, names in os.walk(folder):
            changed = False
            for name in names:
                path = os.path.join(root, name)
                when = os.stat(path).st_mtime_ns
                if self._seen.get(path) != when:
                    self._seen[path], changed = when, True
                    _fsync(path)
            if changed:
                _fsync(root)


def _fsync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def race(folder: Path, commits: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a commit under each order, and of a journal's sync."""
    orders: dict[str, Callable[[Path], None]] = {
        "nothing synced": nothing,
        "syncfs, twice": SYNCFS,
        "fsync of new files and folders, twice": EachFile(),
    }
    writers = {}
    for name in orders:
        path = folder / str(len(writers))
        writers[name] = RunStore.create(path, layout()).writer("main")
    times: dict[str, list[float]] = {name: [] for name in [*orders, "journal, fsync"]}
    chance = random.Random(0)
    for turn in range(commits):
        rows = router_rows(1 + 50 * turn, 50)
        steps = np.arange(1 + 50 * turn, 51 + 50 * turn)
        for name in chance.sample(list(orders), len(orders)):
            writer, location.sync_tree = writers[name], orders[name]
            for part in range(5):
                here = slice(10 * part, 10 * part + 10)
                values = {key: array[here] for key, array in rows.items()}
                writer.append("router", {"step": steps[here], **values})
                begin = time.perf_counter()
                writer.sync()
                times["journal, fsync"].append(time.perf_counter() - begin)
            begin = time.perf_counter()
            writer.commit("fifty")
            times[name].append(time.perf_counter() - begin)
    location.sync_tree = SYNCFS
    for writer in writers.values():
        writer.close()
    return {name: _told([1e3 * s for s in seconds]) for name, seconds in times.items()}


def _told(ms: list[float]) -> dict[str, float]:
    low, median, high, p99 = np.percentile(ms, [25, 50, 75, 99])
    return {"low": float(low), "median": float(median), "high": float(high), "p99": float(p99)}


def beside(folder: Path, commits: int) -> dict[str, dict[str, float]]:
    """The same while a process fills a file of 512 MiB on the same disk, again and again."""
    with subprocess.Popen([sys.executable, "-c", FILL, str(folder / "big")]) as other:
        try:
            time.sleep(2)
            return race(folder, commits)
        finally:
            other.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--commits", type=int, default=60)
    parser.add_argument("--machine", default=f"{os.cpu_count()} cores")
    parser.add_argument("--date", default=datetime.now(UTC).date().isoformat())
    parser.add_argument("--scratch", type=Path, help="a folder on the disk to measure")
    parser.add_argument("--into", type=Path, help="folder for store-durable.json")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    for name, work in (("idle disk", race), ("beside a big file", beside)):
        with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
            results[name] = work(Path(folder), args.commits)
        print(f"\n{name}: ms, median (quartiles), p99")
        for order, ms in results[name].items():
            spread = f"({ms['low']:.1f}–{ms['high']:.1f})"
            print(f"  {order:40}{ms['median']:8.1f} {spread}{ms['p99']:9.1f}", flush=True)
    if args.into:
        facts = {"machine": args.machine, "date": args.date, "load": os.getloadavg()[0]}
        args.into.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**facts, **results}, indent=1) + "\n"
        (args.into / "store-durable.json").write_text(text)


if __name__ == "__main__":
    main()
