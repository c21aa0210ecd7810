"""Results that a run keeps: which one is shown, what its title says, and whether it still holds."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import xarray as xr

import workbench as wb
from probes import registry
from probes.exam import Exam
from probes.examine import examine
from probes.registry import probe
from probes.running.kept import asking, holds
from workbench.app.kept import kept_results
from workbench.app.study import Study
from workbench.figures import caption_of


@pytest.fixture(autouse=True)
def ends():
    """A probe of the record and one of pairs, known in a test alone."""
    registry.names()
    before = dict(registry._KNOWN)

    @probe("its-end", question="Where does it end?", reads="record")
    def ends(source, *, plus: int = 0):
        stop = source.stop if hasattr(source, "stop") else source.last_step
        return xr.Dataset({"end": ((), float(stop + plus), {"units": "steps"})})

    @probe("apart", question="How many steps lie between?", reads="pair")
    def apart(subject, reference):
        return xr.Dataset({"steps": ((), float(subject.step - reference.step), {"units": "steps"})})

    yield
    registry._KNOWN.clear()
    registry._KNOWN.update(before)


@pytest.fixture
def two_arms(two_arm_run, tmp_path):
    return _without_results(shutil.copytree(two_arm_run, tmp_path / "run"))


@pytest.fixture
def tiny(tiny_run, tmp_path):
    return _without_results(shutil.copytree(tiny_run, tmp_path / "run"))


def _without_results(path):
    """Other tests that share the run may have kept some."""
    wb.open_run(path).results.drop()
    return path


def _shown(path, branch):
    study = Study(wb.open_run(path), n_boot=20)
    return study, next(shown for shown in kept_results(study) if shown.branch == branch)


def test_the_whole_branch_is_shown_before_a_newer_window_of_it(two_arms):
    run = wb.open_run(two_arms, "continue")
    examine(run, "its-end")
    examine(run.window(stop=50), "its-end")
    examine(run, "its-end", params={"its-end": {"plus": 1}})
    _, shown = _shown(two_arms, "continue")
    assert shown.title == "its-end (continue)"
    assert float(shown.result["end"]) == run.last_step


def test_a_window_and_parameters_stand_in_the_title_and_the_code_reads_that_very_result(
    two_arms,
):
    run = wb.open_run(two_arms, "continue")
    examine(run.window(start=20, stop=50), "its-end", params={"its-end": {"plus": 1}})
    study, shown = _shown(two_arms, "continue")
    assert shown.title == "its-end (continue; plus=1, steps 21 to 50)"
    scope: dict = {}
    exec(caption_of(shown.figure(study)).code, scope)
    assert float(scope["found"]["end"]) == 51


def test_the_code_of_a_plain_result_runs(two_arms):
    examine(wb.open_run(two_arms, "continue"), "its-end")
    study, shown = _shown(two_arms, "continue")
    scope: dict = {}
    exec(caption_of(shown.figure(study)).code, scope)
    assert "probes.examine" in caption_of(shown.figure(study)).code
    assert float(scope["found"]["end"]) == float(shown.result["end"])


def test_what_pairs_were_held_against_is_told(tiny):
    run = wb.open_run(tiny, "continue")
    steps = [c.step for c in run.checkpoints if c.record.complete]
    told = {"final": "", "first": f"against step {steps[0]:,}", "previous": "against previous"}
    for against, words in told.items():
        found = examine(run, "apart", against=against)["apart"]
        [one] = [s for s in run.results.list("apart") if _same(run, s, found)]
        assert asking(run, one).words == words
        run.results.drop("apart")


def _same(run, stored, found):
    return "each" in stored.inputs and run.results.open(stored)["steps"].equals(found["steps"])


def test_a_result_of_some_checkpoints_says_which(tiny):
    run = wb.open_run(tiny, "continue")
    examine(run.checkpoints.chosen([0, 1]), "apart", against="final")
    [one] = [s for s in run.results.list("apart") if "each" in s.inputs]
    first, second = run.checkpoints.steps[:2]
    assert asking(run, one).words == f"steps {first:,}, {second:,}, against step {second:,}"


def test_a_pair_whose_reference_was_written_anew_holds_no_more(tiny):
    run = wb.open_run(tiny, "continue")
    examine(run, "apart", against="first")
    [one] = [s for s in run.results.list("apart") if "each" in s.inputs]
    assert holds(run, one)
    for what in ("reference", "weights"):
        each = [dict(part) for part in one.inputs["each"]]
        each[-1][what] = {"digests": {"weights": "others"}}
        other = dataclasses.replace(one, inputs={**one.inputs, "each": each})
        assert not holds(run, other), what


def test_a_checkpoint_at_another_step_is_another_checkpoint(tiny):
    run = wb.open_run(tiny, "continue")
    examine(run, "apart", against="first")
    [one] = [s for s in run.results.list("apart") if "each" in s.inputs]
    moved = [[branch, step + 1, tokens] for branch, step, tokens in one.inputs["checkpoints"]]
    assert not holds(run, dataclasses.replace(one, inputs={**one.inputs, "checkpoints": moved}))


def test_an_exam_that_was_given_is_told(tiny):
    run = wb.open_run(tiny, "continue")
    own = Exam.of(run)
    given = dataclasses.replace(own, tokens=own.tokens[:2], domains=own.domains[:2])
    examine(run, "apart", against="final", exam=given)
    [one] = [s for s in run.results.list("apart") if "each" in s.inputs]
    assert asking(run, one).words == "an exam that was given"


def test_a_probe_with_a_figure_of_its_own_is_drawn_with_it(tiny):
    run = wb.open_run(tiny, "continue")
    examine(run, "rerouting")
    study, shown = _shown(tiny, "continue")
    figure = shown.figure(study)
    assert [trace.type for trace in figure.data] == ["heatmap"] * 2  # a layer each, from and to
    scope: dict = {}
    exec(caption_of(figure).code, scope)
    assert scope["found"].equals(shown.result)


def test_a_result_that_its_own_figure_cannot_draw_is_drawn_as_any_probes(tiny):
    run = wb.open_run(tiny, "continue")
    examine(run, "rerouting")
    study, shown = _shown(tiny, "continue")
    less = dataclasses.replace(shown, result=shown.result[["kept"]])
    assert caption_of(less.figure(study)).title.startswith("Rerouting (continue)")


def test_parts_held_against_the_last_checkpoint_are_drawn_over_all_checkpoints(tiny):
    run = wb.open_run(tiny)
    examine(run, "weight-change")
    study, shown = _shown(tiny, run.branch)
    assert caption_of(shown.figure(study)).name == "probe-result"
    run.results.drop("weight-change")
    examine(run, "weight-change", against="first")
    study, shown = _shown(tiny, run.branch)
    assert caption_of(shown.figure(study)).name == "weight-change"
