"""The router load heatmap: one scale, log2 of the ratio to the fair share, the dead apart."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest

from workbench.errors import SchemaError, UsageError
from workbench.figures import Mark, caption_of, expert_load, load_spread
from workbench.figures.template import DEAD


def heats(fig):
    return [t for t in fig.data if isinstance(t, go.Heatmap)]


def test_double_and_half_the_fair_share_are_as_far_from_white(make_load):
    def change(counts):
        counts[:, 0] = [200, 50, 75, 75]

    heat = heats(expert_load(make_load(change=change)))[0]
    octaves = np.asarray(heat.z)[:, 0]
    assert octaves[:2] == pytest.approx([1, -1])
    assert np.asarray(heat.customdata)[:2, 0, 0] == pytest.approx([2, 0.5])


def test_all_layers_share_one_scale_that_is_white_at_the_fair_share(make_load):
    fig = expert_load(make_load(layers=6))
    assert len(heats(fig)) == 6
    assert {heat.coloraxis for heat in heats(fig)} == {"coloraxis"}
    scale = fig.layout.coloraxis
    assert (scale.cmin, scale.cmid, scale.cmax) == (-1, 0, 1)
    assert list(scale.colorbar.ticktext) == ["≤ ½", "1 fair", "≥ 2"]


def test_the_scale_widens_where_many_loads_lie_beyond_it(make_load):
    def change(counts):
        counts[..., 0] = 1000

    scale = expert_load(make_load(change=change)).layout.coloraxis
    assert (scale.cmin, scale.cmax) == (-2, 2)
    assert list(scale.colorbar.ticktext) == ["≤ ¼", "½", "1 fair", "2", "≥ 4"]


def test_a_dead_expert_is_a_colour_of_its_own_and_never_a_very_low_load(make_load):
    def change(counts):
        counts[5:, 1, 3] = 0

    fig = expert_load(make_load(change=change))
    _, live, mask = heats(fig)
    assert np.isnan(np.asarray(live.z)[3, 5:]).all()
    assert np.nansum(np.asarray(mask.z)) == 5
    assert mask.colorscale[0][1] == DEAD
    assert "no token" in {t.name for t in fig.data}
    assert "1 expert of 8 got no token" in caption_of(fig).sentence
    assert caption_of(fig).table.rows[1][-1] == "3"


def test_no_yellow_where_no_expert_is_dead(make_load):
    fig = expert_load(make_load())
    assert len(heats(fig)) == 2
    assert "no expert is dead" in caption_of(fig).sentence


def test_thousands_of_steps_are_averaged_and_the_caption_says_so(make_load):
    def change(counts):
        counts[-1, 0, 2] = 10_000  # one wild step at the end of 1,001

    fig = expert_load(make_load(steps=1001, change=change))
    assert np.asarray(heats(fig)[0].z).shape == (4, 334)
    assert caption_of(fig).notes[0] == (
        "1,001 steps are drawn as 334 points, each the mean of up to 3 consecutive steps."
    )


def test_the_numbers_drawn_are_the_means_of_the_steps_of_a_bin(make_load):
    rng = np.random.default_rng(0)

    def change(counts):
        counts *= rng.uniform(0.5, 2, counts.shape)

    load = make_load(steps=900, change=change)
    drawn = np.asarray(heats(expert_load(load))[1].customdata)[2, 7, 0]
    assert drawn == pytest.approx(float(load[21:24, 1, 2].mean()) * 4, rel=1e-5)


def test_a_model_of_24_layers_of_16_experts_is_one_figure_of_readable_size(make_load):
    fig = expert_load(make_load(steps=3000, layers=24, experts=16))
    assert len(heats(fig)) == 24
    assert 600 < fig.layout.height < 1500
    assert len(str(fig.to_json())) < 4e6


def test_forks_and_phases_are_lines_in_every_panel_with_one_label(make_load):
    marks = [Mark(4, "fork", "fork"), Mark(4, "final"), Mark(7, "<b>cool</b>"), Mark(99, "later")]
    fig = expert_load(make_load(layers=3), marks=marks)
    assert [s.x0 for s in fig.layout.shapes] == [4, 4, 4, 7, 7, 7]
    assert {s.line.dash for s in fig.layout.shapes[:3]} == {"dot"}
    texts = [a.text for a in fig.layout.annotations]
    assert texts.count("fork · final") == 1
    assert "&lt;b&gt;cool&lt;/b&gt;" in texts


def test_on_the_tokens_clock_marks_land_between_samples(make_load):
    fig = expert_load(make_load(), marks=[Mark(5, "fork", "fork")], x="tokens")
    assert fig.layout.shapes[0].x0 == 5000
    assert fig.layout.xaxis2.title.text == "training tokens"


def test_a_clock_that_the_data_does_not_carry_is_refused_with_the_remedy(make_load):
    with pytest.raises(UsageError, match=r"x='utc' needs 'utc'.*use x='step'"):
        expert_load(make_load(), x="utc")
    with pytest.raises(UsageError, match=r"clock 'parsec'; the clocks are step, tokens, utc"):
        expert_load(make_load(), x="parsec")


def test_raw_counts_are_refused_with_the_remedy(make_load):
    with pytest.raises(SchemaError, match=r"counts / counts\.sum"):
        expert_load(make_load() * 100)


def test_a_mean_over_training_is_refused(make_load):
    with pytest.raises(SchemaError, match="expected step, layer and expert"):
        expert_load(make_load().mean("step"))


def test_a_layer_that_saw_no_token_is_blank_and_not_dead(make_load):
    load = make_load()
    load[:, 1] = np.nan
    fig = expert_load(load)
    assert np.isnan(np.asarray(heats(fig)[1].z)).all()
    assert len(heats(fig)) == 2
    assert caption_of(fig).table.rows[1] == (1, None, None, None, None, None)


def test_a_collapse_of_one_step_in_thousands_is_told_though_its_bin_hides_it(make_load):
    def collapse(counts):
        counts[1234, 1] = 0
        counts[1234, 1, 3] = 100

    load = make_load(steps=4000, change=collapse)
    said = "The highest load of a single step is 4 times the fair share: expert 3 of layer 1, step"
    for fig in (expert_load(load), load_spread(load)):
        assert any(f"{said} 1,235." in note for note in caption_of(fig).notes)
    # What comes from an overview knows of no single step.
    rows = load.assign_coords(rows=("step", np.full(4000, 5)))
    assert not any("single step" in note for note in caption_of(expert_load(rows)).notes)
    assert not any("single step" in n for n in caption_of(expert_load(make_load())).notes)
