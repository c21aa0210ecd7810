"""On a GPU: the Triton kernel adds what the plain reference adds."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import CASES, LAYERS, PLACE, Case, arguments, departures, random_case

from workbench.capture.accumulators import Table

pytest.importorskip("triton", reason="needs Triton, which comes with torch for CUDA")

from workbench.capture import route_stats_triton


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_says_what_the_reference_says(cuda, name):
    assert not departures(CASES[name], route_stats_triton.add, cuda)


@pytest.mark.parametrize("seed", range(100))
def test_the_kernel_says_what_the_reference_says_of_random_routings(cuda, seed):
    assert not departures(random_case(seed), route_stats_triton.add, cuda, seed)


@pytest.mark.parametrize("case", [Case(T=1 << 20, E=64, K=8), Case(T=1 << 18, E=256, K=8)])
def test_a_million_tokens_are_counted_to_the_last(cuda, case):
    given = [p.to(cuda) if isinstance(p, torch.Tensor) else p for p in arguments(case, 0, cuda)]
    layout = Table(LAYERS, 1, case.E)
    table = torch.zeros(layout.cells, dtype=torch.int64, device=cuda)
    slow = torch.zeros(layout.slow_cells, dtype=torch.int64, device=cuda)
    flags = torch.ones(2, dtype=torch.int64, device=cuda)
    route_stats_triton.add(*given, flags, table, slow)
    ids, parts = given[1], layout.parts(table)
    assert torch.equal(parts.counts_LDE[PLACE, 0], ids.flatten().bincount(minlength=case.E))
    assert parts.tallies_L2[PLACE, 0] == case.T
    total = parts.masses_L2E[PLACE, 1].sum().item()
    assert total == pytest.approx(case.T, rel=1e-6)
    pairs = layout.slow_parts(slow).pairs_LEE[PLACE]
    assert torch.equal(pairs.diagonal(), parts.counts_LDE[PLACE, 0])
    assert pairs.sum() == case.T * case.K**2


def test_the_flags_are_read_on_the_device(cuda):
    case = Case(T=100)
    given = [p.to(cuda) if isinstance(p, torch.Tensor) else p for p in arguments(case, 0, cuda)]
    layout = Table(LAYERS, 1, case.E)
    table = torch.zeros(layout.cells, dtype=torch.int64, device=cuda)
    slow = torch.zeros(layout.slow_cells, dtype=torch.int64, device=cuda)
    flags = torch.zeros(2, dtype=torch.int64, device=cuda)
    route_stats_triton.add(*given, flags, table, slow)
    assert not table.any()
    flags[0] = 1
    route_stats_triton.add(*given, flags, table, slow)
    assert table.any()
    assert not slow.any()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_arguments_on_another_device_than_the_current_one_are_read_there():
    assert torch.cuda.current_device() == 0
    assert not departures(CASES["bfloat16"], route_stats_triton.add, torch.device("cuda:1"))
