"""`route_stats`: exact counts, and the statistics that a plain loop over tokens finds, from every
implementation.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from workbench.capture import route_stats_cpu, route_stats_reference
from workbench.capture.accumulators import (
    ENTROPY_BINS,
    NEAR_TIE_LOGITS,
    SUMS,
    Accumulators,
    Table,
    as_variables,
)
from workbench.capture.adapters.router_site import Scores
from workbench.capture.route_stats import route_stats

NONE = torch.empty(0, dtype=torch.int64)
ALL = torch.empty(0, dtype=torch.bool)
CPU = torch.device("cpu")
IMPLEMENTATIONS = {
    "op": route_stats,
    "cpu": route_stats_cpu.add,
    "reference": route_stats_reference.add,
}


def routed(tokens, experts, k, seed, scores=Scores.LOGITS):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, experts, generator=g) * 2
    probs = logits.softmax(-1)
    ids = probs.topk(k, -1).indices
    gates = probs.gather(-1, ids)
    shown = probs if scores == Scores.PROBABILITIES else logits
    return shown, ids, gates / gates.sum(-1, keepdim=True)


def accumulate(
    routing, domains=NONE, keep=ALL, *, active=True, slow=True, num_domains=1,
    scores=Scores.LOGITS, by="op",
):  # fmt: skip
    into = Accumulators(Table(1, num_domains, routing[0].shape[-1]), CPU)
    into.switch(active=active, slow=slow)
    IMPLEMENTATIONS[by](
        *routing, domains, keep, int(scores), 1, 0, num_domains, into.flags, into.table, into.slow
    )
    return into


def variables(into):
    return as_variables(into.layout, into.table.numpy()[None], with_domains=False)


def counts(into):
    return into.layout.parts(into.table).counts_LDE[0]


def pairs(into):
    return into.layout.slow_parts(into.slow).pairs_LEE[0]


def distribution(row, scores):
    if scores == Scores.PROBABILITIES:
        return [math.log(p) for p in row], row, math.nan
    lse = math.log(sum(math.exp(z) for z in row))
    if scores == Scores.SIGMOID:
        gates = [1 / (1 + math.exp(-z)) for z in row]
        return row, [g / sum(gates) for g in gates], lse
    return row, [math.exp(z - lse) for z in row], lse


def by_hand(logits, ids, gates, scores=Scores.LOGITS):
    """Every quantity, token by token, in plain Python floats."""
    experts = logits.shape[-1]
    out = {
        "assignments": [0] * experts, "gate_mass": [0.0] * experts, "prob_mass": [0.0] * experts,
        "entropy": 0.0, "margin": 0.0, "z_squared": 0.0, "topk_mass": 0.0, "near_tie": 0.0,
    }  # fmt: skip
    for row, chosen, weight in zip(logits.tolist(), ids.tolist(), gates.tolist(), strict=True):
        z, p, lse = distribution(row, scores)
        for i, w in zip(chosen, weight, strict=True):
            out["assignments"][i] += 1
            out["gate_mass"][i] += w
        for i, q in enumerate(p):
            out["prob_mass"][i] += q
        rest = [v for i, v in enumerate(z) if i not in chosen]
        margin = min(z[i] for i in chosen) - max(rest) if rest else 0.0
        out["entropy"] -= sum(q * math.log(q) for q in p)
        out["margin"] += margin
        out["z_squared"] += lse**2
        out["topk_mass"] += sum(p[i] for i in chosen)
        out["near_tie"] += bool(rest) and abs(margin) < NEAR_TIE_LOGITS
    for name in (*SUMS, "near_tie"):
        out[name] /= len(logits)
    return out


@pytest.mark.parametrize("by", ["op", "reference"])
@pytest.mark.parametrize("scores", list(Scores))
@given(
    tokens=st.integers(1, 40), experts=st.integers(1, 9), k=st.integers(1, 9),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_all_quantities_equal_a_loop_over_tokens(by, scores, tokens, experts, k, seed):
    routing = routed(tokens, experts, min(k, experts), seed, scores)
    found = variables(accumulate(routing, scores=scores, by=by))
    for name, expected in by_hand(*routing, scores).items():
        # float32 logits against double precision: relative error of a few ulps, summed.
        np.testing.assert_allclose(found[name][0, 0], expected, rtol=1e-4, atol=2e-5, err_msg=name)
    assert found["tokens"] == tokens


@given(
    rows=st.integers(1, 5), per_row=st.integers(1, 9), experts=st.integers(1, 9),
    k=st.integers(1, 4), domains=st.integers(1, 3), by_row=st.booleans(), pad=st.booleans(),
    drop=st.booleans(), scores=st.sampled_from(list(Scores)), seed=st.integers(0, 999),
)  # fmt: skip
def test_the_fast_way_on_a_cpu_says_what_plain_torch_says(
    rows, per_row, experts, k, domains, by_row, pad, drop, scores, seed
):
    T, g = rows * per_row, torch.Generator().manual_seed(seed)
    shown, ids, gates = routed(T, experts, min(k, experts), seed, scores)
    labels = torch.randint(0, domains, (rows if by_row else T,), generator=g)
    keep = torch.rand(rows if by_row else T, generator=g) < 0.6 if pad else ALL
    if drop:
        ids = torch.where(torch.rand(ids.shape, generator=g) < 0.3, -1, ids)
    for dtype, ids_dtype in ((torch.float32, torch.int64), (torch.bfloat16, torch.int32)):
        arguments = (shown.to(dtype), ids.to(ids_dtype), gates.to(dtype)), labels, keep
        fast, plain = (
            accumulate(*arguments, num_domains=domains, scores=scores, by=by)
            for by in ("cpu", "reference")
        )
        cut = fast.layout.int_cells
        assert torch.equal(fast.table[:cut], plain.table[:cut])
        assert torch.equal(pairs(fast), pairs(plain))
        # Both sum float32 terms, in another order.
        for a, b in zip(
            fast.layout.parts(fast.table)[2:], plain.layout.parts(plain.table)[2:], strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4, equal_nan=True)


def test_many_tokens_are_read_in_pieces_and_none_is_lost():
    routing = routed(3 * route_stats_cpu.PIECE // 8 + 5, 8, 2, seed=0)
    fast, plain = accumulate(routing), accumulate(routing, by="reference")
    assert torch.equal(counts(fast), counts(plain))
    assert torch.equal(pairs(fast), pairs(plain))
    assert variables(fast)["tokens"] == len(routing[0])


@given(tokens=st.integers(1, 60), seed=st.integers(0, 99))
def test_domains_split_the_assignments_and_lose_none(tokens, seed):
    routing = routed(tokens, 8, 2, seed)
    domains = torch.randint(0, 3, (tokens,), generator=torch.Generator().manual_seed(seed))
    found = counts(accumulate(routing, domains, num_domains=3))
    for d in range(3):
        assert torch.equal(
            found[d], torch.bincount(routing[1][domains == d].flatten(), minlength=8)
        )
    assert found.sum() == tokens * 2


def test_a_rows_domain_holds_for_all_its_tokens():
    routing = routed(12, 4, 2, seed=0)
    of_rows = accumulate(routing, torch.tensor([2, 0, 1]), num_domains=3)
    of_tokens = accumulate(routing, torch.tensor([2, 0, 1]).repeat_interleave(4), num_domains=3)
    assert torch.equal(counts(of_rows), counts(of_tokens))


@pytest.mark.parametrize("by", ["op", "reference"])
def test_padding_leaves_no_trace(by):
    logits, ids, gates = routed(12, 4, 2, seed=0)
    keep = torch.tensor([True, False, True]).repeat_interleave(4)
    logits[~keep] = float("nan")
    padded = accumulate((logits, ids, gates), keep=keep, by=by)
    alone = accumulate((logits[keep], ids[keep], gates[keep]), by=by)
    cut = padded.layout.int_cells
    assert torch.equal(padded.table[:cut], alone.table[:cut])
    assert torch.equal(padded.slow, alone.slow)
    torch.testing.assert_close(
        padded.table[cut:].view(torch.float64), alone.table[cut:].view(torch.float64)
    )


def test_coactivation_counts_pairs_and_its_diagonal_is_the_load():
    routing = routed(50, 6, 3, seed=1)
    into = accumulate(routing)
    expected = torch.zeros(6, 6, dtype=torch.int64)
    for chosen in routing[1].tolist():
        for i in chosen:
            for j in chosen:
                expected[i, j] += 1
    assert torch.equal(pairs(into), expected)
    assert torch.equal(pairs(into).diagonal(), counts(into)[0])


@pytest.mark.parametrize("by", ["op", "reference"])
def test_the_entropy_histogram_holds_every_token_in_its_bin(by):
    even, sure = torch.zeros(3, 4), torch.tensor([[50.0, 0, 0, 0]]).repeat(5, 1)
    logits = torch.cat([even, sure])
    ids = logits.topk(2, -1).indices
    into = accumulate((logits, ids, ids.float()), by=by)
    histogram = into.layout.slow_parts(into.slow).entropy_histogram_LB[0]
    assert histogram[0] == 5
    assert histogram[ENTROPY_BINS - 1] == 3
    assert histogram.sum() == 8


@pytest.mark.parametrize("by", ["op", "reference"])
@pytest.mark.parametrize("slow", [False, True])
def test_switched_off_nothing_is_added(by, slow):
    into = accumulate(routed(9, 4, 2, seed=0), active=False, slow=slow, by=by)
    assert not into.table.any()
    assert not into.slow.any()


def test_slow_quantities_are_read_only_when_asked():
    into = accumulate(routed(9, 4, 2, seed=0), slow=False)
    assert counts(into).sum() == 18
    assert not into.slow.any()


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_forward_is_counted_once(reentrant):
    into = Accumulators(Table(1, 1, 4), CPU)
    into.switch(active=True)
    weight = torch.randn(4, 8, requires_grad=True)

    def forward(x):
        logits = x @ weight.T
        ids = logits.topk(2, -1).indices
        route_stats(
            logits.detach(), ids, ids.float(), NONE, ALL, 0, 1, 0, 1,
            into.flags, into.table, into.slow,
        )  # fmt: skip
        return logits

    x = torch.randn(10, 8, requires_grad=True)
    checkpoint(forward, x, use_reentrant=reentrant).sum().backward()
    assert counts(into).sum() == 10 * 2


def test_it_compiles_into_one_graph_counts_there_too_and_lets_gradients_by():
    into = Accumulators(Table(1, 1, 4), CPU)
    into.switch(active=True)

    def forward(x):
        ids = x.topk(2, -1).indices
        # Not detached: an op without results has no gradient to send.
        route_stats(
            x, ids, x.gather(-1, ids), NONE, ALL, 0, 1, 0, 1, into.flags, into.table, into.slow
        )
        return (x * 2).sum()

    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        x = torch.randn(10, 4, requires_grad=True)
        compiled(x).backward()
        assert torch.equal(x.grad, torch.full_like(x, 2.0))
    assert counts(into).sum() == 3 * 10 * 2


def test_the_op_says_the_truth_about_itself():
    into = Accumulators(Table(1, 1, 4), CPU)
    into.switch(active=True)
    logits, ids, gates = routed(9, 4, 2, seed=0)
    torch.library.opcheck(
        torch.ops.workbench.route_stats.default,
        (logits, ids, gates, NONE, ALL, 0, 1, 0, 1, into.flags, into.table, into.slow),
    )


@pytest.mark.parametrize("by", ["op", "reference"])
@pytest.mark.parametrize(
    ("logits", "ids"),
    [
        ([[1.0, float("-inf"), 0.5, 0.0]], [[0, 2]]),
        ([[1.0, float("-inf"), 0.5, float("-inf")]], [[0, 2]]),
        ([[200.0, -200.0, 0.0, 1.0]], [[0, 3]]),
    ],
)
def test_masked_and_extreme_logits_give_no_nan(by, logits, ids):
    into = accumulate((torch.tensor(logits), torch.tensor(ids), torch.tensor([[0.6, 0.4]])), by=by)
    assert all(np.isfinite(v).all() for v in variables(into).values())


@pytest.mark.parametrize("by", ["op", "reference"])
def test_a_diverged_router_shows_nan_and_its_counts_stay_exact(by):
    logits, ids, gates = routed(9, 4, 2, seed=0)
    logits[3] = float("nan")
    into = accumulate((logits, ids, gates), by=by)
    assert counts(into).sum() == 18
    assert np.isnan(variables(into)["entropy"]).all()


def test_a_dropped_assignment_counts_nowhere():
    logits, ids, gates = routed(9, 4, 2, seed=0)
    ids[2, 1] = -1
    into = accumulate((logits, ids, gates))
    assert counts(into).sum() == 17
    assert variables(into)["tokens"] == 9


@pytest.mark.parametrize("by", ["op", "reference"])
def test_an_id_beyond_the_last_expert_counts_nowhere_and_breaks_nothing(by):
    logits, ids, gates = routed(9, 4, 2, seed=0)
    ids[2, 1] = 4
    domains = torch.tensor([0, 1, 0]).repeat_interleave(3)
    into = accumulate((logits, ids, gates), domains, num_domains=2, by=by)
    assert into.layout.parts(into.table).counts_LDE[0].sum(1).tolist() == [11, 6]


def test_clearing_empties_the_accumulators():
    into = accumulate(routed(9, 4, 2, seed=0))
    into.clear()
    assert not into.table.any()
    assert not into.slow.any()
