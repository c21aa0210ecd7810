"""Which routers are found, under which names, and what is said where none can be."""

from __future__ import annotations

import copy
import functools
import operator
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM, OlmoeConfig, OlmoeForCausalLM
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter

from model.config import NANO
from model.lm import MoELM
from workbench.capture.adapters.find import find_routers
from workbench.capture.adapters.generic import Generic
from workbench.capture.adapters.router_site import Scores
from workbench.errors import CaptureError, UsageError

SIZE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2,
}  # fmt: skip
TOKENS = torch.arange(24).view(2, 12)


def olmoe(**changes):
    torch.manual_seed(0)
    return OlmoeForCausalLM(OlmoeConfig(**SIZE | {"num_experts": 8} | changes))


def readings(model, sites, tokens=TOKENS):
    shown = {site.name: [] for site in sites}
    handles = [h for site in sites for h in site.attach(shown[site.name].append)]
    with torch.no_grad():
        model(tokens)
    for handle in handles:
        handle.remove()
    return shown


def test_our_own_model_is_found_by_its_own_routers():
    sites = find_routers(MoELM(NANO))
    assert len(sites) == NANO.n_layers
    assert {(s.num_experts, s.scores) for s in sites} == {(NANO.num_experts, Scores.LOGITS)}


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method")  # from torch's compiler
def test_names_are_those_in_the_model_however_it_is_wrapped():
    bare = olmoe()
    names = ["model.layers.0.mlp.gate", "model.layers.1.mlp.gate"]
    assert [s.name for s in find_routers(bare)] == names
    assert [s.name for s in find_routers(nn.DataParallel(bare))] == names
    assert [s.name for s in find_routers(torch.compile(bare))] == names
    bare.model.layers[0] = torch.compile(bare.model.layers[0])
    assert [s.name for s in find_routers(bare)] == names


def test_a_model_held_by_another_module_is_found_with_the_path_to_it():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = olmoe()

    assert find_routers(Holder())[0].name == "inner.model.layers.0.mlp.gate"


def test_removing_the_handles_ends_the_showing():
    model = olmoe()
    sites = find_routers(model)
    assert [len(shown) for shown in readings(model, sites).values()] == [1, 1]
    assert not any(site.module._forward_hooks for site in sites)


def test_experts_are_counted_over_all_ranks_though_each_rank_holds_a_part():
    model = olmoe()
    for layer in model.model.layers:
        layer.mlp.experts.num_experts = 2
        layer.mlp.experts.gate_up_proj = nn.Parameter(layer.mlp.experts.gate_up_proj[:2])
    assert {s.num_experts for s in find_routers(model)} == {8}


def test_finding_routers_draws_no_random_number_and_changes_nothing():
    model = olmoe()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    find_routers(model)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_model_without_weights_yet_is_found():
    with torch.device("meta"):
        model = OlmoeForCausalLM(OlmoeConfig(**SIZE, num_experts=8))
    assert [(s.num_experts, s.experts_per_token) for s in find_routers(model)] == [(8, 2)] * 2


def test_one_expert_a_token_still_tells_softmax_from_sigmoid():
    assert find_routers(olmoe(num_experts_per_tok=1))[0].scores is Scores.LOGITS
    assert find_routers(olmoe(num_experts_per_tok=1))[0].experts_per_token == 1


def test_gates_that_fit_no_function_of_the_logits_are_refused():
    class OddRouter(OlmoeTopKRouter):
        def forward(self, hidden_states):
            logits, gates, ids = super().forward(hidden_states)
            return logits, gates**2, ids

    model = olmoe()
    for layer in model.model.layers:
        layer.mlp.gate.__class__ = OddRouter
    with pytest.raises(CaptureError, match=r"OddRouter gives gates .* neither .*Generic"):
        find_routers(model)


def test_a_router_that_keeps_its_choice_to_itself_is_refused():
    class Silent(OlmoeTopKRouter):
        def forward(self, hidden_states):
            return super().forward(hidden_states)[0]

    model = olmoe()
    for layer in model.model.layers:
        layer.mlp.gate.__class__ = Silent
    with pytest.raises(CaptureError, match=r"Silent returns .*without expert ids"):
        find_routers(model)


