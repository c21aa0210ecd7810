"""What is kept of the probe set at a checkpoint: routes, sites, the insides of experts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from model.config import NANO
from model.experts import Experts
from model.lm import MoELM
from workbench.capture.activations import Activations, Axes, axes_of
from workbench.capture.adapters.ours import routers_of_ours
from workbench.capture.interiors import Interiors, experts_of, hidden_rows
from workbench.capture.probe_set import ProbeReader, ProbeSet, route
from workbench.errors import CaptureError, SchemaError, UsageError
from workbench.store.layout import Layout, ProbeTokens
from workbench.store.ragged import expert_rows
from workbench.store.run_store import RunStore

ROWS, POS, E, K = 6, 12, NANO.num_experts, NANO.experts_per_token
TOKENS = np.random.default_rng(0).integers(0, NANO.d_vocab, (ROWS, POS))
PROBE = ProbeSet(TOKENS, ("a",) * ROWS)


@pytest.fixture
def model():
    return MoELM(NANO, seed=3)


@pytest.fixture
def in_portions(monkeypatch):
    """Two rows at a time, so that a pass is several forwards."""
    monkeypatch.setattr("workbench.capture.probe_set.TOKENS_AT_ONCE", 2 * POS)


def reader(model, **asked):
    return ProbeReader(model, routers_of_ours(model), PROBE, **asked)


def cache_of(model):
    with torch.no_grad():
        return model.run_with_cache(torch.from_numpy(TOKENS))[1]


def shown(model, site):
    """(token, ...): one site's output, with no other hook there: hooks on attention change the way
    that it is computed, and so its rounding."""
    kept = []
    hook = model.get_submodule(site).register_forward_hook(lambda m, args, out: kept.append(out))
    with torch.no_grad():
        model(torch.from_numpy(TOKENS))
    hook.remove()
    return kept[0].flatten(0, 1)


def store_for(model, folder):
    layout = Layout(
        layers=tuple(range(NANO.n_layers)), experts=E, k=K,
        tokens=ProbeTokens(tuple(TOKENS.ravel().tolist()), ("a",) * TOKENS.size),
    )  # fmt: skip
    return RunStore.create(folder / "store", layout)


SITES = {
    "blocks.1.hook_resid_post": (0, 1),
    "hook_embed": (0, 1),
    "blocks.2.attn.hook_q": (0, 1),
    "blocks.0.attn.hook_pattern": (0, 2),
    "blocks.1.mlp.router.hook_expert_indices": (0, 1),
}


@pytest.mark.usefixtures("in_portions")
def test_every_site_is_what_transformer_lens_caches_token_by_token(model):
    (portion,) = reader(model, sites=list(SITES)).read(5, 100)
    cache = cache_of(model)
    for name, (row, pos) in SITES.items():
        expected = cache[name].movedim((row, pos), (0, 1)).flatten(0, 1)
        assert portion.rows[name].shape == (1, *expected.shape)
        # A batch of two rows may round its products otherwise than one of six.
        assert np.allclose(portion.rows[name][0], expected, atol=1e-5), name
    assert portion.rows["blocks.1.mlp.router.hook_expert_indices"].dtype == np.int64
    assert portion.declared["blocks.2.attn.hook_q"].dims == (
        "checkpoint", "token", "dim_8", "dim_12"
    )  # fmt: skip
    assert np.array_equal(
        portion.rows["expert_ids"][0, :, 1],
        portion.rows["blocks.1.mlp.router.hook_expert_indices"][0],
    )


def test_a_site_may_be_a_module_or_another_name_of_a_hook_point(model):
    names = ["blocks.1.mlp.hook_expert_indices", "blocks.0.ln1", "blocks.2.mlp"]
    (portion,) = reader(model, sites=names).read(1, 0)
    cache = cache_of(model)
    assert np.array_equal(
        portion.rows[names[0]][0],
        cache["blocks.1.mlp.router.hook_expert_indices"].flatten(0, 1),
    )
    # The second output of `mlp` holds the router losses; the first tensor is kept.
    for name, site in (
        (names[1], "blocks.0.ln1.hook_normalized"),
        (names[2], "blocks.2.hook_mlp_out"),
    ):
        assert np.allclose(portion.rows[name][0], cache[site].flatten(0, 1), atol=1e-5)


def test_bfloat16_survives_the_store_bit_for_bit(tmp_path):
    model = MoELM(NANO, seed=3).to(torch.bfloat16)
    name = "blocks.1.hook_resid_post"
    store = store_for(model, tmp_path)
    with store.writer("main") as w:
        for portion in reader(model, sites=[name], interiors=[2]).read(5, 100):
            w.append(*portion)
    expected = shown(model, name)
    assert expected.dtype == torch.bfloat16
    read = store.read().dataset("activations")
    assert read[name].attrs["widened_from"] == "bfloat16"
    assert torch.equal(torch.from_numpy(read[name].values[0]).to(torch.bfloat16), expected)
    assert np.array_equal(read[name].values[0], expected.float().numpy())
    inside = store.read().dataset("interiors")
    assert inside["values"].attrs["widened_from"] == "bfloat16"
    assert read.tokens_seen.values.tolist() == inside.tokens_seen.values.tolist() == [100]


def test_the_model_is_left_as_it_was(model):
    model.train()
    model.blocks[1].eval()
    flags = [m.training for m in model.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    before = torch.get_rng_state()
    reader(model, sites=["blocks.1.hook_resid_post"], interiors=[0, 2]).read(1, 0)
    assert [m.training for m in model.modules()] == flags
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())


class Noisy(nn.Module):
    """Draws at random in evaluation too, and breaks when told to."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.site = nn.Identity()
        self.broken = False

    def forward(self, tokens):
        assert not self.training
        assert not torch.is_grad_enabled()
        if self.broken:
            raise RuntimeError("broken")
        return self.site(torch.randn(*tokens.shape, 3))


