"""The figures of a run by name."""

from __future__ import annotations

import plotly.graph_objects as go
import pytest

import workbench as wb
from workbench.app.plots import draw, plot_names
from workbench.app.study import Study
from workbench.errors import RunNotFound, UsageError
from workbench.figures import caption_of


@pytest.fixture(scope="module")
def study(two_arm_run):
    return Study(wb.open_run(two_arm_run), n_boot=200)


RECORDED = [name for name in plot_names() if name != "transplant"]
"""Figures that take no weights; test_causes.py has the other."""


@pytest.mark.parametrize("name", RECORDED)
def test_each_named_figure_says_its_name_and_shows_the_run_it_is_from(study, name):
    caption = caption_of(draw(name, study))
    assert caption.name == name
    assert caption.provenance["run"] == "demo"
    assert caption.sentence.endswith(".")
    assert caption.table.rows


@pytest.mark.parametrize("name", RECORDED)
def test_the_code_that_a_figure_carries_makes_it_again(study, name):
    code = caption_of(draw(name, study)).code
    again = made(code)
    assert isinstance(again, go.Figure)
    assert caption_of(again).sentence == caption_of(draw(name, study)).sentence


def made(code):
    *lines, last = code.splitlines()
    space: dict[str, object] = {}
    exec("\n".join([*lines, f"fig = {last}"]), space)
    return space["fig"]


@pytest.mark.parametrize("name", [name for name in RECORDED if name != "lead-lag"])
def test_the_figure_that_the_code_makes_is_the_same_to_the_last_number(two_arm_run, name):
    # With the probes' own number of draws: the code names none.
    fig = draw(name, Study(wb.open_run(two_arm_run)), x="tokens")
    again = made(caption_of(fig).code)
    for one in (fig, again):
        one.layout.meta["caption"]["code"] = ""
    assert again.to_json() == fig.to_json()


def test_a_colour_that_an_arm_has_only_among_others_stands_in_the_code(planted_run):
    study = Study(wb.open_run(planted_run("colours")), n_boot=50)
    study.colors = {"continue": "#123456", "curriculum": "#654321"}
    for name, drawn in (("loss", "#123456"), ("load-distribution", "#654321")):
        assert drawn in caption_of(draw(name, study)).code
        assert drawn in made(caption_of(draw(name, study)).code).to_json()


@pytest.mark.parametrize("name", ["loss", "router-load", "emergence"])
def test_a_long_run_is_drawn_from_its_overviews_and_says_the_same(two_arm_run, monkeypatch, name):
    short = caption_of(draw(name, Study(wb.open_run(two_arm_run), n_boot=200)))
    monkeypatch.setattr("workbench.app.study.LONG", 10)
    study = Study(wb.open_run(two_arm_run), n_boot=200)
    long = caption_of(draw(name, study))
    assert long.sentence == short.sentence
    *lines, last = long.code.splitlines()
    space: dict[str, object] = {}
    exec("\n".join([*lines, f"fig = {last}"]), space)
    assert caption_of(space["fig"]).sentence == short.sentence
    assert ("points=" in long.code) == (name != "emergence")


def test_the_caption_of_a_long_run_counts_its_steps_and_not_the_bins(two_arm_run, monkeypatch):
    monkeypatch.setattr("workbench.app.study.LONG", 10)
    monkeypatch.setattr("workbench.app.study.LONG_POINTS", 2)
    caption = caption_of(draw("loss", Study(wb.open_run(two_arm_run), n_boot=200)))
    assert any(note.startswith("100 steps are drawn as") for note in caption.notes)


def test_a_trunk_that_ends_at_its_forks_is_no_arm_and_the_baseline_stands_first(study):
    assert list(study.arms) == ["continue", "curriculum"]
    assert study.fork_step == 80


def test_a_run_without_forks_is_its_own_only_arm(planted_run):
    study = Study(wb.open_run(planted_run("single", arms=False)))
    assert list(study.arms) == ["main"]
    assert study.fork_step is None
    assert study.final_start == 80  # where the last phase begins
    assert study.final_share("main") == pytest.approx(0.2)


def test_a_run_that_has_not_reached_its_last_phase_ends_in_a_share_of_its_tokens(planted_run):
    about = {"phases": [{"name": "stable", "start": 1, "stop": 900},
                        {"name": "final", "start": 901, "stop": 1000}]}  # fmt: skip
    run = wb.open_run(planted_run("young", arms=False, parts={"train"}, about=about))
    study = Study(run)
    assert (study.final_start, study.final_share("main")) == (80, pytest.approx(0.2))
    assert study.final_because == "the last 20 % of what is recorded"


def test_the_final_stretch_is_told_on_the_tokens_clock(study):
    assert study.final_share("curriculum") == pytest.approx(0.2)
    assert (study.final("curriculum").start, study.final("curriculum").stop) == (80, 100)


def test_the_mix_of_a_stretch_is_what_the_routers_counted(study):
    assert set(study.mixes["stretch"].values) == {"before", "continue", "curriculum"}
    assert study.mixes.sum("domain").values == pytest.approx(1)
    assert study.mixes.sel(domain="prose", stretch="before") == pytest.approx(0.25, abs=0.01)


def test_only_the_arm_that_learned_a_skill_has_its_onset(study):
    assert not study.onsets["continue"]["code/add"].reached
    arrived = study.onsets["curriculum"]["code/add"]
    assert arrived.low <= 85 <= arrived.high


@pytest.mark.parametrize(
    "name", [n for n in RECORDED if n not in ("arms", "lead-lag", "trajectory")]
)
def test_every_figure_over_training_can_stand_on_any_clock(study, name):
    on_utc, on_tokens = (draw(name, study, x=x) for x in ("utc", "tokens"))
    assert str(on_utc.data[0].x[0]).startswith("2025-06-15T")
    assert max(max(trace.x) for trace in on_tokens.data if trace.x[0] is not None) == 6400


def test_an_unknown_figure_is_answered_with_those_there_are(study):
    with pytest.raises(UsageError, match=r"no figure 'balence'.*did you mean 'balance'"):
        draw("balence", study)


def test_a_figure_that_the_record_cannot_give_says_what_it_lacks(planted_run):
    run = wb.open_run(planted_run("silent", arms=False, parts={"router", "train"}))
    with pytest.raises(RunNotFound, match=r"emergence needs evaluations"):
        draw("emergence", run)
    with pytest.raises(RunNotFound, match=r"arms needs two arms with evaluations \(found main\)"):
        draw("arms", run)
    assert caption_of(draw("router-load", run)).name == "router-load"


def test_a_name_of_ten_thousand_letters_is_cut_in_a_refusal(planted_run):
    name = "code/" + "x" * 10_000
    run = wb.open_run(planted_run("longnames", names={"code/add": name}))
    with pytest.raises(RunNotFound) as refused:
        draw("transplant", Study(run, n_boot=50))
    assert len(str(refused.value)) < 500
