"""Routers of Hugging Face models, found by what the models say of themselves.

Needs   a model with transformers' PreTrainedModel in it, or the modules of one.
Yields  `routers_of_hugging_face`, one site each, in the order of the model's modules; `meaning_of`.

A model's `_can_record_outputs["router_logits"]` names the class of its routers and where in their
output the logits are; a trial of a stand-in finds the rest (trial.py), and a few are known by name
(exceptions.py). Each site is one hook on one module: nothing is carried from one hook to another,
so nothing outlives the forward, and compiled blocks stay whole. `output_router_logits` is never
switched on, since it adds a loss.

Source: transformers/utils/output_capturing.py, transformers 5.23.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from workbench.capture.adapters.exceptions import ALSO_ROUTERS, EXCEPTIONS, REFUSED, WITHIN, named
from workbench.capture.adapters.meaning import Meaning
from workbench.capture.adapters.module_names import outer_and_inner, parent
from workbench.capture.adapters.router_site import RouterSite
from workbench.capture.adapters.trial import settings, tried
from workbench.errors import CaptureError


def routers_of_hugging_face(model: nn.Module) -> list[RouterSite]:
    """The model's routers; none where no part of it is a Hugging Face model with experts.

    Raises:
        CaptureError: it has experts, and a router that cannot be captured, or none that is known.
    """
    # A model of theirs cannot be here before their library is: whoever has none does not load it.
    library = sys.modules.get("transformers.modeling_utils")
    if library is None:
        return []
    # A wrapper around a router may change what the router returned: hooked is what experts get.
    outer, modules = outer_and_inner(model)
    specs = _recorders(modules, library.PreTrainedModel)
    places = {name: _router_at(name, module, specs[name]) for name, module in modules.items()}
    routers = {place.router: place.logits_at for place in places.values() if place is not None}
    _check_no_copies(list(routers))
    _check_complete(modules, specs, {n for n, place in places.items() if place}, set(routers))
    tried_before: dict[Any, Meaning] = {}
    sites = []
    _check_one_stream(list(routers), modules, library.PreTrainedModel)
    for name, logits_at in routers.items():
        meaning = meaning_of(modules[name], modules[parent(name)], logits_at, tried_before)
        sites.append(meaning.site(name, outer[name]))
    return sites


def meaning_of(
    router: nn.Module,
    holder: nn.Module,
    logits_at: int,
    tried_before: dict[Any, Meaning] | None = None,
) -> Meaning:
    """What a router's output means: known by the name of its class, or tried.

    Args:
        router: the module that routes.
        holder: the module that it is a part of.
        logits_at: place of the logits in its output.
        tried_before: results of trials of this model, used and added to.

    Raises:
        CaptureError: it cannot be captured; says why.
    """
    if (refused := named(router, REFUSED)) is not None:
        raise CaptureError(
            f"router {refused} cannot be captured: {REFUSED[refused]}. Expected a router whose "
            f"choice its experts follow; record another model, or say what is to be recorded: "
            f"Recorder(..., routers=workbench.Generic(modules=..., read=...))."
        )
    if (known := named(router, EXCEPTIONS)) is not None:
        return EXCEPTIONS[known](router, holder)
    tried_before = {} if tried_before is None else tried_before
    like = (settings(router), logits_at)
    if like not in tried_before:
        tried_before[like] = tried(router, logits_at)
    return tried_before[like]


def _recorders(modules: dict[str, nn.Module], kind: type) -> dict[str, list[Any]]:
    """For each module the recorders of router logits that hold for it: those of the nearest model
    around it, as in transformers.
    """
    holding: dict[str, list[Any]] = {}
    for name, module in modules.items():
        if isinstance(module, kind):
            recorded = getattr(module, "_can_record_outputs", None) or {}
            of_logits = recorded.get("router_logits", [])
            holding[name] = of_logits if isinstance(of_logits, list) else [of_logits]
        else:
            holding[name] = holding.get(parent(name), []) if name else []
    return holding


class _Place(NamedTuple):
    router: str
    """Dotted path."""
    logits_at: int
    """Place of the logits in its output."""


def _router_at(name: str, module: nn.Module, specs: Sequence[Any]) -> _Place | None:
    """The router that a module is or holds, where one of the recorders names it."""
    if specs and named(module, ALSO_ROUTERS) is not None:
        return _Place(name, 0)
    for spec in specs:
        # A recorder is a class alone, or a class with a place and a part of the path.
        target = getattr(spec, "target_class", spec)
        within = (getattr(spec, "layer_name", None) or "").strip(".")
        if not isinstance(target, type) or not isinstance(module, target):
            continue
        if within and f".{within}." not in f".{name}.":
            continue
        if (holder := named(module, WITHIN)) is not None:
            return _Place(f"{name}.{WITHIN[holder]}", 0)
        return _Place(name, getattr(spec, "index", 1))
    return None


def _check_no_copies(routers: Sequence[str]) -> None:
    """An adapter that trains a copy of a router keeps the router itself, which then never runs."""
    for name in routers:
        place, kept, _ = name.partition(".modules_to_save.")
        if kept:
            raise CaptureError(
                f"router {place} is kept twice, as original_module and in modules_to_save, and "
                f"either may run; expected one router a layer. Leave it out of modules_to_save, or "
                f"say which one to read: Recorder(..., routers=workbench.Generic(modules="
                f"lambda path, module: path.endswith('.{place.rpartition('.')[2]}'), read=...))."
            )


def _check_complete(
    modules: dict[str, nn.Module],
    specs: dict[str, list[Any]],
    named_by_model: set[str],
    routers: set[str],
) -> None:
    """Experts beside which no router was found would be missing from the record, silently."""
    covered = named_by_model | {parent(router) for router in routers}
    experts = [n for n, m in modules.items() if type(m).__name__.endswith("Experts") and specs[n]]
    own = {place for place in covered if any(e.startswith(f"{place}.") for e in experts)}
    # One level deeper: the router in a module of its own, without experts, beside the experts.
    holders = {parent(p) for p in {parent(r) for r in routers if "." in r} - own if "." in p}
    for name in experts:
        module = modules[name]
        if parent(name) in holders:
            continue
        if not any(name == place or name.startswith(f"{place}.") for place in covered):
            raise CaptureError(
                f"experts {name} ({type(module).__name__}) have no router beside them that is "
                f"known; expected one of the classes that the model names in "
                f"_can_record_outputs['router_logits']. Say how to read it: "
                f"Recorder(..., routers=workbench.Generic(modules=..., read=...))."
            )


def _check_one_stream(routers: Sequence[str], modules: dict[str, nn.Module], kind: type) -> None:
    """Two models in one, such as an encoder and a decoder, see different tokens, and their counts
    do not fit one record.
    """
    owners: dict[str, str] = {}
    for name in routers:
        above = name
        while above and not isinstance(modules[above], kind):
            above = parent(above)
        owners.setdefault(above, name)
    if len(owners) > 1:
        each = ", ".join(f"{name} in {owner}" for owner, name in owners.items())
        raise CaptureError(
            f"routers of {len(owners)} models that see different tokens: {each}; one record holds "
            f"layers that see the same. Record one: Recorder(model.{next(iter(owners))}, ...)."
        )
