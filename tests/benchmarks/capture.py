"""What capture costs a training step on a CPU, beside what others do to see the same.

Needs   nothing; models are made here, with random weights and random tokens.
Yields  a table (and with --json FILE the numbers behind it): milliseconds of a step, and the cost
        over the bare step in percent, as median and quartiles over rounds; and, free of the
        machine's noise, what was spent in capture itself: by the training thread, as a share of the
        step, and by the writer's thread.

A step is forward, backward and fused AdamW. A round gives every contender a block of steps, in an
order drawn anew; costs are the block's mean over the bare block's mean of the same round. Blocks
and means, not single steps and medians: the writer commits every 50 steps from a thread of its own,
and what that takes from the training must count. The bare step stands there twice; their difference
is the noise.

    ours            bare, bare again, capture, capture with traces of 1/1000
    peers           the same model with a forward hook that calls .item(), with one that writes JSON
                    into a file as it runs, and with TransformerLens's run_with_cache of the routers
    olmoe           transformers' OLMoE of the same shape: bare, with capture, and with
                    output_router_logits=True, which also adds its auxiliary loss

    python tests/benchmarks/capture.py [--threads 2] [--rounds 20] [--block 25]
    [--only ours|peers|olmoe] [--json FILE]
"""

from __future__ import annotations

import os

# As the command line does: threads that spin while they wait starve each other. Before torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from train import SHAPES, machine, olmoe, quartiles

import workbench as wb
from model.lm import MoELM

SHAPE = SHAPES["demo"]
DOMAINS = tuple(f"domain {i}" for i in range(14))


class Contender(NamedTuple):
    """A way to train and to look on."""

    step: Callable[[], None]
    beside: list[float]
    """Seconds of each step in the recorder's own begin and end, the op not included."""
    recorder: wb.Recorder | None = None


