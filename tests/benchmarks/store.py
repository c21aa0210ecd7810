"""The store beside other ways to keep what grows: raw files with fsync, plain Zarr, HDF5 SWMR.

Needs   workbench, h5py; about 4 GB of disk (--long: 4 GB more) while it runs.
Yields  tables: time to write a router's steps and 16 MiB activations, as a ratio to raw files; what
        a training thread feels of it; bytes; time to read; the whole overview of a million steps.
        With --into also a JSON of the figures.

    python tests/benchmarks/store.py [--rounds 20] [--quick] [--long] [--into docs/measured]

Ways take turns within a round, in an order that changes, and ratios are taken within a round;
medians and quartiles over rounds. Timings count only on a machine that does nothing else: `load`
says.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import ways as known  # noqa: E402
from ways import Values, Way  # noqa: E402

from workbench.store.layout import Layout  # noqa: E402
from workbench.store.run_store import RunStore  # noqa: E402

LONG = 1_000_000


def quartiles(values: Sequence[float]) -> dict[str, float]:
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"low": float(low), "median": float(median), "high": float(high)}


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def write(
    ways: dict[str, Way], rows: Callable[[int], Values], rounds: int, block: int
) -> dict[str, dict[str, Any]]:
    """Milliseconds a row and the ratio to raw, each round on new rows."""
    order = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        new = rows(turn)
        for name in order.sample(list(ways), len(ways)):
            seconds[name].append(timed(partial(ways[name].write, new)) / block)
    for way in ways.values():
        way.close()
    return {
        name: {
            "milliseconds_a_row": quartiles([1e3 * s for s in times]),
            "times_raw": quartiles([a / b for a, b in zip(times, seconds[known.RAW], strict=True)]),
            "bytes_a_row": ways[name].bytes / ways[name].count,
        }
        for name, times in seconds.items()
    }


class Behind:
    """A way that is fed by a thread of its own, as a training would have it."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self._queue: queue.SimpleQueue[Values | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def write(self, rows: Values) -> None:
        self._queue.put({name: values.copy() for name, values in rows.items()})

    def _work(self) -> None:
        while (rows := self._queue.get()) is not None:
            self.way.write(rows)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()
        self.way.close()


