"""From layer to layer: ways over chance, an order that means something, a Sankey that adds up."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr

from workbench.errors import SchemaError, UsageError
from workbench.figures import caption_of, flow, sankey
from workbench.figures.flow_pairs import steps_of
from workbench.figures.ratio_map import PALE

CYCLE = np.roll(np.arange(4), 1)
"""Expert i of a layer is followed by expert CYCLE[i] of the next: 3, 0, 1, 2."""


def flowing(pairs=2, experts=4, stay=0.7, low=0.2, p=0.01, bounds=True):
    """Half or more of each expert's tokens go on together, to another number; the rest anywhere."""
    follows = np.roll(np.arange(experts), 1)
    one = np.full((experts, experts), (1 - stay) / experts)
    one[np.arange(experts), follows] += stay
    transition = np.stack([one] * pairs)
    found = np.linspace(low + 0.1, low + 0.2, pairs)
    nan = np.full(pairs, np.nan)
    return xr.Dataset(
        {"transition": (("layer", "expert", "expert2"), transition),
         "information": ("layer", found if bounds else nan),
         "information_low": ("layer", found - 0.1 if bounds else nan),
         "information_high": ("layer", found + 0.1 if bounds else nan),
         "p": ("layer", np.full(pairs, p)), "attainable": ("layer", np.full(pairs, 2.0))},
        coords={"layer": np.arange(pairs), "next_layer": ("layer", np.arange(1, pairs + 1)),
                "expert": np.arange(experts), "expert2": np.arange(experts)},
        attrs={"run": "demo", "n": 1024},
    )  # fmt: skip


def heats(fig):
    return [t for t in fig.data if isinstance(t, go.Heatmap)]


def test_those_who_follow_each_other_stand_on_the_diagonal_whatever_their_numbers():
    fig = flow(flowing())
    z = np.asarray(heats(fig)[0].z)
    assert np.diag(z) == pytest.approx(np.full(4, np.log2((0.7 + 0.075) / 0.25)), rel=1e-5)
    assert (z[~np.eye(4, dtype=bool)] < 0).all()
    assert [int(t) for t in fig.layout.xaxis.ticktext] == CYCLE.tolist()
    assert any("numbered in each layer by itself" in note for note in caption_of(fig).notes)


def test_chance_is_the_load_of_the_upper_expert_where_loads_are_given():
    found = flowing(pairs=1)
    load = xr.DataArray([[0.7, 0.1, 0.1, 0.1]], dims=("layer", "expert"))
    (step,), _ = steps_of(found, load=load)
    transition = found["transition"].values[0]
    assert step.next_load == pytest.approx(np.array([0.7, 0.1, 0.1, 0.1]) @ transition)
    assert step.flow.sum() == pytest.approx(1)
    assert "Chance: the upper expert's load." in caption_of(flow(found, load=load)).notes
    assert any("loads are not known" in note for note in caption_of(flow(found)).notes)


def test_a_load_inside_the_result_is_taken_by_itself():
    found = flowing(pairs=1).assign(load=(("layer", "expert"), [[0.4, 0.2, 0.2, 0.2]]))
    (step,), _ = steps_of(found)
    assert step.loads_known
    assert step.weight.tolist() == pytest.approx([0.4, 0.2, 0.2, 0.2])


def test_the_words_name_the_layers_that_are_linked_and_the_strongest_way():
    found = flowing()
    found["transition"][1, 0] = [0.0, 0.0, 0.0, 1.0]
    assert caption_of(flow(found)).sentence == (
        "In 2 of 2 pairs of layers a token's expert says something of its next: most from layer 1 "
        "to 2, 0.4 bits [0.3, 0.5] of 2 attainable. Most beyond chance go from expert 0 of layer 1 "
        "to expert 3 of layer 2: 3.3 times chance."
    )


def test_a_link_that_is_not_shown_is_pale_and_no_way_of_it_is_named():
    fig = flow(flowing(low=-0.15))
    assert all(heat.opacity == PALE for heat in heats(fig) if np.isfinite(heat.z).any())
    said = caption_of(fig).sentence
    assert said.startswith("In none of 2 pairs of layers is it shown")
    assert "Most beyond chance" not in said


