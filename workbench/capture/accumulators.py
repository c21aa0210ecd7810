"""What a model's routers have shown since the last step was taken: one table of numbers on the
model's device.

Needs   the number of routers, domains and experts.
Yields  Table, where each number lies in the table; Accumulators, the tensors that `route_stats`
        adds to; `as_variables`, one step's arrays under their names in the schema.

Everything of every step lies in one tensor, so that the end of a step costs one copy and one fill.
It is no buffer of the model: DDP would overwrite it with rank 0's, FSDP would shard it, and a
state_dict would carry it. Counts are int64. Sums are float64 (a float32 sum of ones stops growing
at 2^24 tokens) and lie in the same int64 storage, bit for bit.

Imports with torch and numpy alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Shapes: L routers, D domains (at least 1), E experts, B bins.

NEAR_TIE_LOGITS = 0.1
"""A token whose margin is nearer to zero than this is nearly tied, logits."""
ENTROPY_BINS = 32
"""Equal bins of entropy / ln E over [0, 1]."""
TALLIES = ("tokens", "near_tie")
"""Counts of tokens, by layer."""
MASSES = ("gate_mass", "prob_mass")
"""Sums over tokens, by layer and expert."""
SUMS = ("entropy", "margin", "z_squared", "topk_mass")
"""Sums over tokens, by layer."""
ACTIVE, SLOW = 0, 1
"""Places in the flags: count this forward at all; read the slow quantities too."""


class Parts(NamedTuple):
    """Views of a table, as tensors or as arrays."""

    counts_LDE: Any
    """int64, assignments by layer, domain and expert."""
    tallies_L2: Any
    """int64, as TALLIES."""
    masses_L2E: Any
    """float64, as MASSES."""
    sums_L4: Any
    """float64, as SUMS."""


class SlowParts(NamedTuple):
    """Views of the table of slow quantities."""

    pairs_LEE: Any
    """int64, tokens for which both experts were chosen; the diagonal is the load."""
    entropy_histogram_LB: Any
    """int64, tokens by entropy / ln E."""


@dataclass(frozen=True)
class Table:
    """Where every number lies.

    Example:
        >>> Table(layers=2, domains=1, experts=4).cells
        36
    """

    layers: int
    domains: int
    experts: int

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the four parts, in their order in the table."""
        L, D, E = self.layers, self.domains, self.experts
        return (L, D, E), (L, len(TALLIES)), (L, len(MASSES), E), (L, len(SUMS))

    @property
    def int_cells(self) -> int:
        """Cells before the first float64."""
        return prod(self.shapes[0]) + prod(self.shapes[1])

    @property
    def cells(self) -> int:
        return sum(prod(shape) for shape in self.shapes)

    @property
    def slow_cells(self) -> int:
        return self.layers * (self.experts**2 + ENTROPY_BINS)

    def parts(self, table: Any) -> Parts:
        """Parts of tables (..., cells), tensors or arrays; views, where it is a single table."""
        lead = tuple(table.shape[:-1])
        counts, tallies, masses, sums = self.shapes
        a, b = prod(counts), self.int_cells
        c = b + prod(masses)
        float64 = torch.float64 if isinstance(table, Tensor) else np.float64
        return Parts(
            table[..., :a].reshape(lead + counts),
            table[..., a:b].reshape(lead + tallies),
            table[..., b:c].view(float64).reshape(lead + masses),
            table[..., c:].view(float64).reshape(lead + sums),
        )

    def slow_parts(self, slow: Any) -> SlowParts:
        """Likewise of tables of slow quantities (..., slow_cells)."""
        lead, L, E = tuple(slow.shape[:-1]), self.layers, self.experts
        return SlowParts(
            slow[..., : L * E * E].reshape((*lead, L, E, E)),
            slow[..., L * E * E :].reshape((*lead, L, ENTROPY_BINS)),
        )


class HostViews(NamedTuple):
    """Accumulators as arrays."""

    table: np.ndarray
    slow: np.ndarray
    flags: np.ndarray


class Accumulators:
    """The tensors that `route_stats` adds to, for all routers of a model.

    Example:
        >>> sums = Accumulators(Table(layers=2, domains=1, experts=4), torch.device("cpu"))
        >>> sums.table.dtype, sums.flags.tolist()
        (torch.int64, [0, 0])
    """

    def __init__(self, layout: Table, device: torch.device) -> None:
        self.layout = layout
        self.table = torch.zeros(layout.cells, dtype=torch.int64, device=device)
        self.slow = torch.zeros(layout.slow_cells, dtype=torch.int64, device=device)
        # On the device: a replayed CUDA graph reads them anew, Python does not run there.
        self.flags = torch.zeros(2, dtype=torch.int64, device=device)
        self._states = torch.tensor([[0, 0], [1, 0], [1, 1]], device=device).unbind()
        self.on_host: HostViews | None = None
        """The same memory for numpy, where the device is a CPU: a tenth of torch's cost a call."""
        if device.type == "cpu":
            self.on_host = HostViews(self.table.numpy(), self.slow.numpy(), self.flags.numpy())
        if device.type == "cuda":
            self._stay_in_place()

    def _stay_in_place(self) -> None:
        # A compiled step that writes to its inputs is not replayed as a CUDA graph, unless it
        # knows that they never move.
        from torch._dynamo import mark_static_address

        for tensor in (self.table, self.slow, self.flags):
            mark_static_address(tensor, guard=False)

    def switch(self, *, active: bool, slow: bool = False) -> None:
        """Says whether the forwards that follow count; does not wait for the device."""
        if self.on_host is not None:
            self.on_host.flags[ACTIVE] = active
            self.on_host.flags[SLOW] = slow
        else:
            self.flags.copy_(self._states[int(active) + int(active and slow)])

    def clear(self, *, slow: bool = True) -> None:
        """Forgets what was added, without waiting for the device."""
        host = self.on_host
        if host is not None:
            host.table.fill(0)
        else:
            self.table.zero_()
        if slow:
            self.slow.zero_()


def as_variables(layout: Table, tables: np.ndarray, *, with_domains: bool) -> dict[str, np.ndarray]:
    """Router variables of steps, as the schema names them, the step first.

    Args:
        tables: (step, cells) int64, on the host.

    A step without tokens gives means of NaN.
    """
    counts, tallies, masses, sums = layout.parts(tables)
    tokens = tallies[:, :, :1]
    with np.errstate(invalid="ignore", divide="ignore"):
        near_tie = tallies[:, :, 1:] / tokens
        means = np.concatenate([sums / tokens, near_tie], axis=-1).astype(np.float32)
    variables = {
        "tokens": tokens[:, 0, 0],
        "assignments": counts.sum(2),
        "gate_mass": masses[:, :, 0].astype(np.float32),
        "prob_mass": masses[:, :, 1].astype(np.float32),
    }
    variables |= {name: means[..., place] for place, name in enumerate((*SUMS, "near_tie"))}
    if with_domains:
        variables["domain_assignments"] = counts
    return variables