def test_a_router_that_cannot_be_tried_is_refused_with_what_went_wrong():
    class Needy(OlmoeTopKRouter):
        def forward(self, hidden_states, temperature):
            return super().forward(hidden_states / temperature)

    model = olmoe()
    for layer in model.model.layers:
        layer.mlp.gate.__class__ = Needy
    with pytest.raises(CaptureError, match="Needy needs 'temperature'"):
        find_routers(model)


def test_experts_without_a_known_router_are_refused_and_not_left_out():
    model = olmoe()
    model.model.layers[1].mlp.gate = nn.Linear(32, 8)
    with pytest.raises(CaptureError, match=r"experts model\.layers\.1\.mlp\.experts .*no router"):
        find_routers(model)


def test_routers_of_different_shapes_are_refused():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = Gate(8, 2), Gate(4, 2)

    class Either:
        def find(self, model):
            eight = Generic(modules="a", read=tuple, num_experts=8, experts_per_token=2)
            four = Generic(modules="b", read=tuple, num_experts=4, experts_per_token=2)
            return eight.find(model) + four.find(model)

    with pytest.raises(CaptureError, match=r"differ in \(experts, k\): \(8, 2\) in a, \(4, 2\) in"):
        find_routers(Two(), Either())


def test_two_models_in_one_see_different_tokens_and_are_refused():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.reader, self.writer = olmoe(), olmoe()

    with pytest.raises(CaptureError, match=r"2 models .*reader\.model.*Record one"):
        find_routers(Pair())


def test_a_model_without_routers_is_told_what_was_looked_for():
    with pytest.raises(CaptureError, match=r"no router in Linear; Expected .*Generic"):
        find_routers(nn.Linear(2, 2))

    class MyMoE(nn.Module):
        pass

    with pytest.raises(CaptureError, match=r"sound like it: 0 \(MyMoE\)"):
        find_routers(nn.Sequential(MyMoE()))