def test_randomness_and_training_come_back_even_from_a_broken_pass():
    model = Noisy()
    probe = ProbeReader(model, [], PROBE, sites=["site"])
    model.broken = True
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="broken"):
        probe.read(1, 0)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.site._forward_hooks


def test_the_routes_of_a_pass_in_portions_are_those_of_the_whole(model, monkeypatch):
    whole = route(model, routers_of_ours(model), PROBE)
    monkeypatch.setattr("workbench.capture.probe_set.TOKENS_AT_ONCE", 1)
    parts = route(model, routers_of_ours(model), PROBE)
    assert np.array_equal(whole["expert_ids"], parts["expert_ids"])
    assert np.allclose(whole["router_probs"], parts["router_probs"], atol=1e-6)


def test_an_unknown_site_is_refused_at_once_with_those_like_it(model):
    with pytest.raises(
        UsageError, match=r"'blocks\.1\.hook_resid_pst' \(like it: .*hook_resid_post"
    ):
        reader(model, sites=["hook_embed", "blocks.1.hook_resid_pst"])


def test_a_site_that_cannot_be_kept_is_told_and_the_others_are_kept(model):
    names = ["blocks.0.mlp.experts.hook_post", "blocks.1.hook_resid_pre", "blocks.0.hook_mlp_out"]
    model.blocks[0].idle = nn.Identity()
    asked = reader(model, sites=[*names, "blocks.0.idle"])
    with pytest.warns(RuntimeWarning) as told:
        (portion,) = asked.read(1, 0)
    text = "\n".join(str(w.message) for w in told)
    assert "4 entries a token" in text
    assert "interiors=[layer]" in text
    assert "'blocks.0.idle' is not recorded: it showed a tensor 0 times" in text
    assert set(portion.declared) == set(names[1:])
    # Told once: the next checkpoint is quiet.
    assert set(asked.read(2, 0)[0].declared) == set(names[1:])


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        (lambda r, p: (r, p, 7), Axes((0, 1))),
        (lambda r, p: (r, 4, p, p), Axes((0, 2))),
        (lambda r, p: (p, r, 7), Axes((1, 0))),
        (lambda r, p: (r * p, 7), Axes((0,))),
        (lambda r, p: (7, r * p), Axes((1,))),
        (lambda r, p: (r, p), Axes((0, 1))),
    ],
)
def test_row_and_position_are_found_in_any_layout(shape, axes):
    shown = [[torch.zeros(shape(r, p))] for r, p in ((1, 5), (2, 5), (1, 4))]
    assert axes_of(*shown, pos=5) == axes
    R, P = 3, 5
    number = torch.arange(R * P).reshape(R, P)
    sizes = shape(R, P)
    value = torch.zeros(sizes)
    for r in range(R):
        for p in range(P):
            if len(axes.tokens) == 1:
                value.select(axes.tokens[0], r * P + p).fill_(float(number[r, p]))
            else:
                high, low = sorted(zip(axes.tokens, (r, p), strict=True), reverse=True)
                value.select(*high).select(*low).fill_(float(number[r, p]))
    by_token = axes.by_token(value).reshape(R * P, -1)
    assert (by_token == torch.arange(R * P).unsqueeze(1)).all()


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        (lambda r, p: (7,), "do not follow the tokens"),
        (lambda r, p: (r, 7), "do not follow the tokens"),
        (lambda r, p: (r * p * 4, 7), "4 entries a token"),
        (lambda r, p: (r, p)[:r], "come and go"),
    ],
)
def test_a_site_without_tokens_is_said_to_be_one(shape, why):
    shown = [[torch.zeros(shape(r, p))] for r, p in ((1, 5), (2, 5), (1, 4))]
    assert why in axes_of(*shown, pos=5)


