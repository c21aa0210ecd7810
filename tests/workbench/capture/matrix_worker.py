"""One rank of the matrix of training modes: trains a tiny model in each, with capture and without,
and writes what was counted and lost as JSON.

    python matrix_worker.py single|ddp|fsdp2 RANK WORLD PORT OUT
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from contextlib import ExitStack, nullcontext
from dataclasses import replace

import torch
import torch.distributed as dist
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    checkpoint_wrapper,
)
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from model.config import NANO
from model.lm import MoELM
from workbench.capture.accumulators import as_variables
from workbench.capture.adapters.find import find_routers
from workbench.capture.tap import Tap

CONFIG = replace(
    NANO, d_vocab=64, d_model=16, n_layers=2, n_heads=2, n_key_value_heads=1, d_mlp=8,
    num_experts=4, experts_per_token=2, n_ctx=8,
)  # fmt: skip
ROWS, LENGTH, STEPS = 2, 8, 2
MODES = ("eager", "compile(AC)", "AC(compile)", "compile whole")
AC = ("none", "full", "selective", "reentrant")
MICRO = (1, 4)
BACKEND = os.environ.get("MATRIX_BACKEND", "aot_eager")


def keep_products(ctx, op, *args, **kwargs):
    kept = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.topk.default}
    return CheckpointPolicy.MUST_SAVE if op in kept else CheckpointPolicy.PREFER_RECOMPUTE


def checkpointed(block, kind):
    if kind == "none":
        return block
    if kind == "reentrant":
        return checkpoint_wrapper(block, CheckpointImpl.REENTRANT)
    more = {}
    if kind == "selective":
        more["context_fn"] = lambda: create_selective_checkpoint_contexts(keep_products)
    return checkpoint_wrapper(
        block, CheckpointImpl.NO_REENTRANT, preserve_rng_state=False, **more
    )  # fmt: skip


def built(mode, ac, parallel, capture):
    """The model as a trainer would wrap it, and its tap, made before anything is compiled."""
    lm = MoELM(CONFIG, seed=0)
    tap = Tap(find_routers(lm), model=lm, coactivation_every=1) if capture else None
    for i, block in enumerate(lm.blocks):
        if mode == "AC(compile)":
            block.compile(backend=BACKEND, fullgraph=True)
        lm.blocks[i] = checkpointed(block, ac)
        if mode == "compile(AC)":
            lm.blocks[i].compile(backend=BACKEND, fullgraph=ac != "reentrant")
    if mode == "compile whole":
        # FSDP2's own hooks, and reentrant checkpoints, break graphs without capture too.
        lm.compile(backend=BACKEND, fullgraph=parallel != "fsdp2" and ac != "reentrant")
    if parallel == "fsdp2":
        from torch.distributed.fsdp import fully_shard

        for block in lm.blocks:
            fully_shard(block)
        fully_shard(lm)
        return lm, tap
    wrapped = torch.nn.parallel.DistributedDataParallel(lm) if parallel == "ddp" else lm
    return wrapped, tap


def batch(step, micro, rank):
    g = torch.Generator().manual_seed(1000 * step + 10 * micro + rank)
    tokens = torch.randint(0, CONFIG.d_vocab, (ROWS, LENGTH + 1), generator=g)
    return tokens[:, :-1], tokens[:, 1:]


def train(mode, ac, parallel, rank, capture):
    """By micro-batches a step: losses as exact hex, and what was counted, step by step."""
    torch._dynamo.reset()
    model, tap = built(mode, ac, parallel, capture)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    results, step = {}, 0
    for micro in MICRO:
        losses = []
        for _ in range(STEPS):
            step += 1
            losses += one_step(model, optimizer, tap, step, micro, parallel, rank)
        results[micro] = {"losses": losses, "samples": taken(tap) if tap else []}
    if tap:
        tap.close()
    return results


def one_step(model, optimizer, tap, step, micro, parallel, rank):
    losses = []
    if tap:
        tap.begin(step)
    for m in range(micro):
        last = m == micro - 1
        with ExitStack() as stack:
            if parallel == "ddp":
                stack.enter_context(nullcontext() if last else model.no_sync())
            if parallel == "fsdp2":
                model.set_requires_gradient_sync(last)
            out = model(*batch(step, m, rank), return_type="losses")
            (out.total / micro).backward()
        losses.append(out.total.item().hex())
    optimizer.step()
    optimizer.zero_grad()
    if tap:
        tap.end(tokens=micro * ROWS * LENGTH)
    return losses


def taken(tap):
    samples = []
    while (sample := tap.ring.take()) is not None:
        found = as_variables(tap.layout, sample.table[None], with_domains=False)
        pairs = tap.layout.slow_parts(sample.slow).pairs_LEE
        samples.append(
            {"step": sample.note.step,
             "assignments": found["assignments"][0].tolist(),
             "diagonal": pairs.diagonal(axis1=1, axis2=2).tolist()}
        )  # fmt: skip
    return samples


def main(parallel, rank, world, port, out):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if parallel != "single":
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        dist.init_process_group("gloo", rank=rank, world_size=world)
    results = {}
    wanted = os.environ.get("MATRIX_MODES", ",".join(MODES)).split(",")
    for mode in wanted:
        for ac in AC:
            # torch 2.13's own splitting of graphs at DDP's buckets fails on this one, with capture
            # and without.
            torch._dynamo.config.optimize_ddp = (mode, ac) != ("AC(compile)", "selective")
            try:
                results[f"{mode}|{ac}"] = {
                    "with": train(mode, ac, parallel, rank, True),
                    "without": train(mode, ac, parallel, rank, False),
                }
            except Exception:
                results[f"{mode}|{ac}"] = {"error": traceback.format_exc()[-1500:]}
    with open(f"{out}.{rank}", "w") as file:
        json.dump(results, file)
    if parallel != "single":
        dist.barrier()
        dist.destroy_process_group()
        # Once in some ten runs torch's own threads abort the interpreter's end ("terminate called
        # without an active exception"), when all is said and written.
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
