"""What a probe found is drawn by the figure that knows it, and its code draws it again."""

from __future__ import annotations

import shutil

import pytest

import workbench as wb
from probes.registry import find, names
from workbench.app.plots import PLOTS, draw
from workbench.app.probe_plots import ALIKE, DRAWERS, TOKENIZER, drawer_of
from workbench.app.study import Study
from workbench.errors import RunNotFound, UsageError
from workbench.figures import caption_of

OWN_NAME = {"probe-heatmap": "probe-heatmap", "essential-dynamics": "trajectory"}
"""Figures that call themselves otherwise than they are asked for."""


@pytest.fixture(scope="module")
def trained(tiny_run, tmp_path_factory):
    """A copy: probes keep what they find in the run."""
    return shutil.copytree(tiny_run, tmp_path_factory.mktemp("plots") / "tiny")


@pytest.fixture(scope="module")
def study(trained):
    return Study(wb.open_run(trained, "curriculum"), n_boot=100)


def again(code):
    *lines, last = code.splitlines()
    space: dict[str, object] = {}
    exec("\n".join([*lines, f"fig = {last}"]), space)
    return space["fig"]


@pytest.mark.parametrize("name", list(DRAWERS))
def test_each_figure_of_a_probe_is_drawn_and_its_code_makes_it_again(study, name):
    caption = caption_of(draw(name, study))
    assert caption.name == OWN_NAME.get(name, name)
    assert caption.sentence.endswith((".", ")"))
    assert caption.table.rows
    assert caption.provenance["run"] == study.run.name
    assert caption_of(again(caption.code)).sentence == caption.sentence


def test_a_layer_an_expert_and_a_task_are_passed_on_and_stand_in_the_code(study):
    caption = caption_of(draw("expert-vocabulary", study, layer=1, expert=2))
    assert caption.sentence.startswith("Expert 2 of layer 1 takes")
    assert "expert=2, layer=1, tokens=tokens" in caption.code
    task = str(wb.open_run(study.run.path).evaluations.task.values[-1])
    caption = caption_of(draw("router-transplant", study, task=task))
    assert task in caption.title
    for text in (caption.code, caption_of(draw("expert-vocabulary", study, layer=1)).code):
        assert caption_of(again(text)).sentence


def test_tokens_are_shown_as_text_where_the_run_has_a_tokenizer(study, trained):
    assert (trained / TOKENIZER).is_file()
    told = {row[0] for row in caption_of(draw("expert-vocabulary", study)).table.rows}
    assert not all(str(text).startswith("id ") for text in told)


def test_a_figure_of_one_moment_loads_one_checkpoint(study, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "workbench.app.probe_plots.examine",
        lambda source, name, **_: (asked.append((name, source.steps)), {})[1],
    )
    last = study.arms["curriculum"].checkpoints.steps[-1]
    for name in ("routing-flow", "expert-vocabulary", "weight-change", "domains-fixed"):
        with pytest.raises(KeyError):
            draw(name, study)
    assert [steps for _, steps in asked] == [[last]] * 4


def test_weight_change_is_measured_from_the_fork_or_from_where_a_window_sets_out(study):
    said = caption_of(draw("weight-change", study)).sentence
    fork = study.fork_step
    assert said.startswith(f"From step {fork} to {study.arms['curriculum'].last_step} the model")
    first = study.arms["curriculum"].checkpoints.steps[0]
    early = draw("weight-change", study, start=first, stop=fork)
    assert caption_of(early).sentence.startswith(f"From step {first} to {fork} the model")
    with pytest.raises(RunNotFound, match=r"of one at it or\s+before"):
        draw("weight-change", study, start=-1)


def test_every_drawer_is_of_a_probe_that_there_is_and_every_probe_has_a_drawer():
    known = set(names())
    assert {drawer.probe for drawer in DRAWERS.values()} <= known
    assert set(ALIKE) <= known
    assert not set(DRAWERS) & set(PLOTS)
    for name in known:
        assert drawer_of(name).probe == name
    assert find(DRAWERS["lesions"].probe).question


def test_an_option_that_a_figure_has_not_is_refused(study):
    with pytest.raises(UsageError, match="routing-flow has no --task; it takes --arm, --last"):
        draw("routing-flow", study, task="code/add")
    with pytest.raises(UsageError, match="participation has no --expert"):
        draw("participation", study, expert=1)
    with pytest.raises(RunNotFound, match="no layer 99"):
        draw("participation", study, layer=99)


def test_a_planted_run_without_weights_says_so(two_arm_run):
    with pytest.raises(RunNotFound, match="no checkpoint there has its weights"):
        draw("routing-flow", wb.open_run(two_arm_run))
