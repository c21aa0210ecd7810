"""The grid tells learning to route from learning in the experts."""

from __future__ import annotations

import numpy as np
import pytest

from model.evaluation import score
from probes.exam import Exam
from probes.router_transplant import router_transplant
from probes.subject import Subject
from probes.surgery.parts import tensors_of
from workbench.errors import UsageError
from workbench.planted.model import planted_model

TASK = "planted/skill"
STAGES = {0: (False, False), 10: (True, False), 20: (True, True)}
"""Step to (router learned, experts learned)."""


@pytest.fixture(scope="module")
def course():
    made = planted_model("both", items=32)
    exam = Exam(tokens=made.tokens, domains=made.domains, items=made.items)
    return made, [
        Subject(made.model(router=r, experts=e, idle=step), exam, step=step)
        for step, (r, e) in STAGES.items()
    ]


@pytest.fixture(scope="module")
def grid(course):
    return router_transplant(course[1], task=TASK)


def test_only_a_router_that_has_learned_helps_and_only_a_body_that_has(grid):
    works = grid["accuracy"] > 0.5
    for router, (routes, _) in STAGES.items():
        for body, (_, knows) in STAGES.items():
            assert works.sel(router_from=router, body_from=body).item() == (routes and knows)


def test_the_diagonal_is_each_checkpoint_itself(course, grid):
    made, subjects = course
    for subject in subjects:
        own = grid.sel(router_from=subject.step, body_from=subject.step)
        assert own["logprob"].item() == pytest.approx(
            score(subject.model, made.items).logprob.mean()
        )
        tokens = subject.exam.tokens
        nats = -subject["next_logprob"].reshape(tokens.shape)[:, :-1].double().mean()
        assert own["loss"].item() == pytest.approx(nats.item(), abs=1e-5)
        for name in ("loss", "logprob", "accuracy"):
            assert own[f"{name}_change"] == own[f"{name}_change_low"] == 0


def test_an_old_router_costs_the_late_body_its_capability_and_the_interval_says_so(grid):
    late = grid.sel(router_from=0, body_from=20)
    assert late["logprob_change_high"] < -1
    assert late["accuracy_change_high"] < -0.3
    assert late["loss_change_low"] > 0


def test_a_router_that_does_not_matter_changes_nothing(grid):
    assert np.allclose(grid["logprob_change"].sel(router_from=10, body_from=20), 0)


def test_no_checkpoint_is_changed(course):
    _, subjects = course
    kept = [{n: t.detach().clone() for n, t in tensors_of(s.model).items()} for s in subjects]
    router_transplant(subjects, task=TASK, n_boot=10)
    for subject, before in zip(subjects, kept, strict=True):
        assert all((t == before[n]).all() for n, t in tensors_of(subject.model).items())


def test_several_tasks_have_a_dim_and_each_its_own_grid():
    made = planted_model("router", {"a": (0, 2), "b": (1, 3)}, items=16)
    exam = Exam(tokens=made.tokens, domains=made.domains, items=made.items)
    subjects = [Subject(made.before, exam, step=0), Subject(made.after, exam, step=1)]
    both = router_transplant(subjects, n_boot=50)
    assert both["accuracy"].dims == ("task", "router_from", "body_from")
    one = router_transplant(subjects, task="b", n_boot=50)
    assert np.allclose(one["logprob"], both["logprob"].sel(task="b"))


def test_without_tasks_there_is_the_loss_alone():
    made = planted_model("router", items=16)
    exam = Exam(tokens=made.tokens, domains=made.domains)
    subjects = [Subject(made.before, exam, step=0), Subject(made.after, exam, step=1)]
    found = router_transplant(subjects, n_boot=50)
    assert {str(v) for v in found.data_vars} == {
        "loss", "loss_change", "loss_change_low", "loss_change_high",
    }  # fmt: skip
    assert found["loss"].sel(router_from=1, body_from=0) < found["loss"].sel(
        router_from=0, body_from=0
    )


def test_many_checkpoints_are_thinned_to_the_first_the_last_and_some_between(course):
    _, subjects = course
    many = [Subject(subjects[0].model, subjects[0].exam, step=s) for s in range(7)]
    found = router_transplant(many, task=TASK, at_most=3, n_boot=10)
    assert found["body_from"].values.tolist() == [0, 3, 6]


def test_one_checkpoint_is_refused(course):
    with pytest.raises(UsageError, match="2 or more"):
        router_transplant(course[1][:1])


def test_routers_of_different_shape_are_refused(course):
    other = planted_model("both", items=32, num_experts=6)
    strange = Subject(other.after, course[1][0].exam)
    with pytest.raises(UsageError, match="routers differ"):
        router_transplant([course[1][0], strange])
