"""Emergence: planted onsets are found, jumps are told from smooth rises, or not told at all."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import xarray as xr

import probes
from probes import Onset
from workbench.errors import SchemaError, UsageError
from workbench.testing import PlantedSkill, evaluations_record


def skill_of(planted: PlantedSkill, seed: int = 0, **sizes: Any) -> xr.Dataset:
    record = evaluations_record({"code/add": planted}, seed=seed, **sizes)
    return probes.capability(record, task="code/add", n_boot=2)


def draws(planted: PlantedSkill, n: int, **sizes: Any) -> list[Onset]:
    """Onsets of n runs that differ in their items' luck alone."""
    return [
        probes.onset(skill_of(planted, seed, **sizes), n_boot=200, seed=seed) for seed in range(n)
    ]


def held(onsets: list[Onset], truth: float) -> float:
    return float(np.mean([o.low <= truth <= o.high for o in onsets]))


def verdicts(onsets: list[Onset], verdict: str) -> float:
    return float(np.mean([o.verdict == verdict for o in onsets]))


def test_a_jump_is_found_in_its_gap_and_called_a_jump():
    found = draws(PlantedSkill("jump", at=490), 30)
    assert held(found, 490) == 1
    # The gap less 2.5 % at either end: checkpoints are laid without knowledge of the jump.
    assert all((o.low, o.high) == (481, 519) for o in found)
    assert verdicts(found, "jump") >= 0.97


@pytest.mark.parametrize(
    ("planted", "sizes"),
    [
        (PlantedSkill("logistic", at=500, width=576), {}),
        (PlantedSkill("logistic", at=440, width=576), {"items": 60, "chance": 0.25}),
        (PlantedSkill("linear", at=480, width=864), {"persistence": 1.0}),
    ],
    ids=["logistic", "few items", "straight"],
)
def test_a_smooth_rise_is_never_called_a_jump_and_its_onset_is_covered(planted, sizes):
    found = draws(planted, 40, **sizes)
    assert held(found, planted.onset()) >= 0.92
    assert verdicts(found, "jump") == 0
    assert verdicts(found, "smooth") >= 0.7
    middle = np.median([o.step for o in found])
    assert middle == pytest.approx(planted.onset(), abs=25)


def test_a_jump_in_accuracy_alone_is_smooth_if_the_log_probability_rose_all_along():
    found = draws(PlantedSkill("jump", at=600, logprob="ahead"), 30)
    assert verdicts(found, "jump") == 0
    assert verdicts(found, "smooth") >= 0.9
    assert "log-probability" in found[0].evidence["reason"]


def test_learning_the_format_early_does_not_hide_a_later_jump():
    found = draws(PlantedSkill("jump", at=600), 30, format_nats=5.0)
    assert verdicts(found, "jump") >= 0.9


@pytest.mark.parametrize("plateau", [0.55, 0.7])
def test_a_jump_to_just_above_the_level_is_still_covered(plateau):
    assert held(draws(PlantedSkill("jump", at=490, top=plateau), 30, items=60), 490) >= 0.93


def test_what_never_comes_is_not_reached_and_the_record_says_how_sure_it_is():
    for found in draws(PlantedSkill("never"), 20):
        assert not found.reached
        assert np.isnan(found.step)
        assert (found.low, found.high) == (960, np.inf)
        assert found.verdict == "cannot tell"
        assert found.evidence["final_normalized_at_most"] < 0.2
        assert "not reached; none before step 960" in repr(found)


def test_what_was_always_there_came_before_the_first_checkpoint():
    found = probes.onset(skill_of(PlantedSkill("always")).isel(checkpoint=slice(3, None)))
    assert (found.reached, found.step, found.low, found.high) == (True, 120, 0, 120)
    assert found.verdict == "cannot tell"


