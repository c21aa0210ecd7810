"""What capture costs a training step on a GPU, side by side with what others do.

Needs   torch and numpy; a CUDA device, or --device cpu for a rehearsal at a toy size.
Yields  one JSON file in --into: per contender the milliseconds of a step and the ratio to the bare
        step of the same round (medians, quartiles), the host's time in capture per step, peak
        memory; and what the op alone takes for several shapes of router.

Contenders: the bare step; capture; capture with traces of one token in a thousand; a hook that
reads every expert's count with `.item()`; a hook that copies ids and gates into unpinned memory and
writes JSON. Each round runs every contender for a few steps, in an order that turns, so that a slow
second falls on all of them. GPU time is between two CUDA events, wall time between two waits for
the device; no contender is waited for in between, unless it waits itself.

    python tests/benchmarks/gpu_capture.py --into docs/measured [--rounds 20] [--steps 5]
    python tests/benchmarks/gpu_capture.py --device cpu --rounds 2 --into /tmp/rehearsal
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "gpu")]

from plain_moe import M420, TOY, PlainMoE, Shape, router_sites, some_tokens  # noqa: E402

from workbench.capture.accumulators import Table  # noqa: E402
from workbench.capture.labels import Labels  # noqa: E402
from workbench.capture.route_stats import route_stats  # noqa: E402
from workbench.capture.spent import spent  # noqa: E402
from workbench.capture.tap import Tap  # noqa: E402
from workbench.capture.traces import RouteTraces, capacity_for  # noqa: E402

Step = Callable[[int], None]
DRAIN_EVERY_S = 0.02
"""How often the stand-in for the writer's thread looks into the ring, seconds."""
OP_SHAPES = ((16_384, 8, 2), (16_384, 16, 4), (16_384, 64, 8), (16_384, 128, 8), (16_384, 256, 8),
             (131_072, 64, 8))  # fmt: skip
"""(tokens, experts, k) for which the op alone is timed."""


class Bench:
    """One model, and the contenders that take turns with it."""

    def __init__(self, shape: Shape, rows: int, device: torch.device) -> None:
        self.device = device
        self.shape, self.rows = shape, rows
        self.model = PlainMoE(shape, device, torch.bfloat16)
        self.sites = router_sites(self.model)
        self.adam = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.tokens = some_tokens(shape, rows, device)
        self.host_s: dict[str, list[float]] = {}

    def train(self) -> None:
        self.model(self.tokens).backward()
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)

    @contextmanager
    def bare(self) -> Iterator[Step]:
        yield lambda number: self.train()

    @contextmanager
    def capture(self, traced: bool = False) -> Iterator[Step]:
        tap = Tap(self.sites, device=self.device)
        name = "capture with traces" if traced else "capture"
        times = self.host_s.setdefault(name, [])
        around = self.host_s.setdefault(f"{name}, beyond the op", [])
        with ExitStack() as stack:
            stack.callback(tap.close)
            begin, end = self._traces(tap, stack) if traced else (_nothing, _nothing)
            stack.enter_context(drained(tap))

            def step(number: int) -> None:
                before, in_op = time.perf_counter(), spent()
                begin()
                tap.begin(number)
                began = time.perf_counter()
                self.train()
                ended = time.perf_counter()
                end()
                tap.end()
                if number:  # a new tap checks its first step, and waits for it
                    around.append(began - before + time.perf_counter() - ended)
                    times.append(around[-1] + spent() - in_op)

            yield step
        assert not tap.ring.dropped, "the ring was full: the figures are not those of capture"

    def _traces(self, tap: Tap, stack: ExitStack) -> tuple[Callable[[], None], Callable[[], None]]:
        """Hooks traces up; what a step begins and ends with."""
        capacity = capacity_for(self.rows * self.shape.length)
        traces = RouteTraces(
            len(self.sites), self.shape.k, tap.accumulators.flags, capacity=capacity
        )
        pinned = self.device.type == "cuda"
        landing = torch.empty_like(traces.table, device="cpu", pin_memory=pinned)
        handles = traces.watch(self.model, Labels(self.device, 0))
        for place, site in enumerate(self.sites):
            handles += site.attach(lambda reading, place=place: traces.read(place, reading))
        for handle in handles:
            stack.callback(handle.remove)

        def end() -> None:
            landing.copy_(traces.table, non_blocking=True)

        return traces.begin, end

    @contextmanager
    def item_hook(self) -> Iterator[Step]:
        """Every expert's count, read at once: as many waits as experts."""
        seen: list[int] = []

        def hook(module: Any, inputs: Any, output: Any) -> None:
            counts_E = output.ids_TK.flatten().bincount(minlength=self.shape.experts)
            seen.extend(count.item() for count in counts_E)

        with self._hooked(hook):
            yield lambda number: (seen.clear(), self.train())[1]

    @contextmanager
    def json_hook(self) -> Iterator[Step]:
        """Ids and gates copied to unpinned memory and written as JSON, in the hook."""
        with tempfile.TemporaryFile("w") as file:

            def hook(module: Any, inputs: Any, output: Any) -> None:
                ids, gates = output.ids_TK.cpu().tolist(), output.gates_TK.detach().cpu().tolist()
                file.write(json.dumps({"ids": ids, "gates": gates}) + "\n")

            with self._hooked(hook):
                yield lambda number: (file.seek(0), self.train())[1]

    @contextmanager
    def _hooked(self, hook: Callable[..., None]) -> Iterator[None]:
        handles = [site.module.register_forward_hook(hook) for site in self.sites]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _nothing() -> None:
    return None


