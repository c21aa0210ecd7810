"""A capability is found in the part that it came with, and the parts' shares sum to the gap."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from model.evaluation import score
from probes.exam import Exam
from probes.registry import find
from probes.subject import Subject
from probes.surgery.parts import tensors_of
from probes.transplant import transplant
from workbench.errors import RunNotFound, UsageError
from workbench.planted.model import planted_model

LEARNED = ("expert", "router", "both", "embeddings")
TASK = "planted/skill"
SMALL = {"items": 16, "n_layers": 2, "num_experts": 6, "answers": 4}


@cache
def world(learned, **shape):
    made = planted_model(learned, **shape)
    return made, Exam(tokens=made.tokens, domains=made.domains, items=made.items)


def pair(learned, **shape):
    made, exam = world(learned, **shape)
    return (
        Subject(made.before, exam, step=100),
        Subject(made.after, exam, step=300, branch="arm"),
    )


@pytest.mark.parametrize("learned", LEARNED)
@pytest.mark.parametrize("measure", ["logprob", "accuracy"])
def test_the_part_that_learned_has_the_gap_and_the_others_have_nothing(learned, measure):
    found = transplant(*pair(learned), TASK, measure=measure)
    truth = world(learned)[0].shares
    for name in found["part"].values:
        share = found["shapley"].sel(part=name) / found["gap"]
        assert share.item() == pytest.approx(truth.get(name, 0.0), abs=1e-6)


def test_router_and_expert_that_need_each_other_do_nothing_alone_and_everything_last():
    found = transplant(*pair("both"), TASK).sel(part=["router", "experts"])
    assert np.allclose(found["alone"], 0)
    assert np.allclose(found["last"], found["gap"])


@pytest.mark.parametrize(
    ("learned", "grain", "parts"),
    [("expert", "layer", {"blocks.1": 1.0}),
     ("expert", "kind-layer", {"blocks.1 experts": 1.0}),
     ("expert", "expert", {"blocks.1 expert 5": 1.0}),
     ("both", "layer", {"blocks.1": 1.0}),
     ("both", "kind-layer", {"blocks.1 router": 0.5, "blocks.1 experts": 0.5})],
)  # fmt: skip
def test_it_is_found_at_every_grain(learned, grain, parts):
    found = transplant(*pair(learned, **SMALL), TASK, parts=grain, n_permutations=8)
    for name in found["part"].values:
        share = found["shapley"].sel(part=name).item() / found["gap"].item()
        error = 4 * found["shapley_se"].sel(part=name).item() / found["gap"].item()
        assert abs(share - parts.get(name, 0.0)) <= error + 1e-6


def test_the_ends_are_what_the_two_checkpoints_score():
    made, _ = world("expert")
    found = transplant(*pair("expert"), TASK)
    for name, model in (("before", made.before), ("after", made.after)):
        assert found[name].item() == pytest.approx(score(model, made.items).logprob.mean())
    assert found["gap"].item() == pytest.approx((found["after"] - found["before"]).item())


@pytest.mark.parametrize("grain", ["kind", "layer", "kind-layer"])
@pytest.mark.parametrize("measure", ["logprob", "accuracy"])
def test_shares_sum_to_the_gap(grain, measure):
    a, b = pair("both", **SMALL)
    found = transplant(a, b, TASK, parts=grain, measure=measure, n_permutations=8)
    assert found["shapley"].sum().item() == pytest.approx(found["gap"].item(), abs=1e-9)


def test_each_task_is_found_in_its_own_layer_in_one_pass():
    homes = {"code/x": (0, 3), "logic/y": (2, 6)}
    made = planted_model("expert", homes)
    exam = Exam(tokens=made.tokens, domains=made.domains, items=made.items)
    a, b = Subject(made.before, exam), Subject(made.after, exam)
    found = transplant(a, b, parts="layer")
    assert found["task"].values.tolist() == list(homes)
    assert found["shapley"].idxmax("part").values.tolist() == ["blocks.0", "blocks.2"]
    alone = transplant(a, b, "logic/y", parts="layer")
    assert np.allclose(alone["shapley"], found["shapley"].sel(task="logic/y"))
    assert np.allclose(alone["shapley_low"], found["shapley_low"].sel(task="logic/y"))


def test_neither_checkpoint_is_changed():
    a, b = pair("both", **SMALL)
    kept = [{n: t.detach().clone() for n, t in tensors_of(s.model).items()} for s in (a, b)]
    transplant(a, b, TASK, parts="expert", n_permutations=8)
    for subject, before in zip((a, b), kept, strict=True):
        assert all((t == before[n]).all() for n, t in tensors_of(subject.model).items())


def test_a_checkpoint_against_itself_has_no_gap_and_costs_one_pass():
    a, _ = pair("expert")
    found = transplant(a, a, TASK)
    assert (found["shapley"] == 0).all()
    assert found["gap"] == found["gap_low"] == found["gap_high"] == 0
    assert found.attrs["coalitions"] == 1


def test_a_part_whose_weights_did_not_move_is_left_out_of_the_game():
    made, exam = world("expert")
    a = Subject(made.model(experts=False, idle=1), exam)
    b = Subject(made.model(idle=1), exam)
    found = transplant(a, b, TASK)
    assert found.attrs["coalitions"] == 2
    assert found["shapley"].sel(part="experts").item() == pytest.approx(found["gap"].item())
    assert (found["shapley_high"].drop_sel(part="experts") == 0).all()


def test_the_result_says_where_from_where_to_and_how_it_was_measured():
    found = transplant(*pair("expert"), TASK)
    wanted = {
        "task": TASK, "measure": "logprob", "from_step": 100, "to_step": 300,
        "from_branch": "main", "to_branch": "arm", "n": 64, "coalitions": 32, "exact": 1,
    }  # fmt: skip
    assert {name: found.attrs[name] for name in wanted} == wanted
    for variable in found.data_vars.values():
        assert {"units", "long_name", "interval"} <= set(variable.attrs)
    assert found["layer"].sel(part="router") == -1
    assert set(found["kind"].values) <= {"router", "experts", "attention", "norms", "embeddings"}


def test_sampled_orders_are_said_in_the_interval_and_leave_no_error_where_two_need_each_other():
    # Of an order and its reverse either part comes last once: half each, in every pair.
    found = transplant(*pair("both", **SMALL), TASK, parts="kind-layer", n_permutations=8)
    assert found.attrs["exact"] == 0
    assert "orders" in found["shapley"].attrs["interval"]
    assert found["shapley_se"].max() < 1e-9


def test_the_same_seed_gives_the_same_numbers():
    one, two = (
        transplant(*pair("both", **SMALL), TASK, parts="kind-layer", n_permutations=8, seed=3)
        for _ in range(2)
    )
    assert one.identical(two)


def test_the_registered_probe_goes_from_the_reference_to_the_checkpoint():
    a, b = pair("expert")
    found = find("transplant").function(b, a, task=TASK)
    assert found.attrs["from_step"] == 100
    assert found["gap"] > 0


def test_an_unknown_measure_or_task_is_refused():
    a, b = pair("expert")
    with pytest.raises(UsageError, match="logprob, accuracy"):
        transplant(a, b, TASK, measure="f1")
    with pytest.raises(RunNotFound, match=TASK):
        transplant(a, b, "code/nothing")


def test_models_of_different_shape_are_refused():
    a, _ = pair("expert")
    _, b = pair("expert", num_experts=6)
    with pytest.raises(UsageError, match="one model"):
        transplant(a, b, TASK)


def test_one_layer_and_one_expert_can_be_transplanted():
    shape = {"n_layers": 1, "num_experts": 2, "experts_per_token": 1, "answers": 4}
    made = planted_model("expert", {TASK: (0, 1)}, **shape)
    exam = Exam(tokens=made.tokens, domains=made.domains, items=made.items)
    found = transplant(Subject(made.before, exam), Subject(made.after, exam), TASK)
    assert found["shapley"].idxmax("part").item() == "experts"
