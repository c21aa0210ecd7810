"""Routers of a Hugging Face model inside a TransformerLens bridge.

Needs   a TransformerBridge around a copy of a model: it renames what it wraps, so never around the
        model that trains.
Yields  `routers_of_bridge`, one site each, in the order of the bridge's modules.

The bridge hands on what its own hooks made of the router's output, so its router is read and not
the one inside: the ids are those that the experts get, whatever an intervention did.

Source: MoERouterBridge in transformer_lens/model_bridge/generalized_components/moe.py, 4.3.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from workbench.capture.adapters.hugging_face import meaning_of
from workbench.capture.adapters.meaning import Meaning
from workbench.capture.adapters.module_names import modules_by_name, parent
from workbench.capture.adapters.router_site import RouterSite


def routers_of_bridge(model: nn.Module) -> list[RouterSite]:
    """The routers of a bridge; none where the model is not in one.

    Raises:
        CaptureError: a router in it cannot be captured; says why.
    """
    # Only who made a bridge has loaded what it is made of.
    library = sys.modules.get("transformer_lens.model_bridge.generalized_components.moe")
    if library is None:
        return []
    modules = dict(modules_by_name(model))
    tried_before: dict[Any, Meaning] = {}
    sites = []
    for name, module in modules.items():
        if isinstance(module, library.MoERouterBridge):
            meaning = meaning_of(
                module.original_component, modules[parent(name)], module.logits_index, tried_before
            )
            sites.append(meaning.site(name, module))
    return sites
