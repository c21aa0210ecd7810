"""Churn from checkpoint to checkpoint: against chance, arm by arm, in words that can be checked."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

from workbench.errors import SchemaError, UsageError
from workbench.figures import Mark, caption_of, churn, to_html

EVIL = "<script>alert(1)</script><b>%{x}</b>&\"'"


def churned(kappas, chance=0.25, steps=None, width=0.05):
    """kappa (checkpoint, layer) as given, and what follows from it at that chance."""
    kappa = np.asarray(kappas, dtype=float)
    steps = np.arange(1, len(kappa) + 1) * 50 if steps is None else np.asarray(steps)
    dims = ("checkpoint", "layer")
    overlap = chance + kappa * (1 - chance)
    return xr.Dataset(
        {"kappa": (dims, kappa), "kappa_low": (dims, kappa - width),
         "kappa_high": (dims, np.minimum(kappa + width, 1)), "churn": (dims, 1 - overlap)},
        coords={"checkpoint": steps, "since": ("checkpoint", np.r_[0, steps[:-1]]),
                "layer": np.arange(kappa.shape[1]), "tokens_seen": ("checkpoint", steps * 1000)},
        attrs={"run": "demo", "n": 2048},
    )  # fmt: skip


def lines(fig):
    return [t for t in fig.data if t.type == "scatter" and t.fill is None]


def bands(fig):
    return [t for t in fig.data if t.fill == "toself"]


def test_what_is_drawn_is_what_moved_over_what_chance_would_move():
    fig = churn(churned([[0.2, 0.5], [0.9, 0.6]]))
    assert list(lines(fig)[0].y) == pytest.approx([0.8, 0.1])
    assert max(bands(fig)[0].y) == pytest.approx(0.85)
    assert min(bands(fig)[0].y) == pytest.approx(0.05)


def test_the_pointer_is_told_the_plain_share_and_since_when():
    where = lines(churn(churned([[0.2], [0.9]])))[0].text[1]
    assert "step 100" in where
    assert "100k tokens" in where
    assert "since step 50" in where
    assert "7.5 % of choices moved" in where


def test_the_words_say_how_much_moved_at_last_and_at_first_and_where_most():
    assert caption_of(churn(churned([[0.2, 0.4], [0.9, 0.6]]))).sentence == (
        "Up to the last checkpoint, step 100, the median layer rerouted 19 % of its choices, 0.25 "
        "times what chance would move (at first: 0.7). Most moved in layer 1, 0.4 [0.35, 0.45]."
    )


def test_a_router_that_is_frozen_moves_nothing_and_no_layer_most():
    said = caption_of(churn(churned([[0.2, 0.4], [1.0, 1.0]]))).sentence
    assert "rerouted 0 % of its choices" in said
    assert "Most moved" not in said


def test_arms_share_their_history_and_keep_their_colours():
    shared = [[0.2, 0.3], [0.5, 0.6]]
    arms = {"continue": churned([*shared, [0.9, 0.8]]), "code": churned([*shared, [0.7, 0.6]])}
    fig = churn(arms, marks=[Mark(100, "fork", "fork")])
    assert {line.name for line in lines(fig)} == {"shared history", "continue", "code"}
    assert {line.line.color for line in lines(fig) if line.name == "code"} == {"#009E73"}
    said = caption_of(fig).sentence
    assert "0.15 times what chance would move, under continue" in said
    assert "(at first: 0.75)" in said
    assert len([r for r in caption_of(fig).table.rows if r[0] == "code"]) == 6


def test_checkpoints_that_lie_unequally_far_apart_are_pointed_out():
    uneven = churned([[0.2], [0.5], [0.6]], steps=[50, 100, 900])
    assert any("unequally far apart" in note for note in caption_of(churn(uneven)).notes)
    even = churned([[0.2], [0.5], [0.6]])
    assert not any("unequally" in note for note in caption_of(churn(even)).notes)


def test_a_layer_of_which_nothing_is_known_is_left_open():
    fig = churn(churned([[0.2, np.nan], [0.9, np.nan]]))
    assert np.isnan(np.asarray(lines(fig)[1].y, dtype=float)).all()
    assert "0.1 times" in caption_of(fig).sentence


def test_one_step_back_is_a_point():
    fig = churn(churned([[0.2, 0.4]]))
    assert [len(line.x) for line in lines(fig)] == [1, 1]
    assert "at first" not in caption_of(fig).sentence


def test_hostile_arms_are_text():
    fig = churn({EVIL: churned([[0.1]]), "x" * 10_000: churned([[0.3]])})
    told = json.dumps([t.name for t in fig.data if t.name] + [t.hovertemplate for t in lines(fig)])
    assert "<script" not in told
    assert "&lt;script" in told
    assert "x" * 200 not in told
    assert "<script>alert" not in to_html(fig)


def test_forty_layers_are_forty_panels_of_readable_size():
    fig = churn(churned(np.linspace(0, 1, 400).reshape(10, 40)))
    assert len(lines(fig)) == 40
    assert fig.layout.height < 2500


def test_tokens_are_another_clock():
    assert list(lines(churn(churned([[0.2], [0.3]]), x="tokens"))[0].x) == [50_000, 100_000]


def test_what_is_no_churn_is_refused():
    with pytest.raises(SchemaError, match=r"expected kappa \(checkpoint, layer\)"):
        churn(xr.Dataset({"loss": ("step", [1.0])}))
    with pytest.raises(UsageError, match="needs two checkpoints"):
        churn(churned([[0.2]]).isel(checkpoint=slice(0, 0)))
    with pytest.raises(SchemaError, match="draw arms of one model"):
        churn({"a": churned([[0.2]]), "b": churned([[0.2, 0.3]])})
