"""Where a capability came from, what moved before it, which experts it needs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

from workbench.errors import SchemaError
from workbench.figures import caption_of, leads, lesions, to_html, transplant
from workbench.figures.lead_lag import MOST as MOST_SIGNALS
from workbench.figures.transplant_waterfall import MOST as MOST_PARTS

EVIL = "<script>alert(1)</script><b>%{x}</b>&\"'"


def parts(values, width=0.1, names=None, measure="accuracy", before=0.2, **attrs):
    """Shapley values that add up to the gap, each with an interval of that half-width."""
    values = np.asarray(values, dtype=float)
    gap = values.sum()
    return xr.Dataset(
        {"shapley": ("part", values), "shapley_low": ("part", values - width),
         "shapley_high": ("part", values + width), "shapley_se": ("part", 0 * values),
         "before": before, "after": before + gap, "gap": gap, "gap_low": gap - width,
         "gap_high": gap + width},
        coords={"part": list(names or [f"p{i}" for i in range(len(values))])},
        attrs={"task": "code/add", "measure": measure, "from_step": 400, "to_step": 600,
               "from_branch": "main", "to_branch": "curriculum", "n": 64, **attrs},
    )  # fmt: skip


def bars(fig):
    return [t for t in fig.data if t.type == "bar"]


def test_the_bars_lead_from_before_to_after_the_greatest_first():
    fig = transplant(parts([0.05, 0.4, -0.15]))
    assert [b.x[0] for b in bars(fig)] == pytest.approx([0.4, -0.15, 0.05])
    assert [b.base[0] for b in bars(fig)] == pytest.approx([0.2, 0.6, 0.45])
    first, last = (t for t in fig.data if t.type == "scatter")
    assert (first.x[0], last.x[0]) == pytest.approx((0.2, 0.5))
    assert list(fig.layout.yaxis.ticktext) == [
        "before (step 400, main)", "p1", "p2", "p0", "after (step 600, curriculum)",
    ]  # fmt: skip


def test_a_part_whose_interval_includes_zero_is_pale():
    fig = transplant(parts([0.4, 0.05]))
    assert [b.marker.color.startswith("#") for b in bars(fig)] == [True, False]
    assert "its interval includes 0" in bars(fig)[1].hovertemplate


def test_the_words_give_the_gap_and_the_parts_that_stand_out():
    said = caption_of(transplant(parts([0.4, 0.05], names=["experts", "router"]))).sentence
    assert said == (
        "On code/add, from step 400 to 600, the accuracy rises by 0.45 [0.35, 0.55]. By part: "
        "experts +0.40 [+0.30, +0.50] (89 % of it). The interval of 1 part includes 0."
    )


def test_a_fall_is_said_as_one():
    said = caption_of(transplant(parts([-0.4], before=0.9))).sentence
    assert "the accuracy falls by 0.40 [0.30, 0.50]." in said


def test_where_the_gap_itself_may_be_nothing_no_part_is_named():
    said = caption_of(transplant(parts([0.03, 0.02]))).sentence
    assert said.endswith("The interval includes 0: there is no gap to be explained.")


def test_many_parts_are_added_up_at_the_end_and_stay_in_the_table():
    values = np.linspace(0.5, 0.01, 30)
    fig = transplant(parts(values))
    assert len(bars(fig)) == MOST_PARTS
    assert bars(fig)[-1].x[0] == pytest.approx(np.sort(values)[: 30 - MOST_PARTS + 1].sum())
    assert len(caption_of(fig).table.rows) == 30


def test_a_sum_that_misses_the_gap_is_told():
    short = parts([0.4, 0.1]).assign(after=0.9)
    assert any("sampling" in note for note in caption_of(transplant(short)).notes)
    assert not any("sampling" in n for n in caption_of(transplant(parts([0.4, 0.1]))).notes)


def test_a_transplant_without_shapley_values_is_refused():
    with pytest.raises(SchemaError, match=r"probes\.transplant"):
        transplant(parts([0.1]).drop_vars("shapley"))


def moved(lead, q, width=20.0, names=None, **attrs):
    lead = np.asarray(lead, dtype=float)
    return xr.Dataset(
        {"lead": ("signal", lead), "lead_low": ("signal", lead - width),
         "lead_high": ("signal", lead + width), "q": ("signal", np.asarray(q, dtype=float))},
        coords={"signal": list(names or [f"s{i}" for i in range(len(lead))])},
        attrs={"task": "code/add", "onset": 400.0, **attrs},
    )  # fmt: skip


def test_time_runs_to_the_right_and_only_what_stands_out_is_full():
    fig = leads(moved([-30, 40, 10], [0.01, 0.02, 0.5]))
    assert [d.x[0] for d in fig.data] == [-40, -10, 30]
    assert [d.marker.symbol for d in fig.data] == ["circle", "circle-open", "circle"]
    # From 60 steps before the onset to 20 before it.
    assert (fig.data[0].error_x.array[0], fig.data[0].error_x.arrayminus[0]) == (20, 20)
    assert "40 steps before the onset" in fig.data[0].hovertemplate


def test_the_words_name_what_moved_before_and_claim_no_cause():
    said = caption_of(leads(moved([40, -30, 10], [0.02, 0.01, 0.5]))).sentence
    assert said == (
        "1 of 3 signals moved before the onset of code/add (step 400): s0 by 40 steps [20, 60]. "
        "1 signal moved after it. Moving before is not causing."
    )
    nothing = caption_of(leads(moved([40], [0.5]))).sentence
    assert nothing.startswith("None of 1 signal is shown to have moved before the onset")


def test_a_move_that_may_be_on_either_side_leads_nothing():
    said = caption_of(leads(moved([10], [0.01]))).sentence
    assert said.startswith("None of 1 signal is shown to have moved before")
    assert "1 signal moved around it, on which side cannot be told." in said
    # The probe's own verdict goes first.
    called = moved([40], [0.01]).assign(leads=("signal", [False]), lags=("signal", [False]))
    assert caption_of(leads(called)).sentence.startswith("None of 1 signal")


def test_of_several_tasks_one_is_drawn():
    both = xr.concat([moved([40], [0.5]), moved([70], [0.01])], xr.Variable("task", ["a", "b"]))
    both = both.assign_coords(onset=("task", [100.0, 300.0]))
    assert "the onset of b (step 300): s0 by 70 steps" in caption_of(leads(both)).sentence
    assert "the onset of a (step 100)." in caption_of(leads(both, "a")).sentence
    several = xr.concat([parts([0.1]), parts([0.4])], xr.Variable("task", ["a", "b"]))
    assert caption_of(transplant(several)).sentence.startswith("On b, ")
    later = several.expand_dims(checkpoint=[500, 900])
    assert "to 500," in caption_of(transplant(later, "a", checkpoint=500)).sentence
    with pytest.raises(SchemaError, match="no task 'c'; there are a and b"):
        transplant(several, "c")


def test_signals_whose_lead_is_unknown_are_counted_and_listed():
    found = moved([40, np.nan], [0.02, np.nan])
    fig = leads(found)
    assert len(fig.data) == 1
    assert "Of 1 signal the lead could not be told." in caption_of(fig).notes
    assert len(caption_of(fig).table.rows) == 2
    blind = caption_of(leads(moved([np.nan], [np.nan], onset=None))).sentence
    assert (
        blind
        == "When signals moved around the onset of code/add could not be told for any of them."
    )


def test_of_many_signals_the_clearest_are_drawn():
    count = MOST_SIGNALS + 10
    fig = leads(moved(np.arange(count), np.linspace(0, 1, count)))
    assert len(fig.data) == MOST_SIGNALS
    assert min(-d.x[0] for d in fig.data) == 0
    assert "Not drawn, in the table: 10 signals with a greater q." in caption_of(fig).notes


def test_an_open_bound_is_said_to_be_open():
    found = moved([40], [0.01]).assign(lead_high=("signal", [np.inf]))
    assert "open to 20 steps before" in leads(found).data[0].hovertemplate


def test_leads_without_q_are_refused():
    with pytest.raises(SchemaError, match=r"probes\.lead_lag"):
        leads(moved([1], [1]).drop_vars("q"))


def lesion(checkpoints=5, tasks=("code/add", "reading/copy"), q=False):
    """Without expert 2 of layer 1 code/add loses 0, 0.1, 0.2, ...; nothing else is lost."""
    drop = np.zeros((checkpoints, len(tasks), 2, 4))
    drop[:, 0, 1, 2] = 0.1 * np.arange(checkpoints)
    dims = ("checkpoint", "task", "layer", "expert")
    ds = xr.Dataset(
        {"drop": (dims, drop), "drop_low": (dims, drop - 0.15), "drop_high": (dims, drop + 0.15)},
        coords={"checkpoint": np.arange(checkpoints) * 100, "task": list(tasks),
                "layer": range(2), "expert": range(4)},
        attrs={"way": "zero"},
    )  # fmt: skip
    if q:
        ds["drop_q"] = (dims, np.where(drop > 0.25, 0.01, 1.0))
    return ds


def drawn(fig):
    return {t.name: t for t in fig.data if t.name and t.fill is None}


def test_the_expert_that_matters_gets_a_line_and_the_others_are_a_range():
    fig = lesions(lesion(), "code/add")
    assert list(drawn(fig)) == ["the other 7", "layer 1, expert 2"]
    assert list(drawn(fig)["layer 1, expert 2"].y) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_the_words_say_how_much_since_when_and_how_many():
    said = caption_of(lesions(lesion(q=True), "code/add")).sentence
    assert said == (
        "At step 400, accuracy on code/add falls most without layer 1, expert 2: by 0.40 "
        "[0.25, 0.55]. Its interval leaves out 0 from step 200 on. "
        "Of 8 experts 1 is needed there (q ≤ 0.05)."
    )


def test_the_task_that_loses_most_is_taken_where_none_is_named():
    assert "code/add" in caption_of(lesions(lesion())).sentence
    untouched = caption_of(lesions(lesion(), "reading/copy")).sentence
    assert untouched.endswith("no single lesion of 8 experts lowers accuracy on reading/copy.")


def test_one_checkpoint_alone_is_a_curve_of_one_point():
    fig = lesions(lesion().isel(checkpoint=-1), "code/add")
    assert list(drawn(fig)["layer 1, expert 2"].x) == [400]


def test_lesions_that_are_not_there_are_refused():
    with pytest.raises(SchemaError, match="expected drop or drop_logprob"):
        lesions(lesion(), measure="drop_logprob")
    with pytest.raises(SchemaError, match=r"no task 'zoo'; there are code/add and reading/copy"):
        lesions(lesion(), "zoo")
    with pytest.raises(SchemaError, match="as the probe 'lesion' returns it"):
        lesions(lesion().isel(layer=0, drop=True))


def test_hostile_names_stay_text():
    for fig in (
        transplant(parts([0.4, 0.3], names=[EVIL, EVIL + "2"], task=EVIL, from_branch=EVIL)),
        leads(moved([40, 30], [0.01, 0.01], names=[EVIL, EVIL + "2"], task=EVIL, null=EVIL)),
        lesions(lesion(tasks=(EVIL, "b")), code=EVIL),
    ):
        told = json.loads(str(fig.to_json()))
        told["layout"].pop("meta")
        assert "<script" not in json.dumps(told)
        assert "%{x}</b>" not in json.dumps(told)
        assert "<script>alert" not in to_html(fig)
