"""Routers of a model inside a TransformerLens bridge.

Needs   a TransformerBridge around a copy of a model: it renames what it wraps, so never around the
        model that trains.
Yields  `routers_of_bridge`, one site each, in the order of the model's modules, under the names
        that TransformerLens gives them.

The bridge hands on what its own hooks made of the router's output, so its component is read and not
the router inside: the ids are those that the experts get, whatever an intervention did.

Source: transformer_lens/model_bridge, 4.3.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from torch import nn

from workbench.capture.adapters.hugging_face import meaning_of, routers_of_hugging_face
from workbench.capture.adapters.meaning import Meaning
from workbench.capture.adapters.module_names import outer_and_inner, parent
from workbench.capture.adapters.router_site import RouterSite


def routers_of_bridge(model: nn.Module) -> list[RouterSite]:
    """The routers of a bridge; none where the model is not one.

    Raises:
        CaptureError: a router in it cannot be captured; says why.
    """
    # Only who made a bridge has loaded what it is made of.
    library = sys.modules.get("transformer_lens.model_bridge")
    if library is None or not isinstance(model, library.TransformerBridge):
        return []
    inside = model.original_model
    sites = routers_of_hugging_face(inside) or _named_by_bridge(inside, library.MoERouterBridge)
    return [replace(site, name=_bridge_name(site)) for site in sites]


def _named_by_bridge(model: nn.Module, kind: type[Any]) -> list[RouterSite]:
    """The routers that the bridge's adapter says are routers, in a model that says nothing."""
    outer, inner = outer_and_inner(model)
    tried_before: dict[Any, Meaning] = {}
    return [
        meaning_of(
            inner[name], inner[parent(name)], module.logits_index, tried_before
        ).site(name, module)
        for name, module in outer.items()
        if isinstance(module, kind)
    ]  # fmt: skip


def _bridge_name(site: RouterSite) -> str:
    """The component's name in the bridge, such as blocks.0.mlp.gate; its path where it has none."""
    named: str | None = getattr(getattr(site.module, "hook_out", None), "name", None)
    return named.removesuffix(".hook_out") if named else site.name