def tokens_of(shape: Any) -> Tensor:
    return torch.randint(
        shape.config.d_vocab, (shape.batch, shape.length + 1),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def trained(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def own(tokens: Tensor) -> tuple[MoELM, Callable[[], Tensor]]:
    lm = MoELM(SHAPE.config)
    return lm, lambda: lm(tokens[:, :-1], tokens[:, 1:], return_type="losses").total


def theirs(tokens: Tensor, *, auxiliary: bool) -> tuple[nn.Module, Callable[[], Tensor]]:
    hf = olmoe(SHAPE, auxiliary)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    return hf, lambda: hf(input_ids=inputs, labels=targets, shift_labels=targets).loss


def recorded(step: Callable[[], None], recorder: wb.Recorder, tokens: int) -> Contender:
    """A step inside `recorder.step`, timed apart."""
    domains = torch.arange(SHAPE.batch) % len(DOMAINS)
    beside: list[float] = []

    def captured() -> None:
        start = time.perf_counter()
        recorder.begin(recorder.last_step + 1)
        recorder.labels(domains=domains)
        between = time.perf_counter()
        step()
        again = time.perf_counter()
        recorder.log(loss=1.0, lr=1e-4, grad_norm=1.0)
        recorder.end(tokens)
        beside.append(between - start + time.perf_counter() - again)

    return Contender(captured, beside, recorder)


def with_item(lm: MoELM) -> None:
    """Per expert and layer a number on the host, as loggers like it."""
    seen: dict[str, float] = {}

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        load = output.ids_BPK.flatten().bincount(minlength=module.num_experts)
        for expert in range(module.num_experts):
            seen[f"load/{id(module)}/{expert}"] = load[expert].item()
        probs = output.probs_BPE
        seen[f"entropy/{id(module)}"] = -(probs * probs.log()).sum(-1).mean().item()

    for block in lm.blocks:
        block.mlp.router.register_forward_hook(hook)


def with_json(lm: MoELM, path: Path) -> None:
    """Every router's choices, copied to the host and written as JSON inside the hook."""
    file = path.open("w")

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        probs, ids = output.probs_BPE.detach().cpu(), output.ids_BPK.cpu()
        line = {"ids": ids.flatten(0, 1).tolist(), "mean_probs": probs.mean((0, 1)).tolist()}
        file.write(json.dumps(line) + "\n")

    for block in lm.blocks:
        block.mlp.router.register_forward_hook(hook)


def cached(tokens: Tensor) -> Callable[[], None]:
    """TransformerLens's way: the routers' points in a cache, counted after the forward."""
    lm = MoELM(SHAPE.config)
    seen: dict[str, Tensor] = {}

    def loss() -> Tensor:
        losses, cache = lm.run_with_cache(
            tokens[:, :-1], tokens[:, 1:], return_type="losses",
            names_filter=lambda name: ".router." in name,
        )  # fmt: skip
        for name, value in cache.items():
            if name.endswith("indices"):
                seen[name] = value.flatten().bincount(minlength=SHAPE.config.num_experts)
            elif name.endswith("probs"):
                seen[name] = value.detach().mean((0, 1))
        return losses.total

    return trained(lm, loss)


@contextmanager
def contenders(which: str, folder: Path) -> Iterator[dict[str, Contender]]:
    """All of a group, ready to step; the first is the bare one."""
    tokens, count = tokens_of(SHAPE), SHAPE.batch * SHAPE.length
    recorders: list[wb.Recorder] = []

    def capture(
        name: str, pair: tuple[nn.Module, Callable[[], Tensor]], **more: Any
    ) -> Contender:  # fmt: skip
        recorders.append(wb.Recorder(pair[0], folder / name, domains=DOMAINS, **more))
        return recorded(trained(*pair), recorders[-1], count)

    def bare(pair: tuple[nn.Module, Callable[[], Tensor]]) -> Contender:
        return Contender(trained(*pair), [])

    if which == "olmoe":
        made = {
            "OLMoE, bare": bare(theirs(tokens, auxiliary=False)),
            "OLMoE with capture": capture("olmoe", theirs(tokens, auxiliary=False)),
            "OLMoE, output_router_logits": bare(theirs(tokens, auxiliary=True)),
        }
    else:
        made = {"bare": bare(own(tokens)), "bare again": bare(own(tokens))}
        made["capture"] = capture("every", own(tokens))
    if which == "ours":
        made["capture, traces 1/1000"] = capture("traces", own(tokens), traces=1e-3)
    if which == "peers":
        pairs = {name: own(tokens) for name in ("item", "json")}
        with_item(pairs["item"][0])
        with_json(pairs["json"][0], folder / "hook.jsonl")
        made["hook with .item()"] = bare(pairs["item"])
        made["hook that writes JSON"] = bare(pairs["json"])
        made["run_with_cache, routers"] = Contender(cached(tokens), [])
    try:
        yield made
    finally:
        for recorder in recorders:
            recorder.close()


def race(which: str, rounds: int, block: int, folder: Path) -> dict[str, Any]:
    """Block means of every contender, round by round, and what follows from them."""
    order = random.Random(0)
    means: dict[str, list[float]] = {}
    with contenders(which, folder) as made:
        for contender in made.values():
            for _ in range(10):
                contender.step()
        for _ in range(rounds):
            for name in order.sample(list(made), len(made)):
                start = time.perf_counter()
                for _ in range(block):
                    made[name].step()
                means.setdefault(name, []).append((time.perf_counter() - start) / block)
        spent = {name: spent_by(c) for name, c in made.items() if c.recorder is not None}
    base = means[next(iter(made))]
    results: dict[str, Any] = {}
    for name in made:
        over = [100 * (t / b - 1) for t, b in zip(means[name], base, strict=True)]
        results[name] = {
            "milliseconds": quartiles([1e3 * t for t in means[name]]),
            "over_bare_percent": quartiles(over),
            "over_bare_95": interval(over),
        }
        if name in spent:
            results[name] |= spent[name]
            share = spent[name]["training_thread_ms"]["median"] / (1e3 * statistics.median(base))
            results[name]["training_thread_percent"] = 100 * share
    return results


def spent_by(contender: Contender) -> dict[str, Any]:
    """What capture itself took, from the record and from the writer thread's own clock."""
    recorder = contender.recorder
    assert recorder is not None
    assert recorder._writer is not None
    recorder._writer.flush()
    thread = recorder._writer._thread.ident
    assert thread is not None
    cpu = time.clock_gettime(time.pthread_getcpuclockid(thread))
    seconds = wb.open_run(recorder.folder.path).train.capture_seconds.values[10:]
    beside = 1e6 * np.array(contender.beside[10:])
    return {
        "training_thread_ms": two(1e3 * seconds),
        "beside_the_op_us": two(beside),
        "writer_thread_ms": 1e3 * cpu / len(contender.beside),
    }


def two(values: np.ndarray) -> dict[str, float]:
    """Median and 99th percentile."""
    return {"median": float(np.median(values)), "p99": float(np.percentile(values, 99))}


def interval(values: list[float]) -> list[float]:
    """95 % of the median, by resampling rounds."""
    draws = np.random.default_rng(0).choice(values, (2000, len(values)))
    return [float(x) for x in np.percentile(np.median(draws, axis=1), [2.5, 97.5])]


def row(name: str, result: dict[str, Any]) -> str:
    """One line of the table."""
    ms, over = result["milliseconds"], result["over_bare_percent"]
    low, high = result["over_bare_95"]
    line = f"{name:30}{ms['median']:8.1f} ({ms['low']:.1f}–{ms['high']:.1f})".ljust(54)
    line += f"{over['median']:+7.2f} ({over['low']:+.2f} to {over['high']:+.2f})".ljust(30)
    line += f"{low:+.2f} to {high:+.2f}".ljust(20)
    if "training_thread_ms" in result:
        thread, us = result["training_thread_ms"], result["beside_the_op_us"]
        line += (
            f"{result['training_thread_percent']:.2f} %: {thread['median']:.2f} ms, "
            f"p99 {thread['p99']:.2f} | {us['median']:.0f} us, p99 {us['p99']:.0f} "
            f"| {result['writer_thread_ms']:.2f} ms"
        )
    return line


def main() -> None:
    """Runs the races, prints the tables, writes the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--block", type=int, default=25)
    parser.add_argument("--only", action="append", choices=["ours", "peers", "olmoe"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    facts = {
        "machine": machine(torch.device("cpu")),
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": args.threads,
        "rounds": args.rounds,
        "block": args.block,
        "load": os.getloadavg()[0],
    }
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    print(
        f"{'step':30}{'ms (quartiles)':>17}".ljust(54)
        + "over bare, % (quartiles)".ljust(30) + "95 % of the median".ljust(20)
        + "training thread | of it beside the op | writer's thread, CPU"
    )  # fmt: skip
    results = {}
    for which in args.only or ["ours", "peers", "olmoe"]:
        with tempfile.TemporaryDirectory() as folder:
            results[which] = race(which, args.rounds, args.block, Path(folder))
        for name, result in results[which].items():
            print(row(name, result), flush=True)
    if args.json:
        args.json.write_text(json.dumps({**facts, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
