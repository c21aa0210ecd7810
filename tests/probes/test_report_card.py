"""Report card: one sheet says what is known of a capability, over seeds too."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import probes
from probes.registry import find
from probes.report_card import report_card, report_cards
from probes.seed_card import seed_card
from workbench.errors import UsageError
from workbench.testing import PlantedSkill, evaluations_record


def record_of(planted: PlantedSkill, seed: int = 0, **sizes) -> xr.Dataset:
    return evaluations_record({"code/add": planted}, seed=seed, **sizes)


def card(planted: PlantedSkill, seed: int = 0, **sizes):
    return report_card(record_of(planted, seed, **sizes), n_boot=200, seed=seed)


def test_a_jump_is_a_jump_with_every_piece_of_evidence():
    sheet = card(PlantedSkill("jump", at=490))
    assert sheet.verdict == "jump"
    one = sheet.seeds[0]
    assert one.changes["accuracy"].found
    assert one.changes["logprob"].found
    assert (one.onset.low, one.onset.high) == (481, 519)
    said = repr(sheet)
    for part in ("code/add: jump", "level 0.5 at step", "p = ", "half acquired", "because"):
        assert part in said


def test_a_smooth_rise_is_smooth():
    sheet = card(PlantedSkill("logistic", at=490, width=576))
    assert sheet.verdict == "smooth"
    assert not sheet.seeds[0].changes["accuracy"].found


def test_a_jump_of_a_threshold_alone_is_smooth():
    assert card(PlantedSkill("jump", at=600, logprob="ahead")).verdict == "smooth"


def test_a_jump_that_smooth_rises_with_noise_could_make_is_not_called_one():
    for seed in range(8):
        sheet = card(PlantedSkill("linear", at=490, width=190), seed)
        assert sheet.seeds[0].onset.verdict == "jump"
        assert sheet.verdict == "cannot tell"
        assert "smooth rise with noise" in " ".join(sheet.seeds[0].reasons)


def test_what_never_came_has_a_card_too():
    sheet = card(PlantedSkill("never"))
    assert (sheet.verdict, sheet.reached) == ("cannot tell", 0)
    assert "no age" in repr(sheet)


def test_a_card_needs_neither_many_checkpoints_nor_log_probabilities():
    few = card(PlantedSkill("jump", at=100), checkpoints=[0, 80, 160])
    assert few.seeds[0].changes["accuracy"] is None
    record = record_of(PlantedSkill("jump", at=490))
    record["logprob"][5, 0, 3] = np.nan
    sheet = report_card(record, n_boot=50)
    assert sheet.seeds[0].changes["logprob"] is None
    assert sheet.verdict == "cannot tell"
    assert sheet.to_dataset().attrs["n"] == 1


def test_over_seeds_the_spread_is_that_between_runs():
    ats = [300, 420, 540, 660]
    records = [record_of(PlantedSkill("jump", at=at + 10), i) for i, at in enumerate(ats)]
    sheet = report_card(records, n_boot=100)
    assert (sheet.verdict, sheet.reached, sheet.shares["jump"]) == ("jump", 4, 1.0)
    assert sheet.spread == pytest.approx(np.std(ats, ddof=1), rel=0.15)
    assert sheet.mean_low < 490 < sheet.mean_high
    assert "4 seeds: jump 100%" in repr(sheet)
    assert sheet.to_dataset()["onset"].sizes == {"seed": 4}


@pytest.mark.parametrize(
    ("jumps", "smooth", "verdict"),
    [(3, 0, "jump"), (2, 1, "cannot tell"), (1, 3, "cannot tell"), (0, 2, "smooth")],
)
def test_seeds_that_disagree_leave_no_verdict(jumps, smooth, verdict):
    planted = [PlantedSkill("jump", at=490)] * jumps
    planted += [PlantedSkill("logistic", at=490, width=576)] * smooth
    records = [record_of(p, seed) for seed, p in enumerate(planted)]
    assert report_card(records, n_boot=100).verdict == verdict


def test_seeds_with_other_checkpoints_keep_their_own():
    one, two = record_of(PlantedSkill("jump", at=490)), record_of(PlantedSkill("jump", at=490), 1)
    curves = report_card([one, two.isel(checkpoint=slice(None, None, 2))], n_boot=50).curves
    assert curves["accuracy"].sel(checkpoint=40).isnull().values.tolist() == [False, True]


def test_the_probe_gives_a_row_a_task_with_units_and_intervals():
    record = evaluations_record(
        {"code/add": PlantedSkill("jump", at=490), "logic/chain": PlantedSkill("never")}
    )
    found = report_cards(record, n_boot=100)
    assert found["verdict"].values.tolist() == ["jump", "cannot tell"]
    assert found.sizes == {"task": 2}
    for variable in found.data_vars.values():
        assert {"units", "long_name", "interval"} <= set(variable.attrs)
    assert found["onset"].sel(task="code/add") == pytest.approx(500, abs=20)
    assert find("emergence").function is report_cards
    skill = probes.capability(record, n_boot=2)
    same = seed_card(skill.sel(task="code/add"), n_boot=100)
    assert found["age"].sel(task="code/add").item() == same.acquisition.age


def test_rows_are_plain_and_the_dataset_carries_the_curves():
    sheet = card(PlantedSkill("jump", at=490))
    (row,) = sheet.rows()
    assert (row["task"], row["seed"], row["verdict"]) == ("code/add", 0, "jump")
    data = sheet.to_dataset()
    assert data["accuracy"].dims == ("seed", "checkpoint")
    assert data.attrs["verdict"] == "jump"
    assert replace(sheet) == sheet


def test_several_tasks_and_no_seed_are_refused_with_the_remedy():
    both = {"code/add": PlantedSkill("jump"), "logic/chain": PlantedSkill("never")}
    with pytest.raises(UsageError, match="name one"):
        report_card(evaluations_record(both))
    with pytest.raises(UsageError, match="found no seed"):
        report_card([])
