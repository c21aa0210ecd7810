"""The entropy of the router over tokens: shares of each step, the median, what a mean hides."""

from __future__ import annotations

import json

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr

from workbench.errors import SchemaError, UsageError
from workbench.figures import Mark, caption_of, entropy_spread, to_html
from workbench.testing import router_record

EVIL = "<script>alert(1)</script><b>%{x}</b>&\"'"


def recorded(places, samples=10, layers=1, bins=4, **attrs):
    """At every sample the given tokens in each bin, in all layers."""
    counts = np.broadcast_to(np.asarray(places), (samples, layers, bins)).copy()
    step = np.arange(1, samples * 5 + 1)
    return xr.Dataset(
        {"entropy_histogram": (("sample", "layer", "bin"), counts)},
        coords={"sample": step[4::5], "layer": np.arange(layers), "step": step,
                "tokens_seen": ("step", step * 100)},
        attrs={"run": "demo", **attrs},
    )  # fmt: skip


def heats(fig):
    return [t for t in fig.data if isinstance(t, go.Heatmap)]


def medians(fig):
    return [t for t in fig.data if isinstance(t, go.Scatter)]


def test_the_colour_is_the_share_of_the_steps_tokens():
    heat = heats(entropy_spread(recorded([10, 20, 60, 10])))[0]
    assert np.asarray(heat.z)[:, 0] == pytest.approx([0.1, 0.2, 0.6, 0.1])
    assert list(heat.y) == [0.125, 0.375, 0.625, 0.875]


def test_the_median_token_is_read_from_the_bins():
    # 30 of 100 lie under the third bin, so the 50th is a third of the way through its 60.
    line = medians(entropy_spread(recorded([10, 20, 60, 10])))[0]
    assert line.y[0] == pytest.approx((2 + 20 / 60) / 4)


def test_half_sure_of_all_and_sure_of_half_have_one_mean_and_two_pictures():
    half, split = recorded([0, 50, 50, 0]), recorded([50, 0, 0, 50])
    assert not np.allclose(
        heats(entropy_spread(half))[0].z, heats(entropy_spread(split))[0].z
    )  # fmt: skip
    rows = [caption_of(entropy_spread(r)).table.rows[0] for r in (half, split)]
    assert [row[3] for row in rows] == [0.5, 0.5]


def test_the_words_say_where_it_ends_where_it_began_and_which_layer_is_surest():
    found = recorded([0, 0, 0, 100], layers=2)
    found["entropy_histogram"][5:, 1] = [100, 0, 0, 0]
    assert caption_of(entropy_spread(found)).sentence == (
        "In the median layer the median token leaves the router an entropy of 0.5 of the most "
        "possible over the last tenth of the samples (over the first: 0.88); surest is layer 1, "
        "0.12, least sure layer 0, 0.88."
    )


def test_layers_that_are_equally_sure_are_not_ranked():
    assert "surest" not in caption_of(entropy_spread(recorded([0, 1, 2, 3], layers=3))).sentence


def test_a_sample_without_tokens_is_blank():
    found = recorded([0, 50, 50, 0])
    found["entropy_histogram"][3] = 0
    fig = entropy_spread(found)
    assert np.isnan(np.asarray(heats(fig)[0].z)[:, 3]).all()
    assert np.isnan(medians(fig)[0].y[3])


def test_no_token_at_all_is_said():
    assert caption_of(entropy_spread(recorded([0, 0, 0, 0]))).sentence == "No token was routed."


def test_a_planted_record_is_drawn_on_any_clock_it_carries():
    record = router_record(steps=40)
    fig = entropy_spread(record, x="tokens")
    assert list(heats(fig)[0].x) == [512 * n for n in (10, 20, 30, 40)]
    with pytest.raises(UsageError, match="x='utc' needs 'utc'"):
        entropy_spread(record, x="utc")


def test_many_samples_of_many_layers_are_averaged_and_that_is_said():
    fig = entropy_spread(recorded(np.ones(32), samples=2000, layers=40, bins=32))
    assert len(heats(fig)) == 40
    assert any("samples are drawn as" in note for note in caption_of(fig).notes)
    assert len(fig.to_json()) < 3e6
    assert fig.layout.height < 2200


def test_hostile_names_are_text_and_forks_are_marked():
    fig = entropy_spread(recorded([1, 2, 3, 4], branch=EVIL), marks=[Mark(20, EVIL, "fork")])
    told = json.dumps([a.text for a in fig.layout.annotations] + [fig.layout.title.text])
    assert "&lt;script" in told
    assert "<script" not in told
    assert "<script>alert" not in to_html(fig)
    assert [s.x0 for s in fig.layout.shapes] == [20]


def test_a_record_without_histograms_is_refused():
    with pytest.raises(SchemaError, match=r"expected entropy_histogram \(sample, layer, bin\)"):
        entropy_spread(router_record(steps=5).drop_vars("entropy_histogram", errors="ignore"))
    with pytest.raises(UsageError, match="holds no sample"):
        entropy_spread(recorded([1, 1, 1, 1]).isel(sample=slice(0, 0)))
