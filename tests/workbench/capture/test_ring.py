"""The ring: in order, nothing torn, never in the way."""

from __future__ import annotations

import threading

import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.capture.accumulators import Accumulators, Table
from workbench.capture.ring import Ring

LAYOUT = Table(layers=2, domains=1, experts=4)


def filled(value):
    sums = Accumulators(LAYOUT, torch.device("cpu"))
    sums.table.fill_(value)
    sums.slow.fill_(-value)
    return sums


def ring(**more):
    return Ring(LAYOUT, torch.device("cpu"), **more)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_what_is_taken_is_what_was_pushed_in_order(events):
    """Random pushes (with slow quantities or without) and takes, against a plain list."""
    r, waiting, slow_waiting = ring(slots=5, slow_slots=2), [], 0
    dropped = slow_dropped = 0
    for number, (push, slow) in enumerate(events, start=1):
        if push:
            kept = len(waiting) < 5
            keeps_slow = slow and slow_waiting < 2
            assert r.push(number, filled(number), slow=slow) == kept
            if kept:
                waiting.append((number, keeps_slow))
                slow_waiting += keeps_slow
                slow_dropped += slow and not keeps_slow
            dropped += not kept
        elif waiting:
            number, keeps_slow = waiting.pop(0)
            slow_waiting -= keeps_slow
            sample = r.take()
            assert sample.note == number
            assert (sample.table == number).all()
            assert (sample.slow is not None) == keeps_slow
            if keeps_slow:
                assert (sample.slow == -number).all()
        else:
            assert r.take() is None
    assert (r.dropped, r.slow_dropped, len(r)) == (dropped, slow_dropped, len(waiting))


def test_a_taken_sample_does_not_change_when_its_slot_is_used_again():
    r = ring(slots=1)
    r.push(1, filled(1), slow=False)
    sample = r.take()
    r.push(2, filled(2), slow=False)
    assert (sample.table == 1).all()


def test_two_threads_pass_every_sample_on_once_and_whole():
    r, taken, done = ring(slots=8), [], threading.Event()

    def take():
        while not (done.is_set() and not len(r)):
            if (sample := r.take()) is not None:
                taken.append(sample)

    thread = threading.Thread(target=take)
    thread.start()
    number = 0
    while number < 2000:
        number += r.push(number, filled(number), slow=False)
    done.set()
    thread.join()
    assert [s.note for s in taken] == list(range(2000))
    assert all((s.table == s.note).all() for s in taken)


def test_what_is_pushed_along_comes_along():
    r = ring(extra=3)
    r.push("a", filled(1), slow=False, extra=torch.tensor([7, 8, 9]))
    assert r.take().extra.tolist() == [7, 8, 9]


def test_large_tables_get_fewer_slots_but_never_too_few():
    large = Ring(Table(layers=8, domains=1, experts=1 << 16), torch.device("cpu"), slow_slots=0)
    assert large.slots == 16
    assert ring().slots == 512
