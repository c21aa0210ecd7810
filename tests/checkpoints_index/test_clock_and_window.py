"""The clocks of a run, and windows on them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints_index.clock import Clock
from checkpoints_index.errors import ClockError
from checkpoints_index.window import interval, seconds

gaps = st.lists(st.integers(1, 1000), min_size=1, max_size=60)


@given(gaps, gaps, st.integers(0, 70_000))
def test_the_step_at_an_instant_is_the_last_one_that_had_come(steps, tokens, instant):
    n = min(len(steps), len(tokens))
    clock = Clock(np.cumsum(steps[:n]), tokens=np.cumsum(tokens[:n]))
    at = clock.step_at(instant, on="tokens")
    come = clock.step[clock.tokens <= instant]
    assert at == (come[-1] if len(come) else clock.step[0] - 1)


@given(gaps, st.floats(0.001, 1))
def test_the_last_share_of_tokens_holds_that_share_to_within_one_step(tokens, share):
    seen = np.cumsum(tokens)
    clock = Clock(np.arange(1, len(seen) + 1), tokens=seen)
    window = interval(clock, last=share)
    inside = seen[-1] - clock.reading(window.start, "tokens")
    assert inside >= share * seen[-1] - 0.5
    assert seen[-1] - clock.reading(window.start + 1, "tokens") < share * seen[-1] + 0.5


def test_windows_that_meet_share_no_step():
    clock = Clock(np.arange(1, 11), tokens=np.arange(1, 11))
    early, late = interval(clock, stop=7), interval(clock, start=7)
    steps = range(0, 12)
    assert [s in early for s in steps] == [0 < s <= 7 for s in steps]
    assert [s in late for s in steps] == [7 < s <= 10 for s in steps]


def test_a_host_clock_that_was_set_back_does_not_make_time_run_backwards():
    clock = Clock(np.arange(1, 6), utc=np.array([10.0, 20.0, 5.0, 15.0, 30.0]))
    assert clock.step_at(20.0, on="utc") == 4
    assert clock.step_at(19.0, on="utc") == 1


def test_before_the_first_step_no_tokens_were_seen():
    clock = Clock(np.array([5, 6]), tokens=np.array([500, 600]))
    assert clock.reading(4, on="tokens") == 0
    assert clock.reading(10, on="tokens") == 600


@pytest.mark.parametrize(("text", "value"), [("7d", 604800), ("1.5h", 5400), (" 90 m", 5400)])
def test_durations_are_read_in_their_units(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "7", "d", "7y", "-7d", "7d 3h", "1e3s", "0h", "٧d" * 50])
def test_a_duration_that_is_none_is_refused(text):
    with pytest.raises(ClockError, match="for example '7d'"):
        seconds(text)


def test_a_clock_that_was_not_recorded_is_named_with_those_that_were():
    clock = Clock(np.arange(1, 5), tokens=np.arange(1, 5))
    with pytest.raises(ClockError, match="utc clock; it has step, tokens"):
        interval(clock, last="7d")
    with pytest.raises(ClockError, match="no recorded steps yet"):
        interval(Clock(np.empty(0, "int64")), last=0.2)
    with pytest.raises(ClockError, match="must ascend"):
        Clock(np.array([1, 1]))
    with pytest.raises(ClockError, match="one a step"):
        Clock(np.array([1, 2]), tokens=np.array([1]))
