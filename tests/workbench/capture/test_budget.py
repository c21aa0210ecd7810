"""The budget: cadence falls where capture costs too much, and rises again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import workbench as wb
from model.config import NANO
from model.lm import MoELM
from workbench.capture import tap as tap_module
from workbench.capture.budget import WINDOW, Budget
from workbench.capture.ranks import Ranks
from workbench.errors import UsageError


def follow(budget, tap, steps, cost, step_seconds=0.1):
    for _ in range(steps):
        captured = tap.number % tap.every == 0
        tap.number += 1
        note = SimpleNamespace(
            captured=captured, seconds=cost if captured else 0.0, duration=step_seconds + cost
        )
        budget.follow(tap, note)


@pytest.fixture
def tap():
    return SimpleNamespace(every=1, number=0, ranks=Ranks(), device=torch.device("cpu"))


def test_within_budget_every_step_is_read(tap):
    follow(Budget.parse("1%"), tap, 200, cost=0.0009)
    assert tap.every == 1


@pytest.mark.parametrize(("cost", "cadence"), [(0.0015, 2), (0.0035, 4), (0.0101, 16)])
def test_a_costly_capture_reads_just_so_few_steps_that_its_share_holds(tap, cost, cadence):
    follow(Budget.parse("1%"), tap, 400, cost)
    assert tap.every == cadence
    assert cost / 0.1 / tap.every <= 0.01


def test_a_cost_that_falls_brings_the_steps_back(tap):
    budget = Budget.parse(0.01)
    follow(budget, tap, 400, cost=0.0101)
    follow(budget, tap, 40 * WINDOW, cost=0.0002)
    assert tap.every == 1


@pytest.mark.parametrize("text", ["no", "0%", "150%", -0.1, 1])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(UsageError, match="overhead="):
        Budget.parse(text)


def test_the_record_says_which_steps_were_read_and_loses_no_other(tmp_path, monkeypatch):
    """A clock that makes every op cost a tenth of the step: the store holds the cadence."""
    cost = [0.0]
    monkeypatch.setattr(tap_module, "spent", lambda: cost[0])
    lm = MoELM(NANO, seed=0)
    tokens = torch.zeros(1, 8, dtype=torch.long)
    with wb.Recorder(lm, tmp_path / "run", overhead="1%") as recorder:
        for step in range(1, 6 * WINDOW + 1):
            recorder.begin(step)
            lm(tokens)
            cost[0] += 10.0 if recorder._tap._active else 0.0
            recorder.log(loss=step)
            recorder.end(tokens=8)
    run = wb.open_run(tmp_path / "run")
    every = run.train.captured_every.values
    assert run.train.sizes["step"] == 6 * WINDOW
    assert every[0] == 1
    assert every[-1] > 1
    expected = [s for s, e in zip(run.train.step.values, every, strict=True) if s % e == 0]
    assert run.router.step.values.tolist() == expected
    assert (run.router.assignments.sum("expert") == 8 * NANO.experts_per_token).all()
    assert run.train.tokens_seen.values[-1] == 8 * 6 * WINDOW
    assert (run.train.capture_seconds.values[:WINDOW] >= 10).all()
