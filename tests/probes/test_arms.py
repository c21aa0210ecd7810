"""Arms: planted differences are found, null ones are not, and pairing is worth its name."""

from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import probes
from probes.arms import bonett_price, mcnemar, paired_t, survives
from workbench.errors import RunNotFound, SchemaError, UsageError
from workbench.testing import TASKS, two_arms


def test_a_planted_gain_is_found_in_its_task_and_nowhere_else():
    gap = probes.arm_difference(*two_arms(gain={"code/add": 0.15}))
    assert gap["accuracy_real"].sel(task="code/add")
    assert gap["logprob_real"].sel(task="code/add")
    others = gap.drop_sel(task="code/add")
    assert not others["accuracy_real"].any()
    assert not others["logprob_real"].any()


def test_the_intervals_hold_the_planted_gain_in_about_95_percent():
    accuracy, logprob = [], []
    for seed in range(120):
        arms = two_arms(
            gain={"code/add": 0.1}, tasks=(), items=150, fork=0, checkpoints=2, seed=seed
        )
        gap = probes.arm_difference(*arms)
        last = gap.isel(checkpoint=-1).sel(task="code/add")
        accuracy.append(bool(last["accuracy_low"] <= 0.1 <= last["accuracy_high"]))
        nats = 0.1 * np.log(10)
        logprob.append(bool(last["logprob_low"] <= nats <= last["logprob_high"]))
    assert 0.90 <= np.mean(accuracy) <= 0.99
    assert 0.90 <= np.mean(logprob) <= 0.99


def test_arms_that_do_not_differ_raise_no_more_than_five_percent_false_alarms():
    alarms = []
    for seed in range(100):
        arms = two_arms(gain={}, items=100, fork=0, checkpoints=2, seed=seed)
        alarms.append(bool(probes.arm_difference(*arms)["accuracy_real"].any()))
    assert np.mean(alarms) <= 0.08


def test_pairing_by_item_narrows_the_interval_when_the_arms_agree_on_what_is_hard():
    widths = []
    for persistence in (0.0, 0.95):
        gap = probes.arm_difference(*two_arms(gain={"code/add": 0.1}, persistence=persistence))
        width = gap["accuracy_high"] - gap["accuracy_low"]
        widths.append(float(width.isel(checkpoint=-1).mean()))
    assert widths[1] < 0.6 * widths[0]


def test_shared_history_is_dropped_but_for_the_fork_where_the_difference_is_known():
    gap = probes.arm_difference(*two_arms(gain={"code/add": 0.2}, fork=800))
    assert gap["checkpoint"].values.tolist() == [800, 900, 1000]
    assert gap.attrs["fork_step"] == 800
    fork = gap.sel(checkpoint=800)
    for name in ("accuracy", "accuracy_low", "accuracy_high", "logprob_low", "logprob_high"):
        assert (fork[name] == 0).all()


def test_arms_that_never_were_one_have_no_fork():
    a, b = two_arms(gain={"code/add": 0.2}, fork=-1)
    gap = probes.arm_difference(a, b)
    assert "fork_step" not in gap.attrs
    assert gap.sizes["checkpoint"] == 11


def test_the_difference_changes_its_sign_with_the_order():
    a, b = two_arms(gain={"code/add": 0.2})
    there, back = probes.arm_difference(a, b), probes.arm_difference(b, a)
    np.testing.assert_allclose(there["accuracy"], -back["accuracy"])
    np.testing.assert_allclose(there["logprob_low"], -back["logprob_high"])
    assert (there.attrs["arm_a"], there.attrs["arm_b"]) == ("continue", "curriculum")


def test_only_common_checkpoints_and_tasks_are_compared():
    a, b = two_arms(gain={"code/add": 0.2})
    gap = probes.arm_difference(a.sel(checkpoint=[900, 1000]), b.isel(task=[3, 1]))
    assert gap["checkpoint"].values.tolist() == [900, 1000]
    assert sorted(gap["task"].values) == sorted([TASKS[1], TASKS[3]])
    assert (gap["n"] == 400).all()


