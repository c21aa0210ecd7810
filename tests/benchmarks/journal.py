"""Ways to keep the last seconds of a record safe: what each costs, and what it leaves on the disk.

Needs   nothing; rows of the demo's shape.
Yields  a table: processor time of the writer, bytes on disk, files, for a step rate.

commit   every batch is committed at once: its chunk is read, filled and written again.
tail     every batch is committed into small chunks of its own, which the whole chunk then replaces.
journal  every batch goes into the journal, and is committed when it fills a chunk.

A batch is what arrives in five seconds, for the first two, and in one second for the journal.

    python tests/benchmarks/journal.py [--steps 3000] [--rates 6 0.1]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import zarr

from workbench.store.layout import Layout
from workbench.store.run_store import RunStore

LAYERS, EXPERTS, DOMAINS, CHUNK = 3, 16, 12, 50


def rows(first: int, count: int) -> dict[str, dict[str, np.ndarray]]:
    """Router and train rows of the steps from `first` on."""
    rng = np.random.default_rng(first)
    step = np.arange(first, first + count)

    def counts(*row: int) -> np.ndarray:
        return rng.poisson(1000, (count, *row))

    def floats(*row: int) -> np.ndarray:
        return rng.random((count, *row), np.float32)

    router = {"step": step, "tokens": np.full(count, 4096)}
    router |= {"assignments": counts(LAYERS, EXPERTS)}
    router |= {"domain_assignments": counts(LAYERS, DOMAINS, EXPERTS)}
    router |= {name: floats(LAYERS, EXPERTS) for name in ("gate_mass", "prob_mass")}
    router |= {n: floats(LAYERS) for n in ("entropy", "margin", "z_squared", "topk_mass")}
    train = {"step": step, "loss": floats(), "lr": floats(), "tokens_seen": step * 4096}
    return {"router": router, "train": train}


def store_at(folder: Path) -> RunStore:
    domains = tuple(f"d{i}" for i in range(DOMAINS))
    layout = Layout(layers=tuple(range(LAYERS)), experts=EXPERTS, k=4, domains=domains)
    return RunStore.create(folder / "store", layout)


def with_commits(folder: Path, steps: int, rate: float) -> None:
    batch = max(1, round(5 * rate))
    with store_at(folder).writer() as w:
        for first in range(1, steps + 1, batch):
            for group, values in rows(first, min(batch, steps + 1 - first)).items():
                w.append(group, values)
            w.commit("batch")


def with_tail(folder: Path, steps: int, rate: float) -> None:
    batch = max(1, round(5 * rate))
    store = store_at(folder)
    with store.writer() as w:
        for begin in range(1, steps + 1, CHUNK):
            for first in range(begin, begin + CHUNK, batch):
                session = store.repository.writable_session("main")
                root = zarr.open_group(session.store, mode="r+").require_group("tail")
                for group, values in rows(first, min(batch, begin + CHUNK - first)).items():
                    for name, array in values.items():
                        root.create_array(f"{group}_{name}_{first}", data=array, overwrite=True)
                w.snapshot_id = session.commit("tail")
                store.location.sync()
            session = store.repository.writable_session("main")
            root = zarr.open_group(session.store, mode="r+")
            del root["tail"]
            w.snapshot_id = session.commit("tail taken in")
            for group, values in rows(begin, CHUNK).items():
                w.append(group, values)
            w.commit("chunk")


def with_journal(folder: Path, steps: int, rate: float) -> None:
    batch = max(1, round(rate))
    waiting = 0
    with store_at(folder).writer() as w:
        for first in range(1, steps + 1, batch):
            count = min(batch, steps + 1 - first)
            for group, values in rows(first, count).items():
                w.append(group, values)
            waiting += count
            if waiting >= CHUNK:
                w.commit("chunk")
                waiting = 0
            else:
                w.sync()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rates", type=float, nargs="+", default=[6.0, 0.1])
    asked = parser.parse_args()
    print("| steps/s | way | processor s | ms a step | bytes a step | files |")
    print("|---|---|---|---|---|---|")
    for rate in asked.rates:
        for way in (with_journal, with_commits, with_tail):
            with tempfile.TemporaryDirectory() as folder:
                spent = time.process_time()
                way(Path(folder), asked.steps, rate)
                spent = time.process_time() - spent
                files = [p for p in Path(folder).rglob("*") if p.is_file()]
                size = sum(p.stat().st_size for p in files)
            name = way.__name__.removeprefix("with_")
            print(
                f"| {rate:g} | {name} | {spent:.1f} | {1e3 * spent / asked.steps:.2f} | "
                f"{size / asked.steps:,.0f} | {len(files):,} |"
            )


if __name__ == "__main__":
    main()
