"""Training speed: our model against Hugging Face's OLMoE of the same shape, side by side.

Needs   nothing; both models are made here, with random weights and random tokens.
Yields  a table (and with --json FILE the numbers behind it): milliseconds of one training step,
        tokens a second, and how many times faster ours is, each as median and quartiles over the
        rounds.

A step is forward, backward and fused AdamW. Each round times one step of every contender, in an
order that turns, so that a slow second of the machine falls on all of them; the ratio is taken
within the round. OLMoE runs its fastest setting: experts by grouped matrix product, SDPA attention,
no cache. It stands there twice, without its auxiliary loss (less work than ours, which always has
its router losses) and with it. OLMoE normalises queries and keys, and DBRX does not; that is part
of either architecture and stays.

    python tests/benchmarks/train.py [--device cpu] [--threads 2] [--rounds 30] [--shape demo]
    [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn

from model.config import NANO, MoEConfig
from model.lm import MoELM

Step = Callable[[], Any]


class Shape(NamedTuple):
    """A model's configuration and the batch it is trained on."""

    config: MoEConfig
    batch: int
    length: int


SHAPES = {
    "demo": Shape(replace(NANO, d_vocab=768), batch=64, length=64),
    "wide": Shape(
        replace(NANO, d_vocab=2048, d_model=256, d_mlp=256, n_layers=4, n_heads=8), 16, 128
    ),
    "gpu": Shape(
        replace(
            NANO, d_vocab=32_768, d_model=1024, d_mlp=1024, n_layers=8, n_heads=16,
            n_key_value_heads=4, n_ctx=1024,
        ),
        batch=16, length=1024,
    ),
}  # fmt: skip


def ours(shape: Shape, tokens: Tensor, dtype: torch.dtype) -> Step:
    """One training step of MoELM."""
    lm = MoELM(shape.config).to(tokens.device)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast(tokens.device.type, dtype, enabled=dtype != torch.float32):
            losses = lm(tokens[:, :-1], tokens[:, 1:], return_type="losses")
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def olmoe(shape: Shape, auxiliary: bool) -> nn.Module:
    """Hugging Face's OLMoE of this shape, set to its fastest."""
    c = shape.config
    config = transformers.OlmoeConfig(
        vocab_size=c.d_vocab,
        hidden_size=c.d_model,
        intermediate_size=c.d_mlp,
        num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads,
        num_key_value_heads=c.n_key_value_heads,
        num_experts=c.num_experts,
        num_experts_per_tok=c.experts_per_token,
        max_position_embeddings=c.n_ctx,
        clip_qkv=c.clip_qkv,
        norm_topk_prob=True,
        output_router_logits=auxiliary,
        use_cache=False,
        pad_token_id=None,
        eos_token_id=None,
    )
    hf = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    hf.set_experts_implementation("grouped_mm")
    return hf.train()


def theirs(shape: Shape, tokens: Tensor, dtype: torch.dtype, *, auxiliary: bool) -> Step:
    """One training step of OLMoE; `auxiliary` adds its load-balance loss."""
    hf = olmoe(shape, auxiliary).to(tokens.device)
    optimizer = torch.optim.AdamW(hf.parameters(), lr=1e-4, fused=True)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> None:
        with torch.autocast(tokens.device.type, dtype, enabled=dtype != torch.float32):
            # shift_labels are the targets themselves: no shifting, and no position lost.
            loss = hf(input_ids=inputs, labels=targets, shift_labels=targets).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(step: Step, device: torch.device) -> float:
    """Seconds that one step takes, the device's queue included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def quartiles(values: list[float]) -> dict[str, float]:
    """Median and the middle half."""
    low, median, high = statistics.quantiles(values, n=4)
    return {"low": low, "median": median, "high": high}


def race(shape: Shape, device: torch.device, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Times every contender once a round; returns their step times and ratios to ours."""
    tokens = torch.randint(
        shape.config.d_vocab, (shape.batch, shape.length + 1),
        generator=torch.Generator().manual_seed(0),
    ).to(device)  # fmt: skip
    steps = {
        "ours": ours(shape, tokens, dtype),
        "olmoe": theirs(shape, tokens, dtype, auxiliary=False),
        "olmoe, auxiliary loss": theirs(shape, tokens, dtype, auxiliary=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(3):
            timed(step, device)
    names = list(steps)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds[name].append(timed(steps[name], device))
    batch_tokens = shape.batch * shape.length
    return {
        name: {
            "milliseconds": quartiles([1e3 * s for s in times]),
            "tokens_per_second": quartiles([batch_tokens / s for s in times]),
            "ours_is_faster_by": quartiles(
                [s / own for s, own in zip(times, seconds["ours"], strict=True)]
            ),
        }
        for name, times in seconds.items()
    }


def row(shape: str, name: str, result: dict[str, Any]) -> str:
    """One line of the table."""
    ms, rate, ratio = (
        result[key] for key in ("milliseconds", "tokens_per_second", "ours_is_faster_by")
    )
    return (
        f"{shape:6} {name:22} {ms['median']:8.1f} ({ms['low']:.1f}–{ms['high']:.1f})".ljust(56)
        + f"{rate['median']:12,.0f}"
        + f"{ratio['median']:10.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})"
    )


def machine(device: torch.device) -> str:
    """What it runs on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    about = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [
        line.partition(": ")[2] for line in about.splitlines() if line.startswith("model name")
    ]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def main() -> None:
    """Runs the race on each shape, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="float32, or bfloat16 by autocast")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--shape", action="append", choices=SHAPES, help="default: demo, wide")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    facts = {
        "machine": machine(device),
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": args.threads,
        "dtype": args.dtype,
        "rounds": args.rounds,
    }
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    header = f"{'shape':6} {'step':22} {'ms (quartiles)':>16}".ljust(56)
    print(header + f"{'tokens/s':>12}{'ours faster by':>22}")
    results = {}
    for name in args.shape or ["demo", "wide"]:
        results[name] = race(SHAPES[name], device, dtype, args.rounds)
        for contender, result in results[name].items():
            print(row(name, contender, result), flush=True)
    if args.json:
        args.json.write_text(json.dumps({**facts, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
