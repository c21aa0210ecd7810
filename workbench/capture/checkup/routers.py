"""What capture would see in a model, without running it.

Needs   a model, on any device, "meta" included.
Yields  Seen, by `examine`: its routers or why they are refused, its embedding, and the states of
        its modules that matter to hooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from workbench.capture.adapters.find import find_routers
from workbench.capture.adapters.module_names import modules_by_name
from workbench.capture.adapters.router_site import RouterSite
from workbench.capture.traces import embedding_of
from workbench.errors import CaptureError


@dataclass(frozen=True, kw_only=True)
class Router:
    """One router, as its adapter reads it."""

    name: str
    kind: str
    """Its class."""
    experts: int
    k: int
    scores: str
    """What its scores are: "logits", "sigmoid" or "probabilities"."""
    training: bool
    """Whether it is in training mode; one in evaluation mode is not counted."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What capture would see."""

    model: str
    """Class of the model."""
    parameters: int
    routers: tuple[Router, ...]
    refusal: str | None
    """Why the routers cannot be captured; None where they can."""
    embedding: str | None
    """Where traces would see token ids: the module's path."""
    no_embedding: str | None
    """Why there is none."""
    vocabulary: int | None
    """Rows of the embedding, where it says so."""
    training: bool
    compiled: tuple[str, ...]
    """Modules that were handed to torch.compile; "" is the model itself."""
    recomputes: tuple[str, ...]
    """Modules whose activations are recomputed in the backward pass, as far as they say so."""


def examine(model: nn.Module, routers: Any = None) -> Seen:
    """Looks at a model; changes nothing.

    Args:
        model: as a recorder would be given it.
        routers: an adapter such as `Generic`, as of the recorder.

    Example:
        >>> seen = examine(nn.Linear(2, 2))
        >>> seen.routers, seen.refusal[:26]
        ((), 'found no router in Linear;')
    """
    sites: Sequence[RouterSite] = ()
    refusal = no_embedding = None
    embedding: nn.Module | None = None
    try:
        sites = find_routers(model, routers)
    except CaptureError as error:
        refusal = str(error)
    try:
        embedding = embedding_of(model)
    except CaptureError as error:
        no_embedding = str(error)
    modules = list(modules_by_name(model))
    return Seen(
        model=type(_inner(model)).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        routers=tuple(_router(site) for site in sites),
        refusal=refusal,
        embedding=next((name for name, m in modules if m is embedding), None),
        no_embedding=no_embedding,
        vocabulary=getattr(embedding, "num_embeddings", None),
        training=model.training,
        compiled=_each(name for name, m in modules if _is_compiled(m)),
        recomputes=_each(name for name, m in modules if _recomputes(m)),
    )


def _router(site: RouterSite) -> Router:
    return Router(
        name=site.name, kind=type(site.module).__name__, experts=site.num_experts,
        k=site.experts_per_token, scores=site.scores.name.lower(), training=site.module.training,
    )  # fmt: skip


def _inner(model: nn.Module) -> nn.Module:
    return [module for name, module in modules_by_name(model) if not name][-1]


def _each(names: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _is_compiled(module: nn.Module) -> bool:
    # torch.compile(module) wraps it; module.compile() sets the other.
    wrapped = type(module).__name__ == "OptimizedModule" and hasattr(module, "_orig_mod")
    return wrapped or getattr(module, "_compiled_call_impl", None) is not None


def _recomputes(module: nn.Module) -> bool:
    # transformers' flag; torch's wrapper.
    said = getattr(module, "gradient_checkpointing", False) is True
    return said or hasattr(module, "_checkpoint_wrapped_module")
