"""How the load spreads over experts: quantiles of E * load, the dead at a place of their own."""

from __future__ import annotations

import json

import numpy as np
import pytest

from workbench.errors import SchemaError, UsageError
from workbench.figures import Mark, caption_of, load_spread, to_html
from workbench.figures.template import DEAD

EVIL = "<script>alert(1)</script><b>%{x}</b>&\"'"


def medians(fig):
    return [t for t in fig.data if t.name == "median expert"]


def bands(fig, name):
    return [t for t in fig.data if t.name == name and t.fill == "toself"]


def spread(counts):
    """Two experts at double, two at half, the others at the fair share."""
    counts[..., :2] *= 2
    counts[..., 2:4] /= 2


def test_double_and_half_the_fair_share_are_equally_far_from_it(make_load):
    def change(counts):
        # Loads 2, 1/2, 3/4, 3/4 times the fair share of 4 experts.
        counts[..., :] = [200, 50, 75, 75]

    fig = load_spread(make_load(change=change, layers=1))
    (band,) = bands(fig, "all experts")
    assert max(band.y) == pytest.approx(1)
    assert min(band.y) == pytest.approx(-1)


def test_the_bands_are_the_quantiles_of_the_experts(make_load):
    rng = np.random.default_rng(3)

    def change(counts):
        counts *= rng.uniform(0.3, 3, counts.shape)

    load = make_load(steps=8, layers=2, experts=32, change=change)
    fig = load_spread(load)
    told = np.asarray(medians(fig)[1].customdata)[5]
    ratio = load[5, 1].values * 32
    assert told[:6] == pytest.approx(np.quantile(ratio, [0, 1, 0.1, 0.9, 0.25, 0.75]), rel=1e-5)
    assert told[6] == pytest.approx(np.median(ratio), rel=1e-5)
    assert "middle 80 %: %{customdata[2]:.2f}" in medians(fig)[1].hovertemplate
    assert "n = 32 experts" in medians(fig)[1].hovertemplate


def test_few_experts_have_no_quantiles_worth_a_band(make_load):
    fig = load_spread(make_load(experts=4))
    assert {t.name for t in fig.data if t.fill} == {"all experts"}
    assert {t.name for t in load_spread(make_load(experts=8)).data if t.fill} == {
        "all experts", "middle half",
    }  # fmt: skip


def test_a_dead_expert_stands_at_zero_and_is_yellow(make_load):
    def change(counts):
        counts[6:, 1, 3] = 0

    fig = load_spread(make_load(change=change))
    (dead,) = (t for t in fig.data if t.marker.color == DEAD)
    assert list(dead.x) == [7, 8, 9, 10]
    assert list(dead.customdata) == [1] * 4
    assert fig.layout.yaxis.ticktext[0] == "0"
    assert dead.y[0] == fig.layout.yaxis.tickvals[0]
    assert "1 expert of 8 got no token" in caption_of(fig).sentence


def test_no_place_for_zero_where_nobody_is_dead(make_load):
    fig = load_spread(make_load())
    assert "0" not in fig.layout.yaxis.ticktext
    assert "1 fair" in fig.layout.yaxis.ticktext
    assert "no expert is dead" in caption_of(fig).sentence


def test_the_words_say_how_the_middle_half_changed(make_load):
    def change(counts):
        counts[-10:, :, :4] *= 3

    said = caption_of(load_spread(make_load(steps=100, experts=8, change=change))).sentence
    assert said == (
        "2 layers of 8 experts. Over the last 10 steps the middle half of the median layer's "
        "experts gets 0.5 to 1.5 times the fair share 1/8 (over the first 10: 1 to 1). The loads "
        "lie furthest apart in layer 0, from 0.5 to 1.5; no expert is dead."
    )


def test_one_expert_has_nothing_to_spread(make_load):
    said = caption_of(load_spread(make_load(experts=1))).sentence
    assert said.endswith("One expert takes every token: there is nothing to spread.")


def test_a_layer_without_tokens_has_no_band_and_a_row_of_dashes(make_load):
    load = make_load()
    load[:, 1] = np.nan
    fig = load_spread(load)
    assert len(bands(fig, "all experts")) == 1
    assert caption_of(fig).table.rows[1][1:] == (None,) * 8


def test_no_token_anywhere_is_said(make_load):
    load = make_load() * np.nan
    assert caption_of(load_spread(load)).sentence.endswith("No token was routed.")


def test_a_gap_in_the_record_is_a_gap_in_the_band(make_load):
    load = make_load(layers=1)
    load[4:6] = np.nan
    assert [len(b.x) for b in bands(load_spread(load), "all experts")] == [8, 8]


def test_long_records_are_averaged_and_the_caption_says_so(make_load):
    fig = load_spread(make_load(steps=1000, experts=8, change=spread))
    assert len(medians(fig)[0].x) == 334
    assert caption_of(fig).notes[0].startswith("1,000 steps are drawn as 334 points")


def test_forks_stand_in_every_panel_and_hostile_names_are_text(make_load):
    load = make_load(layers=3)
    load.attrs.update(branch=EVIL, run="x" * 10_000)
    fig = load_spread(load, marks=[Mark(4, EVIL, "fork")])
    assert [s.x0 for s in fig.layout.shapes if s.line.dash == "dot" and s.x0 == s.x1] == [4] * 3
    told = json.dumps(fig.layout.to_plotly_json()["annotations"])
    assert "<script" not in told
    assert "&lt;script" in told
    assert "<script>alert" not in to_html(fig)


def test_forty_layers_of_sixty_four_experts_are_one_readable_figure(make_load):
    fig = load_spread(make_load(steps=300, layers=40, experts=64, change=spread))
    assert len(medians(fig)) == 40
    assert 1000 < fig.layout.height < 2200
    assert len(fig.to_json()) < 4e6


def test_on_tokens_or_time_the_same_points_stand_elsewhere(make_load):
    fig = load_spread(make_load(), x="tokens")
    assert list(medians(fig)[0].x) == [1000 * n for n in range(1, 11)]
    with pytest.raises(UsageError, match="x='utc' needs 'utc'"):
        load_spread(make_load(), x="utc")


def test_raw_counts_means_and_nothing_are_refused(make_load):
    with pytest.raises(SchemaError, match=r"counts / counts\.sum"):
        load_spread(make_load() * 100)
    with pytest.raises(SchemaError, match="expected step, layer and expert"):
        load_spread(make_load().mean("step"))
    with pytest.raises(UsageError, match="widen the window"):
        load_spread(make_load().isel(step=slice(0, 0)))
