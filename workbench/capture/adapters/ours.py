"""Routers of this project's own model.

Needs   a model with `model.router.Router` modules.
Yields  `routers_of_ours`, one site each, in the order of the model's modules.
"""

from __future__ import annotations

from torch import nn

from model.router import Router, Routing
from workbench.capture.adapters.router_site import Reading, RouterSite, Scores, on_output


def routers_of_ours(model: nn.Module) -> list[RouterSite]:
    """The model's routers; none where it has none of this kind."""
    return [
        RouterSite(
            name,
            module,
            module.num_experts,
            module.experts_per_token,
            Scores.LOGITS,
            on_output(module, _read),
        )
        for name, module in model.named_modules()
        if isinstance(module, Router)
    ]


def _read(output: Routing) -> Reading:
    E, K = output.logits_BPE.shape[-1], output.ids_BPK.shape[-1]
    # Detached: the record must not keep the graph, nor send a gradient back.
    return Reading(
        output.logits_BPE.detach().reshape(-1, E),
        output.ids_BPK.detach().reshape(-1, K),
        output.gates_BPK.detach().reshape(-1, K),
    )
