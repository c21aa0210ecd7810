"""`route_stats`: exact counts, and the statistics that a plain loop over tokens finds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from workbench.capture.accumulators import Accumulators, as_variables
from workbench.capture.route_stats import route_stats
from workbench.store.schema import NEAR_TIE_LOGITS

NONE = torch.empty(0, dtype=torch.int64)
ON = torch.tensor([1, 1])


def routed(tokens, experts, k, seed):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, experts, generator=g) * 2
    probs = logits.softmax(-1)
    ids = probs.topk(k, -1).indices
    gates = probs.gather(-1, ids)
    return logits, ids, gates / gates.sum(-1, keepdim=True)


def accumulate(routing, domains=NONE, keep=NONE, switches=ON, num_domains=1):
    E = routing[0].shape[-1]
    into = Accumulators.zeros(1, E, num_domains, torch.device("cpu"))
    route_stats(*routing, domains, keep, switches, *(t[0] for t in into.tensors()))
    return into


def by_hand(logits, ids, gates, experts):
    """Every quantity, token by token, in plain Python floats."""
    out = {
        "assignments": [0] * experts,
        "gate_mass": [0.0] * experts,
        "prob_mass": [0.0] * experts,
        "entropy": 0.0, "margin": 0.0, "z_squared": 0.0, "topk_mass": 0.0, "near_tie": 0.0,
    }  # fmt: skip
    for row, chosen, weight in zip(logits.tolist(), ids.tolist(), gates.tolist(), strict=True):
        lse = math.log(sum(math.exp(z) for z in row))
        p = [math.exp(z - lse) for z in row]
        for i, w in zip(chosen, weight, strict=True):
            out["assignments"][i] += 1
            out["gate_mass"][i] += w
        for i, q in enumerate(p):
            out["prob_mass"][i] += q
        rest = [z for i, z in enumerate(row) if i not in chosen]
        margin = min(row[i] for i in chosen) - max(rest) if rest else 0.0
        out["entropy"] -= sum(q * math.log(q) for q in p)
        out["margin"] += margin
        out["z_squared"] += lse**2
        out["topk_mass"] += sum(p[i] for i in chosen)
        out["near_tie"] += bool(rest) and margin < NEAR_TIE_LOGITS
    for name in ("entropy", "margin", "z_squared", "topk_mass", "near_tie"):
        out[name] /= len(logits)
    return out


@given(
    tokens=st.integers(1, 40), experts=st.integers(1, 9), k=st.integers(1, 9),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_all_quantities_equal_a_loop_over_tokens(tokens, experts, k, seed):
    routing = routed(tokens, experts, min(k, experts), seed)
    counts, masses, sums, _ = accumulate(routing).take()
    found = as_variables(counts, masses, sums, with_domains=False)
    for name, expected in by_hand(*routing, experts).items():
        # float32 logits against double precision: relative error of a few ulps, summed.
        np.testing.assert_allclose(found[name][0], expected, rtol=1e-4, atol=1e-5, err_msg=name)
    assert found["tokens"] == tokens


@given(tokens=st.integers(1, 60), seed=st.integers(0, 99))
def test_domains_split_the_assignments_and_lose_none(tokens, seed):
    routing = routed(tokens, 8, 2, seed)
    domains = torch.randint(0, 3, (tokens,), generator=torch.Generator().manual_seed(seed))
    counts = accumulate(routing, domains, num_domains=3).counts_LDE[0]
    for d in range(3):
        expected = torch.bincount(routing[1][domains == d].flatten(), minlength=8)
        assert torch.equal(counts[d], expected)
    assert counts.sum() == tokens * 2


def test_a_rows_domain_holds_for_all_its_tokens():
    routing = routed(12, 4, 2, seed=0)
    of_rows = accumulate(routing, torch.tensor([2, 0, 1]), num_domains=3)
    of_tokens = accumulate(routing, torch.tensor([2, 0, 1]).repeat_interleave(4), num_domains=3)
    assert torch.equal(of_rows.counts_LDE, of_tokens.counts_LDE)


def test_padding_leaves_no_trace():
    logits, ids, gates = routed(12, 4, 2, seed=0)
    keep = torch.tensor([True, False, True]).repeat_interleave(4)
    padded = accumulate((logits, ids, gates), keep=keep)
    alone = accumulate((logits[keep], ids[keep], gates[keep]))
    for a, b in zip(padded.tensors(), alone.tensors(), strict=True):
        assert torch.equal(a, b)


def test_coactivation_counts_pairs_and_its_diagonal_is_the_load():
    routing = routed(50, 6, 3, seed=1)
    into = accumulate(routing)
    expected = torch.zeros(6, 6, dtype=torch.int64)
    for chosen in routing[1].tolist():
        for i in chosen:
            for j in chosen:
                expected[i, j] += 1
    assert torch.equal(into.pairs_LEE[0], expected)
    assert torch.equal(into.pairs_LEE[0].diagonal(), into.counts_LDE[0, 0])


@pytest.mark.parametrize("switches", [[0, 0], [0, 1]])
def test_switched_off_nothing_is_added(switches):
    into = accumulate(routed(9, 4, 2, seed=0), switches=torch.tensor(switches))
    assert all(not t.any() for t in into.tensors())


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_forward_is_counted_once(reentrant):
    into = Accumulators.zeros(1, 4, 1, torch.device("cpu"))
    weight = torch.randn(4, 8, requires_grad=True)

    def forward(x):
        logits = x @ weight.T
        ids = logits.topk(2, -1).indices
        views = (t[0] for t in into.tensors())
        route_stats(logits.detach(), ids, ids.float(), NONE, NONE, ON, *views)
        return logits

    x = torch.randn(10, 8, requires_grad=True)
    checkpoint(forward, x, use_reentrant=reentrant).sum().backward()
    assert into.counts_LDE.sum() == 10 * 2


def test_it_compiles_into_one_graph_and_counts_there_too():
    into = Accumulators.zeros(1, 4, 1, torch.device("cpu"))
    views = [t[0] for t in into.tensors()]

    def forward(x):
        ids = x.topk(2, -1).indices
        route_stats(x, ids, x.gather(-1, ids), NONE, NONE, ON, *views)
        return x * 2

    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        compiled(torch.randn(10, 4))
    assert into.counts_LDE.sum() == 3 * 10 * 2


def test_a_masked_expert_gives_no_nan():
    logits = torch.tensor([[1.0, float("-inf"), 0.5, 0.0]])
    ids = torch.tensor([[0, 2]])
    _, _, sums, _ = accumulate((logits, ids, torch.tensor([[0.6, 0.4]]))).take()
    assert np.isfinite(sums).all()


def test_taking_empties_the_accumulators():
    into = accumulate(routed(9, 4, 2, seed=0))
    assert into.take()[0].sum() == 18
    assert all(not t.any() for t in into.tensors())
