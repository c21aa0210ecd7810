"""The ring: samples on their way from the training thread to the writer, in host memory.

Needs   accumulators, once a step.
Yields  Ring: `push` copies a step's table out without waiting for the device or for the writer;
        `take` hands the oldest sample on that has arrived.

From a GPU the copy goes asynchronously into pinned memory, and at the next push an event says
whether it has arrived; on a CPU it is a plain copy. A full ring drops the sample and counts it:
training never waits. One thread pushes, one other takes.

Imports with torch and numpy alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.capture.accumulators import Accumulators, Table

RING_BYTES = 32 << 20
"""Memory of the slots, where their number is not given; at least 16 and at most 512 of them."""
SLOW_SLOTS = 4
"""Samples with slow quantities that may wait: with 256 experts and 60 layers each is 31 MB."""


class Sample(NamedTuple):
    """One step, on the host and no longer in the ring."""

    note: Any
    """What `push` was given beside the accumulators."""
    table: np.ndarray
    """(cells,) int64, laid out by `Table`."""
    slow: np.ndarray | None
    """(slow_cells,) int64; None where the step did not read the slow quantities."""
    extra: np.ndarray | None
    """A copy of the tensor that was pushed along with it; None where there was none."""


class Ring:
    """Slots for samples, used one after the other.

    Args:
        layout: of the accumulators.
        device: where the accumulators live; a CUDA device makes the slots pinned.
        slots, slow_slots: samples that may wait.
        extra: cells of an int64 tensor that is pushed along with every sample.

    Example:
        >>> from workbench.capture.accumulators import Accumulators, Table
        >>> sums = Accumulators(Table(layers=1, domains=1, experts=2), torch.device("cpu"))
        >>> ring = Ring(sums.layout, sums.table.device)
        >>> ring.push("step 1", sums, slow=False)
        True
        >>> ring.take().note
        'step 1'
    """

    def __init__(
        self,
        layout: Table,
        device: torch.device,
        *,
        slots: int | None = None,
        slow_slots: int = SLOW_SLOTS,
        extra: int = 0,
    ) -> None:
        pinned = device.type == "cuda"
        slots = slots or min(512, max(16, RING_BYTES // (8 * (layout.cells + extra))))
        self.slots, self.slow_slots = slots, slow_slots
        self._tables = torch.empty((slots, layout.cells), dtype=torch.int64, pin_memory=pinned)
        self._rows = self._tables.numpy()
        self._slow = torch.empty(
            (slow_slots, layout.slow_cells), dtype=torch.int64, pin_memory=pinned
        )
        self._extra = torch.empty((slots, extra), dtype=torch.int64, pin_memory=pinned)
        self._notes: list[Any] = [None] * slots
        self._with_slow = [False] * slots
        self._events = [torch.cuda.Event() for _ in range(slots)] if pinned else []
        # Each is written by one thread alone: the first three by the one that pushes.
        self._pushed = self._slow_pushed = self._arrived = 0
        self._taken = self._slow_taken = 0
        self.dropped = 0
        """Samples that found no slot."""
        self.slow_dropped = 0
        """Samples whose slow quantities found none; the rest of them was kept."""

    def __len__(self) -> int:
        """Samples that wait, arrived or not."""
        return self._pushed - self._taken

    def push(
        self, note: Any, accumulators: Accumulators, *, slow: bool, extra: Tensor | None = None
    ) -> bool:
        """Copies the accumulators into the next slot; False where none is free.

        The accumulators may be cleared at once afterwards: on a GPU the fill comes after the copy
        on the same stream.
        """
        self.settle()
        if len(self) >= self.slots:
            self.dropped += 1
            return False
        slot = self._pushed % self.slots
        if accumulators.on_host is not None:
            self._rows[slot][:] = accumulators.on_host.table
        else:
            self._tables[slot].copy_(accumulators.table, non_blocking=True)
        if slow and self._slow_pushed - self._slow_taken >= self.slow_slots:
            self.slow_dropped += 1
            slow = False
        if slow:
            self._slow[self._slow_pushed % self.slow_slots].copy_(
                accumulators.slow, non_blocking=True
            )
            self._slow_pushed += 1
        if extra is not None:
            self._extra[slot].copy_(extra, non_blocking=True)
        self._notes[slot] = note
        self._with_slow[slot] = slow
        if self._events:
            self._events[slot].record()
        # Last: from here on the other thread may look.
        self._pushed += 1
        if not self._events:
            self._arrived = self._pushed
        return True

    def settle(self) -> None:
        """Sees which copies have arrived; `push` begins with it.

        For the thread that pushes alone: a CUDA call from another one would break the capture of a
        CUDA graph here.
        """
        while self._arrived < self._pushed and self._events[self._arrived % self.slots].query():
            self._arrived += 1

    def take(self, *, wait: bool = False) -> Sample | None:
        """The oldest sample, its slot freed; None where nothing has arrived.

        Args:
            wait: for a copy that is under way, not for a push. Not while the other thread captures
                a CUDA graph.
        """
        if not len(self):
            return None
        slot = self._taken % self.slots
        if self._taken >= self._arrived:
            if not wait:
                return None
            self._events[slot].synchronize()
        slow = None
        if self._with_slow[slot]:
            slow = _array(self._slow[self._slow_taken % self.slow_slots])
            self._slow_taken += 1
        extra = _array(self._extra[slot]) if self._extra.shape[1] else None
        sample = Sample(self._notes[slot], self._rows[slot].copy(), slow, extra)
        self._notes[slot] = None
        self._taken += 1
        return sample


def _array(row: Tensor) -> np.ndarray:
    copied: np.ndarray = row.numpy().copy()
    return copied
