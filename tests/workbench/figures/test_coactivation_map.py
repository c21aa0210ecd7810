"""Pairs of experts against chance: the order, the pale cells, the words."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr

from workbench.errors import SchemaError, UsageError
from workbench.figures import caption_of, coactivation
from workbench.figures.coactivation_map import leaf_order
from workbench.figures.ratio_map import PALE

DIMS = ("layer", "expert", "expert2")


def pairs(experts=6, layers=2, together=((0, 3), (1, 4)), width=1.2, chance=0.8, k=2, **attrs):
    """In the last layer those pairs come together three times by chance, and others as by chance;
    no interval of any layer but the last leaves chance out."""
    lift = np.full((layers, experts, experts), chance)
    for a, b in together:
        lift[-1, a, b] = lift[-1, b, a] = 3 * chance
    lift[:, range(experts), range(experts)] = np.nan
    about = {"run": "demo", "k": k, "n": 4000, **attrs}
    return xr.Dataset(
        {"lift": (DIMS, lift), "lift_low": (DIMS, lift / width),
         "lift_high": (DIMS, lift * width), "chance": (DIMS, np.where(lift > 0, chance, np.nan))},
        coords={"layer": np.arange(layers), "expert": np.arange(experts) * 10,
                "expert2": np.arange(experts) * 10},
        attrs=about,
    )  # fmt: skip


def heats(fig):
    return [t for t in fig.data if isinstance(t, go.Heatmap)]


def test_three_times_by_chance_is_log2_of_three_and_not_of_the_lift():
    firm = heats(coactivation(pairs()))[0]
    assert np.nanmax(firm.z) == pytest.approx(np.log2(3), rel=1e-5)


def test_a_pair_whose_interval_holds_chance_is_pale_and_says_so():
    firm, pale = heats(coactivation(pairs()))
    assert pale.opacity == PALE
    assert "its interval holds 1" in pale.hovertemplate
    assert np.isfinite(firm.z).sum() == 4  # two pairs, on both sides of the diagonal
    assert np.isfinite(pale.z).sum() == 6 * 5 - 4


def test_wide_intervals_leave_no_pair_firm_and_the_words_claim_none():
    fig = coactivation(pairs(width=5.0))
    assert not np.isfinite(heats(fig)[0].z).any()
    said = caption_of(fig).sentence
    assert "0 are chosen together more often than chance and 0 less often" in said
    assert "Most surely" not in said


def test_experts_that_go_together_stand_together():
    fig = coactivation(pairs(), layer=1)
    order = [int(t) for t in fig.layout.xaxis.ticktext]
    assert abs(order.index(0) - order.index(30)) == 1
    assert abs(order.index(10) - order.index(40)) == 1
    assert list(fig.layout.yaxis.ticktext) == list(fig.layout.xaxis.ticktext)


def test_the_order_of_a_shuffled_block_matrix_gives_the_blocks_back():
    rng = np.random.default_rng(0)
    block = np.repeat(np.arange(4), 5)
    shuffled = rng.permutation(block)
    ratio = np.where(shuffled[:, None] == shuffled, 4.0, 0.5) * rng.uniform(0.9, 1.1, (20, 20))
    np.fill_diagonal(ratio, np.nan)
    found = shuffled[leaf_order((ratio + ratio.T) / 2)]
    assert (np.diff(found) != 0).sum() == 3


def test_every_expert_stands_once_whatever_is_unknown():
    ratio = np.full((7, 7), np.nan)
    assert sorted(leaf_order(ratio)) == list(range(7))
    assert leaf_order(ratio[:2, :2]).tolist() == [0, 1]


def test_the_layer_with_most_pairs_apart_is_taken_and_that_is_said():
    caption = caption_of(coactivation(pairs()))
    assert "layer 1" in caption.title
    assert "Of 2 layers this one has most pairs apart from chance." in caption.notes
    assert "layer 0" in caption_of(coactivation(pairs(), layer=0)).title


def test_the_words_count_pairs_and_the_accidents_to_expect():
    assert caption_of(coactivation(pairs())).sentence == (
        "Of the 15 pairs of 6 experts in layer 1, 2 are chosen together more often than chance and "
        "0 less often, by their 95 % intervals; about 0.75 would seem so by accident. Most surely "
        "together: experts 0 and 30, 3 times [2.5, 3.6]."
    )


def test_the_table_begins_with_the_pairs_that_are_surely_apart():
    rows = caption_of(coactivation(pairs())).table.rows
    assert [row[:2] for row in rows[:2]] == [(0, 30), (10, 40)]
    assert rows[0][2:] == pytest.approx((3, 2.5, 3.6))


def test_where_k_is_not_known_independence_stands_for_chance_and_is_named():
    found = pairs(chance=1.0).drop_vars("chance")
    fig = coactivation(found)
    assert "independence" in fig.layout.coloraxis.colorbar.title.text
    assert any("k is not recorded" in note for note in caption_of(fig).notes)


def test_of_samples_or_checkpoints_the_last_is_drawn_or_the_one_asked_for():
    early, late = pairs(), pairs(together=((0, 5),))
    both = xr.concat([early, late], "checkpoint").assign_coords(
        checkpoint=[50, 100], tokens_seen=("checkpoint", [5e4, 1e5])
    )
    assert "experts 0 and 50" in caption_of(coactivation(both)).sentence
    first = caption_of(coactivation(both, at=50)).sentence
    assert "experts 0 and 30" in first
    assert "at step 50 (50k tokens)" in first
    with pytest.raises(UsageError, match="nothing stands at step 70; there are 50 and 100"):
        coactivation(both, at=70)


def test_an_expert_that_nobody_chose_is_blank_and_counted():
    found = pairs()
    found["lift"][:, 2, :] = found["lift"][:, :, 2] = np.nan
    assert "Blank: 1 expert that no token chose." in caption_of(coactivation(found)).notes


def test_one_expert_a_layer_or_one_a_token_has_no_pairs():
    with pytest.raises(UsageError, match="one expert goes together with nobody"):
        coactivation(pairs(experts=1, together=()))
    lone = pairs(k=1)
    lone["lift"] = lone["lift"] * 0
    with pytest.raises(UsageError, match="k = 1 expert"):
        coactivation(lone)


def test_another_dataset_is_refused_by_what_it_holds():
    with pytest.raises(SchemaError, match=r"expected lift \(expert, expert2, layer\)"):
        coactivation(xr.Dataset({"loss": ("step", [1.0])}))
    with pytest.raises(UsageError, match="no layer 9; there are 0 and 1"):
        coactivation(pairs(), layer=9)


def test_sixty_four_experts_are_labelled_and_stay_small():
    rng = np.random.default_rng(0)
    found = pairs(experts=64, layers=24, together=())
    found["lift"] = found["lift"] * np.exp(rng.normal(0, 1, found["lift"].shape))
    fig = coactivation(found)
    assert len(fig.layout.xaxis.ticktext) == 64
    assert fig.layout.height < 800
    assert len(fig.to_json()) < 1.5e6
