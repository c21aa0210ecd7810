"""Influence is what a step of training really does, and finds the domain that teaches a task."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

import workbench as wb
from model.config import MoEConfig
from model.evaluation import ItemBatch
from model.lm import MoELM
from model.training.checkpoint import save_checkpoint
from model.training.optim import make_optimizer
from probes.attribution import attribution, total_influence
from probes.exam import Exam
from probes.inputs.training_text import training_rows
from probes.subject import Subject
from workbench.errors import RunNotFound, UsageError

SMALL = MoEConfig(
    d_vocab=32, d_model=16, n_layers=2, n_heads=2, n_key_value_heads=1, d_mlp=8, num_experts=4,
    experts_per_token=2, n_ctx=16, rope_theta=10_000.0, init_range=0.3,
)  # fmt: skip
DOMAINS = ("double", "next", "noise")
TASKS = ("recall/double", "recall/next")


def text(rng, domain, rows):
    """(row, 12): x then f(x), over and over; what f is, is the domain."""
    x = rng.integers(2, 17, size=(rows, 6))
    f = {"double": (2 * x) % 15 + 17, "next": x + 15, "noise": rng.integers(17, 32, x.shape)}
    return np.stack([x, f[domain]], axis=-1).reshape(rows, -1)


def taught_exam(seed=0, rows=6, items=10):
    """Three domains; two of them teach a task each: which token follows x in their text."""
    rng = np.random.default_rng(seed)
    tokens = np.concatenate([text(rng, domain, rows) for domain in DOMAINS])
    x = np.concatenate([rng.permutation(np.arange(2, 17))[:items] for _ in TASKS])
    # The task is told by an example before the question.
    example = np.concatenate([text(rng, task.split("/")[1], items)[:, :2] for task in TASKS])
    right = np.where(np.arange(len(x)) < items, (2 * x) % 15 + 17, x + 15)
    wrong = (right - 17 + 3) % 15 + 17
    total = len(x)
    batch = ItemBatch(
        TASKS, torch.from_numpy(np.concatenate([example, x[:, None]], axis=1)),
        np.repeat(np.arange(total), 2), np.full(2 * total, 2),
        [[int(c)] for pair in zip(right, wrong, strict=True) for c in pair],
        np.repeat(np.arange(total), 2), np.tile([True, False], total), items,
    )  # fmt: skip
    return Exam(tokens=tokens, domains=tuple(d for d in DOMAINS for _ in range(rows)), items=batch)


def row_losses(model, exam):
    tokens = torch.tensor(exam.tokens)
    logprobs = model(tokens)[:, :-1].log_softmax(-1)
    return -logprobs.gather(-1, tokens[:, 1:, None]).squeeze(-1).mean(1)


def item_losses(model, exam):
    batch = exam.items
    right = np.flatnonzero(batch.is_right)
    logprobs = model(batch.sequences)[:, 2].log_softmax(-1)
    answer = torch.tensor([batch.continuation[c][0] for c in right])
    return -logprobs.gather(-1, answer[:, None]).squeeze(-1)


def gradient(loss, model):
    found = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    return torch.cat([g.flatten() for g in found])


def subject_of(dtype=torch.float64, exam=None, **changes):
    model = MoELM(replace(SMALL, **changes), seed=3).to(dtype)
    return Subject(model, exam or taught_exam(), step=10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_influence_and_its_parts_are_the_products_of_single_gradients(dtype):
    # The parts are differences of losses, the influence is the product itself.
    exact, tolerance = {torch.float64: 1e-6, torch.float32: 1e-4}[dtype], 5e-3
    subject = subject_of(dtype)
    exam, model = subject.exam, copy.deepcopy(subject.model).double()
    rows = torch.stack([gradient(loss, model) for loss in row_losses(model, exam)])
    items = torch.stack([gradient(loss, model) for loss in item_losses(model, exam)])
    products = (rows @ items.T).numpy().reshape(3, 6, 2, 10)
    found = attribution(subject, lr=0.1)
    scale = np.abs(products).mean()
    for name, expected, within in (
        ("influence", products.mean((1, 3)), exact),
        ("of_row", products.mean(3).reshape(18, 2), tolerance),
        ("of_item", products.mean(1), tolerance),
    ):
        assert np.allclose(found[name], 0.1 * expected, rtol=0, atol=0.1 * within * scale), name
    assert found["difference_error"] < tolerance


def step_error(subject, domain, lr):
    """How far one real step on a domain is from the prediction, over the largest predicted."""
    exam, model = subject.exam, copy.deepcopy(subject.model)
    before = item_losses(subject.model, exam).reshape(2, 10).mean(1)
    row_losses(model, exam)[6 * domain : 6 * domain + 6].mean().backward()
    torch.optim.SGD(model.parameters(), lr=lr).step()
    fall = (before - item_losses(model, exam).reshape(2, 10).mean(1)).detach().numpy()
    predicted = attribution(subject, lr=lr)["influence"].values[domain]
    return np.abs(fall - predicted).max() / np.abs(predicted).max()


@pytest.mark.parametrize("domain", range(3))
def test_one_real_step_of_gradient_descent_lowers_the_loss_by_the_influence(domain):
    # A step so small that no token goes to another expert, which no gradient foresees.
    assert step_error(subject_of(), domain, lr=2e-4) < 0.005


@pytest.mark.parametrize("domain", range(3))
def test_the_error_of_the_prediction_is_of_first_order_in_the_step(domain):
    smooth = subject_of(num_experts=2, experts_per_token=2)
    whole, half = (step_error(smooth, domain, lr) for lr in (4e-3, 2e-3))
    assert half < 0.02
    assert half == pytest.approx(whole / 2, rel=0.2)


def trained(exam, shares, steps=60, lr=0.5, seed=0):
    """Plain gradient descent on fresh text of the domains; checkpoints on the way."""
    rng = np.random.default_rng(seed)
    model = MoELM(SMALL, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    kept = []
    for step in range(steps):
        if step % 12 == 0:
            kept.append(copy.deepcopy(model))
        tokens = np.concatenate([text(rng, d, round(24 * s)) for d, s in shares.items() if s])
        model(torch.from_numpy(tokens), return_type="loss").backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        loss = item_losses(model, exam).reshape(2, -1).mean(1).numpy()
    return kept, loss


def summed(exam, models, **params):
    each = [attribution(Subject(m, exam), lr=0.5, **params) for m in models]
    whole = xr.concat(each, "checkpoint", data_vars="all", coords="minimal", compat="override")
    return total_influence(whole.assign_coords(checkpoint=np.arange(len(models))))


def test_the_domain_without_which_a_task_is_not_learned_has_the_top_influence():
    exam = taught_exam(rows=16, items=15)
    models, loss = trained(exam, dict.fromkeys(DOMAINS, 1 / 3))
    found = summed(exam, models)
    for t, task in enumerate(TASKS):
        without = []
        for domain in DOMAINS:
            shares = {d: 0.0 if d == domain else 0.5 for d in DOMAINS}
            without.append(trained(exam, shares)[1][t] - loss[t])
        teacher = task.split("/")[1]
        # The truth, by training again without each domain in turn:
        assert DOMAINS[int(np.argmax(without))] == teacher
        influence = found["influence"].sel(task=task)
        assert influence.idxmax("domain") == teacher
        assert found["influence_low"].sel(task=task, domain=teacher) > 0


def test_the_sum_over_checkpoints_is_of_all_with_the_interval_of_the_sum():
    exam = taught_exam()
    models, _ = trained(exam, dict.fromkeys(DOMAINS, 1 / 3), steps=36)
    found = summed(exam, models)
    assert found["influence_at"].dims == ("checkpoint", "domain", "task")
    assert np.allclose(found["influence"], found["influence_at"].sum("checkpoint"))
    width = found["influence_high"] - found["influence_low"]
    each = found["influence_at_high"] - found["influence_at_low"]
    # Rows and items are the same at every checkpoint: their errors do not add up at random.
    assert (width < each.sum("checkpoint") * 1.3).all()
    assert found.attrs["checkpoints"] == 3


def test_cosines_are_those_of_the_gradients_and_their_sum_is_a_mean_by_learning_rate():
    subject = subject_of()
    exam, model = subject.exam, subject.model
    rows, items = row_losses(model, exam), item_losses(model, exam)
    g_D = [gradient(rows[6 * d : 6 * d + 6].mean(), model) for d in range(3)]
    g_T = [gradient(items[10 * t : 10 * t + 10].mean(), model) for t in range(2)]
    expected = [[float(torch.cosine_similarity(d, t, dim=0)) for t in g_T] for d in g_D]
    found = attribution(subject, lr=0.1, normalize="cosine")
    assert np.allclose(found["influence"], expected, atol=1e-9)
    both = [attribution(subject, lr=lr, normalize="cosine") for lr in (0.1, 0.3)]
    whole = xr.concat(both, "checkpoint", data_vars="all", coords="minimal", compat="override")
    assert np.allclose(total_influence(whole)["influence"], expected, atol=1e-9)


def saved(folder: Path, exam, steps=3):
    """A model and optimizer after some steps of Adam, and its checkpoint."""
    model = MoELM(SMALL, seed=3)
    optimizer = make_optimizer(model, lr=1e-3, weight_decay=0.0)
    for _ in range(steps):
        row_losses(model, exam).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    path = save_checkpoint(
        folder, model, optimizer, step=steps, tokens_seen=0, data_position={}, extra={"lr": 2e-3}
    )
    subject = Subject(copy.deepcopy(model), exam, step=steps)
    subject.checkpoint = SimpleNamespace(path=path, run_path=folder)
    return subject, optimizer, model


def without_training_text(monkeypatch):
    # By its path the package's function of this name would be found, not the module.
    module = sys.modules["probes.attribution"]
    monkeypatch.setattr(module, "has_training_text", lambda checkpoint: False)


def test_with_adam_the_influence_is_what_adams_own_step_does(tmp_path, monkeypatch):
    without_training_text(monkeypatch)
    exam = taught_exam()
    subject, optimizer, model = saved(tmp_path, exam)
    found = attribution(subject, preconditioner="adam")
    # The step that Adam takes with this gradient, its second moments as they stand, by hand.
    row_losses(model, exam)[:6].mean().backward()
    before = item_losses(model, exam).reshape(2, 10).mean(1).detach()
    small = 1e-3
    with torch.no_grad():
        for p in model.parameters():
            state = optimizer.state[p]
            v = state["exp_avg_sq"] / (1 - 0.95 ** float(state["step"]))
            p -= small * 2e-3 * p.grad / (v.sqrt() + 1e-8)
    fall = before - item_losses(model, exam).reshape(2, 10).mean(1).detach()
    predicted = small * found["influence"].sel(domain="double").values
    assert np.allclose(fall, predicted, rtol=0.05, atol=0.02 * np.abs(predicted).max())
    assert found["lr"] == 2e-3
    assert found["difference_error"] < 0.02


def test_before_adams_first_step_there_is_no_influence_and_the_sum_leaves_it_out(
    tmp_path, monkeypatch
):
    without_training_text(monkeypatch)
    exam = taught_exam()
    start, later = (saved(tmp_path / str(n), exam, n)[0] for n in (0, 2))
    each = [attribution(s, preconditioner="adam") for s in (start, later)]
    assert np.isnan(each[0]["influence"]).all()
    whole = xr.concat(each, "checkpoint", data_vars="all", coords="minimal", compat="override")
    found = total_influence(whole)
    assert np.allclose(found["influence"], each[1]["influence"])
    assert found.attrs["checkpoints"] == 1


def test_the_model_is_bit_identical_and_has_neither_gradients_nor_hooks_afterwards():
    subject = subject_of(torch.float32)
    before = copy.deepcopy(subject.model.state_dict())
    attribution(subject, lr=0.1)
    assert all(torch.equal(before[n], t) for n, t in subject.model.state_dict().items())
    assert all(p.grad is None for p in subject.model.parameters())
    assert not any(m._forward_hooks for m in subject.model.modules())


@pytest.mark.parametrize(("experts", "k", "layers"), [(1, 1, 1), (64, 2, 1)])
def test_models_of_one_layer_and_of_one_to_many_experts(experts, k, layers):
    found = attribution(
        subject_of(num_experts=experts, experts_per_token=k, n_layers=layers), lr=0.1
    )
    assert np.isfinite(found["influence"]).all()


def test_a_domain_of_one_row_has_an_influence_without_interval():
    exam = taught_exam()
    one = replace(exam, tokens=exam.tokens[5:], domains=exam.domains[5:])
    found = attribution(subject_of(exam=one), lr=0.1)
    assert np.isfinite(found["influence"]).all()
    assert np.isnan(found["influence_low"].sel(domain="double")).all()
    assert np.isfinite(found["influence_low"].sel(domain="next")).all()


def test_one_task_or_a_family_can_be_asked_alone():
    subject = subject_of()
    whole = attribution(subject, lr=0.1)
    one = attribution(subject, lr=0.1, task="recall/next")
    assert one.task.values.tolist() == ["recall/next"]
    assert np.allclose(one["influence"], whole["influence"].sel(task=["recall/next"]))
    assert attribution(subject, lr=0.1, task="recall").sizes["task"] == 2


def test_a_hugging_face_model_is_attributed_too():
    import transformers

    config = transformers.OlmoeConfig(
        vocab_size=32, hidden_size=16, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    subject = Subject(transformers.OlmoeForCausalLM(config), taught_exam())
    found = attribution(subject, lr=0.1)
    assert found.attrs["text"] == "exam"
    assert found["difference_error"] < 0.05


@pytest.mark.parametrize(
    ("params", "error", "says"),
    [
        ({}, UsageError, "does not say its learning rate; give it: lr=3e-4"),
        ({"lr": 0.1, "task": "recall/x"}, RunNotFound, "the known ones are recall/double"),
        ({"lr": 0.1, "preconditioner": "sgd"}, UsageError, "expected one of none, adam"),
        ({"lr": 0.1, "preconditioner": "adam"}, UsageError, "found no optimizer.safetensors"),
        ({"lr": 0.1, "text": "training"}, UsageError, "found no run whose text it is"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_remedy(params, error, says):
    with pytest.raises(error, match=says):
        attribution(subject_of(), **params)


def test_training_rows_are_the_rows_of_the_runs_first_batches(tiny_run):
    from model.data.corpus import Corpus, collect_standard_library
    from model.data.tokenizer import load_tokenizer
    from model.data.world import World
    from model.training.plan import TrainingPlan

    run = wb.open_run(tiny_run)
    plan = TrainingPlan.from_dict(run.attrs["config"])
    tokenizer = load_tokenizer(Path(tiny_run) / "tokenizer.json", plan.model.d_vocab)
    corpus = Corpus(
        World(plan.seed), collect_standard_library(), tokenizer, plan.row_tokens + 1, plan.seed
    )
    rows, domains = training_rows(Path(tiny_run), 2)
    prose = rows[[d == "prose" for d in domains]]
    assert np.array_equal(prose, corpus.rows("prose", 0, 2))
    found = attribution(Subject.of(run.checkpoints[-1]), task="code/index", rows=2)
    assert found.attrs["text"] == "training"
    assert np.isfinite(found["influence"]).all()
    with pytest.raises(UsageError, match="rows=0: expected 1 or more"):
        training_rows(Path(tiny_run), 0)