@pytest.mark.parametrize(("p", "linked"), [(0.01, True), (0.4, False)])
def test_where_the_table_is_too_thin_for_an_interval_the_null_decides(p, linked):
    (step,), _ = steps_of(flowing(pairs=1, bounds=False, p=p))
    assert step.linked is linked
    assert f"p = {p}" in step.said


def test_an_expert_without_tokens_is_a_blank_row():
    found = flowing()
    found["transition"][0, 2] = np.nan
    z = np.asarray(heats(flow(found))[0].z)
    assert np.isnan(z[2]).all()
    assert np.isfinite(z[[0, 1, 3]]).all()


def test_one_pair_of_layers_and_one_checkpoint_of_many():
    both = xr.concat([flowing(low=0.2), flowing(low=0.5)], "checkpoint")
    both = both.assign_coords(checkpoint=[50, 100])
    fig = flow(both, layer=1, at=50)
    assert [a.text for a in fig.layout.annotations if "→" in a.text] == ["layer 1 → 2"]
    assert caption_of(fig).sentence.startswith("At step 50, in 1 of 1 pair of layers")
    assert "0.7 bits" in caption_of(flow(both, layer=1)).sentence
    with pytest.raises(UsageError, match="no flow starts at layer 2; there are 0 and 1"):
        flow(both, layer=2)


def test_of_many_large_layers_those_that_say_most_are_drawn_and_all_are_in_the_table():
    found = flowing(pairs=23, experts=64)
    fig = flow(found)
    assert len(heats(fig)) == 9
    assert any("9 of 23 pairs of layers" in note for note in caption_of(fig).notes)
    assert len(caption_of(fig).table.rows) == 23
    assert fig.layout.height < 1800
    assert len(fig.to_json()) < 4e6


def test_one_expert_a_layer_goes_to_one():
    found = flowing(pairs=1, experts=1, stay=1.0, bounds=False, p=float("nan"))
    assert "1 times chance" in caption_of(flow(found)).sentence
    assert "No way carries" in caption_of(sankey(found)).sentence


def test_every_choice_passes_through_the_sankey_once():
    found = flowing(pairs=1)
    load = xr.DataArray([0.4, 0.3, 0.2, 0.1], dims="expert")
    fig = sankey(found, load=load)
    link = fig.data[0].link
    into, out = np.zeros(9), np.zeros(9)
    for a, b, value in zip(link.source, link.target, link.value, strict=True):
        out[a] += value
        into[b] += value
    assert out[:4] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    (step,), _ = steps_of(found, load=load)
    assert into[4:8] == pytest.approx(step.next_load)
    assert into[8] == pytest.approx(out[8])


def test_the_sankey_says_what_its_ways_hold_and_what_chance_would_give():
    said = caption_of(sankey(flowing(pairs=1, stay=0.8))).sentence
    assert said == (
        "From layer 0 to 1 a token's expert says something of its next, 0.3 bits [0.2, 0.4]. "
        "Orange are 4 ways of 1.25 times chance or more, which hold 85 % of the choices, by chance "
        "25 %."
    )
    assert (
        "it is not shown that an expert says anything"
        in caption_of(sankey(flowing(pairs=1, low=-0.15))).sentence
    )


def test_the_sankey_takes_the_pair_of_layers_that_says_most_and_limits_its_ways():
    fig = sankey(flowing(pairs=3, experts=64), ways=10)
    assert "layer 2 to layer 3" in caption_of(fig).title
    assert len(caption_of(fig).table.rows) == 10
    assert fig.layout.height < 1400
    assert "layer 0 to layer 1" in caption_of(sankey(flowing(pairs=3), layer=0)).title


def test_routing_by_chance_has_no_way_of_its_own():
    assert "No way carries 1.25 times chance." in caption_of(sankey(flowing(stay=0.0))).sentence


def test_what_is_no_flow_is_refused():
    with pytest.raises(SchemaError, match=r"expected transition \(expert, expert2, layer\)"):
        flow(xr.Dataset({"loss": ("step", [1.0])}))
    with pytest.raises(UsageError, match="hold no number"):
        flow(flowing() * np.nan)
    with pytest.raises(SchemaError, match="expected \\(layer, expert\\) of 4 experts"):
        flow(flowing(), load=xr.DataArray([1.0, 2.0], dims="expert"))
    with pytest.raises(SchemaError, match="load has no layer 1"):
        flow(flowing(), load=xr.DataArray([[1.0] * 4], dims=("layer", "expert")))
