"""Where the last capability came from: which one is asked about, and what is said when."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import workbench as wb
from probes import registry
from probes.examine import examine
from probes.registry import probe
from workbench.app import plots
from workbench.app.causes import Causes, Emergent, causes, emergent
from workbench.app.report import render
from workbench.app.report.blocks import Missing, Picture
from workbench.app.report.stretch import drift_table
from workbench.app.report.why import others, why
from workbench.app.study import Study
from workbench.errors import RunNotFound


@pytest.fixture
def study(two_arm_run):
    return Study(wb.open_run(two_arm_run), n_boot=50)


def test_the_capability_that_only_the_arm_learned_is_asked_about(study):
    about = emergent(study)
    assert (about.task, about.arm) == ("code/add", "curriculum")
    assert 80 < about.onset <= 90
    assert about.gain == pytest.approx(0.95, abs=0.1)


def test_where_nothing_arrived_late_nothing_is_asked(planted_run):
    study = Study(wb.open_run(planted_run("early", arms=False)), n_boot=50)
    assert emergent(study) is None
    assert causes(study, compute=True).found == {}
    [missing] = why(study).blocks
    assert isinstance(missing, Missing)
    assert "No capability arrived in the final stretch" in missing.text
    with pytest.raises(RunNotFound, match="none did"):
        plots.draw("transplant", study)


def test_without_weights_the_report_says_what_is_missing_and_shows_the_rest(study):
    found = causes(study, compute=False)
    assert "both sides of the final stretch" in found.missing["transplant"]
    assert "lead-lag" in found.found
    blocks = why(study).blocks
    assert [type(block).__name__ for block in blocks] == [
        "Words",
        "Words",
        "Missing",
        "Missing",
        "Picture",
    ]
    assert "code/add on curriculum" in blocks[0].text
    assert "by a jump" in blocks[0].text


def test_a_jump_is_asked_about_before_a_smooth_rise_that_gained_more(study):
    onsets = study.onsets["curriculum"]
    later = replace(onsets["knowledge/capitals"], step=85.0, verdict="smooth")
    study.__dict__["onsets"] = {"curriculum": {**onsets, "knowledge/capitals": later}}
    assert emergent(study).task == "code/add"
    assert emergent(study).verdict == "jump"


def _transplant():
    values = np.array([0.4, 0.1])
    return xr.Dataset(
        {
            "shapley": ("part", values), "shapley_low": ("part", values - 0.05),
            "shapley_high": ("part", values + 0.05), "shapley_se": ("part", 0 * values),
            "before": 0.2, "after": 0.7, "gap": 0.5, "gap_low": 0.4, "gap_high": 0.6,
        },
        coords={"part": ["experts", "router"]},
        attrs={"task": "code/add", "measure": "logprob", "from_step": 80, "to_step": 100,
               "from_branch": "main", "to_branch": "curriculum", "n": 60},
    )  # fmt: skip


def test_what_was_found_is_drawn_and_told_in_the_report(study):
    about = Emergent(task="code/add", arm="curriculum", onset=85.0, gain=0.9, verdict="jump")
    study.__dict__["causes"] = Causes(about, {"transplant": _transplant()}, {"lead-lag": "why."})
    pictures = [block for block in why(study).blocks if isinstance(block, Picture)]
    assert len(pictures) == 1
    assert "experts +0.40 [+0.35, +0.45]" in pictures[0].caption.sentence
    assert "experts +0.40" in render(study)


@pytest.fixture
def forgotten():
    """What is marked in a test is not known to the next."""
    registry.names()
    before = dict(registry._KNOWN)
    yield
    registry._KNOWN.clear()
    registry._KNOWN.update(before)


@pytest.mark.usefixtures("forgotten")
def test_hostile_names_in_kept_results_are_text(planted_run):
    evil = "<script>alert(1)</script>"

    @probe("evil-probe", question=evil, reads="record")
    def bad(source):
        return xr.Dataset(
            {"x": (("checkpoint", "label"), np.ones((2, 2)), {"units": evil, "long_name": evil})},
            coords={"checkpoint": [10, 20], "label": [evil, "b"]},
        )

    run = wb.open_run(planted_run("evil", arms=False))
    examine(run, "evil-probe")
    study = Study(run, n_boot=50)
    assert any(isinstance(block, Picture) for block in others(study).blocks)
    page = render(study)
    assert "<script>alert" not in page
    assert "Evil-probe" in page


@pytest.mark.usefixtures("forgotten")
def test_a_kept_result_that_cannot_be_drawn_costs_no_report(planted_run):
    @probe("odd", question="When?", reads="record")
    def odd(source):
        return xr.Dataset({"t": ((), "then")}, attrs={"left_out": "nothing"})

    run = wb.open_run(planted_run("odd", arms=False))
    examine(run, "odd")
    study = Study(run, n_boot=50)
    assert others(study).blocks
    assert "What other probes measured" in render(study)


@pytest.mark.usefixtures("forgotten")
def test_each_branch_shows_its_own_result_of_a_probe(two_arm_run):
    @probe("ends", question="Where does it end?", reads="record")
    def ends(source):
        return xr.Dataset({"end": ((), float(source.last_step), {"units": "steps"})})

    for branch in ("continue", "curriculum"):
        examine(wb.open_run(two_arm_run, branch), "ends")
    study = Study(wb.open_run(two_arm_run), n_boot=50)
    titles = [b.caption.title for b in others(study).blocks if isinstance(b, Picture)]
    assert [t for t in titles if t.startswith("Ends")] == [
        "Ends (continue): end", "Ends (curriculum): end",
    ]  # fmt: skip


def test_the_loads_drift_is_told_by_arm_and_layer_and_its_shares_sum_to_one(tiny_run):
    study = Study(wb.open_run(tiny_run), n_boot=20)
    table = drift_table(study)
    assert {(row[0], row[1]) for row in table.rows} == {
        (arm, layer) for arm in ("continue", "curriculum") for layer in (0, 1)
    }
    for _, _, moved, *shares in table.rows:
        assert moved > 0
        assert sum(shares) == pytest.approx(1)
    # The arm that went on with the same mix has no drift by the mix, that with another has.
    by_mix = {arm: [abs(r[3]) for r in table.rows if r[0] == arm] for arm in study.drifts}
    assert max(by_mix["continue"]) < 0.3 < max(by_mix["curriculum"])


def test_a_run_whose_plan_or_tokenizer_cannot_be_read_gets_its_report(tiny_run, tmp_path):
    path = shutil.copytree(tiny_run, tmp_path / "run")
    (path / "tokenizer.json").write_text("{")
    study = Study(wb.open_run(path), n_boot=20)
    study.__dict__["onsets"] = {}
    about = Emergent(task="code/index", arm="curriculum", onset=28.0, gain=0.5, verdict="smooth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workbench.app.causes.emergent", lambda study: about)
        assert study.causes.missing["transplant"]
        assert "What to doubt" in render(study)
