"""Adding up what the ranks of a distributed training have counted.

Needs   `torch.distributed` initialised, or not; a group whose ranks hold different tokens.
Yields  Ranks: `sum_to_first`, `agree`.

Every rank counts its own tokens; the sums go to the group's first rank, which alone writes. On a
GPU the reduction is queued on the stream and no host waits.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from workbench.capture.accumulators import Accumulators


class Ranks:
    """The ranks that record together; one, where nothing is distributed.

    Args:
        group: the data-parallel ranks; None for all. Ranks that see the same tokens (tensor
            parallel) must not be in one group: their tokens would count twice.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self._spread = dist.is_available() and dist.is_initialized()
        rank = dist.get_rank(group) if self._spread else 0
        self.member = rank >= 0
        """Whether this rank is in the group; one that is not records nothing."""
        self.count = dist.get_world_size(group) if self._spread and self.member else 1
        self.first = rank == 0

    def sum_to_first(self, accumulators: Accumulators, *, slow: bool) -> None:
        """Adds all ranks' tables into the first rank's; the others' are undefined afterwards."""
        if self.count == 1:
            return
        cut = accumulators.layout.int_cells
        self._reduce(accumulators.table[:cut])
        self._reduce(accumulators.table[cut:].view(torch.float64))
        if slow:
            self._reduce(accumulators.slow)

    def _reduce(self, values: Tensor) -> None:
        dist.reduce(values, group_dst=0, group=self._group)

    def agree(self, number: int, device: torch.device) -> int:
        """The first rank's number, on every rank. Waits."""
        if self.count == 1:
            return number
        told = torch.tensor([number], dtype=torch.int64, device=device)
        dist.broadcast(told, group_src=0, group=self._group)
        return int(told)
