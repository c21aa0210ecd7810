"""A quantity of every layer at every checkpoint is a map that says where chance lies."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from workbench.errors import SchemaError
from workbench.figures import Mark, by_layer, caption_of, probe_result
from workbench.figures.probe_heatmap import MOST_MAPS, fits

EVIL = "<script>alert(1)</script><b>%{x}</b>&\"'"
STEPS = np.array([0, 100, 200, 220, 240])


def read(layers=12, labels=("domain",), chance=0.25):
    """Accuracy that leaves chance at step 200, in the upper half of the layers alone."""
    values = np.full((len(STEPS), layers, len(labels)), chance)
    values[2:, layers // 2 :] = 0.75
    dims = ("checkpoint", "layer", "label")
    ds = xr.Dataset(
        {
            "accuracy": (dims, values, {"units": "1", "interval": "95 %, rows"}),
            "accuracy_low": (dims, values - 0.1),
            "accuracy_high": (dims, values + 0.1),
            "chance": ("label", np.full(len(labels), chance)),
        },
        coords={
            "checkpoint": STEPS, "label": list(labels), "layer": np.arange(layers),
            "tokens_seen": ("checkpoint", STEPS * 64), "utc": ("checkpoint", 1.75e9 + STEPS),
        },
        attrs={"run": "demo"},
    )  # fmt: skip
    return ds.isel(label=0) if len(labels) == 1 else ds


def maps(fig):
    return [t for t in fig.data if t.type == "heatmap"]


def dots(fig):
    return [t for t in fig.data if t.type == "scatter"]


def test_a_cell_is_a_layer_at_a_checkpoint_and_a_dot_cannot_be_told_from_chance():
    fig = by_layer(read(), marks=[Mark(200, "fork", "fork")])
    [heat] = maps(fig)
    assert np.shape(heat.z) == (12, 5)
    assert heat.z[11][2] == 0.75
    [cloud] = dots(fig)
    # All layers at two checkpoints, the lower half at three more.
    assert len(cloud.x) == 12 * 2 + 6 * 3
    assert not {(200, 11), (240, 6)} & set(zip(cloud.x, cloud.y, strict=True))
    assert "Dot: the interval includes the chance level." in caption_of(fig).notes


def test_the_sentence_is_of_the_last_checkpoint_and_counts_what_is_clear_of_chance():
    assert caption_of(by_layer(read())).sentence == (
        "At step 240 accuracy is greatest in layer 11, 0.75 [0.65, 0.85], and smallest in layer 0, "
        "0.25 [0.15, 0.35]. Of 12 intervals there 6 lie above chance level and 0 below."
    )


def test_chance_is_a_tick_of_the_colour_bar_and_in_every_hover():
    fig = by_layer(read(chance=0.2))
    bar = fig.layout.coloraxis.colorbar
    assert "chance 0.2" in bar.ticktext
    assert bar.tickvals[list(bar.ticktext).index("chance 0.2")] == 0.2
    assert fig.layout.coloraxis.cmin == 0.2
    told = np.asarray(maps(fig)[0].customdata)
    assert all("chance 0.2" in text and "[" in text for text in told.ravel())
    assert maps(fig)[0].text[3][1] == "layer 3<br>step 100, 6,400 tokens"


def test_labels_with_levels_of_their_own_have_no_tick_but_say_it_where_one_points():
    ds = read(labels=("domain", "token")).assign(chance=("label", [0.25, 0.1]))
    fig = by_layer(ds)
    assert fig.layout.coloraxis.colorbar.ticktext is None
    assert "chance 0.1" in maps(fig)[1].customdata[0][0]


def test_every_label_is_a_map_on_one_scale_and_of_many_those_that_vary_most():
    labels = [f"l{i}" for i in range(11)]
    ds = read(labels=labels)
    ds["accuracy"][{"label": slice(0, 3)}] = 0.25
    fig = by_layer(ds)
    assert len(maps(fig)) == MOST_MAPS
    assert all(m.coloraxis == "coloraxis" for m in maps(fig))
    titles = [a.text for a in fig.layout.annotations if a.name != "origin"]
    assert titles[:2] == ["l3", "l4"]
    assert any("3 maps (l0, l1 and l2)" in note for note in caption_of(fig).notes)
    assert len(caption_of(fig).table.rows) == 11 * 12


def test_a_quantity_between_layers_is_each_layer_with_itself_at_the_other_checkpoint():
    values = np.random.default_rng(0).uniform(0, 1, (5, 9, 9))
    ds = xr.Dataset(
        {"cka": (("checkpoint", "layer", "other_layer"), values)}, coords={"checkpoint": STEPS}
    )
    assert fits(ds, "cka")
    np.testing.assert_allclose(np.asarray(maps(by_layer(ds))[0].z), np.einsum("cll->lc", values))


def test_where_a_layer_with_itself_is_one_by_definition_the_next_layer_is_shown():
    values = np.random.default_rng(0).uniform(0, 1, (5, 9, 9))
    values[:, np.arange(9), np.arange(9)] = 1
    ds = xr.Dataset(
        {"cka": (("checkpoint", "layer", "other_layer"), values)}, coords={"checkpoint": STEPS}
    )
    fig = by_layer(ds)
    assert np.shape(maps(fig)[0].z) == (8, 5)
    assert maps(fig)[0].z[2][4] == values[4, 2, 3]
    assert any("the layer after it" in note for note in caption_of(fig).notes)


@pytest.mark.parametrize("x", ["step", "tokens", "utc"])
@pytest.mark.parametrize("layers", [2, 24, 40])
def test_it_stands_on_any_clock_with_any_depth(x, layers):
    fig = by_layer(read(layers=layers), x=x)
    assert len(maps(fig)[0].x) == 5
    assert 150 < fig.layout.height < 800
    places = fig.layout.yaxis.tickvals
    assert len(places) * 13 <= max(84, 20 * layers)


def test_any_probe_of_many_layers_is_shown_so_and_one_of_few_with_bands():
    assert maps(probe_result(read(layers=12)))
    assert not maps(probe_result(read(layers=3)))


def test_hostile_names_are_text():
    ds = read(labels=(EVIL, "x" * 10_000)).rename(accuracy=EVIL)
    fig = by_layer(ds, name=EVIL)
    texts = [a.text for a in fig.layout.annotations] + [fig.layout.title.text]
    texts += [t for m in maps(fig) for t in np.asarray(m.text).ravel()]
    texts += [t for m in maps(fig) for t in np.asarray(m.customdata).ravel()]
    assert all("<script" not in t and "<b>" not in t and "%{" not in t for t in texts)
    assert max(map(len, texts)) < 1000


def test_blank_cells_and_a_result_without_any_value():
    ds = read()
    ds["accuracy"][{"layer": 3}] = np.nan
    assert "everywhere" not in caption_of(by_layer(ds)).sentence
    ds["accuracy"][:] = np.nan
    assert caption_of(by_layer(ds)).sentence == "Accuracy has no value that could be drawn."


def test_what_has_no_layers_is_refused_with_the_remedy():
    with pytest.raises(SchemaError, match=r"along \(checkpoint, layer\).*probe_result"):
        by_layer(read().mean("layer"))
    with pytest.raises(SchemaError, match="no variable 'acc'"):
        by_layer(read(), "acc")
    with pytest.raises(SchemaError, match="an empty dataset"):
        by_layer(xr.Dataset())
