"""What a run's routers have shown since the last step was taken: plain tensors on the model's
device.

Needs   the number of routers, experts and domains.
Yields  Accumulators: views that `route_stats` adds to, and `take`, one step's arrays under their
        names in the schema.

They are not buffers of the model: DDP would overwrite them with rank 0's, FSDP would shard them,
and a state_dict would carry them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.capture.route_stats import SUMS

# Shapes: L routers, D domains (at least 1), E experts.


@dataclass(frozen=True)
class Accumulators:
    """Sums since the last `take`, for all routers of a model."""

    counts_LDE: Tensor
    masses_L2E: Tensor
    sums_LS: Tensor
    pairs_LEE: Tensor

    @classmethod
    def zeros(cls, layers: int, experts: int, domains: int, device: torch.device) -> Accumulators:
        """Empty accumulators on `device`."""
        # Double precision: a float32 sum stops growing at 2^24 tokens of mass 1.
        return cls(
            torch.zeros(layers, max(domains, 1), experts, dtype=torch.int64, device=device),
            torch.zeros(layers, 2, experts, dtype=torch.float64, device=device),
            torch.zeros(layers, len(SUMS), dtype=torch.float64, device=device),
            torch.zeros(layers, experts, experts, dtype=torch.int64, device=device),
        )

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All four, in the order that `route_stats` takes them."""
        return self.counts_LDE, self.masses_L2E, self.sums_LS, self.pairs_LEE

    def take(self) -> tuple[np.ndarray, ...]:
        """The four on the host, and zero here."""
        taken = tuple(t.cpu().numpy().copy() for t in self.tensors())
        self.clear()
        return taken

    def clear(self) -> None:
        """Forgets what was added, without waiting for the device."""
        for tensor in self.tensors():
            tensor.zero_()


def as_variables(
    counts_LDE: np.ndarray, masses_L2E: np.ndarray, sums_LS: np.ndarray, *, with_domains: bool
) -> dict[str, np.ndarray]:
    """One step's router variables, without the step axis, as schema.py names them.

    Raises nothing for a step without tokens: its means are NaN.
    """
    sums = dict(zip(SUMS, sums_LS.T, strict=True))
    tokens = sums.pop("tokens")
    variables = {
        "tokens": np.int64(tokens[0]),
        "assignments": counts_LDE.sum(1),
        "gate_mass": masses_L2E[:, 0].astype(np.float32),
        "prob_mass": masses_L2E[:, 1].astype(np.float32),
    }
    with np.errstate(invalid="ignore", divide="ignore"):
        variables |= {name: (total / tokens).astype(np.float32) for name, total in sums.items()}
    if with_domains:
        variables["domain_assignments"] = counts_LDE
    return variables