@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor:UserWarning",
)
def test_sites_of_a_compiled_model_are_read_from_the_model_inside(model):
    whole = torch.compile(model, backend="eager")
    part = MoELM(NANO, seed=3)
    part.blocks[1].compile(backend="eager")
    expected = shown(model, "blocks.1.hook_resid_post")
    for compiled in (whole, part):
        compiled(torch.from_numpy(TOKENS[:2]))  # compiled before any hook is there
        (portion,) = ProbeReader(
            compiled, routers_of_ours(compiled), PROBE, sites=["blocks.1.hook_resid_post"]
        ).read(1, 0)
        assert np.array_equal(portion.rows["blocks.1.hook_resid_post"][0], expected)


def interiors_in_store(model, routers, folder, layers, probe=PROBE, experts=E, k=K):
    layout = Layout(
        layers=tuple(range(len(routers))), experts=experts, k=k,
        tokens=ProbeTokens(tuple(probe.tokens.ravel().tolist()), ("a",) * probe.tokens.size),
    )  # fmt: skip
    store = RunStore.create(folder / "store", layout)
    with store.writer("main") as w:
        for step in (1, 2):
            for portion in ProbeReader(model, routers, probe, interiors=layers).read(step, step):
                w.append(*portion)
            w.commit(str(step))
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(1.1)
    return store


@pytest.mark.usefixtures("in_portions")
def test_each_expert_s_rows_are_its_hidden_layer_for_the_tokens_it_received(model, tmp_path):
    read_in = {"x": []}
    inner = model.blocks[2].mlp.experts
    inner.register_forward_pre_hook(lambda m, args: read_in["x"].append(args[0].detach()))
    store = interiors_in_store(model, routers_of_ours(model), tmp_path, layers=[0, 2])
    inside = store.read().dataset("interiors")
    ids = store.read().dataset("activations").expert_ids.values
    x = [torch.cat(read_in["x"][:3]), torch.cat(read_in["x"][3:])]
    total = 0
    for at, step in enumerate((1, 2)):
        weights = inner.W_gate_in.detach() / 1.1 ** (2 - at)
        for expert in range(E):
            rows = expert_rows(inside, layer=2, expert=expert, checkpoint=step)
            token, slot = np.nonzero(ids[at, :, 2] == expert)
            assert rows.token.values.tolist() == token.tolist()
            gate, linear = (x[at][token] @ weights[expert]).chunk(2, dim=-1)
            assert np.allclose(rows["values"], F.silu(gate) * linear, atol=1e-5)
            assert (rows.gate > 0).all()
            total += len(token)
            assert slot.max(initial=0) < K
        assert expert_rows(inside, layer=1, expert=3, checkpoint=step).sizes["row"] == 0
    assert total == 2 * TOKENS.size * K


FAMILIES = {
    "olmoe": {"num_experts": 8},
    "mixtral": {"num_local_experts": 8},
    "gpt_oss": {"num_local_experts": 8, "head_dim": 8},
}


def hugging_face(family):
    config = transformers.AutoConfig.for_model(
        family, vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, num_experts_per_tok=2,
        intermediate_size=16, pad_token_id=None, **FAMILIES[family],
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_computed_again_give_the_output_that_hugging_face_s_experts_gave(family, tmp_path):
    from workbench.capture.adapters.hugging_face import routers_of_hugging_face

    model = hugging_face(family)
    routers = routers_of_hugging_face(model)
    experts = experts_of(model, routers[1])
    outputs = []
    experts.register_forward_hook(lambda m, args, out: outputs.append(out.detach()))
    probe = ProbeSet(np.random.default_rng(1).integers(0, 64, (4, 9)), ("a",) * 4)
    with torch.no_grad():
        down = experts.down_proj.detach().clone()
        bias = experts.down_proj_bias.detach().clone() if experts.has_bias else None
    store = interiors_in_store(model, routers, tmp_path, [1], probe, experts=8, k=2)
    inside = store.read().dataset("interiors")
    total = torch.zeros(36, 32)
    for expert in range(8):
        rows = expert_rows(inside, layer=1, expert=expert, checkpoint=1)
        hidden = torch.from_numpy(rows["values"].values)
        weight = down[expert] if experts.is_transposed else down[expert].T
        out = hidden @ weight + (0 if bias is None else bias[expert])
        total.index_add_(
            0, torch.from_numpy(rows.token.values).long(),
            out * torch.from_numpy(rows.gate.values).unsqueeze(1),
        )  # fmt: skip
    assert torch.allclose(total, outputs[0].reshape(36, 32), rtol=1e-4, atol=1e-4)


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.zeros(4, 2, 2))


