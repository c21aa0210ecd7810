"""Committee: an expert in every token's set is a member, a domain's specialist is none."""

import numpy as np
import pytest

from probes.committee import committee
from workbench.errors import UsageError
from workbench.planted.patterns import Patterns

HELD = Patterns(
    sets=[[0, 1], [0, 2], [0, 3], [0, 4]],
    mix=[[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1]],
    experts=5,
)


def test_the_expert_that_everyone_takes_is_the_committee():
    row = committee(HELD.record(rows=6, like=10)).isel(checkpoint=0, layer=0)
    assert row["member"].values.tolist() == [1, 0, 0, 0, 0]
    assert row["confidence"].values.tolist() == [1, 0, 0, 0, 0]
    assert row["coverage"].values.tolist()[0] == 1
    # First of two: its weight is 1.2 of 2.2 for every token.
    assert float(row["mass"]) == pytest.approx(1.2 / 2.2, rel=1e-5)
    assert float(row["size"]) == 1


def test_gates_agree_with_a_plain_loop():
    record = HELD.record(rows=2, row_tokens=10)
    found = committee(record).isel(checkpoint=0, layer=0)
    sums, tokens = {}, {}
    for i, name in enumerate(record["domain"].values.tolist()):
        p, chosen = record["router_probs"].values[0, i, 0], record["expert_ids"].values[0, i, 0]
        tokens[name] = tokens.get(name, 0) + 1
        for expert in chosen:
            share = p[expert] / p[chosen].sum()
            sums[name, expert] = sums.get((name, expert), 0) + share
    for name in tokens:
        for expert in range(5):
            got = float(found["gate"].sel(domain=name, expert=expert))
            assert got == pytest.approx(sums.get((name, expert), 0) / tokens[name], abs=1e-6)
    np.testing.assert_allclose(found["gate"].sum("expert"), 1, rtol=1e-5)


def test_specialists_of_one_domain_each_are_no_committee():
    special = Patterns(sets=[[0], [1], [2]], mix=np.eye(3).tolist(), experts=3)
    row = committee(special.record(rows=4)).isel(checkpoint=0, layer=0)
    assert float(row["size"]) == 0
    np.testing.assert_allclose(row["coverage"], 1 / 3)


def test_thresholds_that_cannot_be_are_refused():
    for bad in ({"times": 0}, {"domains_share": 0}, {"domains_share": 1.5}):
        with pytest.raises(UsageError, match="expected times above 0"):
            committee(HELD.record(rows=2), **bad)
