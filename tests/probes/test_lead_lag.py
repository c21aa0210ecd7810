import importlib.util
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from probes.arrival import arrival_of
from probes.lead_lag import lead_lag, lead_lag_of_tasks
from probes.registry import find
from probes.statistics.discovery_rate import q_values
from workbench.errors import RunNotFound, SchemaError, UsageError
from workbench.planted.signals import PlantedSignal, signals_record
from workbench.testing import PlantedSkill, evaluations_record, router_record

FILE = Path(__file__).with_name("rates_lead_lag.py")
# Inside of a gap between checkpoints: at the very end of one, an interval of 95 % must miss it.
JUMP = PlantedSkill("jump", at=550)
QUICK = {"n_perm": 499, "n_boot": 200}


def answers(every=28, steps=1120, **skills):
    planted = {f"code/{name}": skill for name, skill in (skills or {"add": JUMP}).items()}
    return evaluations_record(planted, checkpoints=steps // every + 1, every=every)


def seen(**signals):
    return signals_record(signals, JUMP, seed=3)


@pytest.fixture(scope="module")
def world():
    planted = seen(
        ahead=PlantedSignal(lead=40, height=3, trend=3),
        behind=PlantedSignal(lead=-40, height=-3, trend=3),
        together=PlantedSignal(lead=0, height=3),
        noise=PlantedSignal(),
        walk=PlantedSignal(noise=0, walk=0.05),
        bend=PlantedSignal(curve=10),
    )
    return lead_lag(answers(), "code/add", signals=planted, **QUICK)


def test_a_signal_that_leads_by_40_steps_is_found_and_its_interval_holds_40(world):
    ahead = world.sel(signal="ahead")
    assert bool(ahead["leads"])
    assert ahead["q"] <= 0.05
    assert ahead["lead_low"] <= 40 <= ahead["lead_high"]
    assert abs(float(ahead["lead"]) - 40) < 20


def test_a_signal_that_lags_is_said_to_lag_and_one_that_moves_together_does_neither(world):
    behind, together = world.sel(signal="behind"), world.sel(signal="together")
    assert bool(behind["lags"])
    assert not bool(behind["leads"])
    assert behind["score"] < 0
    assert behind["lead_low"] <= -40 <= behind["lead_high"]
    assert together["lead_low"] <= 0 <= together["lead_high"]
    assert not bool(together["leads"])
    assert not bool(together["lags"])


def test_noise_walks_and_bent_trends_are_not_called(world):
    assert not world["leads"].sel(signal=["noise", "walk", "bend"]).any()


def test_everything_says_what_it_is(world):
    for name in world.data_vars:
        assert {"units", "long_name", "interval"} <= set(world[name].attrs)
    assert world.attrs["n"] == 6
    assert world.attrs["resolution"] == 14
    assert world.attrs["floor"] == 1 / 500
    assert (world["p"] >= 1 / 500).all()
    assert np.allclose(world["q"], q_values(world["p"]))
    assert "start=" in world.attrs["note"]
    assert world.attrs["max_lag"] == 112
    assert 0 < world.attrs["expected_by_chance"] < world.attrs["moved"]
    assert float(world["coincidence"].sel(signal="ahead")) == pytest.approx(40 / 671, abs=0.03)


def test_sparse_checkpoints_do_not_pretend_to_resolve_40_steps():
    one = lead_lag(
        answers(every=160), "code/add", signals=seen(a=PlantedSignal(lead=40, height=3)),
        max_lag=112, **QUICK,
    )  # fmt: skip
    assert one.attrs["resolution"] == 80
    assert one["q"].item() <= 0.05
    assert one["lead_low"].item() <= 40 <= one["lead_high"].item()
    assert one["lead_high"].item() - one["lead_low"].item() > 100
    assert not one["leads"].item()


def test_a_change_at_the_fork_leads_trivially_and_start_looks_after_it():
    fork = {"jump": 5.0, "jump_at": 480.0}
    planted = seen(a=PlantedSignal(**fork), b=PlantedSignal(lead=40, height=3, **fork))
    whole = lead_lag(answers(), "code/add", signals=planted, **QUICK)
    assert bool(whole["leads"].sel(signal="a"))
    assert whole["lead"].sel(signal="a").item() == pytest.approx(70, abs=15)
    after = lead_lag(answers(), "code/add", signals=planted, start=480, **QUICK)
    assert not bool(after["leads"].sel(signal="a"))
    b = after.sel(signal="b")
    assert b["lead_low"] <= 40 <= b["lead_high"]


def test_a_move_outside_of_max_lag_is_no_lead():
    planted = seen(a=PlantedSignal(jump=5.0, jump_at=330.0))
    one = lead_lag(answers(), "code/add", signals=planted, **QUICK)
    assert one["q"].item() <= 0.05
    assert one["lead"].item() > 112
    assert not one["leads"].item()


def test_an_onset_that_is_given_is_taken_as_it_is():
    planted = seen(a=PlantedSignal(lead=40, height=3))
    one = lead_lag(answers(), "code/add", signals=planted, onset=550, **QUICK)
    assert one.attrs["onset_low"] == one.attrs["onset_high"] == 550
    assert one["lead_high"].item() - one["lead_low"].item() < 30


def test_the_same_seed_gives_the_same_numbers(world):
    planted = seen(a=PlantedSignal(lead=40, height=3), b=PlantedSignal())
    first, again = (lead_lag(answers(), "code/add", signals=planted, **QUICK) for _ in range(2))
    xr.testing.assert_identical(first, again)


def test_several_tasks_share_one_family_of_tests_and_one_that_never_came_says_so():
    class Run:
        evaluations = answers(add=JUMP, never=PlantedSkill("never"), always=PlantedSkill("always"))
        router = router_record(steps=1120, layers=1, tokens=16)

    found = lead_lag_of_tasks(Run(), kinds=["entropy", "margin"], n_perm=99, n_boot=50)
    assert found["p"].dims == ("task", "signal")
    assert found.attrs["n"] == 2
    assert np.isnan(found["p"].sel(task="code/never")).all()
    assert "not reached" in str(found["task_reason"].sel(task="code/never").item())
    assert "from the start" in str(found["task_reason"].sel(task="code/always").item())
    assert np.allclose(found["q"].sel(task="code/add"), q_values(found["p"].sel(task="code/add")))
    assert find("lead-lag").function is lead_lag_of_tasks
    with pytest.raises(UsageError, match="no task arrived"):
        lead_lag_of_tasks(Run(), task="code/never")


def test_too_few_values_are_said_not_guessed():
    planted = seen(a=PlantedSignal(), b=PlantedSignal())
    sparse = planted["step"] % 100 == 0
    planted["value"] = planted["value"].where((planted["signal"] == "a") | sparse)
    found = lead_lag(answers(), "code/add", signals=planted, **QUICK)
    assert np.isnan(found["p"].sel(signal="b"))
    assert found.attrs["n"] == 1
    assert "needed" in str(found["reason"].sel(signal="b").item())
    assert not bool(found["leads"].sel(signal="b"))


def test_what_cannot_be_answered_is_refused_with_the_remedy():
    planted = seen(a=PlantedSignal())
    with pytest.raises(UsageError, match="onset=STEP"):
        lead_lag(answers(add=PlantedSkill("never")), "code/add", signals=planted)
    with pytest.raises(RunNotFound, match="code/add"):
        lead_lag(answers(), "code/ad", signals=planted)
    with pytest.raises(SchemaError, match="value"):
        lead_lag(answers(), "code/add", signals=planted.rename(value="values"))
    with pytest.raises(UsageError, match="max_lag"):
        lead_lag(answers(), "code/add", signals=planted, max_lag=0)


def test_draws_of_an_arrival_fill_the_gap_between_checkpoints():
    draws = arrival_of(answers(every=56), "code/add", n_boot=400).draws
    assert draws.min() >= 504
    assert draws.max() <= 560
    assert stats.kstest(draws, stats.uniform(504, 56).cdf).pvalue > 0.001


def _rates():
    spec = importlib.util.spec_from_file_location("rates_lead_lag", FILE)
    module = importlib.util.module_from_spec(spec)
    # Its dataclass looks its own module up by name.
    import sys

    sys.modules["rates_lead_lag"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_intervals_hold_and_calls_are_seldom_wrong_in_fewer_draws():
    rates, draws = _rates(), 10
    for one in rates.of_leads(rates.LEADS[0], draws):
        if one["wanted"].startswith("0.90"):
            assert one["share"] * draws >= stats.binom.ppf(0.001, draws, 0.9)
    for name in ("random walks", "trends that all share, straight and bent"):
        for one in rates.of_nulls(name, draws):
            if one["what"].endswith("lead"):
                assert one["share"] * draws <= stats.binom.ppf(0.999, draws, 0.05)
