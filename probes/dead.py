"""Dead experts: how many of a layer's experts have received nothing for a stated number of tokens.

Needs   router: assignments (step, layer, expert), tokens (step).
Yields  dead_experts (step, layer), experts; NaN until the record is long enough to tell.

Silence over W tokens bounds the rate: if tokens were independent, an expert silent for W of them
gets under 3/W assignments a token with 95 % confidence. The usual W below puts that at 0.3 % of a
fair share k/E. Tokens of one text are not independent, so read the bound as a floor on W.

Source: rule of three, Hanley & Lippman-Hand 1983, JAMA 249(13).
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray

FAIR_TURNS = 1000
"""Turns that a fairly loaded expert would have had in the usual window W = 1000 E/k tokens."""


class Silence:
    """Counts silent experts while blocks of the record pass by; needs no more than one block.

    An expert is dead at a step if the tokens since the end of its last step with work are at least
    W. Exact: the same as looking back over the smallest trailing window of W tokens or more.

    Example:
        >>> silence = Silence(window=20, layers=1, experts=2)
        >>> silence.count(np.array([[[5, 5]], [[10, 0]], [[10, 0]]]), np.array([10, 10, 10])).T
        array([[nan,  0.,  1.]])
    """

    def __init__(self, window: int, layers: int, experts: int) -> None:
        self.window = window
        self.tokens_seen = 0
        self.last_work = np.zeros((layers, experts), dtype=np.int64)

    @classmethod
    def usual(cls, layers: int, experts: int, k: float) -> Self:
        """The window that gives a fair expert `FAIR_TURNS` turns."""
        return cls(int(np.ceil(FAIR_TURNS * experts / k)), layers, experts)

    def count(
        self, assignments: NDArray[np.integer], tokens: NDArray[np.integer]
    ) -> NDArray[np.float64]:
        """(step, layer): dead experts after each step of the next block (step, layer, expert)."""
        seen = self.tokens_seen + np.cumsum(tokens, dtype=np.int64)
        # The clock at the last step with work: marked where there was work, then carried onward.
        worked = np.where(assignments > 0, seen[:, None, None], 0)
        worked[0] = np.maximum(worked[0], self.last_work)
        np.maximum.accumulate(worked, axis=0, out=worked)
        self.last_work = worked[-1].copy()
        self.tokens_seen = int(seen[-1])
        dead = (seen[:, None, None] - worked >= self.window).sum(axis=-1).astype(np.float64)
        dead[seen < self.window] = np.nan
        return dead