def test_finding_routers_loads_no_library_that_the_model_does_not_need():
    root = Path(__file__).parents[4]
    code = (
        "import sys, torch; from workbench.capture.adapters.find import find_routers\n"
        "try: find_routers(torch.nn.Linear(2, 2))\n"
        "except Exception as error: assert 'no router' in str(error), error\n"
        "print([m for m in ('transformers', 'transformer_lens') if m in sys.modules])"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Adapted(nn.Module):
    """A low-rank adapter's wrapper."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer

    def forward(self, x):
        return self.base_layer(x)


@pytest.mark.parametrize("part", ["gate", "experts"])
def test_an_adapter_around_a_router_or_experts_changes_no_name(part):
    model, plain = olmoe(), olmoe()
    for layer in model.model.layers:
        if part == "gate":
            layer.mlp.gate = Adapted(layer.mlp.gate)
        else:
            inner = layer.mlp.experts
            layer.mlp.experts = Adapted(inner)
            layer.mlp.experts.forward = inner.forward
    sites = find_routers(model)
    assert [s.name for s in sites] == [s.name for s in find_routers(plain)]
    shown, expected = readings(model, sites), readings(plain, find_routers(plain))
    for name, (reading,) in expected.items():
        assert torch.equal(shown[name][0].ids_TK, reading.ids_TK)


def test_a_router_that_an_adapter_keeps_twice_is_refused_with_a_remedy_that_works():
    class Kept(nn.Module):
        def __init__(self, router):
            super().__init__()
            self.original_module = router
            self.modules_to_save = nn.ModuleDict({"default": copy.deepcopy(router)})

        def forward(self, x):
            return self.modules_to_save["default"](x)

    model = olmoe()
    for layer in model.model.layers:
        layer.mlp.gate = Kept(layer.mlp.gate)
    with pytest.raises(CaptureError, match=r"layers\.0\.mlp\.gate is kept twice.*'\.gate'"):
        find_routers(model)
    how = {"read": lambda output: (output[0], output[2], output[1]), "experts_per_token": 2}
    routers = Generic(modules=lambda path, m: path.endswith(".gate"), num_experts=8, **how)
    assert [s.name for s in find_routers(model, routers)] == [
        f"model.layers.{i}.mlp.gate" for i in range(2)
    ]


def test_a_router_in_a_module_of_its_own_beside_the_experts_covers_these_alone():
    class Held(nn.Module):
        def __init__(self, gate):
            super().__init__()
            self.inner = gate

        def forward(self, x):
            return self.inner(x)

    model = olmoe()
    for layer in model.model.layers:
        layer.mlp.gate = Held(layer.mlp.gate)
    assert [s.name for s in find_routers(model)] == [
        f"model.layers.{i}.mlp.gate.inner" for i in range(2)
    ]
    model = olmoe()
    first, second = model.model.layers
    first.experts = second.mlp.experts
    del second.mlp
    with pytest.raises(CaptureError, match=r"experts model\.layers\.0\.experts .* no router"):
        find_routers(model)


# Generic


class Gate(nn.Linear):
    """A user's own router."""

    def __init__(self, experts, k):
        super().__init__(16, experts)
        self.k = k

    def forward(self, x):
        logits = super().forward(x)
        gates, ids = logits.sigmoid().topk(self.k)
        return logits, ids, gates


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(64, 16)
        self.blocks = nn.ModuleList(nn.ModuleDict({"gate": Gate(8, 2)}) for _ in range(3))

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = x + block["gate"](x)[2].sum(-1, keepdim=True)
        return x


HOW = {"read": tuple, "num_experts": 8, "experts_per_token": 2, "scores": Scores.SIGMOID}


@pytest.mark.parametrize(
    "modules", [Gate, r"blocks\.\d+\.gate", lambda name, module: name.endswith("gate")]
)
def test_generic_finds_modules_by_class_path_or_function(modules):
    model = Plain()
    sites = find_routers(model, Generic(modules=modules, **HOW))
    assert [s.name for s in sites] == [f"blocks.{i}.gate" for i in range(3)]
    (reading,) = readings(model, sites)["blocks.1.gate"]
    assert reading.logits_TE.shape == (24, 8)
    assert torch.equal(reading.logits_TE.sigmoid().topk(2).indices, reading.ids_TK)
    assert not reading.logits_TE.requires_grad


def test_generic_can_read_what_went_into_the_module_too():
    seen = []

    def read(module, args, output):
        seen.append((type(module), args[0].shape))
        return output

    model = Plain()
    sites = find_routers(model, Generic(modules=Gate, **HOW | {"read": read}))
    readings(model, sites)
    assert seen == [(Gate, torch.Size([2, 12, 16]))] * 3


def test_generic_says_which_shape_it_found_where():
    model = Plain()
    sites = find_routers(model, Generic(modules=Gate, **HOW | {"num_experts": 4}))
    with pytest.raises(CaptureError, match=r"router blocks\.0\.gate: .*\(2, 12, 8\).*num_experts="):
        readings(model, sites)
    model = Plain()
    sites = find_routers(model, Generic(modules=Gate, **HOW | {"read": lambda output: output[:2]}))
    with pytest.raises(CaptureError, match="returned 2 things"):
        readings(model, sites)


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda o: None, "returned a NoneType; expected logits, ids, gates"),
        (lambda o: o[0], "returned a Tensor; expected logits"),
        (lambda o: (o[0], None, o[2]), r"returned \(Tensor, NoneType, Tensor\); expected three"),
        (lambda o: (o[0], o[2], o[1]), "returned ids of torch.float32; expected integers"),
        (lambda o: (o[0], o[1] > 1, o[2]), "returned ids of torch.bool; expected integers"),
        (lambda o: (o[0][:1], o[1], o[2]), "logits of 12 tokens and ids of 24; expected the same"),
        (lambda o: (o[0], o[1][:1], o[2][:1]), "logits of 24 tokens and ids of 12"),
        (lambda o: (o[0].sum(), o[1], o[2]), "returned a number"),
    ],
)
def test_generic_says_what_read_returned_and_in_which_router(read, said):
    model = Plain()
    sites = find_routers(model, Generic(modules=Gate, **HOW | {"read": read}))
    with pytest.raises(CaptureError, match=rf"blocks\.0\.gate: read .*{said}.*correct read="):
        readings(model, sites)