def test_experts_that_cannot_be_looked_into_are_refused_with_the_reason(model):
    routers = routers_of_ours(model)
    with pytest.raises(
        UsageError, match=r"interiors of layers \[3\]: the model has routers 0 to 2"
    ):
        Interiors(model, routers, [0, 3])
    for name, part in list(model.named_modules()):
        if isinstance(part, Experts):
            model.set_submodule(name, Dense())
    with pytest.raises(
        CaptureError, match=r"mlp\.experts \(Dense\): .*uniform layout, it has no has_gate"
    ):
        Interiors(model, routers, [1])
    for block in model.blocks:
        block.mlp.experts = nn.Identity()
    with pytest.raises(CaptureError, match="found no module that holds the weights"):
        Interiors(model, routers, [1])


def test_assignments_that_were_dropped_have_no_row():
    class Held(nn.Module):
        has_gate, has_bias, is_transposed = True, False, False

        def __init__(self):
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.randn(3, 8, 5))
            self._apply_gate = lambda h: h[:, :4] * h[:, 4:]

    x = torch.randn(2, 5)
    assert hidden_rows(Held(), x, torch.tensor([[2, -1], [0, 2]])).shape == (3, 4)


def test_activations_of_double_precision_are_kept_and_interiors_of_it_refused(tmp_path):
    model = MoELM(NANO, seed=3)
    kept = Activations(model, ["ln_final"])
    kept.modules["ln_final"].double()
    assert kept.modules["ln_final"] is model.ln_final
    layer = Interiors(model, routers_of_ours(model), [0])
    with pytest.raises(CaptureError, match="no expert was run"):
        layer.take()


def test_a_site_of_another_width_later_is_refused_by_the_store(model, tmp_path):
    store = store_for(model, tmp_path)
    with store.writer("main") as w:
        (portion,) = reader(model, sites=["hook_embed"]).read(1, 0)
        w.append(*portion)
        portion.rows["hook_embed"] = portion.rows["hook_embed"][..., :-1]
        portion.rows["checkpoint"] = np.array([2])
        with pytest.raises(SchemaError, match="hook_embed"):
            w.append(*portion)


# What is asked for


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.int64])
def test_a_probe_set_takes_integers_of_any_kind_and_tensors(dtype):
    rows = TOKENS.astype(dtype)
    for tokens in (rows, torch.from_numpy(rows.astype(np.int64))):
        probe = ProbeSet(tokens, ["a"] * ROWS)
        assert probe.tokens.dtype == np.int64
        assert np.array_equal(probe.tokens, TOKENS)
        assert probe.domains == ("a",) * ROWS


@pytest.mark.parametrize(
    ("tokens", "domains", "said"),
    [
        (TOKENS.ravel(), ("a",) * TOKENS.size, r"shape \(72,\), expected an array of integers"),
        (TOKENS.astype(float), ("a",) * ROWS, "float64 of shape"),
        (torch.zeros(2, 3), ("a", "b"), "float32 of shape"),
        (TOKENS.tolist(), ("a",) * ROWS, "found a list, expected an array"),
        (TOKENS[:0], (), r"shape \(0, 12\): expected 1 row"),
        (TOKENS[:, :0], ("a",) * ROWS, "1 token or more"),
        (TOKENS - 800, ("a",) * ROWS, "found -[0-9]+, expected ids of the vocabulary"),
        (TOKENS, ("a",), "found 1 names for 6 rows"),
        (TOKENS, "abcdef", "found 'abcdef', expected a name for each row"),
        (TOKENS, range(ROWS), "expected a name for each row"),
    ],
)
def test_a_probe_set_that_cannot_be_is_refused(tokens, domains, said):
    with pytest.raises(UsageError, match=said):
        ProbeSet(tokens, domains)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"sites": "blocks.0.mlp"}, r"expected a list of names: sites=\['blocks\.0\.mlp'\]"),
        ({"sites": [3]}, "site 3: expected a name"),
        ({"interiors": 1}, r"interiors=1: expected a list of layers"),
        ({"interiors": [True]}, "expected a list of layers"),
        ({"interiors": "01"}, "expected a list of layers"),
        ({"interiors": [0.0]}, "expected a list of layers"),
    ],
)
def test_what_is_no_list_of_sites_or_layers_is_refused(model, asked, said):
    with pytest.raises(UsageError, match=said):
        reader(model, **asked)


@pytest.mark.parametrize(
    "name", ["router_probs", "expert_ids", "tokens_seen", "checkpoint", "token", "layer", "a/b"]
)
def test_a_site_that_would_stand_for_something_else_in_the_record_is_refused(model, name):
    model.add_module(name, nn.Identity())
    with pytest.raises(UsageError, match=f"site '{name}' cannot be recorded under its name"):
        reader(model, sites=[name])
