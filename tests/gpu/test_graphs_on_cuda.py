"""On a GPU: replayed CUDA graphs and compiled models are counted exactly, and stay graphs."""

from __future__ import annotations

from threading import Thread

import pytest
import torch
from plain_moe import TOY, PlainMoE, router_sites, some_tokens

from workbench.capture.tap import Tap

ROWS = 4
TOKENS = ROWS * TOY.length


def counted(tap):
    """Assignments of every router in the sample that was pushed last, and the sample."""
    torch.cuda.synchronize()
    sample = tap.ring.take(wait=True)
    return tap.layout.parts(sample.table).counts_LDE.sum((1, 2)).tolist(), sample


def model_of(device, **how):
    """A model whose gradients are there already: CUDA graphs must not hold them."""
    model = PlainMoE(TOY, device, torch.float32, **how)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model


def step(tap, number, run, times=1):
    tap.begin(number)
    for _ in range(times):
        run()
    tap.end()


@pytest.fixture
def graph_of_a_step(cuda):
    """A model with a tap, and a CUDA graph of its forward and backward, captured while the flags
    said that nothing counts.
    """
    model = PlainMoE(TOY, cuda, torch.float32)
    tap = Tap(router_sites(model), device=cuda, coactivation_every=2)
    tokens = some_tokens(TOY, ROWS, cuda)
    step(tap, 1, lambda: model(tokens).backward())
    counted(tap)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            model.zero_grad(set_to_none=True)
            model(tokens).backward()
    torch.cuda.current_stream().wait_stream(aside)
    model.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model(tokens).backward()
    yield model, tap, tokens, graph
    tap.close()


def test_every_replay_of_a_cuda_graph_counts(graph_of_a_step):
    _, tap, _, graph = graph_of_a_step
    for number, times in ((3, 1), (5, 4)):
        step(tap, number, graph.replay, times)
        assert counted(tap)[0] == [times * TOKENS * TOY.k] * TOY.layers


def test_replays_outside_a_step_or_in_a_pause_count_nothing(graph_of_a_step):
    _, tap, _, graph = graph_of_a_step
    graph.replay()
    tap.begin(3)
    with tap.paused():
        graph.replay()
    graph.replay()
    tap.end()
    graph.replay()
    assert counted(tap)[0] == [TOKENS * TOY.k] * TOY.layers


def test_a_replay_reads_the_slow_quantities_only_where_the_flag_says_so(graph_of_a_step):
    _, tap, _, graph = graph_of_a_step
    for number in (3, 4, 5, 6):
        step(tap, number, graph.replay)
        sample = counted(tap)[1]
        assert (sample.slow is not None) == (number % 2 == 0)
        if sample.slow is not None:
            pairs, histogram = tap.layout.slow_parts(sample.slow)
            assert pairs.sum((1, 2)).tolist() == [TOKENS * TOY.k**2] * TOY.layers
            assert histogram.sum(1).tolist() == [TOKENS] * TOY.layers


def test_a_replay_counts_what_a_run_without_a_graph_counts(graph_of_a_step):
    model, tap, tokens, graph = graph_of_a_step
    step(tap, 3, graph.replay)
    replayed = tap.layout.parts(counted(tap)[1].table)
    step(tap, 5, lambda: model(tokens))
    plain = tap.layout.parts(counted(tap)[1].table)
    assert (replayed.counts_LDE == plain.counts_LDE).all()
    assert (replayed.tallies_L2 == plain.tallies_L2).all()


def test_a_graph_is_captured_unharmed_while_a_writer_takes_samples(cuda):
    model = PlainMoE(TOY, cuda, torch.float32)
    tap = Tap(router_sites(model), device=cuda)
    step(tap, 1, lambda: model(some_tokens(TOY, ROWS, cuda)))
    torch.cuda.synchronize()
    tap.ring.settle()
    here, taken = torch.ones(8, device=cuda), []
    graph = torch.cuda.CUDAGraph()
    # By default a capture forbids all threads what could disturb it, not only its own.
    with torch.cuda.graph(graph):
        there = here * 2
        writer = Thread(target=lambda: taken.append(tap.ring.take()))
        writer.start()
        writer.join()
        there = there + 1
    graph.replay()
    assert there.sum().item() == 24
    assert taken[0].note.step == 1


COMPILED = {
    "blocks": {"around": torch.compile},
    "blocks as CUDA graphs": {"around": lambda b: torch.compile(b, mode="reduce-overhead")},
    "blocks, recomputed": {"around": torch.compile, "recompute": "not reentrant"},
    "blocks, recomputed reentrantly": {"around": torch.compile, "recompute": "reentrant"},
    "recomputed": {"recompute": "not reentrant"},
    "recomputed reentrantly": {"recompute": "reentrant"},
}
WHOLE = {
    "whole": (None, None),
    "whole as CUDA graphs": (None, "reduce-overhead"),
    "whole, recomputed": ("not reentrant", None),
    "whole, recomputed, as CUDA graphs": ("not reentrant", "reduce-overhead"),
}


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("mode", [*COMPILED, *WHOLE])
def test_every_order_of_compiling_and_recomputing_counts_once(cuda, mode, micro_batches):
    torch._dynamo.reset()
    recompute, how = WHOLE.get(mode, (None, None))
    model = model_of(cuda, **COMPILED.get(mode, {"recompute": recompute}))
    tap = Tap(router_sites(model), device=cuda)
    run = torch.compile(model, mode=how) if mode in WHOLE else model

    def micro_batch():
        torch.compiler.cudagraph_mark_step_begin()
        run(some_tokens(TOY, ROWS, cuda)).backward()

    # CUDA graphs warm up, then record, then replay.
    for number in range(1, 7):
        step(tap, number, micro_batch, micro_batches)
        assert counted(tap)[0] == [micro_batches * TOKENS * TOY.k] * TOY.layers
    tap.close()


def test_capture_costs_a_compiled_model_no_cuda_graph(cuda):
    from torch._dynamo.utils import counters

    skipped = {}
    for name in ("bare", "captured"):
        torch._dynamo.reset()
        counters.clear()
        model = model_of(cuda)
        tap = Tap(router_sites(model), device=cuda) if name == "captured" else None
        run = torch.compile(model, mode="reduce-overhead", fullgraph=True)
        for number in range(1, 5):
            torch.compiler.cudagraph_mark_step_begin()
            if tap:
                tap.begin(number)
            run(some_tokens(TOY, ROWS, cuda)).backward()
            if tap:
                tap.end()
        skipped[name] = counters["inductor"]["cudagraph_skips"]
    assert skipped["captured"] == skipped["bare"]
