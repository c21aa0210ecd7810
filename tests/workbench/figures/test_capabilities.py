"""Emergence and the forest of arms: discrete beside continuous, intervals, what stands out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr

from workbench.errors import SchemaError
from workbench.figures import arms, caption_of, emergence
from workbench.figures.strands import SHARED

LATE = {"code/add": [0.1, 0.1, 0.1, 0.9], "knowledge/capitals": [0.1, 0.9, 0.9, 0.9]}
NEVER = {"code/add": [0.1, 0.1, 0.1, 0.1], "knowledge/capitals": [0.1, 0.9, 0.9, 0.9]}


def titles(fig):
    return [a.text for a in fig.layout.annotations if a.text and " / " in a.text]


def named(fig, name):
    return [t for t in fig.data if t.name == name and t.fill is None]


def diamonds(fig):
    return [t for t in fig.data if t.marker.symbol == "diamond" and t.x[0] is not None]


def test_every_task_has_its_accuracy_over_its_log_probability_families_in_order(make_skill):
    fig = emergence(make_skill(LATE))
    assert titles(fig) == ["knowledge / <b>capitals</b>", "code / <b>add</b>"]
    assert len(named(fig, "main")) == 4
    chance = sorted({round(s.y0, 3) for s in fig.layout.shapes if s.y0 == s.y1})
    assert chance == [round(math.log(0.1), 3), 0.1]


def test_an_onset_before_the_fork_is_drawn_once_and_one_after_it_in_its_arms_colour(
    make_skill, arrived
):
    skills = {"continue": make_skill(NEVER), "curriculum": make_skill(LATE)}
    early, none = arrived(step=5, low=0, high=10), arrived(reached=False, step=math.nan)
    onsets = {
        "continue": {"code/add": none, "knowledge/capitals": early},
        "curriculum": {"code/add": arrived(), "knowledge/capitals": early},
    }
    fig = emergence(skills, onsets)
    found = diamonds(fig)
    assert [tuple(t.x) for t in found] == [(5,), (25,)]
    assert found[0].y[0] == pytest.approx(0.1 + 0.5 * 0.9)
    assert found[1].marker.color == "#D55E00"
    assert SHARED in found[0].hovertemplate
    assert "is reached on 1 under continue and 2 under curriculum" in caption_of(fig).sentence
    assert "Only under curriculum: code/add." in caption_of(fig).sentence


def test_an_open_interval_ends_with_the_record_and_is_called_open(make_skill, arrived):
    fig = emergence(make_skill(LATE), {"main": {"code/add": arrived(high=math.inf)}})
    bar = next(t for t in fig.data if t.marker.symbol == "line-ns")
    assert list(bar.x) == [20, 30]
    assert "20 to open" in bar.hovertemplate
    row = next(r for r in caption_of(fig).table.rows if r[0] == "code/add")
    assert row[-4:] == (25, 20, "open", "jump")


def test_one_task_alone_and_a_task_missing_from_an_arm_are_drawn(make_skill):
    skill = make_skill(LATE)
    assert titles(emergence(skill.sel(task="code/add"))) == ["code / <b>add</b>"]
    fig = emergence({"a": skill, "b": skill.sel(task=["code/add"])})
    assert len(titles(fig)) == 2


def test_dozens_of_tasks_keep_the_height_of_their_panels(make_skill):
    many = {f"code/t{i}": [0.1, 0.5] for i in range(30)}
    fig = emergence(make_skill(many))
    assert fig.layout.height > 8 * 200
    domain = fig.layout.yaxis.domain
    panel = (domain[1] - domain[0]) * (
        fig.layout.height - fig.layout.margin.t - fig.layout.margin.b
    )
    assert panel == pytest.approx(112, abs=3)


def test_a_record_without_chance_is_refused(make_skill):
    with pytest.raises(SchemaError, match=r"accuracy \(checkpoint, task\).*probes\.capability"):
        emergence(make_skill(LATE).drop_vars("chance"))


def gap(real=None):
    accuracy = {"code/add": 0.6, "knowledge/capitals": -0.1, "knowledge/dates": 0.02}
    values = np.array([list(accuracy.values())])
    dims = ("checkpoint", "task")
    ds = xr.Dataset(
        {"accuracy": (dims, values), "accuracy_low": (dims, values - 0.05),
         "accuracy_high": (dims, values + 0.05), "logprob": (dims, 2 * values),
         "logprob_low": (dims, 2 * values - 0.1), "logprob_high": (dims, 2 * values + 0.1),
         "n": (dims, np.full(values.shape, 60))},
        coords={"checkpoint": [100], "task": list(accuracy)},
        attrs={"arm_a": "continue", "arm_b": "curriculum"},
    )  # fmt: skip
    return ds if real is None else ds.assign(accuracy_real=("task", real))


def dots(fig, axis="x"):
    return [t for t in fig.data if t.xaxis == axis]


def test_tasks_stand_by_family_the_greatest_gain_first_on_both_sides():
    fig = arms(gap())
    labels = dict(zip(fig.layout.yaxis.tickvals, fig.layout.yaxis.ticktext, strict=True))
    assert list(labels.values()) == [
        "<b>knowledge</b>", "dates", "capitals", "<b>code</b>", "add",
    ]  # fmt: skip
    assert [(t.x[0], labels[t.y[0]]) for t in dots(fig)] == [
        (0.02, "dates"), (-0.1, "capitals"), (0.6, "add"),
    ]  # fmt: skip
    assert [t.x[0] for t in dots(fig, "x2")] == [0.04, -0.2, 1.2]


def test_a_difference_takes_the_colour_of_the_arm_that_it_favours_if_it_stands_out():
    drawn = dots(arms(gap()))
    assert [t.marker.symbol for t in drawn] == ["circle-open", "circle", "circle"]
    assert [t.marker.color for t in drawn[1:]] == ["#0072B2", "#D55E00"]


def test_the_correction_for_many_comparisons_outranks_the_single_interval():
    drawn = dots(arms(gap(real=[True, False, False])))
    assert [t.marker.symbol for t in drawn] == ["circle-open", "circle-open", "circle"]
    told = caption_of(arms(gap(real=[True, False, False])))
    assert told.sentence.startswith("3 tasks, curriculum less continue: better on 1, worse on 0")
    assert "+0.60 [+0.55, +0.65] in accuracy on code/add" in told.sentence
    assert "false discovery rate of 5 % over 3 tasks" in told.notes[0]


def test_without_a_correction_the_note_says_what_chance_alone_would_do():
    assert "about 0.15 would by chance" in caption_of(arms(gap())).notes[0]


def test_an_earlier_checkpoint_can_be_asked_for():
    two = xr.concat([gap().assign_coords(checkpoint=[50]) * 0, gap()], "checkpoint")
    two.attrs = gap().attrs
    assert {t.x[0] for t in dots(arms(two, checkpoint=50))} == {0}


def test_a_difference_without_bounds_is_refused():
    with pytest.raises(SchemaError, match=r"accuracy_low.*arm_difference"):
        arms(gap().drop_vars("accuracy_low"))


def test_a_task_that_was_not_asked_has_no_dot():
    ds = gap()
    ds["accuracy"][0, 1] = np.nan
    assert len(dots(arms(ds))) == 2
