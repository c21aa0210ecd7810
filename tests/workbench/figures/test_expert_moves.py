"""What moved between two checkpoints: the diagonal is out, the rest is told as it is."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr

import probes
from workbench.errors import SchemaError, UsageError
from workbench.figures import caption_of, rerouting
from workbench.testing import activations_record


def moved(layers=2, experts=4, stay=0.9, to=1):
    """Every expert keeps `stay`; in the last layer expert 2 gives the rest to expert `to`, and
    elsewhere the rest goes to all others alike."""
    one = np.full((experts, experts), (1 - stay) / max(experts - 1, 1))
    np.fill_diagonal(one, stay)
    share = np.stack([one] * layers)
    share[-1, 2] = 0
    share[-1, 2, 2], share[-1, 2, to] = 0.5, 0.5
    load = np.full((layers, experts), 1 / experts)
    return xr.Dataset(
        {"moved": (("layer", "expert", "expert2"), share), "load": (("layer", "expert"), load),
         "kept": ("layer", np.einsum("le,lee->l", load, share))},
        coords={"layer": np.arange(layers), "expert": np.arange(experts),
                "expert2": np.arange(experts), "checkpoint": 100, "since": 50},
        attrs={"run": "demo", "n": 2048},
    )  # fmt: skip


def heats(fig):
    return [t for t in fig.data if isinstance(t, go.Heatmap)]


def test_the_diagonal_is_taken_out_and_told_in_the_title():
    fig = rerouting(moved())
    z = np.asarray(heats(fig)[1].z)
    assert np.isnan(np.diag(z)).all()
    assert z[2, 1] == pytest.approx(0.5)
    assert [a.text for a in fig.layout.annotations[:2]] == [
        "layer 0: 90 % stayed", "layer 1: 80 % stayed",
    ]  # fmt: skip


def test_the_words_say_what_stayed_and_who_lost_most_to_whom():
    assert caption_of(rerouting(moved())).sentence == (
        "From step 50 to 100, in the median layer 85 % of the choices stayed, fewest in layer 1, "
        "80 %. Most moved from expert 2 to expert 1 of layer 1: 50 % of what it had."
    )


def test_a_way_of_an_expert_that_had_little_is_not_the_greatest():
    found = moved()
    found["load"][1] = [0.333, 0.333, 0.001, 0.333]
    assert "from expert 2" not in caption_of(rerouting(found)).sentence


def test_where_all_stayed_nothing_moved():
    found = moved(layers=1, stay=1.0)
    found["moved"][0] = np.eye(4)
    found["kept"][:] = 1.0
    assert caption_of(rerouting(found)).sentence.endswith("Nothing moved on these tokens.")


def test_an_expert_that_had_no_token_is_a_blank_row():
    found = moved()
    found["moved"][0, 3] = np.nan
    found["load"][0, 3] = 0
    fig = rerouting(found)
    assert np.isnan(np.asarray(heats(fig)[0].z)[3]).all()
    assert "Blank rows: 1 expert that had no token." in caption_of(fig).notes


def test_a_router_that_freezes_stops_to_reroute():
    found = probes.rerouting(activations_record(checkpoints=6, experts=8, freeze_at=0.5))
    assert "100 % of the choices stayed" in caption_of(rerouting(found)).sentence
    early = caption_of(rerouting(found, at=100)).sentence
    assert early.startswith("From step 0 to 100")
    assert "100 % of the choices" not in early


def test_of_many_large_layers_those_that_moved_most_are_drawn():
    fig = rerouting(moved(layers=24, experts=64))
    assert len(heats(fig)) == 9
    assert "layer 23" in " ".join(a.text for a in fig.layout.annotations)
    assert len(caption_of(fig).table.rows) == 24
    assert fig.layout.height < 1800


def test_what_is_no_rerouting_is_refused():
    with pytest.raises(SchemaError, match=r"expected moved \(expert, expert2, layer\)"):
        rerouting(xr.Dataset({"loss": ("step", [1.0])}))
    with pytest.raises(UsageError, match="no layer 7; there are 0 and 1"):
        rerouting(moved(), layer=7)
    with pytest.raises(UsageError, match="hold no number"):
        rerouting(moved() * np.nan)
    with pytest.raises(SchemaError, match="goes from 4 experts to 3"):
        rerouting(moved().isel(expert2=slice(0, 3)))