def test_what_was_lost_again_is_not_reached():
    skill = skill_of(PlantedSkill("jump", at=300))
    skill["correct"][20:] = 0
    found = probes.onset(skill)
    assert not found.reached
    assert found.low == 960


def test_what_was_lost_and_learned_again_arrived_the_second_time():
    skill = skill_of(PlantedSkill("jump", at=300))
    skill["correct"][15:18] = 0
    found = probes.onset(skill)
    assert (found.low, found.high) == (17 * 40 + 1, 18 * 40 - 1)


def test_one_unlucky_checkpoint_does_not_undo_an_onset():
    skill = skill_of(PlantedSkill("jump", at=490, top=0.6), items=60)
    calm = probes.onset(skill)
    # Six more items wrong at one checkpoint: within its noise.
    right = np.flatnonzero(skill["correct"][20].values == 1)[:6]
    skill["correct"][20, right] = 0
    assert probes.onset(skill).step == pytest.approx(calm.step, abs=40)


def test_too_few_checkpoints_cannot_tell_a_jump():
    steps = [0, 300, 600, 900]
    found = draws(PlantedSkill("jump", at=500), 10, checkpoints=steps)
    assert all((o.low, o.high) == (307.5, 592.5) for o in found)
    assert verdicts(found, "cannot tell") == 1


def test_without_log_probabilities_no_verdict_is_given():
    skill = skill_of(PlantedSkill("jump", at=490))
    skill["item_logprob"][5, 3] = np.nan
    found = probes.onset(skill)
    assert found.reached
    assert (found.verdict, found.evidence["reason"][:18]) == ("cannot tell", "no log-probability")


def test_the_level_is_on_the_chance_normalised_scale():
    planted = PlantedSkill("linear", at=480, width=864, top=1.0)
    skill = skill_of(planted, items=4000, chance=0.5)
    for level in (0.25, 0.5, 0.75):
        assert probes.onset(skill, level).step == pytest.approx(planted.onset(level), abs=25)


def test_the_same_seed_gives_the_same_onset():
    skill = skill_of(PlantedSkill("logistic", at=500, width=300))
    assert probes.onset(skill) == probes.onset(skill)


def test_checkpoints_that_were_not_evaluated_are_passed_over():
    skill = skill_of(PlantedSkill("jump", at=490))
    skill["correct"][12] = -1
    skill["item_logprob"][12] = np.nan
    found = probes.onset(skill)
    assert (found.low, found.high) == (442, 518)


def test_onsets_of_all_tasks_come_by_name():
    record = evaluations_record(
        {"code/add": PlantedSkill("jump", at=490), "logic/chain": PlantedSkill("never")}
    )
    found = probes.onsets(probes.capability(record, n_boot=2))
    assert found["code/add"].reached
    assert not found["logic/chain"].reached
    assert found["code/add"].task == "code/add"


def test_an_onset_prints_on_one_line_and_turns_into_a_plain_dict():
    found = probes.onset(skill_of(PlantedSkill("jump", at=490)))
    assert "\n" not in repr(found)
    assert "95 % 481 to 519; jump" in repr(found)
    assert dataclasses.asdict(found)["evidence"]["items"] == 200


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: probes.onset(s, level=1.0), UsageError, "between 0 .chance. and 1"),
        (lambda s: probes.onset(s.isel(checkpoint=[0])), UsageError, "at each of 1 checkpoints"),
        (lambda s: probes.onset(s.isel(checkpoint=[3, 2, 1])), UsageError, "out of order"),
        (lambda s: probes.onset(s[["accuracy"]]), SchemaError, "expected what probes.capability"),
        (
            lambda s: probes.onset(xr.concat([s, s], "task")),
            UsageError,
            r"found 2 tasks, expected one: skill\.sel",
        ),
    ],
)
def test_what_has_no_onset_is_refused_with_the_remedy(call, error, message):
    with pytest.raises(error, match=message):
        call(skill_of(PlantedSkill("jump", at=490)))
