"""Domains and experts: share over load, intervals, families, very many domains, hostile names."""

from __future__ import annotations

import json

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr

from workbench.errors import SchemaError, UsageError
from workbench.figures import caption_of, domains, to_html
from workbench.figures.ratio_map import PALE

EVIL = "<script>alert(1)</script><b>%{x}</b>&\"'"
NAMES = ["code/add", "prose", "knowledge/capitals"]


def taken(names=NAMES, layers=2, experts=4, fixed=False, informed=True, width=0.05):
    """Every expert takes a quarter of every domain; in the last layer expert 3 takes 0.75 of the
    first domain and 0.125 of the others (three domains of one size: 1/3 of all)."""
    share = np.full((layers, len(names), experts), 0.25)
    share[-1, :, 3] = 0.125
    share[-1, 0, 3] = 0.75
    dims = ("layer", "domain", "expert")
    found = xr.Dataset(
        {"share": (dims, share), "load": (("layer", "expert"), share.mean(axis=1))},
        coords={"layer": np.arange(layers), "domain": list(names), "expert": np.arange(experts)},
        attrs={"run": "demo", "n": 1000},
    )
    if fixed:
        found["share_low"] = (dims, np.maximum(share - width, 0))
        found["share_high"] = (dims, np.minimum(share + width, 1))
    if informed:
        bits = np.zeros(layers)
        bits[-1] = 0.3
        for name, by in (("information", 0), ("information_low", -0.1), ("information_high", 0.1)):
            found[name] = ("layer", bits + by)
    return found


def heats(fig):
    return [t for t in fig.data if isinstance(t, go.Heatmap)]


def test_the_colour_is_the_share_of_the_domain_over_the_load_of_the_expert():
    fig = domains(taken())
    load = (0.75 + 2 * 0.125) / 3
    rows = list(fig.layout.yaxis.ticktext)
    z = np.asarray(heats(fig)[1].z)
    assert z[rows.index("code/add"), 3] == pytest.approx(np.log2(0.75 / load), rel=1e-5)
    assert z[rows.index("prose"), 3] == pytest.approx(np.log2(0.125 / load), rel=1e-5)
    assert np.allclose(z[:, :3], 0)


def test_families_stand_together_in_the_order_of_every_figure():
    rows = list(domains(taken(["code/a", "prose", "logic/x", "code/b"])).layout.yaxis.ticktext)
    assert rows == ["logic/x", "code/a", "code/b", "prose"]


def test_shares_of_the_stream_are_exact_and_drawn_firm():
    fig = domains(taken())
    assert all(heat.opacity is None for heat in heats(fig))
    assert "no interval: exact counts" in caption_of(fig).sentence


def test_on_fixed_tokens_a_cell_whose_interval_holds_the_load_is_pale():
    fig = domains(taken(fixed=True))
    pale = [heat for heat in heats(fig) if heat.opacity == PALE]
    assert sum(int(np.isfinite(heat.z).sum()) for heat in pale) == 12 + 9
    assert "2.2 times its share of all text [2.1, 2.4]" in caption_of(fig).sentence


def test_what_no_interval_bears_out_is_not_claimed():
    said = caption_of(domains(taken(fixed=True, width=0.9))).sentence
    assert "No expert surely takes more of a domain than of all text." in said


def test_the_words_say_in_how_many_layers_the_domain_tells_the_expert():
    assert caption_of(domains(taken())).sentence == (
        "3 domains, 2 layers of 4 experts. In 1 of 2 layers a token's domain tells something of "
        "its expert, most in layer 1: 0.3 bits [0.2, 0.4]. The strongest is code/add in expert 3 "
        "of layer 1, which takes 2.2 times its share of all text (no interval: exact counts)."
    )


def test_where_every_interval_holds_zero_the_words_say_so():
    said = caption_of(domains(taken(), layer=0)).sentence
    assert "In no layer does a token's domain tell its expert" in said


def test_a_dead_expert_is_blank_and_counted():
    found = taken()
    found["share"][..., 2] = 0
    found["load"][:, 2] = 0
    fig = domains(found)
    assert np.isnan(np.asarray(heats(fig)[0].z)[:, 2]).all()
    assert "Blank: 2 experts without a token." in caption_of(fig).notes


def test_a_domain_that_did_not_come_is_named():
    found = taken()
    found["share"][:, 1] = np.nan
    caption = caption_of(domains(found))
    assert "No token here of prose." in caption.notes
    assert caption.table.rows[2] == (0, "prose", None, None, None, None, None)


def test_one_layer_alone_and_one_moment_of_many():
    early, late = taken(), taken(["logic/a", "logic/b", "logic/c"])
    late = late.assign_coords(domain=NAMES)
    both = xr.concat([early, late], "step").assign_coords(step=[50, 100])
    both.attrs["window_steps"] = 50
    fig = domains(both, layer=1, at=50)
    assert [a.text for a in fig.layout.annotations if a.text.startswith("layer")] == ["layer 1"]
    assert "over the 50 steps up to step 50" in caption_of(fig).sentence


def test_hostile_domain_names_are_text_and_do_not_meet():
    names = [EVIL, "x" * 10_000, "x" * 9_999 + "y"]
    fig = domains(taken(names))
    assert len(fig.layout.yaxis.ticktext) == 3
    assert "<script" not in json.dumps(list(fig.layout.yaxis.ticktext))
    assert max(map(len, fig.layout.yaxis.ticktext)) < 200
    assert all("<b>" not in t for heat in heats(fig) for row in heat.text for t in row)
    assert "<script>alert" not in to_html(fig)


def test_of_hundreds_of_domains_the_furthest_from_the_load_are_drawn_and_that_is_said():
    names = [f"domain {i}" for i in range(300)]
    found = taken(names, layers=24, experts=64)
    found["share"][:, 7, 0] = 1.0
    fig = domains(found)
    caption = caption_of(fig)
    assert any("of 300 domains that lie furthest" in note for note in caption.notes)
    assert "domain 7" in fig.layout.yaxis.ticktext
    assert len(caption.table.rows) == 24 * 300
    assert fig.layout.height < 4000
    assert len(fig.to_json()) < 6e6


@pytest.mark.parametrize(("layers", "experts"), [(1, 1), (1, 64), (40, 8), (24, 64)])
def test_from_one_expert_to_many_every_layer_has_its_panel(layers, experts):
    found = taken(layers=layers, experts=max(4, experts)).isel(expert=slice(0, experts))
    fig = domains(found)
    assert len(heats(fig)) == layers
    assert fig.layout.height < 4000


def test_another_dataset_is_refused_by_what_it_holds():
    with pytest.raises(SchemaError, match=r"expected share \(domain, expert, layer\)"):
        domains(xr.Dataset({"loss": ("step", [1.0])}))
    with pytest.raises(SchemaError, match=r"expected load \(expert, layer\)"):
        domains(taken().drop_vars("load"))
    with pytest.raises(SchemaError, match="a share of a domain's tokens is 1 at most"):
        domains(taken() * 100)
    with pytest.raises(UsageError, match="hold no number"):
        domains(taken() * np.nan)


@pytest.mark.parametrize("names", [["prose"], ["code/add", "prose"], NAMES * 1])
def test_the_colour_bar_beside_a_low_panel_has_room_for_its_ticks(names):
    bar = domains(taken(names, layers=1)).layout.coloraxis.colorbar
    title_px = 50
    assert (bar.len - title_px) / max(1, len(bar.tickvals) - 1) >= 14
    assert bar.tickvals[0] == -bar.tickvals[-1]
