"""The planted run: whole, sound, and true to what is planted in it."""

from __future__ import annotations

import numpy as np
import pytest

import probes
import workbench as wb
from workbench.errors import RunExists
from workbench.store.verification.run_check import verify_run
from workbench.testing import PLANTED, planted_run


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return planted_run(tmp_path_factory.mktemp("planted") / "run")


def test_a_planted_run_has_a_trunk_and_two_arms_and_no_fault(path):
    run = wb.open_run(path)
    assert run.branches == ["main", "continue", "curriculum"]
    assert [run.arm(arm).fork_step for arm in run.branches[1:]] == [PLANTED.fork] * 2
    assert run.last_step == PLANTED.fork
    assert run.arm("curriculum").last_step == PLANTED.steps
    assert not verify_run(path, run.store).faults


def test_the_expert_that_dies_has_no_load_from_that_step_on(path):
    counts = wb.open_run(path, "continue").router["assignments"]
    mine = counts.sel(layer=PLANTED.dead_layer, expert=PLANTED.dead_expert)
    assert (mine.sel(step=slice(PLANTED.dies_at, None)) == 0).all()
    assert (mine.sel(step=slice(None, PLANTED.dies_at - 1)) > 0).all()


def test_the_specialist_takes_the_most_of_its_domain(path):
    router = wb.open_run(path).router
    taken = router["domain_assignments"].sel(domain=PLANTED.late).sum("step")
    assert (taken.argmax("expert") == PLANTED.specialist).all()


def test_the_late_task_arrives_in_one_arm_alone(path):
    run = wb.open_run(path)
    found = {arm: probes.onsets(probes.capability(run.arm(arm))) for arm in run.branches}
    onset = found["curriculum"][PLANTED.late]
    assert abs(onset.step - PLANTED.late_at) <= PLANTED.every
    assert not found["continue"][PLANTED.late].reached
    assert abs(found["main"][PLANTED.early].step - PLANTED.early_at) <= PLANTED.every


def test_the_arms_share_the_trunk_to_the_last_number(path):
    run = wb.open_run(path)
    trunk = run.router["assignments"].values
    for arm in run.branches[1:]:
        assert np.array_equal(run.arm(arm).router["assignments"].values[: PLANTED.fork], trunk)


def test_a_run_that_is_there_is_not_written_over(path):
    with pytest.raises(RunExists):
        planted_run(path)
