"""A lesion hurts where the capability lives and nowhere else, and leaves the model as it was."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.config import MoEConfig
from model.evaluation import ItemBatch
from model.lm import MoELM
from probes.arms import paired_t
from probes.exam import Exam
from probes.lesion import FEWEST, following, lesion, mean_change
from probes.subject import Subject
from probes.surgery.lesioned import ROUNDING, WAYS, answers
from workbench.errors import UsageError
from workbench.planted.model import planted_model

SMALL = MoEConfig(
    d_vocab=40, d_model=16, n_layers=3, n_heads=2, n_key_value_heads=1, d_mlp=8, num_experts=6,
    experts_per_token=2, n_ctx=16, rope_theta=10_000.0, init_range=0.3,
)  # fmt: skip


def drawn_exam(seed=0, items=12, tasks=2, vocab=40):
    """Items of 3 choices of up to 2 tokens, and rows of two domains, all drawn at random."""
    rng = np.random.default_rng(seed)
    total, length = items * tasks, 7
    lengths = rng.integers(1, 3, size=3 * total)
    batch = ItemBatch(
        tuple(f"t/{i}" for i in range(tasks)),
        torch.from_numpy(rng.integers(0, vocab, size=(3 * total, length))),
        np.arange(3 * total), np.repeat(rng.integers(2, 4, size=total), 3),
        [rng.integers(0, vocab, size=n).tolist() for n in lengths], np.repeat(np.arange(total), 3),
        np.tile([True, False, False], total), items,
    )  # fmt: skip
    tokens = rng.integers(0, vocab, size=(6, 9))
    return Exam(tokens=tokens, domains=("a", "a", "a", "b", "b", "b"), items=batch)


def drawn_subject(config=SMALL, **exam):
    return Subject(MoELM(config, seed=1), drawn_exam(**exam))


def by_whole_forwards(subject, layer, expert, way):
    """Scores and loss with hooks in the model itself, nothing kept from the intact pass."""
    router = subject.model.blocks[layer].mlp.router
    ids = {}
    if way == "reroute":

        def shut(_m, _i, logits):
            return logits.index_fill(-1, torch.tensor([expert]), float("-inf"))

        handles = [router.hook_logits.register_forward_hook(shut)]
    else:
        keep = router.hook_expert_indices.register_forward_hook(
            lambda _m, _i, out: ids.__setitem__(0, out)
        )
        silence = router.hook_expert_weights.register_forward_hook(
            lambda _m, _i, gates: gates.masked_fill(ids[0] == expert, 0)
        )
        handles = [keep, silence]
    try:
        scores = subject.scores()
        tokens = torch.tensor(subject.exam.tokens)
        logprobs = subject.logits(tokens)[:, :-1].double().log_softmax(-1)
    finally:
        for handle in handles:
            handle.remove()
    loss = -logprobs.gather(-1, tokens[:, 1:, None]).squeeze(-1).mean(1).numpy()
    return scores, loss


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("home", [(0, 7), (1, 5), (2, 3)])
def test_only_the_lesion_of_the_capabilitys_home_hurts(way, home):
    world = planted_model(homes={"planted/skill": home, "planted/other": (1, 2)}, noise=0.5)
    exam = Exam(tokens=world.tokens, domains=world.domains, items=world.items, chance=world.chance)
    found = lesion(Subject(world.after, exam), way=way)
    skill = found.sel(task="planted/skill")
    at_home = skill.sel(layer=home[0], expert=home[1])
    # Without it no answer is produced at all: every item that was right is lost.
    assert at_home["drop"] == skill["accuracy"] > 0.8
    assert at_home["drop_q"] < 1e-6
    assert at_home["drop_logprob_q"] < 1e-6
    assert at_home["drop_logprob_low"] > 0.5
    elsewhere = (skill.layer != home[0]) | (skill.expert != home[1])
    assert (skill["drop"].where(elsewhere, 0) == 0).all()
    assert (skill["drop_q"].where(elsewhere, 1) == 1).all()
    # A quiet expert writes nothing; without it the home expert's gate is another, by 1e-5.
    none = 0 if way == "zero" else 1e-4
    assert (abs(skill["drop_logprob"]).where(elsewhere, 0) <= none).all()
    if way == "zero":
        assert (skill["drop_logprob_q"].where(elsewhere, 1) == 1).all()
    loss = found["loss_rise"].sel(domain="planted/skill")
    assert loss.sel(layer=home[0], expert=home[1]) > 0.5
    assert (abs(loss).where(elsewhere, 0) <= none).all()


def test_an_expert_that_no_token_of_the_task_uses_drops_by_exactly_nothing():
    many = replace(SMALL, num_experts=64, experts_per_token=1)
    found = lesion(drawn_subject(many, items=4))
    idle = found["used"] == 0
    assert idle.any("layer").any("expert").all()
    assert (found["drop"].where(idle, 0) == 0).all()
    assert (found["drop_logprob"].where(idle, 0) == 0).all()
    # In the last layer only the token right before the answer counts.
    assert (found["drop_logprob"].where(~idle, 1) != 0).mean() > 0.5


@pytest.mark.parametrize("way", WAYS)
def test_the_shortened_passes_agree_with_whole_forwards(way):
    subject = drawn_subject()
    found = lesion(subject, way=way)
    intact = subject.scores()
    whole_loss = by_whole_forwards(subject, 0, 99, "zero")[1]
    for layer in range(3):
        for expert in range(6):
            scores, loss = by_whole_forwards(subject, layer, expert, way)
            here = found.sel(layer=layer, expert=expert)
            fall = (intact.logprob.astype(float) - scores.logprob).mean(1)
            assert np.allclose(here["drop_logprob"], fall, atol=2 * ROUNDING)
            lost = (intact.correct.astype(float) - scores.correct).mean(1)
            assert np.allclose(here["drop"], lost, atol=1e-12)
            rise = (loss - whole_loss).reshape(2, 3).mean(1)
            assert np.allclose(here["loss_rise"], rise, atol=2 * ROUNDING)


def test_zero_agrees_with_an_expert_whose_weights_are_zero():
    subject = drawn_subject()
    found = lesion(subject, fixed_tokens=False)
    changed = subject.copy()
    with torch.no_grad():
        changed.blocks[1].mlp.experts.W_out[2] = 0
    fall = subject.scores().logprob.astype(float) - subject.scores(changed).logprob
    here = found.sel(layer=1, expert=2)
    assert np.allclose(here["drop_logprob"], fall.mean(1), atol=2 * ROUNDING)
    _, low, high, _ = paired_t(fall)
    told = here["drop_logprob_low"].notnull().values
    assert told.any()
    assert np.allclose(here["drop_logprob_low"][told], low[told], atol=1e-4)
    assert np.allclose(here["drop_logprob_high"][told], high[told], atol=1e-4)


def test_rows_in_several_passes_give_the_same_numbers(monkeypatch):
    subject = drawn_subject()
    whole = lesion(subject)
    monkeypatch.setattr("probes.surgery.lesioned.TOKENS_AT_ONCE", 16)
    parts = lesion(subject)
    for name in ("drop_logprob", "loss_rise", "used"):
        assert np.allclose(whole[name], parts[name], atol=2 * ROUNDING)


@pytest.mark.parametrize("way", WAYS)
def test_the_model_is_bit_identical_and_unhooked_afterwards(way):
    subject = drawn_subject()
    before = copy.deepcopy(subject.model.state_dict())
    lesion(subject, way=way)
    after = subject.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in subject.model.modules())


def test_hooks_are_gone_even_where_the_pass_fails():
    subject = drawn_subject()
    handle = subject.model.blocks[1].hook_resid_post.register_forward_hook(
        lambda *_: (_ for _ in ()).throw(RuntimeError("interrupted"))
    )
    with pytest.raises(RuntimeError, match="interrupted"):
        lesion(subject)
    handle.remove()
    assert not any(m._forward_hooks for m in subject.model.modules())


def test_a_half_precision_model_is_measured_in_single_and_kept_as_it_is():
    subject = drawn_subject()
    half = Subject(copy.deepcopy(subject.model).bfloat16(), subject.exam)
    widened = Subject(copy.deepcopy(half.model).float(), subject.exam)
    found, same = lesion(half), lesion(widened)
    assert np.array_equal(found["drop_logprob"], same["drop_logprob"])
    assert next(half.model.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize(("experts", "k", "layers"), [(1, 1, 1), (2, 2, 1), (64, 1, 2)])
def test_models_of_one_layer_and_of_one_to_many_experts(experts, k, layers):
    config = replace(SMALL, num_experts=experts, experts_per_token=k, n_layers=layers)
    subject = drawn_subject(config)
    found = lesion(subject)
    assert found["drop"].shape == (2, layers, experts)
    if experts > 1:
        assert np.isfinite(lesion(subject, way="reroute")["drop_logprob"]).all()
        return
    with pytest.raises(UsageError, match="1 expert: there is no next best; use way='zero'"):
        lesion(subject, way="reroute")


def test_without_tasks_the_fixed_tokens_alone_are_asked():
    exam = Exam(tokens=np.arange(32).reshape(4, 8), domains=("a", "a", "b", "b"))
    found = lesion(Subject(MoELM(SMALL), exam), fixed_tokens=False)
    assert "drop" not in found
    assert dict(found.sizes) == {"domain": 2, "layer": 3, "expert": 6}


def test_an_unknown_way_is_refused():
    with pytest.raises(UsageError, match="way='mean': expected 'zero' or 'reroute'"):
        lesion(drawn_subject(), way="mean")


def test_every_variable_says_its_unit_and_what_its_interval_means():
    found = lesion(drawn_subject())
    for name, values in found.data_vars.items():
        assert {"units", "long_name", "interval"} <= set(values.attrs), name
    assert found.attrs["way"] == "zero"
    assert found.attrs["n"] == 12


def _olmoe():
    import transformers

    config = transformers.OlmoeConfig(
        vocab_size=40, hidden_size=16, intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.OlmoeForCausalLM(config).eval()


def test_an_expert_of_a_hugging_face_model_is_silenced_as_if_its_weights_were_zero():
    subject = Subject(_olmoe(), drawn_exam())
    found = lesion(subject)
    for layer, expert in ((0, 1), (1, 3)):
        changed = subject.copy()
        with torch.no_grad():
            changed.model.layers[layer].mlp.experts.down_proj[expert] = 0
        fall = subject.scores().logprob.astype(float) - subject.scores(changed).logprob
        here = found.sel(layer=layer, expert=expert)
        assert np.allclose(here["drop_logprob"], fall.mean(1), atol=2 * ROUNDING)
        assert (abs(here["drop_logprob"]) > 0).all()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in subject.model.modules())
    with pytest.raises(UsageError, match="only a MoELM can be rerouted"):
        lesion(subject, way="reroute")


def test_an_intact_expert_that_writes_nothing_is_below_rounding():
    subject = drawn_subject(items=24)
    with torch.no_grad():
        subject.model.blocks[0].mlp.experts.W_out[3] = 0
    found = answers(subject.model, following(subject.exam.tokens))
    assert found.used[0, 3].sum() > 0
    assert np.array_equal(found.lesioned[0, 3], found.intact)


@given(st.lists(st.floats(-5, 5), min_size=FEWEST, max_size=80), st.randoms())
def test_the_mean_change_lies_in_its_interval_in_any_order_of_items(changes, random):
    mean, low, high, p = mean_change(np.array(changes))
    if not np.isnan(low):
        assert low <= mean <= high
    assert 0 <= p <= 1
    random.shuffle(changes)
    assert np.allclose((mean, low, high), mean_change(np.array(changes))[:3], equal_nan=True)


def test_a_change_that_few_items_show_has_no_bounds():
    changes = np.zeros(64)
    changes[: FEWEST - 1] = 1.0
    assert np.isnan(mean_change(changes)[1])
    changes[FEWEST - 1] = 1.0
    assert mean_change(changes)[1] > 0
