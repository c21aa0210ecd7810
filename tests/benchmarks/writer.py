"""The writer as a thread, as it is, and as a process of its own with shared memory: what the
training thread feels of either.

Needs   nothing; the demo's model, shape and domains.
Yields  a table: milliseconds of a step (block means, median and quartiles over rounds), the cost
        over the bare step, the slowest 1 % of steps, and the writer's own CPU time.

The process polls a ring in shared memory at the lowest priority, as the thread polls its ring, and
appends and commits the same rows. Blocks are interleaved as in capture.py.

    python tests/benchmarks/writer.py [--rounds 20] [--block 25]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import random
import subprocess
import sys
import tempfile
import time
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path

import numpy as np
import torch
from capture import DOMAINS, SHAPE, interval, own, recorded, tokens_of, trained
from train import quartiles

import workbench as wb
from workbench.capture.accumulators import Table
from workbench.capture.adapters.find import find_routers
from workbench.capture.ring import Sample
from workbench.capture.rows import SeenTokens, router_rows, train_rows
from workbench.capture.tap import Note, Tap
from workbench.store.layout import Layout
from workbench.store.run_store import RunStore

SLOTS = 512
LAYOUT = Table(SHAPE.config.n_layers, len(DOMAINS), SHAPE.config.num_experts)
NOTE = 4
"""Numbers of a step beside its table: step, tokens, time, whether the routers were read."""


def shared(name: str | None) -> tuple[shared_memory.SharedMemory, np.ndarray]:
    """The ring: one row of counters, then one a slot."""
    shape = (SLOTS + 1, NOTE + LAYOUT.cells)
    memory = shared_memory.SharedMemory(name, create=name is None, size=8 * shape[0] * shape[1])
    if name is not None:
        # Python 3.11 has whoever opens it also remove it at the end.
        resource_tracker.unregister(memory._name, "shared_memory")  # type: ignore[attr-defined]
    return memory, np.ndarray(shape, dtype=np.int64, buffer=memory.buf)


def work(store: Path, name: str) -> None:
    """The process: takes what is in the ring, a few times a second, until it is told to stop."""
    os.nice(19)
    _memory, rows = shared(name)
    writer = RunStore.open(store).writer("main")
    seen, taken = SeenTokens(), 0
    # Neither starting nor importing is counted: a long run pays for them once.
    started = time.process_time()
    print("ready", flush=True)
    while True:
        stop, samples = rows[0, 1], []
        while taken < rows[0, 0]:
            row = rows[1 + taken % SLOTS]
            note = Note(int(row[0]), int(row[1]), True, row[2] / 1e6, 0.0, 0.0, 1, {})
            samples.append(Sample(note, row[NOTE:].copy(), None, None))
            taken += 1
            if note.step % 50 == 0:
                break
        if samples:
            totals = [seen.add(LAYOUT, sample) for sample in samples]
            writer.append("router", router_rows(LAYOUT, samples, with_domains=True))
            writer.append("train", train_rows(samples, totals))
            if samples[-1].note.step % 50 == 0:
                writer.commit("chunk")
        elif stop:
            break
        else:
            time.sleep(0.2)
    writer.commit("last")
    writer.close()
    rows[0, 2] = int(1e6 * (time.process_time() - started))
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--block", type=int, default=25)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(Path(args.work[0]), args.work[1])
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        race(args.rounds, args.block, Path(folder))


def race(rounds: int, block: int, folder: Path) -> None:
    tokens, count = tokens_of(SHAPE), SHAPE.batch * SHAPE.length
    domains = torch.arange(SHAPE.batch) % len(DOMAINS)
    bare = trained(*own(tokens))
    pair = own(tokens)
    recorder = wb.Recorder(pair[0], folder / "thread", domains=DOMAINS)
    thread = recorded(trained(*pair), recorder, count)

    pair = own(tokens)
    tap = Tap(find_routers(pair[0]), domains=len(DOMAINS), model=pair[0])
    memory, rows = shared(None)
    rows[0] = 0
    layout = Layout(
        layers=tuple(range(LAYOUT.layers)), experts=LAYOUT.experts,
        k=SHAPE.config.experts_per_token, domains=DOMAINS,
    )  # fmt: skip
    RunStore.create(folder / "process", layout, {"run": "process"})
    began = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, __file__, "--work", folder / "process", memory.name],
        stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert child.stdout is not None
    child.stdout.readline()
    print(f"the process is ready after {time.perf_counter() - began:.2f} s")
    train_step, number = trained(*pair), 0

    def process() -> None:
        nonlocal number
        number += 1
        tap.begin(number)
        tap.labels.set(domains=domains)
        train_step()
        note = tap.end(count, loss=1.0)
        sample = tap.ring.take()
        assert note is not None
        assert sample is not None
        row = rows[1 + int(rows[0, 0]) % SLOTS]
        row[:NOTE] = note.step, count, int(1e6 * note.utc), 1
        row[NOTE:] = sample.table
        rows[0, 0] += 1

    steps = {"bare": bare, "thread": thread.step, "process": process}
    means: dict[str, list[float]] = {name: [] for name in steps}
    single: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(10):
            step()
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(steps), len(steps)):
            before = time.perf_counter()
            for _ in range(block):
                start = time.perf_counter()
                steps[name]()
                single[name].append(time.perf_counter() - start)
            means[name].append((time.perf_counter() - before) / block)
    assert recorder._writer is not None
    clock = time.pthread_getcpuclockid(recorder._writer._thread.ident or 0)
    cpu = {"thread": time.clock_gettime(clock)}
    recorder.close()
    rows[0, 1] = 1
    child.wait()
    cpu["process"] = rows[0, 2] / 1e6
    for name, values in means.items():
        over = [100 * (a / b - 1) for a, b in zip(values, means["bare"], strict=True)]
        ms, low_high = quartiles([1e3 * v for v in values]), interval(over)
        print(
            f"{name:10}{ms['median']:8.1f} ms ({ms['low']:.1f}–{ms['high']:.1f})  "
            f"{np.median(over):+6.2f} % ({low_high[0]:+.2f} to {low_high[1]:+.2f})  "
            f"p99 of steps {1e3 * np.percentile(single[name], 99):.0f} ms  "
            f"writer's CPU {1e3 * cpu.get(name, 0.0) / len(single[name]):.2f} ms a step"
        )
    # Not closed: an array still looks into it.
    memory.unlink()


if __name__ == "__main__":
    main()
