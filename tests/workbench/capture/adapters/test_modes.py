"""Counts are exact however a block is checkpointed and compiled, for each way to read a router."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from workbench.capture.accumulators import Accumulators, Table
from workbench.capture.adapters.find import find_routers
from workbench.capture.adapters.module_names import parent
from workbench.capture.route_stats import route_stats

spec = importlib.util.spec_from_file_location("families", Path(__file__).with_name("families.py"))
families = importlib.util.module_from_spec(spec)
spec.loader.exec_module(families)

STEPS = 2
COMPILER = {"backend": "aot_eager"}
NONE = torch.empty(0, dtype=torch.int64)

WAYS = {
    "eager": lambda block: block,
    "checkpoint": lambda block: checkpointed(block, use_reentrant=False),
    "reentrant checkpoint": lambda block: checkpointed(block, use_reentrant=True),
    "compile": lambda block: torch.compile(block, **COMPILER),
    "compile(checkpoint)": lambda block: torch.compile(
        checkpointed(block, use_reentrant=False), **COMPILER
    ),
    "checkpoint(compile)": lambda block: checkpointed(
        torch.compile(block, **COMPILER), use_reentrant=False
    ),
}


def checkpointed(block, use_reentrant):
    return lambda x: checkpoint(block, x, use_reentrant=use_reentrant)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


# What torch's compiler says while it traces; the second wherever it must split a graph.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method", "ignore:The .grad attribute of")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["olmoe", "dbrx", "llama4", "doge", "deepseek_v3"])
def test_every_token_counts_once_in_every_mode(family, way):
    model = families.built(family)
    for module in model.modules():
        # Its jitter works in place, which checkpointing forbids, captured or not.
        if hasattr(module, "moe_jitter_eps"):
            module.moe_jitter_eps = None
    site = find_routers(model)[-1]
    name = site.name if family == "doge" else parent(site.name)
    block = dict(model.named_modules())[name]
    sums = Accumulators(Table(1, 1, site.num_experts), torch.device("cpu"))
    sums.switch(active=True)

    def show(reading):
        route_stats(
            *reading, NONE, NONE.bool(), int(site.scores), 1, 0, 1, sums.flags, sums.table,
            sums.slow,
        )  # fmt: skip

    site.attach(show)
    run = WAYS[way](block)
    for _ in range(STEPS):
        x_BPD = torch.randn(2, 12, 32, requires_grad=True)
        output = run(x_BPD)
        output = output[0] if isinstance(output, tuple) else output
        output.square().sum().backward()
        assert x_BPD.grad is not None
    counted = int(sums.layout.parts(sums.table)[0].sum())
    assert counted == STEPS * 24 * site.experts_per_token
