"""Any probe's result can be drawn, said in words and listed, whatever it holds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.errors import SchemaError
from workbench.figures import Mark, caption_of, probe_result, to_html
from workbench.figures.probe_lines import PANELS, ROWS
from workbench.figures.result_view import variables, view_of

EVIL = "<script>alert(1)</script><b>%{x}</b>&\"'"
STEPS = np.arange(5) * 100


def result(labels: int, dim: str = "task", **attrs: object) -> xr.Dataset:
    """Lines that rise to 1, 2, 3, ... at the last of five checkpoints, with bounds 0.1 off."""
    values = np.linspace(0, 1, 5)[:, None] * np.arange(1, labels + 1)
    dims = ("checkpoint", dim)
    return xr.Dataset(
        {"score": (dims, values, attrs), "score_low": (dims, values - 0.1),
         "score_high": (dims, values + 0.1)},
        coords={"checkpoint": STEPS, "tokens_seen": ("checkpoint", STEPS * 10),
                dim: [f"t{i}" for i in range(labels)]},
        attrs={"run": "demo"},
    )  # fmt: skip


def lines(fig):
    return [t for t in fig.data if t.type == "scatter" and t.fill is None]


def bands(fig):
    return [t for t in fig.data if t.fill == "toself"]


def test_a_label_is_a_line_with_its_band_and_chance_is_dotted():
    fig = probe_result(result(3, units="nats", long_name="A score", chance_level=0.5))
    assert [t.name for t in lines(fig)] == ["t0", "t1", "t2"]
    assert list(lines(fig)[2].y) == pytest.approx([0, 0.75, 1.5, 2.25, 3])
    assert max(bands(fig)[2].y) == pytest.approx(3.1)
    assert fig.layout.yaxis.title.text == "A score (nats)"
    assert [s.y0 for s in fig.layout.shapes] == [0.5]
    assert "Chance level (dotted): 0.5 nats." in caption_of(fig).notes


def test_the_words_say_where_it_went_and_where_it_is_greatest():
    said = caption_of(probe_result(result(3, units="nats", chance_level=1.5))).sentence
    assert said == (
        "From step 0 to 400 the median of score over 3 tasks goes from 0 to 2 nats. "
        "It is greatest at t2, 3 [2.9, 3.1] nats, and smallest at t0, 1 [0.9, 1.1] nats. "
        "Of 3 intervals 2 lie above chance level and 1 below."
    )


def test_the_table_holds_first_and_last_of_every_label():
    table = caption_of(probe_result(result(2, chance_level="0.5"))).table
    assert table.columns == ("task", "first", "score", "low", "high", "chance")
    assert table.rows[1] == ("t1", 0.0, 2.0, 1.9, 2.1, 0.5)


def test_one_line_is_listed_checkpoint_by_checkpoint():
    ds = result(1).isel(task=0, drop=True)
    caption = caption_of(probe_result(ds))
    assert caption.table.columns == ("step", "score", "low", "high")
    assert caption.table.rows[2] == pytest.approx((200, 0.5, 0.4, 0.6))
    assert caption.sentence == "From step 0 to 400 score goes from 0 [−0.1, 0.1] to 1 [0.9, 1.1]."


def test_many_labels_get_a_panel_each_and_more_become_rows_of_a_map():
    some = probe_result(result(PANELS))
    assert len({t.xaxis for t in lines(some)}) == PANELS
    many = probe_result(result(PANELS + 1))
    assert [t.type for t in many.data] == ["heatmap"]
    assert np.shape(many.data[0].z) == (PANELS + 1, 5)


def test_of_very_many_labels_those_that_vary_most_are_drawn_and_it_is_said():
    fig = probe_result(result(ROWS + 50))
    assert np.shape(fig.data[0].z)[0] == ROWS
    assert fig.data[0].text[-1][0] == f"t{ROWS + 49}"
    assert f"of 290 the {ROWS} that vary most" in caption_of(fig).notes[0]
    assert len(caption_of(fig).table.rows) == ROWS + 50


def test_without_training_there_is_a_dot_a_label():
    fig = probe_result(result(4).isel(checkpoint=-1, drop=True))
    (dots,) = fig.data
    assert list(dots.x) == [1, 2, 3, 4]
    assert list(dots.error_x.array) == pytest.approx([0.1] * 4)
    assert caption_of(fig).sentence.startswith("The median of score over 4 tasks is 2.5. ")


def test_a_single_number_is_said_with_its_interval():
    fig = probe_result(result(1).isel(checkpoint=-1, task=0, drop=True))
    assert caption_of(fig).sentence == "Score is 1 [0.9, 1.1]."
    assert caption_of(fig).table.rows == (("score", 1.0, 0.9, 1.1),)


def test_words_and_truths_are_drawn_as_such():
    verdict = [["smooth", "none"], ["jump", "none"]]
    ds = xr.Dataset({"verdict": (("checkpoint", "task"), verdict)}, coords={"checkpoint": [0, 9]})
    fig = probe_result(ds)
    assert list(fig.layout.yaxis.ticktext) == ["smooth", "none", "jump"]
    assert caption_of(fig).sentence == "At step 9 verdict is jump at 1 and none at 1 of 2 tasks."
    truth = probe_result(xr.Dataset({"leads": ("signal", [True, False, True])}))
    assert list(truth.layout.xaxis.ticktext) == ["no", "yes"]
    assert caption_of(truth).sentence == "Leads is yes at 2 and no at 1 of 3 signals."
    assert caption_of(truth).table.rows[1] == (1, "no")


def test_chance_may_stand_beside_the_values():
    ds = result(2).assign_coords(chance=("task", [0.25, 0.5]))
    assert view_of(ds).chance_L.tolist() == [0.25, 0.5]
    assert view_of(result(2, chance_level="1/E, E experts")).chance_note == "1/E, E experts"
    ds["score_chance"] = ("task", [0.1, 0.2])
    assert view_of(ds).chance_L.tolist() == [0.1, 0.2]


def test_bounds_and_q_are_not_quantities_of_their_own():
    ds = result(2).assign(score_q=("task", [0.1, 0.2]), tokens=("task", [1, 2]), n_low=5)
    assert variables(ds) == ["score", "tokens", "n_low"]
    assert "The result also holds n_low and tokens." in caption_of(probe_result(ds)).notes


def test_checkpoints_out_of_order_are_put_in_order():
    ds = result(1).isel(checkpoint=[3, 0, 4, 1, 2])
    (line,) = lines(probe_result(ds))
    assert list(line.x) == list(STEPS)
    assert list(line.y) == pytest.approx(np.linspace(0, 1, 5))


def test_a_long_record_is_averaged_and_it_is_said():
    ds = xr.Dataset({"x": ("step", np.arange(10_000.0))}, coords={"step": np.arange(10_000)})
    fig = probe_result(ds)
    assert len(lines(fig)[0].x) <= 400
    assert any("10,000 steps are drawn as" in note for note in caption_of(fig).notes)


def test_the_clock_may_be_tokens_and_marks_are_drawn():
    fig = probe_result(result(2), x="tokens", marks=[Mark(200, EVIL, "fork")])
    assert list(lines(fig)[0].x) == list(STEPS * 10)
    assert any(s.x0 == 2000 for s in fig.layout.shapes)
    bare = result(2).drop_vars("tokens_seen")
    assert list(lines(probe_result(bare, x="tokens"))[0].x) == list(STEPS)


def test_labels_that_repeat_are_drawn_each():
    twice = {"layer": [0] * 9, "expert": ["a"] * 8}
    ds = xr.Dataset({"x": (("layer", "expert"), np.arange(72.0).reshape(9, 8))}, coords=twice)
    assert np.shape(probe_result(ds).data[0].z) == (9, 8)


def test_nothing_known_is_said_and_not_drawn():
    ds = result(3) * np.nan
    fig = probe_result(ds)
    assert not fig.data
    assert caption_of(fig).sentence == "score has no value that could be drawn."
    assert len(caption_of(fig).table.rows) == 3
    assert probe_result(result(3).isel(checkpoint=slice(0))).data == ()


def test_a_variable_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(SchemaError, match="this dataset has score"):
        probe_result(result(1), "scores")
    with pytest.raises(SchemaError, match="no variable"):
        probe_result(xr.Dataset())


@pytest.mark.parametrize("labels", [1, 3, 12, 40])
def test_hostile_names_stay_text(labels):
    ds = result(labels, dim=EVIL, units=EVIL, long_name=EVIL, interval=EVIL, chance_level=EVIL)
    ds = ds.rename({n: f"{EVIL}{n}" for n in list(ds.data_vars)})
    ds = ds.assign_coords({EVIL: [f"{EVIL}{i}" for i in range(labels)]})
    for one in (ds, ds.isel(checkpoint=-1, drop=True)):
        fig = probe_result(one, name=EVIL, code=EVIL)
        told = json.loads(str(fig.to_json()))
        told["layout"].pop("meta")
        assert "<script" not in json.dumps(told)
        assert "%{x}</b>" not in json.dumps(told)
        assert "<script>alert" not in to_html(fig)


KINDS = {
    "float": st.floats(allow_nan=True, allow_infinity=True, width=32),
    "int": st.integers(-(2**40), 2**40),
    "bool": st.booleans(),
    "text": st.text(max_size=6),
    "mixed": st.one_of(st.none(), st.text(max_size=3), st.floats(), st.just({"a": 1})),
}
DIMS = ("checkpoint", "step", "layer", "expert", "task", "<b>")


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_dataset_is_too_odd(data):
    dims = data.draw(st.lists(st.sampled_from(DIMS), max_size=3, unique=True))
    shape = [data.draw(st.integers(0, 9)) for _ in dims]
    kind = data.draw(st.sampled_from(sorted(KINDS)))
    dtype = object if kind == "mixed" else None
    count = int(np.prod(shape, dtype=int))
    drawn = data.draw(st.lists(KINDS[kind], min_size=count, max_size=count))
    values = np.empty(count, dtype=object)
    values[:] = drawn
    if dtype is None and count:
        values = np.array(drawn)
    ds = xr.Dataset({"odd": (dims, values.reshape(shape))})
    for end in data.draw(st.sets(st.sampled_from(["_low", "_high", "_q"]))):
        ds[f"odd{end}"] = (dims[:1], np.linspace(-1, 1, shape[0]) if dims else 0.0)
    for dim, size in zip(dims, shape, strict=True):
        if data.draw(st.booleans()):
            coordinate = st.one_of(st.integers(0, 9), st.text(max_size=3))
            ds = ds.assign_coords({dim: np.array([data.draw(coordinate) for _ in range(size)])})
    ds["odd"].attrs = data.draw(
        st.dictionaries(
            st.sampled_from(["units", "long_name", "interval", "chance_level"]),
            st.one_of(st.none(), st.floats(), st.text(max_size=9), st.just([1, 2])),
        )
    )
    fig = probe_result(ds)
    told = json.loads(str(fig.to_json()))
    assert told["layout"]["meta"]["caption"]["sentence"]
    told["layout"].pop("meta")
    assert "<b>" not in json.dumps(told)
