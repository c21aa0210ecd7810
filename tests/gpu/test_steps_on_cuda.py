"""On a GPU: capture waits for nothing, changes no bit, takes no memory; its ring keeps order."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from plain_moe import M420, TOY, PlainMoE, router_sites, some_tokens

from workbench.capture.accumulators import Accumulators, Table
from workbench.capture.ring import Ring
from workbench.capture.tap import Tap

ROWS = 4
TOKENS = ROWS * TOY.length


def train(model, device, steps, tap=None, rows=ROWS, shape=TOY, **optimizer):
    """Losses of some steps, as tensors: reading them would wait."""
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3, **optimizer)
    batches = [some_tokens(shape, rows, device, seed=n) for n in range(steps)]
    losses = []
    for number, tokens in enumerate(batches):
        if tap is not None:
            tap.begin(number)
        loss = model(tokens)
        loss.backward()
        adam.step()
        adam.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        if tap is not None:
            tap.end()
    return losses


def samples_of(tap):
    if tap.device.type == "cuda":
        torch.cuda.synchronize()
    samples = []
    while (sample := tap.ring.take(wait=True)) is not None:
        samples.append(sample)
    return samples


def test_a_captured_step_never_waits_for_the_device(cuda):
    shape = replace(TOY, grouped=torch.cuda.get_device_capability() >= (9, 0))
    model = PlainMoE(shape, cuda, torch.bfloat16)
    tap = Tap(router_sites(model), device=cuda, domains=3, coactivation_every=2)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    tokens = some_tokens(shape, ROWS, cuda)
    domains = torch.arange(ROWS, device=cuda) % 3
    keep = torch.ones(ROWS, shape.length, dtype=torch.bool).pin_memory()

    def one(number):
        tap.begin(number)
        tap.labels.set(domains=domains, keep=keep)
        for _ in range(2):
            model(tokens).backward()
        adam.step()
        adam.zero_grad()
        tap.end(2 * TOKENS)

    for number in range(3):  # the first step is checked, and waits; kernels are compiled
        one(number)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for number in range(3, 9):
            one(number)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    samples = samples_of(tap)
    assert [s.note.step for s in samples] == list(range(9))
    for sample in samples:
        counts_LDE = tap.layout.parts(sample.table).counts_LDE
        by_domain = [4 * shape.length * shape.k, 2 * shape.length * shape.k]
        assert counts_LDE.sum(2).tolist() == [[*by_domain, by_domain[1]]] * shape.layers


def test_every_step_arrives_whole_and_in_order(device):
    model = PlainMoE(TOY, device, torch.float32)
    tap = Tap(router_sites(model), device=device, coactivation_every=2, slots=32)
    train(model, device, 20, tap)
    samples = samples_of(tap)
    assert [s.note.step for s in samples] == list(range(20))
    # Nobody took any meanwhile: there is room for 32 samples, and for 4 with slow quantities.
    assert [s.note.step for s in samples if s.slow is not None] == [0, 2, 4, 6]
    assert tap.ring.slow_dropped == 6
    for sample in samples:
        parts = tap.layout.parts(sample.table)
        assert parts.counts_LDE.sum((1, 2)).tolist() == [TOKENS * TOY.k] * TOY.layers
        assert parts.tallies_L2[:, 0].tolist() == [TOKENS] * TOY.layers
    tap.close()


def test_the_ring_hands_on_what_was_pushed_while_the_accumulators_go_on(device):
    sums = Accumulators(Table(layers=2, domains=1, experts=64), device)
    ring = Ring(sums.layout, device, slots=8)
    taken = []
    for number in range(100):
        sums.table.fill_(number)
        assert ring.push(number, sums, slow=False)
        sums.clear()
        if number % 7 == 6:
            while (sample := ring.take(wait=True)) is not None:
                taken.append(sample)
    while (sample := ring.take(wait=True)) is not None:
        taken.append(sample)
    assert [s.note for s in taken] == list(range(100))
    assert all((s.table == s.note).all() for s in taken)


def test_the_ring_of_a_gpu_lies_in_pinned_memory(cuda):
    ring = Ring(Table(layers=1, domains=1, experts=8), cuda)
    assert ring._tables.is_pinned()
    assert ring._slow.is_pinned()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_losses_are_the_same_to_the_last_bit_with_capture(device, dtype):
    losses = {}
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for name in ("bare", "bare again", "captured"):
            model = PlainMoE(TOY, device, dtype)
            tap = Tap(router_sites(model), device=device) if name == "captured" else None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                losses[name] = torch.stack(train(model, device, 8, tap)).tolist()
    finally:
        torch.use_deterministic_algorithms(False)
    if losses["bare"] != losses["bare again"]:
        pytest.skip("two bare trainings differ here: this device does not repeat its own step")
    assert losses["captured"] == losses["bare"]


def test_capture_takes_no_memory_beyond_its_tables(cuda):
    peak = {}
    for name in ("bare", "captured"):
        model = PlainMoE(TOY, cuda, torch.float32)
        tap = Tap(router_sites(model), device=cuda) if name == "captured" else None
        train(model, cuda, 2, tap, rows=16)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        train(model, cuda, 3, tap, rows=16)
        peak[name] = torch.cuda.max_memory_allocated()
        tables = 8 * (tap.layout.cells + tap.layout.slow_cells) if tap else 0
        del model, tap
        torch.cuda.empty_cache()
    assert peak["captured"] - peak["bare"] <= tables + (1 << 16)


def test_the_large_model_of_the_benchmark_is_counted_exactly(cuda):
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs grouped matrix products: compute capability 9.0")
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("needs 12 GiB of GPU memory")
    model = PlainMoE(M420, cuda, torch.bfloat16)
    tap = Tap(router_sites(model), device=cuda)
    train(model, cuda, 2, tap, rows=4, shape=M420, fused=True)
    for sample in samples_of(tap):
        found = tap.layout.parts(sample.table).counts_LDE.sum((1, 2))
        assert (found == 4 * M420.length * M420.k).all()


def test_under_ddp_with_nccl_a_step_is_counted_exactly(cuda, tmp_path):
    import torch.distributed as dist

    if not dist.is_nccl_available():
        pytest.skip("this torch has no nccl")
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("nccl", store=store, rank=0, world_size=1)
    try:
        model = PlainMoE(TOY, cuda, torch.float32)
        tap = Tap(router_sites(model), device=cuda)
        spread = torch.nn.parallel.DistributedDataParallel(model, device_ids=[0])
        train(spread, cuda, 4, tap)
        for sample in samples_of(tap):
            counts_LDE = tap.layout.parts(sample.table).counts_LDE
            assert np.all(counts_LDE.sum((1, 2)) == TOKENS * TOY.k)
    finally:
        dist.destroy_process_group()
