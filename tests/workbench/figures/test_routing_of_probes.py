"""The figures of routing draw what the probes return: planted routing is seen, chance is not."""

from __future__ import annotations

import re

import numpy as np
import pytest
import xarray as xr

import probes
from workbench.figures import (
    caption_of,
    churn,
    coactivation,
    domains,
    flow,
    load_spread,
    sankey,
    vocabulary,
)
from workbench.testing import (
    TASKS,
    DeadExpert,
    Patterns,
    activations_record,
    router_record,
)

# Eight experts in four fixed pairs; half of the tokens keep their pair in the next layer.
SETS = [[0, 5], [1, 4], [2, 7], [3, 6]]


@pytest.fixture(scope="module")
def paired():
    return Patterns(sets=SETS, mix=[[0.25] * 4] * 2, experts=8, stay=0.5).record(
        rows=12, layers=3, checkpoints=2
    )


@pytest.fixture(scope="module")
def chance():
    """Routing of tokens that follows from nothing."""
    return activations_record(checkpoints=2, tokens=2048, layers=3, experts=8, k=2, freeze_at=None)


def test_planted_pairs_stand_side_by_side_and_are_the_only_ones_firmly_together(paired):
    fig = coactivation(probes.coactivation_fixed(paired), layer=1)
    order = [int(t) for t in fig.layout.xaxis.ticktext]
    assert all(abs(order.index(a) - order.index(b)) == 1 for a, b in SETS)
    said = caption_of(fig).sentence
    assert "28 pairs of 8 experts" in said
    assert "4 are chosen together more often than chance" in said


def test_random_routing_has_about_as_many_firm_pairs_as_accidents(chance):
    table = caption_of(coactivation(probes.coactivation_fixed(chance), layer=0)).table
    firm = sum(low > 1 or high < 1 for *_, low, high in table.rows)
    assert firm <= 5


def test_the_stream_has_pairs_and_domains_too():
    record = router_record(steps=40, experts=8, k=2, specialised={TASKS[0]: 3})
    assert (
        "over 4 samples up to step 40"
        in caption_of(coactivation(probes.coactivation(record))).sentence
    )
    said = caption_of(domains(probes.domains(record, deals=0))).sentence
    assert f"The strongest is {TASKS[0]} in expert 3" in said
    assert "over the 2 steps up to step 40" in said


def test_fixed_tokens_give_the_specialist_with_an_interval():
    sets, mix = [[0], [1]], [[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]]
    record = Patterns(sets=sets, mix=mix, experts=2, names=["code/a", "prose", "logic/b"]).record()
    caption = caption_of(domains(probes.domains_fixed(record, deals=0)))
    # 0.9 of code/a in expert 0, which takes half of all.
    assert "code/a in expert 0" in caption.sentence or "prose in expert 1" in caption.sentence
    assert re.search(r"takes 1\.[789] times its share of all text \[", caption.sentence)


def test_layers_that_keep_their_pairs_are_linked_and_random_ones_are_not(paired, chance):
    linked = caption_of(flow(probes.flow(paired, deals=0)))
    assert "in 2 of 2 pairs of layers a token's expert says something" in linked.sentence
    assert "it is not shown" not in caption_of(sankey(probes.flow(paired, deals=0))).sentence
    alone = caption_of(flow(probes.flow(chance, deals=19)))
    assert alone.sentence.count("is it shown") + alone.sentence.count("in 1 of 2") == 1


def test_the_flow_finds_the_pairs_again_in_the_next_layer(paired):
    loads = probes.domains_fixed(paired, deals=0)["load"].isel(checkpoint=-1)
    fig = flow(probes.flow(paired, deals=0), layer=0, load=loads)
    opposite = [int(t) for t in fig.layout.xaxis.ticktext]
    partner = {a: {a, b} for pair in SETS for a, b in (pair, pair[::-1])}
    assert all(there in partner[here] for here, there in enumerate(opposite))


def test_an_id_that_decides_is_seen_and_random_routing_is_not_talked_up(chance):
    sets, mix = [[0], [1], [2]], [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]
    record = Patterns(sets=sets, mix=mix, experts=3, by_id=True).record()
    found = probes.vocabulary(record)
    said = caption_of(vocabulary(found, layer=0, expert=1, tokens=["a", "b", "c"])).sentence
    assert "First “b” (100 % of it)" in said
    known = chance.assign_coords(token_id=("token", np.arange(2048) % 40))
    random = caption_of(vocabulary(probes.vocabulary(known), layer=0)).sentence
    assert "It is not shown that a token's id says anything" in random


def test_routing_that_freezes_stops_to_churn():
    found = probes.churn(activations_record(checkpoints=6, freeze_at=0.5), n_boot=50)
    said = caption_of(churn(found)).sentence
    assert "rerouted 0 % of its choices" in said
    assert "(at first: 1)" in said or "(at first: 0.9" in said


def test_an_expert_that_dies_is_seen_in_the_spread_of_its_layer():
    record = router_record(steps=40, dead=[DeadExpert(expert=3, step=20, layer=1)])
    caption = caption_of(load_spread(probes.expert_load(record)))
    assert "1 expert of 16 got no token" in caption.sentence
    assert [row[-1] for row in caption.table.rows] == [0, 1]


def test_where_the_run_was_stands_in_every_figure(paired):
    found = probes.coactivation_fixed(paired).assign_attrs(run="planted", branch="main")
    assert caption_of(coactivation(found)).origin == "run planted · branch main"
    assert isinstance(found, xr.Dataset)
