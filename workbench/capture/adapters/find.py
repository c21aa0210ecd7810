"""How a model's routers are found: every adapter is asked in turn.

Needs   a model, or a model and a user's own adapter.
Yields  `find_routers`.
"""

from __future__ import annotations

import sys
from typing import Protocol

from torch import nn

from workbench.capture.adapters.bridge import routers_of_bridge
from workbench.capture.adapters.hugging_face import routers_of_hugging_face
from workbench.capture.adapters.module_names import modules_by_name
from workbench.capture.adapters.router_site import RouterSite
from workbench.errors import CaptureError


class Adapter(Protocol):
    """Whatever finds routers in a model; `Generic` is one."""

    def find(self, model: nn.Module) -> list[RouterSite]:
        """The model's routers, in the order of its modules."""
        ...


def find_routers(model: nn.Module, routers: Adapter | None = None) -> list[RouterSite]:
    """The routers of a model, in the order of its modules.

    Args:
        model: as it is, or wrapped by DistributedDataParallel, FSDP, torch.compile, a
            LightningModule; names are those in the model that was wrapped.
        routers: finds them; None: this project's own routers, those in a TransformerLens bridge, or
            those of a Hugging Face model.

    Raises:
        CaptureError: it has none that is known, one that cannot be captured, or they differ in
            experts or k, which one array cannot hold.

    Example:
        >>> from model.config import NANO
        >>> from model.lm import MoELM
        >>> sites = find_routers(MoELM(NANO))
        >>> sites[0].name, sites[0].num_experts, sites[0].experts_per_token
        ('blocks.0.mlp.router', 16, 4)
    """
    if routers is not None:
        sites = routers.find(model)
    else:
        sites = _ours(model) or routers_of_bridge(model) or routers_of_hugging_face(model)
    if not sites:
        raise CaptureError(_none(model))
    shapes: dict[tuple[int, int], str] = {}
    for site in sites:
        shapes.setdefault((site.num_experts, site.experts_per_token), site.name)
    if len(shapes) > 1:
        each = ", ".join(f"{shape} in {name}" for shape, name in shapes.items())
        raise CaptureError(
            f"routers differ in (experts, k): {each}; one record holds layers of one shape. Record "
            f"a part of the model that has one: Recorder(model.<part>, ...)."
        )
    return sites


def _ours(model: nn.Module) -> list[RouterSite]:
    # A model of ours cannot be here before its module is: whoever has none does not load it.
    if "model.router" not in sys.modules:
        return []
    from workbench.capture.adapters.ours import routers_of_ours

    return routers_of_ours(model)


def _none(model: nn.Module) -> str:
    alike = [
        f"{name} ({type(module).__name__})"
        for name, module in modules_by_name(model)
        if any(word in type(module).__name__ for word in ("Router", "Experts", "MoE", "Moe"))
    ]
    held = f"it has modules that sound like it: {', '.join(alike[:4])}. " if alike else ""
    return (
        f"found no router in {type(model).__name__}; {held}Expected routers of this project's "
        f"model, of a Hugging Face model that names them in _can_record_outputs['router_logits'], "
        f"or of a TransformerLens bridge around one. For another model say how to read them: "
        f"Recorder(..., routers=workbench.Generic(modules=..., read=...))."
    )
