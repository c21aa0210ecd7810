"""Traces of sampled tokens: which are chosen, and that what is noted is what the routers did."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from model.config import NANO
from model.lm import MoELM
from workbench.capture import route_trace
from workbench.capture.adapters.ours import routers_of_ours
from workbench.capture.adapters.router_site import Reading
from workbench.capture.token_choice import choose, fit, limit_of, mixed
from workbench.capture.traces import RouteTraces, Traces, capacity_for
from workbench.errors import CaptureError, UsageError

NONE = torch.empty(0, dtype=torch.int64)
EMPTY = np.empty(0, np.int64)
K = NANO.experts_per_token


def unlabelled(**labels):
    known = dict.fromkeys(("documents", "positions", "domains", "keep"), NONE)
    return SimpleNamespace(**known | labels)


def rows_of_tokens(rows, length=32, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, NANO.d_vocab, (rows, length), generator=random)


class Traced:
    """A model with traces, and every reading of its routers kept whole beside them."""

    def __init__(self, share=0.1, capacity=1000, labels=None, model=None):
        self.model = model or MoELM(NANO, seed=1)
        self.labels = labels or unlabelled()
        self.flags = torch.tensor([1, 0])
        sites = routers_of_ours(self.model)
        self.traces = RouteTraces(len(sites), K, self.flags, share=share, capacity=capacity)
        self.traces.watch(self.model, self.labels)
        self.seen = [[] for _ in sites]
        for place, site in enumerate(sites):
            site.attach(lambda reading, place=place: self.show(place, reading))

    def show(self, place, reading):
        self.seen[place].append(reading)
        self.traces.read(place, reading)

    def whole(self):
        """ids and gates (token, layer, k) of all forwards, one after the other."""
        return [
            torch.stack([torch.cat([getattr(r, of) for r in layer]) for layer in self.seen], 1)
            for of in ("ids_TK", "gates_TK")
        ]


def test_every_traced_token_has_the_experts_and_gates_of_a_full_recording_in_all_micro_batches():
    traced = Traced()
    batches = [rows_of_tokens(4, seed=s) for s in range(3)]
    traced.traces.begin()
    for batch in batches:
        traced.model(batch)
    rows = traced.traces.take(7)
    ids, gates = traced.whole()
    chosen = [
        choose(b.numpy(), EMPTY, EMPTY, EMPTY, EMPTY, limit_of(0.1)).chosen_RP.ravel()
        for b in batches
    ]
    at = np.flatnonzero(np.concatenate(chosen))
    assert len(at) > 20
    assert np.array_equal(rows["expert_ids"], ids[at].numpy())
    assert np.array_equal(rows["gates"], gates[at].numpy())
    assert np.array_equal(rows["token"], torch.cat(batches).flatten()[at].numpy())
    assert np.array_equal(rows["position"], at % 32)
    assert set(rows["step"]) == {7}
    assert set(rows["document"]) == set(rows["domain"]) == {-1}


def test_a_step_begins_empty_and_one_without_traces_has_no_rows():
    traced = Traced(share=1e-9)
    traced.traces.begin()
    traced.model(rows_of_tokens(2))
    assert traced.traces.take(1) is None
    traced = Traced()
    for step in (1, 2):
        traced.traces.begin()
        traced.model(rows_of_tokens(4))
        counts = len(traced.traces.take(step)["token"])
        assert (
            counts
            == choose(
                rows_of_tokens(4).numpy(), EMPTY, EMPTY, EMPTY, EMPTY, limit_of(0.1)
            ).chosen_RP.sum()
        )


def test_the_hash_is_splitmix64():
    def by_the_book(x):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    states = [0, 1, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15, 123456789]
    signed = np.array(states, np.uint64).view(np.int64)
    assert mixed(signed).view(np.uint64).tolist() == [by_the_book(s) for s in states]
    assert mixed(torch.from_numpy(signed)).tolist() == mixed(signed).tolist()


@pytest.mark.parametrize("share", [0.001, 0.02, 0.5])
@pytest.mark.parametrize("documents", [False, True])
def test_the_share_is_met_within_binomial_bounds_and_evenly_over_positions(share, documents):
    R, P = 2000, 500
    if documents:
        tokens, ids = np.zeros((R, P), np.int64), np.arange(R)
    else:
        tokens, ids = np.random.default_rng(3).integers(0, 700, (R, P)), EMPTY
    chosen = choose(tokens, ids, EMPTY, EMPTY, EMPTY, limit_of(share)).chosen_RP
    spread = np.sqrt(R * P * share * (1 - share))
    assert abs(chosen.sum() - R * P * share) < 4 * spread
    for axis, others in ((0, R), (1, P)):
        groups = chosen.reshape(20, R // 20, P).sum((1, 2)) if axis else chosen.reshape(R, 20, -1)
        groups = groups if axis else groups.sum((0, 2))
        expected = R * P * share / 20
        chi_square = ((groups - expected) ** 2 / (expected * (1 - share))).sum()
        assert chi_square < 45, others  # 20 groups: above once in a thousand


def test_a_share_of_one_traces_every_token():
    chosen = choose(rows_of_tokens(3).numpy(), EMPTY, EMPTY, EMPTY, EMPTY, limit_of(1.0))
    assert chosen.chosen_RP.all()


def test_a_place_of_a_document_is_traced_wherever_it_turns_up():
    whole = choose(
        np.zeros((3, 64), np.int64), np.array([11, 12, 13]), EMPTY, EMPTY, EMPTY, limit_of(0.2)
    ).chosen_RP
    assert not np.array_equal(whole[0], whole[1])
    # Packed anew: the end of 12 with its positions given, then all of 13 and a start of 11.
    documents = np.array([[12] * 24 + [13] * 64 + [11] * 8])
    positions = np.array([[*range(40, 64), *range(64), *range(8)]])
    packed = choose(np.ones((1, 96), np.int64), documents, positions, EMPTY, EMPTY, limit_of(0.2))
    assert np.array_equal(packed.chosen_RP[0, :24], whole[1, 40:])
    assert np.array_equal(packed.chosen_RP[0, 24:88], whole[2])
    assert np.array_equal(packed.chosen_RP[0, 88:], whole[0, :8])
    # Without positions they are counted from where a document begins in its row.
    counted = choose(np.ones((1, 96), np.int64), documents, EMPTY, EMPTY, EMPTY, limit_of(0.2))
    assert counted.position_RP[0].tolist() == [*range(24), *range(64), *range(8)]
    assert np.array_equal(counted.chosen_RP[0, 24:], packed.chosen_RP[0, 24:])
    # The position of a row's first token is enough where a row holds one document.
    second = choose(
        np.ones((1, 24), np.int64), np.array([12]), np.array([40]), EMPTY, EMPTY, limit_of(0.2)
    )
    assert np.array_equal(second.chosen_RP[0], whole[1, 40:])


def test_without_documents_a_row_is_sampled_alike_in_any_batch():
    rows = rows_of_tokens(6).numpy()
    limit = limit_of(0.2)
    together = choose(rows, EMPTY, EMPTY, EMPTY, EMPTY, limit).chosen_RP
    alone = [choose(row[None], EMPTY, EMPTY, EMPTY, EMPTY, limit).chosen_RP[0] for row in rows]
    assert np.array_equal(together, np.stack(alone))
    # A token more or less, anywhere, is another row.
    rows[0, 31] += 1
    assert not np.array_equal(
        choose(rows[:1], EMPTY, EMPTY, EMPTY, EMPTY, limit).chosen_RP[0], together[0]
    )
    unknown = np.array([-1, 5, -1, 5, 5, -1])
    mixed_rows = choose(rows, unknown, EMPTY, EMPTY, EMPTY, limit).chosen_RP
    assert np.array_equal(mixed_rows[2], together[2])
    assert not np.array_equal(mixed_rows[1], together[1])
    assert np.array_equal(mixed_rows[1], mixed_rows[3])


SHAPES = st.sampled_from(["none", "rows", "tokens"])


@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 17)), min_size=1, max_size=4),
    shapes=st.tuples(SHAPES, SHAPES, SHAPES, SHAPES),
    share=st.sampled_from([0.05, 0.4, 1.0]),
    capacity=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    gates=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_fast_form_for_the_cpu_and_the_form_for_devices_agree(
    batches, shapes, share, capacity, seed, gates
):
    random = np.random.default_rng(seed)
    both = [RouteTraces(2, 2, torch.ones(2, dtype=torch.int64), share=share, capacity=capacity)
            for _ in range(2)]  # fmt: skip
    kernels = [
        (route_trace._begin_on_cpu, route_trace._read_on_cpu),
        (route_trace._begin_on_device, route_trace._read_on_device),
    ]
    for R, P in batches:
        active = int(random.random() < 0.8)
        tokens = torch.from_numpy(random.integers(0, 2**17, (R, P)))
        sizes = {"none": 0, "rows": R, "tokens": R * P}
        labels = [torch.from_numpy(random.integers(-1, 50, sizes[s])) for s in shapes]
        labels[3] = labels[3] > 10
        ids = torch.from_numpy(random.integers(-1, 9, (2, R * P, 2)))
        weights = torch.from_numpy(random.random((2, R * P, 2))).to(gates)
        short = random.random() < 0.1  # a router that sees other tokens than the embedding
        for traces, (begin, read) in zip(both, kernels, strict=True):
            traces.flags[0] = active
            layout = (traces.layout.layers, traces.layout.k, traces.layout.capacity)
            begin(tokens, *labels, limit_of(share), *layout, traces.flags, traces.table)
            for place in (1, 0):
                shown = slice(1, None) if short else slice(None)
                read(ids[place][shown], weights[place][shown], *layout, place,
                     traces.flags, traces.table)  # fmt: skip
    rows = [traces.take(3) for traces in both]
    if rows[0] is None or rows[1] is None:
        assert rows[0] is rows[1] is None
    else:
        for name, array in rows[0].items():
            assert np.array_equal(array, rows[1][name], equal_nan=array.dtype.kind == "f"), name
    assert both[0].overflowed == both[1].overflowed
    assert both[0].mismatched == both[1].mismatched


def test_what_does_not_fit_is_counted_and_the_first_tokens_are_kept():
    traced, roomy = Traced(share=0.2, capacity=10), Traced(share=0.2)
    for t in (traced, roomy):
        t.traces.begin()
        for seed in range(3):
            t.model(rows_of_tokens(3, seed=seed))
    kept, every = traced.traces.take(1), roomy.traces.take(1)
    assert len(kept["token"]) == 10
    assert traced.traces.overflowed == len(every["token"]) - 10 > 0
    assert roomy.traces.overflowed == 0
    assert np.array_equal(kept["expert_ids"], every["expert_ids"][:10])


def test_a_capacity_holds_six_standard_deviations():
    for tokens, share in ((4096, 1e-3), (2**20, 1e-3), (64, 1.0), (10**7, 1e-4)):
        mean = tokens * share
        assert capacity_for(tokens, share) >= min(tokens, mean + 6 * np.sqrt(mean))
    assert capacity_for(50, 1.0) == 50


def test_padding_is_never_traced():
    keep = torch.ones(4, 32, dtype=torch.bool)
    keep[:, 20:] = False
    keep[2] = False
    traced = Traced(share=0.5, labels=unlabelled(keep=keep))
    tokens = rows_of_tokens(4)
    tokens[~keep] = 5
    traced.traces.begin()
    traced.model(tokens)
    rows = traced.traces.take(1)
    assert rows["position"].max() < 20
    assert len(rows["token"]) > 10


def test_evaluation_and_pauses_are_never_traced():
    traced = Traced(share=1.0)
    traced.traces.begin()
    traced.model(rows_of_tokens(1))
    traced.model.eval()
    traced.model.embed(rows_of_tokens(2, seed=1))
    traced.model.train()
    traced.flags[0] = 0
    traced.model(rows_of_tokens(2, seed=2))
    traced.flags[0] = 1
    traced.model(rows_of_tokens(1, seed=3))
    rows = traced.traces.take(1)
    expected = torch.cat([rows_of_tokens(1), rows_of_tokens(1, seed=3)]).flatten()
    assert rows["token"].tolist() == expected.tolist()
    assert traced.traces.mismatched == 0


def test_a_forward_that_passes_no_embedding_is_not_taken_for_the_one_before():
    traced = Traced(share=1.0)
    traced.traces.begin()
    traced.model(rows_of_tokens(1))
    ids, gates = torch.zeros(32, K, dtype=torch.int64), torch.zeros(32, K)
    traced.traces.read(0, Reading(torch.zeros(32, 16), ids, gates))
    traced.traces.read(1, Reading(torch.zeros(32, 16), ids[:9], gates[:9]))
    rows = traced.traces.take(1)
    assert np.array_equal(rows["expert_ids"], traced.whole()[0].numpy())
    assert traced.traces.mismatched == 2


def test_documents_and_domains_stand_beside_the_tokens():
    labels = unlabelled(
        documents=torch.tensor([70, 80]), domains=torch.arange(64).reshape(2, 32) % 3,
        positions=torch.tensor([100, 0]),
    )  # fmt: skip
    traced = Traced(share=1.0, labels=labels)
    traced.traces.begin()
    traced.model(rows_of_tokens(2))
    rows = traced.traces.take(1)
    assert rows["document"].tolist() == [70] * 32 + [80] * 32
    assert rows["position"].tolist() == [*range(100, 132), *range(32)]
    assert rows["domain"].tolist() == [n % 3 for n in range(64)]


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_leaves_the_same_traces_and_the_same_loss(reentrant):
    plain, again = Traced(share=0.3), Traced(share=0.3)
    for block in again.model.blocks:
        inner = block.forward

        def forward(x, rotary, inner=inner):
            return checkpoint(inner, x, rotary, use_reentrant=reentrant)

        block.forward = forward
    losses, taken = [], []
    for traced in (plain, again):
        traced.traces.begin()
        for seed in range(2):
            loss = traced.model(rows_of_tokens(2, seed=seed), return_type="loss")
            loss.backward()
            losses.append(loss.item())
        taken.append(traced.traces.take(1))
    assert losses[:2] == losses[2:]
    for name, array in taken[0].items():
        assert np.array_equal(array, taken[1][name]), name
    assert again.traces.mismatched == 0


def test_the_loss_and_the_gradients_are_bit_for_bit_those_of_an_unwatched_model():
    bare, traced = MoELM(NANO, seed=1), Traced(share=0.5)
    found = []
    for model in (bare, traced.model):
        loss = model(rows_of_tokens(4), return_type="losses").total
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_model_is_traced_without_a_graph_break():
    traced = Traced(share=0.3)
    expected = Traced(share=0.3)
    compiled = torch.compile(traced.model, fullgraph=True, backend="aot_eager")
    for t, run in ((traced, compiled), (expected, expected.model)):
        t.traces.begin()
        for seed in range(2):
            run(rows_of_tokens(2, seed=seed), return_type="loss").backward()
    rows, plain = traced.traces.take(1), expected.traces.take(1)
    for name in ("token", "position", "expert_ids"):
        assert np.array_equal(rows[name], plain[name])
    assert np.allclose(rows["gates"], plain["gates"], atol=1e-6)


class Named(nn.Module):
    def __init__(self, *embeddings):
        super().__init__()
        for number, embedding in enumerate(embeddings):
            self.add_module(f"table{number}", embedding)


def test_an_embedding_that_cannot_be_told_is_refused_with_the_remedy():
    traces = RouteTraces(1, 1, torch.ones(2, dtype=torch.int64))
    for model in (Named(), Named(nn.Embedding(9, 2), nn.Embedding(4, 2))):
        with pytest.raises(CaptureError, match=r"expected 1: name the one"):
            traces.watch(model, unlabelled())
    (handle,) = traces.watch(model, unlabelled(), embedding="table1")
    assert model.table1._forward_pre_hooks
    handle.remove()


def test_the_model_is_asked_for_its_input_embedding_where_it_can_answer():
    class Answers(Named):
        def get_input_embeddings(self):
            return self.table1

    wrapped = nn.Sequential(Answers(nn.Embedding(9, 2), nn.Embedding(9, 2)))
    RouteTraces(1, 1, torch.ones(2, dtype=torch.int64)).watch(wrapped, unlabelled())
    assert wrapped[0].table1._forward_pre_hooks
    assert not wrapped[0].table0._forward_pre_hooks


@pytest.mark.parametrize("wrong", [{"share": 0}, {"share": 1.1}, {"capacity": 0}])
def test_a_share_or_room_that_cannot_be_is_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        RouteTraces(1, 1, torch.ones(2, dtype=torch.int64), **wrong)


# A deep copy, labels that do not fit, embeddings that are not passed


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_deep_copy_of_the_model_is_not_traced_and_hides_nothing_of_the_model(compiled):
    torch.compiler.reset()
    traced = Traced(share=1.0)
    embed, other = traced.model.embed, copy.deepcopy(traced.model.embed)
    if compiled:
        embed, other = (
            torch.compile(m, fullgraph=True, backend="aot_eager") for m in (embed, other)
        )
    traced.traces.begin()
    for turn in range(2):
        other(rows_of_tokens(1, seed=5))
        assert traced.traces.table[5] == turn
        embed(rows_of_tokens(1))
        assert traced.traces.table[5] == turn + 1


@pytest.mark.parametrize("name", ["documents", "positions", "domains", "keep"])
@pytest.mark.parametrize("shape", [(3,), (32, 2), (2, 31), (2, 32, 2)])
@pytest.mark.parametrize("form", ["cpu", "device"])
def test_a_forward_whose_labels_do_not_fit_is_counted_and_not_traced(
    name, shape, form, monkeypatch
):
    traces = RouteTraces(1, 2, torch.tensor([1, 0]), share=1.0, capacity=200)
    begin = getattr(route_trace, f"_begin_on_{form}")
    read = getattr(route_trace, f"_read_on_{form}")
    tail = (1, 2, traces.layout.capacity)

    def forward(**labels):
        known = vars(unlabelled(**labels))
        order = [known[n] for n in ("documents", "positions", "domains", "keep")]
        begin(rows_of_tokens(2), *order, limit_of(1.0), *tail, traces.flags, traces.table)
        ids = torch.ones(64, 2, dtype=torch.int64)
        read(ids, ids.float(), *tail, 0, traces.flags, traces.table)

    forward(**{name: torch.ones(shape, dtype=torch.bool if name == "keep" else torch.int64)})
    forward(domains=torch.tensor([4, 5]))
    rows = traces.take(1)
    assert rows["domain"].tolist() == [4] * 32 + [5] * 32
    assert traces.mismatched == 1


def test_labels_fit_by_row_by_token_and_flat():
    tokens = np.zeros((2, 5))
    for shape in ((2,), (2, 1), (10,), (2, 5), (1, 10), (0,)):
        assert fit(tokens, np.zeros(shape)), shape
        assert shape == (0,) or not fit(tokens, np.zeros(shape), np.zeros(3))
    assert fit(np.zeros((1, 10)), np.zeros((2, 5)))


@pytest.mark.parametrize("form", ["cpu", "device"])
def test_tokens_that_pass_no_router_have_no_row(form):
    traces = RouteTraces(2, 1, torch.tensor([1, 0]), share=1.0, capacity=200)
    begin = getattr(route_trace, f"_begin_on_{form}")
    read = getattr(route_trace, f"_read_on_{form}")
    tail = (2, 1, traces.layout.capacity)

    def forward(seen_by_routers, places=(0, 1)):
        none = vars(unlabelled()).values()
        begin(rows_of_tokens(1), *none, limit_of(1.0), *tail, traces.flags, traces.table)
        ids = torch.full((seen_by_routers, 1), -1)
        for place in places:
            read(ids, ids.float(), *tail, place, traces.flags, traces.table)

    forward(40)  # pictures between the tokens
    assert traces.take(1) is None
    assert traces.mismatched == 2
    traces.begin()
    forward(40)
    forward(32, places=(1,))  # all dropped by one router, and the other was skipped
    rows = traces.take(2)
    assert rows["expert_ids"].tolist() == [[[-1], [-1]]] * 32
    assert np.isnan(rows["gates"][:, 0]).all()
    assert (rows["gates"][:, 1] == -1).all()


def test_whether_token_ids_passed_the_embedding_is_told():
    traced = Traced(share=1.0)
    traced.model.embed.eval()
    traced.traces.begin()
    traced.model(rows_of_tokens(1))
    assert traced.traces.take(1) is None
    assert not traced.traces.seen
    assert traced.traces.mismatched == len(traced.seen)
    traced.model.embed.train()
    traced.traces.begin()
    traced.model(rows_of_tokens(1))
    assert traced.traces.take(2) is not None
    assert traced.traces.seen


def test_token_ids_by_keyword_flat_or_empty_are_taken_as_they_are():
    model = Named(nn.Embedding(9, 2))
    traces = RouteTraces(1, 1, torch.tensor([1, 0]), share=1.0, capacity=50)
    traces.watch(model, unlabelled())
    for call in (
        lambda: model.table0(input=torch.tensor([[1, 2]])),
        lambda: model.table0(torch.tensor([3, 4, 5])),
        lambda: model.table0(torch.zeros(2, 0, dtype=torch.int64)),
        lambda: model.table0(torch.tensor(6)),
    ):
        call()
        tokens = int(traces.table[4])
        ids = torch.zeros(tokens, 1, dtype=torch.int64)
        traces.read(0, Reading(torch.zeros(tokens, 2), ids, ids.float()))
    assert traces.take(1)["token"].tolist() == [1, 2, 3, 4, 5]


def test_an_embedding_of_a_wrong_path_is_refused_with_those_there_are():
    traces = RouteTraces(1, 1, torch.ones(2, dtype=torch.int64))
    with pytest.raises(UsageError, match=r"embedding='nope'.*table0"):
        traces.watch(Named(nn.Embedding(9, 2)), unlabelled(), embedding="nope")


@pytest.mark.parametrize(
    "wrong",
    [
        *({"share": s} for s in (0, -1, 2, float("nan"), float("inf"), True, "1e-3", None)),
        *({"tokens_per_step": n} for n in (0, -5, 1.5, True, "9")),
    ],
)
def test_what_cannot_be_asked_for_is_refused_when_asked(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Traces(**wrong)


def test_the_smallest_share_traces_all_but_nothing():
    assert limit_of(1e-30) == 0
    assert Traces(share=np.float32(0.5), tokens_per_step=np.int64(7)).share == 0.5
