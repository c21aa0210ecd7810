"""What a plan keeps: laws that hold for any run, and bounds that can be checked by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints_index.errors import ClockError
from checkpoints_index.record import CheckpointRecord
from checkpoints_index.retention import Rule, farthest_first, log_tokens, plan


def record(step, branch="main", **more):
    fields = {"run": "demo", "tokens_seen": step * 64, "utc": 1.75e9 + 3600 * step,
              "format": "native", "uri": f"{branch}/{step}", "size_bytes": 1}  # fmt: skip
    return CheckpointRecord(branch=branch, step=step, **(fields | more))


steps = st.lists(st.integers(0, 5000), min_size=1, max_size=40, unique=True).map(sorted)
rules = st.builds(
    Rule,
    window=st.sampled_from([0.1, 0.2, 1.0, 1000.0, "7d"]),
    dense_last=st.none() | st.integers(1, 6),
    elsewhere=st.integers(0, 12),
)


@st.composite
def runs(draw):
    """A trunk, and up to two arms that fork from it."""
    trunk = draw(steps)
    records = [record(s, complete=draw(st.integers(0, 9)) > 0) for s in trunk]
    for arm in draw(st.sampled_from([(), ("a",), ("a", "b")])):
        fork = draw(st.sampled_from(trunk))
        for i, s in enumerate(draw(steps)):
            parent = ("main", fork) if i == 0 else None
            records.append(record(fork + 1 + s, arm, parent=parent))
    return records


def places(records):
    return {(r.branch, r.step) for r in records}


@given(runs(), rules, st.data())
def test_what_is_protected_the_first_and_the_last_stay_whatever_the_rule(records, rule, data):
    all_places = sorted(places(records))
    protected = data.draw(st.dictionaries(st.sampled_from(all_places), st.just("a tag")))
    made = plan(records, rule, protected=protected)
    gone = places(made.go)
    assert not gone & protected.keys()
    assert not gone & made.keep.keys()
    assert gone | made.keep.keys() | {p for p in all_places if p not in gone} == set(all_places)
    for branch in {b for b, _ in all_places}:
        whole = [r.step for r in records if r.branch == branch and r.complete]
        if whole:
            assert not {(branch, min(whole)), (branch, max(whole))} & gone
    for r in records:
        if r.parent is not None:
            assert r.parent not in gone
            assert (r.branch, r.step) not in gone
        if not r.complete:
            assert (r.branch, r.step) not in gone


@given(runs(), rules, st.integers(1, 10))
def test_a_larger_budget_keeps_all_that_a_smaller_one_keeps(records, rule, more):
    fewer = plan(records, rule)
    larger = Rule(window=rule.window, dense_last=rule.dense_last, elsewhere=rule.elsewhere + more)
    assert places(plan(records, larger).go) <= places(fewer.go)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=9, unique=True), st.integers(0, 4))
def test_nothing_lies_farther_from_what_stays_than_twice_the_best_choice(at, count):
    points = np.sort(np.array(at))
    fixed = [0, len(points) - 1]

    def reach(chosen):
        kept = points[list(chosen)]
        return np.abs(points[:, None] - kept[None, :]).min(axis=1).max()

    free = range(len(points))
    best = min(reach({*fixed, *some}) for some in itertools.combinations(free, min(count, len(at))))
    assert reach([*fixed, *farthest_first(points, fixed, count)]) <= 2 * best + 1e-9


@given(st.lists(st.integers(0, 10**15), max_size=20).map(sorted))
def test_logarithms_of_tokens_are_finite_and_in_order(tokens):
    values = log_tokens(tokens)
    assert np.isfinite(values).all()
    assert (np.diff(values) >= 0).all()


def test_dense_in_the_last_fifth_and_log_spaced_before_it():
    made = plan([record(s) for s in range(1, 101)], Rule(elsewhere=4))
    kept = [step for _, step in made.keep]
    assert [s for s in kept if s > 80] == list(range(81, 101))
    early = np.log([s for s in kept if s <= 81])
    assert len(early) == 6
    # Six points over log 81 = 4.39: no gap wider than 2 x 4.39 / 5.
    assert np.diff(early).max() < 2 * np.log(81) / 5


def test_a_window_is_a_share_of_tokens_a_number_of_tokens_or_a_stretch_of_time():
    records = [record(s) for s in range(1, 101)]
    for window, first in ((0.1, 91), (640.0, 91), ("10h", 91)):
        made = plan(records, Rule(window=window, elsewhere=0))
        assert [s for _, s in made.keep] == [1, *range(first, 101)]
    with pytest.raises(ClockError, match="expected a number and one of"):
        plan(records, Rule(window="a week"))


def test_the_last_n_can_be_kept_in_place_of_a_window():
    made = plan([record(s) for s in range(1, 101)], Rule(dense_last=3, elsewhere=0))
    assert [s for _, s in made.keep] == [1, 98, 99, 100]


def test_reasons_say_who_needs_a_checkpoint():
    prints = {30: "ab" * 8}
    records = [record(s, fingerprint=prints.get(s)) for s in range(10, 101, 10)]
    records.append(record(60, "arm", parent=("main", 50), merged_from=(("main", 20), "ab" * 8)))
    made = plan(
        records, Rule(dense_last=1, elsewhere=0),
        protected={("main", 70): "a tag"}, used={"ab" * 8: "merged into other/main@5"},
    )  # fmt: skip
    assert made.keep["main", 50] == ("'arm' forked here",)
    assert made.keep["main", 20] == ("merged into arm@60",)
    assert made.keep["main", 30] == ("merged into arm@60", "merged into other/main@5")
    assert made.keep["main", 70] == ("a tag",)
    assert [r.step for r in made.go] == [40, 60, 80, 90]


def test_the_newest_that_a_training_can_go_on_from_stays_beside_the_newest_weights():
    records = [record(s, kind="weights" if s > 50 else "training") for s in range(10, 101, 10)]
    made = plan(records, Rule(dense_last=1, elsewhere=0))
    assert [s for _, s in made.keep] == [10, 50, 100]


def test_what_is_not_complete_is_left_alone():
    records = [record(10), record(20, complete=False), record(30)]
    assert places(plan(records, Rule(dense_last=1, elsewhere=0)).go) == set()


@pytest.mark.parametrize("wrong", [{"elsewhere": -1}, {"dense_last": 0}])
def test_a_rule_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        Rule(**wrong)


def test_where_no_tokens_were_counted_the_window_is_a_share_of_the_steps():
    made = plan([record(s, tokens_seen=0) for s in range(10, 110, 10)], Rule(elsewhere=1))
    assert [r.step for r in made.go] == [20, 40, 50, 60, 70, 80]
    # So many tokens are no number of steps: everything is kept.
    tokens = Rule(window=5.0, elsewhere=0)
    assert plan([record(s, tokens_seen=0) for s in range(10, 110, 10)], tokens).go == ()


def test_the_first_digits_of_a_fingerprint_name_what_was_merged_and_what_others_use():
    prints = {10: "a1" * 16, 20: "b2" * 16, 30: "c3" * 16, 40: "d4" * 16}
    records = [record(s, fingerprint=f) for s, f in prints.items()]
    records.append(record(50, merged_from=(prints[20][:12],)))
    rule = Rule(dense_last=1, elsewhere=0)
    assert [r.step for r in plan(records, rule).go] == [30, 40]
    kept = plan(records, rule, used={prints[30][:12]: "needed elsewhere"})
    assert kept.keep["main", 30] == ("needed elsewhere",)
    # Other weights that begin alike are no reason.
    assert [r.step for r in plan(records, rule, used={prints[30][:8] + "0000": "x"}).go] == [30, 40]
