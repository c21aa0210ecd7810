"""From samples to rows: the clock of tokens."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from workbench.capture.accumulators import Table
from workbench.capture.ring import Sample
from workbench.capture.rows import REMEMBERED, SeenTokens
from workbench.capture.tap import Missed

NOTHING = Missed()
LAYOUT = Table(layers=1, domains=1, experts=2)


def sample(step, tokens, *, said=None, captured=True, missed=NOTHING):
    table = np.zeros(LAYOUT.cells, dtype=np.int64)
    LAYOUT.parts(table).tallies_L2[0, 0] = tokens
    return Sample(
        SimpleNamespace(step=step, tokens=said, captured=captured, missed=missed), table, None, None
    )


def test_tokens_are_the_routers_own_count_where_they_were_read():
    seen = SeenTokens(start=100)
    for step in (1, 2, 3):
        seen.add(LAYOUT, sample(step, 10 * step, said=7))
    assert [seen.at(step) for step in (0, 1, 2, 3, 9)] == [100, 110, 130, 160, 160]


def test_a_step_that_was_left_out_counts_as_said_on_every_rank_or_else_as_the_last():
    seen = SeenTokens(ranks=2)
    seen.add(LAYOUT, sample(1, 20))
    seen.add(LAYOUT, sample(2, 0, said=8, captured=False))
    seen.add(LAYOUT, sample(3, 0, captured=False))
    assert [seen.at(step) for step in (1, 2, 3)] == [20, 36, 56]


def test_samples_that_fell_out_still_count_on_the_clock():
    seen = SeenTokens()
    seen.add(LAYOUT, sample(1, 20))
    seen.add(LAYOUT, sample(9, 20, missed=Missed(tokens=50, steps=2)))
    assert seen.at(9) == 20 + 50 + 2 * 20 + 20


def test_a_long_run_is_counted_right_in_little_memory():
    seen = SeenTokens()
    last = 5 * REMEMBERED
    for step in range(1, last + 1):
        seen.add(LAYOUT, sample(step, 1))
    assert seen.total == last
    assert seen.at(last - REMEMBERED // 2) == last - REMEMBERED // 2
    assert len(seen._steps) <= 2 * REMEMBERED