def test_runs_are_sources_and_one_task_may_be_asked_for():
    a, b = (
        SimpleNamespace(evaluations=x, branch=n)
        for x, n in zip(two_arms(gain={}), ("trunk", "new"), strict=True)
    )
    gap = probes.arm_difference(a, b, task="code/add")
    assert gap["task"].values.tolist() == ["code/add"]
    assert gap.attrs["arm_b"] == "new"


def test_mcnemar_agrees_with_scipys_binomial_test():
    gained, lost = np.array([5, 30, 0, 12]), np.array([0, 18, 0, 12])
    want = [
        stats.binomtest(int(g), int(g + x)).pvalue if g + x else 1.0
        for g, x in zip(gained, lost, strict=True)
    ]
    np.testing.assert_allclose(mcnemar(gained, lost), want)


def test_the_paired_t_agrees_with_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 50))
    want = stats.ttest_rel(b, a)
    ci = want.confidence_interval()
    mean, low, high, p = paired_t(b - a)
    assert (mean, low, high, p) == pytest.approx(((b - a).mean(), ci.low, ci.high, want.pvalue))


def test_items_that_all_moved_alike_are_certain_and_a_single_item_is_nothing():
    differences = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, np.nan, np.nan]])
    p = paired_t(differences)[3]
    assert p[:2].tolist() == [1.0, 0.0]
    assert np.isnan(p[2])


def test_the_paired_interval_covers_by_exact_enumeration():
    # All outcomes of 30 items that are gained with 8 %, lost with 3 %.
    n, up, down = 30, 0.08, 0.03
    gained, lost = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    possible = gained + lost <= n
    gained, lost = gained[possible], lost[possible]
    chance = stats.multinomial.pmf(
        np.stack([gained, lost, n - gained - lost], axis=-1), n, [up, down, 1 - up - down]
    )
    _, low, high = bonett_price(gained, lost, np.full(gained.shape, n))
    truth = up - down
    assert 0.93 <= chance[(low <= truth) & (truth <= high)].sum() <= 0.99


def test_without_any_change_the_paired_interval_keeps_the_width_of_a_few_items():
    difference, low, high = (x.item() for x in bonett_price(*np.array([[0], [0], [8]])))
    # One imagined item each way among ten: 1.96 sqrt(0.2 / 10).
    assert (difference, low, high) == pytest.approx((0, -0.2772, 0.2772), abs=1e-4)


def test_tasks_without_items_are_left_out_of_the_false_discovery_count():
    assert survives(np.array([0.01, np.nan])).tolist() == [True, False]


def test_every_number_says_its_unit_and_what_its_interval_means():
    gap = probes.arm_difference(*two_arms(gain={}))
    for name in gap.data_vars:
        assert {"units", "long_name", "interval"} <= set(gap[name].attrs)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda b: b.assign_coords(checkpoint=b["checkpoint"] + 1), UsageError, "no checkpoint"),
        (lambda b: b.isel(item=slice(0, 10)), SchemaError, "a has 400 items, b has 10"),
        (
            lambda b: b.assign(correct=xr.where(b["item"] == 0, -1, b["correct"])),
            SchemaError,
            "different items",
        ),
        (lambda b: b.drop_vars("logprob"), SchemaError, "lacks logprob"),
    ],
)
def test_arms_that_cannot_be_paired_are_refused_with_the_remedy(change, error, message):
    a, b = (x.assign_coords(item=np.arange(400)) for x in two_arms(gain={}))
    with pytest.raises(error, match=message):
        probes.arm_difference(a, change(b))


def test_an_unknown_task_lists_the_known_ones():
    with pytest.raises(RunNotFound, match="the known ones are knowledge/capitals"):
        probes.arm_difference(*two_arms(gain={}), task="code/ad")
