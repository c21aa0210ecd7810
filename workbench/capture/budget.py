"""The budget: holds capture to a share of the training's time.

Needs   what each step took and what capture took of it, as a tap notes it.
Yields  Budget: fewer steps are read where capture costs more than it may, more again where there is
        room. The cadence in force is in the record at every step (`captured_every`).

What is measured is the training thread's time. On a GPU that is the time of launching the kernel,
not its own time on the device, which overlaps with nothing: measure that once with the benchmark.
"""

from __future__ import annotations

from collections import deque
from statistics import fmean, median

from workbench.capture.tap import Note, Tap
from workbench.errors import UsageError

WINDOW = 20
"""Steps between two decisions: the cost is their mean, so that the slow quantities share in it."""
SLOWEST = 1024
"""The longest cadence."""


class Budget:
    """Follows a tap's cost and sets its cadence.

    Args:
        share: of the step's time, in (0, 1).

    Example:
        >>> Budget.parse("1%").share
        0.01
    """

    def __init__(self, share: float) -> None:
        if not 0 < share < 1:
            raise UsageError(f"overhead={share}: a share of the step, above 0 and under 1.")
        self.share = share
        self._costs: deque[float] = deque(maxlen=WINDOW)
        self._bare: deque[float] = deque(maxlen=WINDOW)
        self._seen = 0

    @classmethod
    def parse(cls, text: str | float) -> Budget:
        """From "1%" or 0.01."""
        try:
            if isinstance(text, str) and text.strip().endswith("%"):
                return cls(float(text.strip()[:-1]) / 100)
            return cls(float(text))
        except ValueError:
            raise UsageError(f'overhead={text!r}: expected a share such as "1%" or 0.01.') from None

    @property
    def overhead(self) -> float:
        """Capture's time over the rest of the step's, mean of the last captured steps."""
        return fmean(self._costs) / median(self._bare) if self._costs else 0.0

    def follow(self, tap: Tap, note: Note | None) -> None:
        """After each step: counts it in, and now and then decides anew."""
        if note is not None and note.captured:
            self._costs.append(note.seconds)
            self._bare.append(max(note.duration - note.seconds, 1e-9))
        self._seen += 1
        # The first window also holds what happens only once: allocation, compilation.
        if self._seen % WINDOW or self._seen < 2 * WINDOW:
            return
        every = min(max(self._cadence(tap.every), 1), SLOWEST)
        # Ranks reduce together in captured steps, so all must know the same cadence.
        tap.every = tap.ranks.agree(every, tap.device)

    def _cadence(self, every: int) -> int:
        """Doubled while the budget is exceeded, halved while half of it would do."""
        cost = self.overhead
        if cost / every > self.share:
            return every * 2
        if every > 1 and 2 * cost / every < 0.8 * self.share:
            return every // 2
        return every
