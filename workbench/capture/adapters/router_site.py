"""RouterSite: one router of a model, and how to read it.

Needs   a model.
Yields  `find_routers`, the routers of a model in order of depth, each with a function from its
        forward's inputs and output to logits, ids and gates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from workbench.errors import CaptureError


class Reading(NamedTuple):
    """What one router showed in one forward; tokens of all rows in one axis."""

    logits_TE: Tensor
    ids_TK: Tensor
    gates_TK: Tensor


@dataclass(frozen=True)
class RouterSite:
    """One router module of a model."""

    name: str
    """Dotted path in the model."""
    module: nn.Module
    num_experts: int
    experts_per_token: int
    read: Callable[[Any], Reading]
    """From the module's output to a Reading."""


def find_routers(model: nn.Module) -> list[RouterSite]:
    """The routers of a model, in the order of its modules.

    Raises:
        CaptureError: it has none that is known, or they differ in experts or k, which one array
            cannot hold.
    """
    from model.router import Router

    sites = [
        RouterSite(name, module, module.num_experts, module.experts_per_token, _read_ours)
        for name, module in model.named_modules()
        if isinstance(module, Router)
    ]
    if not sites:
        raise CaptureError(
            f"found no router in {type(model).__name__}; expected modules of type "
            f"model.router.Router: pass the model itself, not a wrapper that hides it."
        )
    shapes = {(s.num_experts, s.experts_per_token) for s in sites}
    if len(shapes) > 1:
        raise CaptureError(
            f"routers differ in (experts, k): {sorted(shapes)}; one record holds layers of "
            f"one shape."
        )
    return sites


def _read_ours(output: Any) -> Reading:
    E, K = output.logits_BPE.shape[-1], output.ids_BPK.shape[-1]
    # Detached: the record must not keep the graph, nor send a gradient back.
    return Reading(
        output.logits_BPE.detach().reshape(-1, E),
        output.ids_BPK.detach().reshape(-1, K),
        output.gates_BPK.detach().reshape(-1, K),
    )