@pytest.mark.parametrize(
    "read",
    [
        operator.itemgetter(0, 1, 2),
        tuple,
        lambda output, experts=8: output,
        lambda *output: output[0],
        lambda output, *, experts=8: output,
        functools.partial(lambda experts, output: output, 8),
    ],
)
def test_generic_gives_read_what_it_cannot_do_without(read):
    model = Plain()
    (reading,) = readings(
        model, find_routers(model, Generic(modules=Gate, **HOW | {"read": read}))
    )["blocks.2.gate"]
    assert reading.ids_TK.shape == (24, 2)


def test_generic_shows_nothing_of_a_deep_copy_and_breaks_no_graph():
    model = Plain()
    (site, *_) = find_routers(model, Generic(modules=Gate, **HOW))
    shown = []
    site.attach(lambda reading: shown.append(reading.logits_TE.shape[0]))
    copied = copy.deepcopy(model)
    copied(TOKENS)
    assert shown == []
    torch.compiler.reset()
    other, one = (torch.compile(m, fullgraph=True, backend="aot_eager") for m in (copied, model))
    for turn in range(2):
        other(TOKENS)
        assert len(shown) == turn
        one(TOKENS)
        assert len(shown) == turn + 1


def test_generic_reads_the_wrapper_around_a_router_that_a_path_names():
    model = Plain()
    for block in model.blocks:
        block["gate"] = Adapted(block["gate"])
    sites = find_routers(model, Generic(modules=r"blocks\.\d+\.gate", **HOW))
    assert [site.module for site in sites] == [block["gate"] for block in model.blocks]


def test_generic_refuses_what_fits_nothing():
    with pytest.raises(CaptureError, match="fits none of the"):
        find_routers(Plain(), Generic(modules="router", **HOW))
    with pytest.raises(UsageError, match="experts_per_token=9"):
        Generic(modules=Gate, **HOW | {"experts_per_token": 9})
    with pytest.raises(UsageError, match="read takes 2 arguments"):
        Generic(modules=Gate, **HOW | {"read": lambda a, b: a})


# TransformerLens


def bridged(model):
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    return build_bridge_from_module(
        copy.deepcopy(model), type(model).__name__, hf_config=model.config
    )


def mixtral():
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**SIZE, num_local_experts=8))


@pytest.mark.parametrize("make", [olmoe, mixtral])
def test_a_bridge_around_a_copy_shows_the_ids_of_the_model_itself(make):
    model = make().eval()
    bridge = bridged(model)
    bare, inside = find_routers(model), find_routers(bridge)
    assert [s.name for s in inside] == ["blocks.0.mlp.gate", "blocks.1.mlp.gate"]
    assert [s.scores for s in inside] == [s.scores for s in bare]
    for one, other in zip(
        readings(model, bare).values(), readings(bridge, inside).values(), strict=True
    ):
        assert torch.equal(one[0].ids_TK, other[0].ids_TK)
        assert torch.allclose(one[0].gates_TK, other[0].gates_TK, atol=1e-5)


def test_a_bridge_shows_the_experts_that_an_intervention_chose():
    bridge = bridged(olmoe().eval())
    sites = find_routers(bridge)
    shown = {site.name: [] for site in sites}
    for site in sites:
        site.attach(shown[site.name].append)

    def always_six_and_seven(ids, hook):
        return torch.tensor([6, 7]).expand_as(ids)

    hook = ("blocks.0.mlp.gate.hook_expert_indices", always_six_and_seven)
    bridge.run_with_hooks(TOKENS, fwd_hooks=[hook])
    assert set(shown["blocks.0.mlp.gate"][0].ids_TK.flatten().tolist()) == {6, 7}
    assert set(shown["blocks.1.mlp.gate"][0].ids_TK.flatten().tolist()) != {6, 7}
