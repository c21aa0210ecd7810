"""Domains: planted specialists are found, one text's peculiarities are not taken for a domain's."""

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from probes.domains import domains, domains_fixed
from workbench.errors import SchemaError, UsageError
from workbench.planted.patterns import Patterns
from workbench.testing import TASKS, router_record

SPECIAL = Patterns(
    sets=[[0, 4], [1, 4], [2, 5], [3, 5]],
    mix=[[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1]],
    experts=6,
)
ALIKE = Patterns(sets=[[e] for e in range(6)], mix=[[1 / 6] * 6] * 4, experts=6)


def test_shares_agree_with_the_published_definition_as_a_loop():
    record = SPECIAL.record(rows=3)
    found = domains_fixed(record, deals=0).isel(checkpoint=0, layer=0)
    routed, tokens = {}, {}
    ids, names = record["expert_ids"].values[0, :, 0], record["domain"].values
    for name, chosen in zip(names, ids, strict=True):
        tokens[name] = tokens.get(name, 0) + 1
        for expert in chosen:
            routed[name, expert] = routed.get((name, expert), 0) + 1
    for name in tokens:
        for expert in range(6):
            want = routed.get((name, expert), 0) / tokens[name]
            got = float(found["share"].sel(domain=name, expert=expert))
            assert got == pytest.approx(want, abs=1e-6)
    assert found["share"].attrs["chance_level"] == pytest.approx(2 / 6)


def test_information_agrees_with_scikit_learn():
    record = SPECIAL.record(rows=3)
    found = domains_fixed(record, deals=0)["plug_in"].item()
    ids, names = record["expert_ids"].values[0, :, 0], record["domain"].values
    theirs = mutual_info_score(np.repeat(names, 2), ids.ravel()) / np.log(2)
    assert found == pytest.approx(theirs, rel=1e-9)


def test_planted_specialists_are_found():
    found = domains_fixed(SPECIAL.record(rows=30, like=20)).isel(checkpoint=0, layer=0)
    np.testing.assert_allclose(found["share"], SPECIAL.share, atol=0.06)
    assert float(found["information"]) == pytest.approx(SPECIAL.information, abs=0.05)
    assert float(found["p"]) == 1 / 200


def test_texts_with_ways_of_their_own_are_not_domains():
    truth = []
    for seed in range(12):
        row = domains_fixed(ALIKE.record(rows=6, like=5, seed=seed)).isel(checkpoint=0, layer=0)
        truth.append([float(row[v]) for v in ("miller_madow", "information", "p")])
    naive, ours, p = np.mean(truth, axis=0)
    # Tokens of a text are alike: the formula for independent tokens sees domains that are not.
    assert naive > 0.05
    assert abs(ours) < 0.02
    assert p > 0.2


def test_where_every_domain_has_one_text_there_is_no_test_and_no_interval():
    row = domains_fixed(SPECIAL.record(rows=1)).isel(checkpoint=0, layer=0)
    assert np.isnan(row["p"])
    assert np.isnan(row["null"])
    assert row["share_low"].isnull().all()


def test_the_streams_specialists_are_found_and_pooled():
    record = router_record(steps=40, layers=1, tokens=400, specialised={TASKS[1]: 5})
    found = domains(record, window=20)
    assert found["step"].values.tolist() == [20, 40]
    counts = record["domain_assignments"].values[:20].sum(0)[0]
    want = counts * 2 / counts.sum(-1, keepdims=True)
    np.testing.assert_allclose(found["share"][0, 0], want, rtol=1e-6)
    assert (found["p"] == 1 / 200).all()
    assert (found["information_low"] > 0).all()
    np.testing.assert_allclose(found["load"].sum("expert"), 2)


def test_a_domain_that_no_window_saw_has_no_share():
    record = router_record(steps=20, layers=1)
    record["domain_assignments"][:, :, 3] = 0
    found = domains(record, window=20)
    assert found["share"].isel(domain=3).isnull().all()
    assert found["information"].notnull().all()
    assert (found["p"] > 0.01).all()


def test_what_cannot_be_pooled_is_refused():
    record = router_record(steps=20)
    with pytest.raises(UsageError, match="the record holds 20"):
        domains(record, window=21)
    with pytest.raises(SchemaError, match="lacks domain_assignments"):
        domains(record.drop_vars("domain_assignments"))