@contextmanager
def drained(tap: Tap) -> Iterator[None]:
    """Takes samples out of the ring meanwhile, as the writer does."""
    done = threading.Event()

    def work() -> None:
        while not done.wait(DRAIN_EVERY_S):
            while tap.ring.take() is not None:
                pass

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def timed(bench: Bench, step: Step, steps: int, first: int) -> tuple[float, float]:
    """GPU and wall milliseconds of a step, mean over `steps` steps in a row."""
    if bench.device.type != "cuda":
        began = time.perf_counter()
        for number in range(first, first + steps):
            step(number)
        wall = (time.perf_counter() - began) * 1e3 / steps
        return wall, wall
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    began = time.perf_counter()
    start.record()
    for number in range(first, first + steps):
        step(number)
    stop.record()
    torch.cuda.synchronize()
    wall = (time.perf_counter() - began) * 1e3 / steps
    return start.elapsed_time(stop) / steps, wall


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    q1, median, q3 = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": round(median, 5), "q1": round(q1, 5), "q3": round(q3, 5)}


def compare(bench: Bench, rounds: int, steps: int) -> dict[str, Any]:
    """Every contender's times, and its ratio to the bare step within each round."""
    contenders: dict[str, Callable[[], Any]] = {
        "bare": bench.bare,
        "capture": bench.capture,
        "capture with traces": lambda: bench.capture(traced=True),
        "hook with .item()": bench.item_hook,
        "hook writing JSON": bench.json_hook,
        "bare again": bench.bare,
    }
    names = list(contenders)
    gpu: dict[str, list[float]] = {name: [] for name in names}
    wall: dict[str, list[float]] = {name: [] for name in names}
    peak: dict[str, int] = {}
    for turn in range(-1, rounds):  # the first round compiles and warms up
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            with contenders[name]() as step:
                step(0)
                if bench.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                ms = timed(bench, step, steps, first=1)
                if bench.device.type == "cuda":
                    peak[name] = torch.cuda.max_memory_allocated()
            if turn >= 0:
                gpu[name].append(ms[0])
                wall[name].append(ms[1])
        if turn < 0:
            bench.host_s.clear()  # no contender is on the way
    return {
        name: {
            "gpu_ms": spread(gpu[name]),
            "wall_ms": spread(wall[name]),
            "gpu_ratio": spread([a / b for a, b in zip(gpu[name], gpu["bare"], strict=True)]),
            "wall_ratio": spread([a / b for a, b in zip(wall[name], wall["bare"], strict=True)]),
            "peak_memory_mib": round(peak[name] / 2**20, 2) if peak else None,
        }
        for name in names
    }