def felt(
    ways: dict[str, Any], rows: Values, every: int, rounds: int, block: int
) -> dict[str, dict[str, Any]]:
    """Milliseconds of a training step of a fixed amount of work, while each way writes behind it.

    Args:
        every: steps between two rows.
    """
    count = len(next(iter(rows.values())))
    small, order = np.ones((32, 32), np.float32), random.Random(1)

    def dispatch(n: int) -> None:
        # As a training dispatches: many small calls, each with the interpreter's lock.
        for _ in range(n):
            np.tanh(small)

    dispatch(1000)
    calls = int(1000 * 0.005 / timed(lambda: dispatch(1000)))
    steps: dict[str, list[float]] = {name: [] for name in [*ways, "nothing"]}
    means: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name in order.sample(list(steps), len(steps)):
            way = ways.get(name)
            for i in range(block):
                begin = time.perf_counter()
                dispatch(calls)
                if way is not None and i % every == 0:
                    row = (i // every) % count
                    way.write({key: values[row : row + 1] for key, values in rows.items()})
                time.sleep(0.008)  # the device computes
                steps[name].append(time.perf_counter() - begin)
            means[name].append(float(np.mean(steps[name][-block:])))
            # What is still to be written must not be felt by the next one.
            time.sleep(0.3)
    for way in ways.values():
        way.close()
    return {
        name: {
            "median_ms": 1e3 * float(np.median(times)),
            "p99_ms": 1e3 * float(np.percentile(times, 99)),
            "times_nothing": quartiles(
                [a / b for a, b in zip(means[name], means["nothing"], strict=True)]
            ),
        }
        for name, times in steps.items()
    }


def read(ways: dict[str, Way], rounds: int) -> dict[str, dict[str, Any]]:
    """Milliseconds to open, to read one layer over all steps, and one step over all layers."""
    chance = random.Random(2)
    found: dict[str, dict[str, list[float]]] = {
        name: {"open": [], "one layer": [], "one step": []} for name in ways
    }
    for _ in range(rounds):
        layer, step = (
            chance.randrange(known.LAYERS),
            chance.randrange(next(iter(ways.values())).count),
        )
        for name in chance.sample(list(ways), len(ways)):
            way, times = ways[name], found[name]
            begin = time.perf_counter()
            opened = way.open()
            times["open"].append(time.perf_counter() - begin)
            times["one layer"].append(timed(partial(way.layer, opened, layer)))
            times["one step"].append(timed(partial(way.step, opened, step)))
    return {
        name: {what: quartiles([1e3 * s for s in seconds]) for what, seconds in times.items()}
        for name, times in found.items()
    }


LOOK = """
import json, sys, time
begin = time.perf_counter()
from workbench.store.overview import overview
from workbench.store.run_store import RunStore
import xarray
xarray.Dataset({"x": ("x", [0])})  # what xarray loads with its first array is not ours
loaded = time.perf_counter()
snapshot = RunStore.open(sys.argv[1]).read("main")
opened = time.perf_counter()
seen = {}
for group, names in (("train", None), ("router", ["entropy"]), ("router", None)):
    before = time.perf_counter()
    ds = overview(snapshot, group, variables=names).load()
    seen[f"{group}, {'all' if names is None else names[0]}"] = time.perf_counter() - before
    bins = ds.sizes["bin"]
print(json.dumps({"import": loaded - begin, "open": opened - loaded, **seen, "bins": bins}))
"""


def long_run(folder: Path, steps: int, layers: int, experts: int, block: int) -> dict[str, Any]:
    """A run of `steps` steps, written in big appends, and its whole overview in a fresh process."""
    about = Layout(layers=tuple(range(layers)), experts=experts, k=2)
    store = RunStore.create(folder / "long", about)
    chance = np.random.default_rng(3)
    shape = (block, layers, experts)
    prob = chance.random(shape, np.float32)
    entropy = chance.random(shape[:2], np.float32)
    begin = time.perf_counter()
    with store.writer("main") as writer:
        for first in range(1, steps + 1, block):
            step = np.arange(first, first + block)
            router = {"step": step, "prob_mass": prob, "entropy": entropy + 1 / first}
            writer.append("router", router)
            train = {"step": step, "tokens_seen": 4096 * step, "loss": (1 / step).astype("f4")}
            writer.append("train", {**train, "utc": 1.7e9 + step})
            writer.commit(f"step {first + block - 1}")
    built = time.perf_counter() - begin
    looks = [json.loads(_look(folder / "long")) for _ in range(3)]
    whole = sum(f.stat().st_blocks * 512 for f in (folder / "long").rglob("*") if f.is_file())
    shutil.rmtree(folder / "long")
    return {
        "steps": steps, "layers": layers, "experts": experts, "seconds_to_build": built,
        "bytes": whole,
        "seconds": {what: float(np.median([look[what] for look in looks])) for what in looks[0]},
    }  # fmt: skip


def _look(path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(path)], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return done.stdout


def made(ways: dict[str, Any], names: Sequence[str], folder: Path, like: Values) -> dict[str, Way]:
    return {name: ways[name](folder / f"{i}", like) for i, name in enumerate(names)}


def measure(rounds: int, quick: bool, long: bool, folder: Path) -> dict[str, Any]:
    """All of it; `quick` with as little of each as still runs."""
    block = 50 if quick else 250
    results: dict[str, Any] = {}
    names = [name for name in known.ROUTER if name != known.BEHIND]
    ways = made(known.ROUTER, names, folder / "router", known.router_rows(1, 1))
    results["router"] = write(
        ways, lambda t: known.router_rows(1 + t * block, block), rounds, block
    )
    results["read"] = read(ways, 2 if quick else 10)
    shutil.rmtree(folder / "router")

    like = known.activation_rows(0)
    names = [name for name in known.ACTIVATIONS if name != known.BEHIND]
    ways = made(known.ACTIVATIONS, names, folder / "activations", like)
    results["activations"] = write(ways, known.activation_rows, rounds, 1)
    shutil.rmtree(folder / "activations")

    for what, all_ways, rows, every, steps in (
        ("router", known.ROUTER, known.router_rows(1, 50), 1, 50),
        ("activations", known.ACTIVATIONS, known.activation_rows(0, 2), 10, 30),
    ):
        names = [name for name in all_ways if name not in (known.OURS, "zarr, chunk of 100")]
        like = {name: values[:1] for name, values in rows.items()}
        ways = made(all_ways, names, folder / "felt", like)
        behind = {name: way if name == known.BEHIND else Behind(way) for name, way in ways.items()}
        results[f"felt, {what}"] = felt(behind, rows, every, rounds, 10 if quick else steps)
        shutil.rmtree(folder / "felt")

    steps, append = (LONG // 100, 2_000) if quick else (LONG, 20_000)
    results["long"] = [long_run(folder, steps, 2, 8, append)]
    if long:
        results["long"].append(long_run(folder, steps, known.LAYERS, known.EXPERTS, append // 5))
    return results


def table(results: dict[str, Any]) -> str:
    """The figures, for people."""
    lines = []
    for what in ("router", "activations"):
        lines.append(f"\nwriting {what}: ms a row (quartiles), times raw, KB a row")
        for name, r in results[what].items():
            ms, ratio = r["milliseconds_a_row"], r["times_raw"]
            lines.append(
                f"  {name:36}{ms['median']:9.3f} ({ms['low']:.3f}–{ms['high']:.3f})"
                f"{ratio['median']:9.1f}x ({ratio['low']:.1f}–{ratio['high']:.1f})"
                f"{r['bytes_a_row'] / 1e3:10.1f}"
            )
        lines.append(f"what the training thread feels of {what}: median, p99 (ms), mean / nothing")
        for name, r in results[f"felt, {what}"].items():
            ratio = r["times_nothing"]
            lines.append(
                f"  {name:36}{r['median_ms']:9.2f}{r['p99_ms']:9.2f}"
                f"{ratio['median']:9.3f}x ({ratio['low']:.3f}–{ratio['high']:.3f})"
            )
    lines.append("\nreading, ms: open, one layer over all steps, one step over all layers")
    for name, r in results["read"].items():
        parts = (f"{r[what]['median']:10.2f}" for what in ("open", "one layer", "one step"))
        lines.append(f"  {name:36}" + "".join(parts))
    lines += [
        f"\n{r['steps']:,} steps, {r['layers']} x {r['experts']}: built in "
        f"{r['seconds_to_build']:.0f} s, {r['bytes'] / 1e9:.2f} GB; seconds: "
        + ", ".join(f"{what} {s:.3g}" for what, s in r["seconds"].items())
        for r in results["long"]
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="only to see that it runs")
    parser.add_argument("--long", action="store_true", help="a million steps of 16 x 64 as well")
    parser.add_argument("--machine", default=f"{os.cpu_count()} cores")
    parser.add_argument("--date", default=datetime.now(UTC).date().isoformat())
    parser.add_argument("--scratch", type=Path, help="a folder on the disk to measure")
    parser.add_argument("--into", type=Path, help="folder for store.json")
    args = parser.parse_args()
    facts = {
        "machine": args.machine,
        "date": args.date,
        "rounds": args.rounds,
        "quick": args.quick,
        "load": os.getloadavg()[0],
        **{name: version(name) for name in ("zarr", "icechunk", "h5py", "numpy")},
    }
    print(", ".join(f"{key} {value}" for key, value in facts.items()), flush=True)
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        results = measure(args.rounds, args.quick, args.long, Path(folder))
    print(table(results))
    if args.into:
        args.into.mkdir(parents=True, exist_ok=True)
        (args.into / "store.json").write_text(json.dumps({**facts, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
