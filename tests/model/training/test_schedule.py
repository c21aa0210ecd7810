"""The schedule and the plan: what holds at every step, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ConfigError
from model.training.plan import PLANS, TrainingPlan, plan_for
from model.training.schedule import ARMS, MAIN_MIXTURE, Schedule, arm_mixture


@st.composite
def schedules(draw):
    steps = draw(st.integers(3, 500))
    share = draw(st.floats(0.05, 0.6))
    fork = steps - max(1, round(steps * share))
    return Schedule(
        steps=steps, lr=draw(st.floats(1e-5, 1.0)), final_share=share,
        warmup_steps=draw(st.integers(0, fork)), final_lr_share=draw(st.floats(0, 1)),
    )  # fmt: skip


@given(schedules())
def test_the_rate_rises_stays_and_falls(schedule):
    rates = [schedule.learning_rate(s) for s in range(1, schedule.steps + 1)]
    warm, fork = schedule.warmup_steps, schedule.fork_step
    assert all(a <= b for a, b in pairwise(rates[:warm]))
    assert set(rates[warm:fork]) <= {schedule.lr}
    assert all(a >= b for a, b in pairwise(rates[fork:]))
    assert rates[-1] == pytest.approx(schedule.lr * schedule.final_lr_share)


@given(schedules())
def test_phases_cover_every_step_once(schedule):
    covered = [s for p in schedule.phases() for s in range(p["start"], p["stop"] + 1)]
    assert covered == list(range(1, schedule.steps + 1))
    for phase in schedule.phases():
        assert schedule.phase(phase["start"]) == schedule.phase(phase["stop"]) == phase["name"]


def test_the_mixture_changes_right_after_the_fork():
    schedule = Schedule(
        steps=10, lr=1.0, warmup_steps=0, mixture={"prose": 1}, final_mixture={"code_text": 1}
    )
    assert schedule.shares(schedule.fork_step)["prose"] == 1
    assert schedule.shares(schedule.fork_step + 1)["code_text"] == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"final_share": 1.0}, "final_share=1.0"),
        ({"warmup_steps": 90}, "warmup_steps=90"),
        ({"final_lr_share": 2.0}, "final_lr_share=2.0"),
        ({"mixture": {"poetry": 1.0}}, "mixture: no domain or family 'poetry'"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        Schedule(**{"steps": 100, "lr": 1e-3, "warmup_steps": 5, **values})


def test_an_unknown_arm_is_refused_with_those_there_are():
    with pytest.raises(
        ConfigError, match=r"continue, curriculum, code\. Did you mean 'curriculum'"
    ):
        arm_mixture("curiculum")


def test_the_arm_that_carries_on_keeps_the_mixture():
    assert ARMS["continue"] == MAIN_MIXTURE
    assert ARMS["curriculum"] != MAIN_MIXTURE


def test_every_plan_saves_at_the_start_the_fork_and_the_end():
    for plan in PLANS.values():
        s = plan.schedule
        assert all(plan.is_checkpoint(step) for step in (0, s.fork_step, s.steps))


def test_the_demo_is_looked_at_twenty_five_times_or_more_on_each_line():
    plan = plan_for("nano")
    assert sum(plan.is_checkpoint(s) for s in range(plan.schedule.steps + 1)) >= 25


def test_a_plan_survives_json():
    import json

    plan = plan_for("nano")
    assert TrainingPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_a_plan_in_fewer_steps_keeps_its_shares():
    plan = plan_for("nano")
    short = plan.scaled(plan.schedule.steps // 10)
    assert short.schedule.fork_step == pytest.approx(plan.schedule.fork_step / 10, abs=1)
    assert short.checkpoint_every == pytest.approx(plan.checkpoint_every / 10, abs=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"row_tokens": 4096}, "at most n_ctx"),
        ({"batch_rows": 0}, "batch_rows=0"),
        ({"clip_norm": 0.0}, "clip_norm=0.0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        replace(plan_for("nano"), **values)


def test_an_unknown_field_of_a_plan_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'batch_rows'"):
        TrainingPlan.from_dict({**plan_for("nano").to_dict(), "batch_row": 3})


def test_a_preset_without_a_plan_is_refused():
    with pytest.raises(ConfigError, match="no training plan; there are plans for nano"):
        plan_for("dbrx")