def host_times(host_s: dict[str, list[float]]) -> dict[str, Any]:
    """Microseconds a step that the training thread spends in capture."""
    return {
        name: {
            "steps": len(values),
            "median_us": round(statistics.median(values) * 1e6, 1),
            "p99_us": round(sorted(values)[int(0.99 * (len(values) - 1))] * 1e6, 1),
            "max_us": round(max(values) * 1e6, 1),
        }
        for name, values in host_s.items()
        if values
    }


def op_alone(device: torch.device, calls: int) -> list[dict[str, Any]]:
    """Microseconds of one call: on the GPU (replayed from a graph) and to launch it."""
    return [
        {"tokens": T, "experts": E, "k": K, **_op_times(T, E, K, device, calls)}
        for T, E, K in (OP_SHAPES if device.type == "cuda" else ((2048, 16, 4),))
    ]


def _op_times(T: int, E: int, K: int, device: torch.device, calls: int) -> dict[str, Any]:
    logits = torch.randn(T, E, device=device, dtype=torch.bfloat16)
    gates, ids = logits.float().softmax(-1).topk(K, -1)
    layout = Table(1, 1, E)
    table = torch.zeros(layout.cells, dtype=torch.int64, device=device)
    slow = torch.zeros(layout.slow_cells, dtype=torch.int64, device=device)
    flags = torch.ones(2, dtype=torch.int64, device=device)
    nowhere = torch.empty(0, dtype=torch.int64, device=device)
    all_kept = nowhere.bool()

    def call() -> None:
        route_stats(logits, ids, gates, nowhere, all_kept, 0, 1, 0, 1, flags, table, slow)

    times: dict[str, Any] = {"bytes read": logits.nbytes + ids.nbytes + gates.nbytes}
    for name, slowly in (("every step", 0), ("slow step", 1)):
        flags[1] = slowly
        call()
        began = time.perf_counter()
        for _ in range(calls):
            call()
        times[f"{name}, host us"] = round((time.perf_counter() - began) / calls * 1e6, 2)
        times[f"{name}, GPU us"] = round(_replayed(call, calls), 2) if logits.is_cuda else None
    return times


def _replayed(call: Callable[[], None], calls: int) -> float:
    """GPU microseconds of a call, without the host's part."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    graph.replay()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / calls * 1e3


def machine(device: torch.device) -> dict[str, str]:
    """What it ran on, without naming it."""
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = "none"
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "machine": kind or platform.machine(),
        "device": device.type,
        "torch": torch.__version__,
        "triton": version,
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--into", type=Path, required=True, help="folder for the JSON file")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5, help="steps of a contender in a round")
    parser.add_argument("--rows", type=int, default=16, help="rows of 1024 tokens in a step")
    parser.add_argument("--date", default=f"{datetime.now(UTC):%Y-%m-%d}")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu_capture: found no CUDA device; --device cpu rehearses at a toy size.")
    cuda = device.type == "cuda"
    shape, rows = (M420, asked.rows) if cuda else (TOY, 8)
    bench = Bench(shape, rows, device)
    contenders = compare(bench, asked.rounds, asked.steps)
    said = {
        "what": "gpu-capture",
        "date": asked.date,
        **machine(device),
        "parameters": sum(p.numel() for p in bench.model.parameters()),
        "shape": vars(shape),
        "tokens_a_step": rows * shape.length,
        "rounds": asked.rounds,
        "steps_a_round": asked.steps,
        "contenders": contenders,
        "host": host_times(bench.host_s),
        "op": op_alone(device, 200 if cuda else 20),
    }
    asked.into.mkdir(parents=True, exist_ok=True)
    kind = said["machine"].replace(" ", "-").lower()
    path = asked.into / f"gpu-capture-{kind}-{asked.date}.json"
    path.write_text(json.dumps(said, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
