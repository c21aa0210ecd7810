"""Balance, saturation and loss: lines with bands, shared history drawn once."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from workbench.errors import SchemaError, UsageError
from workbench.figures import balance, caption_of, loss, saturation
from workbench.figures.strands import SHARED


def evenness(steps=10, layers=2, experts=4):
    clock = np.arange(1, steps + 1)
    rise = np.linspace(0, 1, steps)[:, None] * np.arange(1, layers + 1)
    dims = ("step", "layer")
    return xr.Dataset(
        {"max_violation": (dims, rise), "normalized_entropy": (dims, 1 - rise / 10),
         "dead_experts": (dims, np.zeros(rise.shape)), "balance_loss": (dims, 1 + rise / 10)},
        coords={"step": clock, "layer": np.arange(layers), "tokens_seen": ("step", clock * 8)},
        attrs={"experts": experts, "dead_window_tokens": 500, "run": "demo"},
    )  # fmt: skip


def lines(fig, name):
    """The traces of a name that are lines and no bands."""
    return [t for t in fig.data if t.name == name and t.mode and t.fill is None]


def bands(fig):
    return [t for t in fig.data if t.fill == "toself"]


def test_few_layers_are_a_line_each_and_the_deep_ones_dark():
    fig = balance(evenness(layers=3))
    drawn = [lines(fig, f"layer {i}") for i in range(3)]
    assert [len(d) for d in drawn] == [4, 4, 4]
    brightness = [sum(int(d[0].line.color[i : i + 2], 16) for i in (1, 3, 5)) for d in drawn]
    assert brightness == sorted(brightness, reverse=True)
    assert not bands(fig)


def test_many_layers_are_a_median_with_the_range_of_all():
    fig = balance(evenness(layers=9))
    line = lines(fig, "main")[0]
    assert line.y[-1] == pytest.approx(5)
    assert (max(bands(fig)[0].y), min(bands(fig)[0].y)) == (pytest.approx(9), 0)
    assert any("median layer" in note for note in caption_of(fig).notes)


def test_dead_experts_of_all_layers_are_added_up_and_their_window_is_told():
    ds = evenness(layers=9)
    ds["dead_experts"][5:, :2] = 1
    fig = balance({"a": ds, "b": ds})
    dead = next(t for t in lines(fig, SHARED) if t.yaxis == "y3")
    assert list(dead.y[-2:]) == [2, 2]
    titles = [a.text for a in fig.layout.annotations]
    assert "dead experts: no token for 500 tokens" in titles
    assert "without a token for 500 tokens: 2 of 36" in caption_of(fig).sentence


def test_a_measure_that_was_not_recorded_has_no_panel():
    fig = balance(evenness().drop_vars(["balance_loss", "dead_experts"]))
    assert {t.yaxis for t in fig.data} == {"y", "y2"}


def test_balance_without_any_measure_is_refused():
    with pytest.raises(SchemaError, match=r"max_violation.*probes\.balance"):
        balance(xr.Dataset({"gini": ("step", [0.0])}))
    with pytest.raises(UsageError, match="no arm was given"):
        balance({})


def test_what_averaging_hides_is_told():
    ds = evenness(steps=2000)
    ds["max_violation"][1000, 0] = 7.5
    assert "The highest MaxVio of a single step is 7.5." in caption_of(balance(ds)).notes


def fork(ds, at, change):
    arm = ds.copy(deep=True)
    dim = "step" if "step" in ds.dims else "checkpoint"
    for name in arm.data_vars:
        if name in change:
            arm[name] = xr.where(arm[dim] > at, arm[name] + change[name], arm[name])
    return arm


def test_history_that_arms_share_is_drawn_once_and_each_arm_joins_it():
    one = evenness()
    other = fork(one, 6, {"max_violation": 0.5})
    fig = balance({"continue": one, "curriculum": other})
    assert list(lines(fig, SHARED)[0].x) == [1, 2, 3, 4, 5, 6]
    assert list(lines(fig, "continue")[0].x) == [6, 7, 8, 9, 10]
    assert lines(fig, "curriculum")[0].y[0] == lines(fig, SHARED)[0].y[-1]
    assert lines(fig, "continue")[0].line.color == "#0072B2"


def kappa(checkpoints=5, layers=2):
    values = np.linspace(0, 1, checkpoints)[:, None] * np.ones(layers)
    dims = ("checkpoint", "layer")
    return xr.Dataset(
        {"kappa": (dims, values), "kappa_low": (dims, values - 0.1),
         "kappa_high": (dims, np.minimum(values + 0.1, 1))},
        coords={"checkpoint": np.arange(checkpoints) * 10, "layer": np.arange(layers)},
        attrs={"n": 256},
    )  # fmt: skip


def test_saturation_has_a_panel_a_layer_with_bands_and_chance_at_zero():
    fig = saturation({"continue": kappa(), "curriculum": fork(kappa(), 20, {"kappa": -0.2})})
    assert len(lines(fig, "continue")) == 2
    assert len(bands(fig)) == 2 * 3
    assert {s.y0 for s in fig.layout.shapes if s.y0 == s.y1} == {0}
    told = caption_of(fig)
    assert "at step 20" in told.sentence
    assert "256 fixed tokens" in told.notes[0]
    assert "Each arm is held against its own end." in told.notes


def test_half_way_is_never_the_last_checkpoint_which_agrees_with_itself_by_definition():
    assert "at step 0, " in caption_of(saturation(kappa(checkpoints=2))).sentence
    alone = caption_of(saturation(kappa(checkpoints=1))).sentence
    assert alone.startswith("One checkpoint alone agrees with itself")


def test_no_layer_is_called_least_settled_where_all_are_alike():
    assert "least" not in caption_of(saturation(kappa())).sentence


def test_saturation_of_something_else_is_refused():
    with pytest.raises(SchemaError, match="expected kappa"):
        saturation(xr.Dataset({"overlap": ("checkpoint", [1.0])}))


def test_the_hover_text_tells_layer_step_value_band_and_n():
    line = lines(saturation(kappa()), "main")[1]
    assert line.hovertemplate == (
        "layer 1<br>main: kappa with the final routing<br>%{text}<br>%{customdata} (95 %)"
        "<br>n = 256 tokens<extra></extra>"
    )
    assert (line.text[2], line.customdata[2]) == ("step 20", "0.5 [0.4, 0.6]")


def curve(steps=40):
    clock = np.arange(1, steps + 1)
    return xr.Dataset(
        {"loss": ("step", 5 / np.sqrt(clock)), "lr": ("step", np.full(steps, 1e-3)),
         "tokens_seen": ("step", clock * 64), "utc": ("step", 1.75e9 + clock)},
        coords={"step": clock},
    )  # fmt: skip


def test_losses_of_different_mixes_come_with_a_caution():
    both = {"continue": curve(), "curriculum": fork(curve(), 30, {"loss": -0.2})}
    assert any("different text" in note for note in caption_of(loss(both)).notes)
    assert not caption_of(loss(curve())).notes


def test_on_the_utc_clock_x_is_time():
    fig = loss(curve(), x="utc")
    assert str(fig.data[0].x[0]).startswith("2025-06-15T15:06:41")


def test_a_missing_value_leaves_a_gap_in_the_band_and_not_a_bridge():
    gap = kappa(checkpoints=7, layers=1)
    for name in ("kappa", "kappa_low", "kappa_high"):
        gap[name][3] = np.nan
    assert [len(b.x) for b in bands(saturation(gap))] == [6, 6]
