"""Checkpoints that route alike are near each other; what arms share counts once."""

from __future__ import annotations

import numpy as np
import pytest

import probes
import workbench as wb
from workbench.app.distances import routing_distances
from workbench.errors import RunNotFound, UsageError


@pytest.fixture(scope="module")
def run(two_arm_run):
    return wb.open_run(two_arm_run)


@pytest.fixture(scope="module")
def apart(run):
    return routing_distances({arm: run.arm(arm) for arm in ("continue", "curriculum")})


def test_the_distance_is_the_root_of_the_divergence_between_two_checkpoints(run, apart):
    read = run.arm("continue").activations
    found = probes.divergence(read.sel(checkpoint=[20, 60]), n_boot=2)["divergence"].mean()
    steps = apart["checkpoint"].values.tolist()
    drawn = apart["distance"].values[steps.index(20), steps.index(60)]
    assert drawn == pytest.approx(np.sqrt(float(found)))
    assert (np.diagonal(apart["distance"]) == 0).all()
    assert (apart["distance"].values <= 1).all()


def test_shared_history_counts_once_and_every_arm_has_its_own_after_the_fork(apart):
    branch, steps = apart["branch"].values, apart["checkpoint"].values
    assert set(branch) == {"", "continue", "curriculum"}
    assert steps[branch == ""].max() == 80
    assert len(set(steps[branch == ""])) == (branch == "").sum()
    assert (steps[branch == "curriculum"] > 80).all()


def test_no_way_is_shorter_by_a_detour(apart):
    d = apart["distance"].values
    assert (d[:, None, :] <= d[:, :, None] + d[None, :, :] + 1e-6).all()


def test_of_more_checkpoints_than_are_asked_for_the_ends_and_the_fork_stay(run):
    found = routing_distances({arm: run.arm(arm) for arm in ("continue", "curriculum")}, at_most=6)
    assert found.sizes["checkpoint"] <= 8
    assert {0, 80, 100} <= set(found["checkpoint"].values.tolist())


def test_a_window_alone_and_what_cannot_be_compared(run, planted_run):
    found = routing_distances({"continue": run.arm("continue").window(start=50)})
    assert found["checkpoint"].values.tolist() == [60, 70, 80, 90, 100]
    assert set(found["branch"].values) == {"continue"}
    with pytest.raises(UsageError, match="found 1 checkpoints, expected 2 or more"):
        routing_distances({"continue": run.arm("continue").window(start=90)})
    with pytest.raises(UsageError, match="0 arms"):
        routing_distances({})
    silent = wb.open_run(planted_run("no-routing", arms=False, parts={"train"}))
    with pytest.raises(RunNotFound):
        routing_distances({"main": silent})
