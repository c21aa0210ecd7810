"""Parts: which parameter of a model belongs to its routers, its experts, its attention, and so on.

Needs   a mixture-of-experts model: ours, or one of Hugging Face.
Yields  `places`: parameter -> Place (kind, layer, how it divides into experts);
        `parts_of`: the model cut into Parts at a grain, every parameter in exactly one.

Kinds   router       what decides which experts a token gets, and how much of each
        experts      the experts, those shared by all tokens among them
        attention    projections that mix positions (linear attention too), experts inside attention
        norms        every normalisation, those inside attention too
        embeddings   of the tokens, in and out; a tied pair is one parameter and so one part
        other        the rest: dense feed-forward blocks, state-space mixers, residual scales

Grains  "kind"         one part a kind
        "layer"        one part a block, and the kinds outside the blocks
        "kind-layer"   one part for each kind of each block, and the kinds outside the blocks
        "expert"       as "kind-layer", with each expert on its own

Buffers that a checkpoint keeps, such as the correction bias of a DeepSeek router, count as
parameters. A layer is a block counted from 0, dense blocks too; -1 is outside the blocks. Kinds are
told by where a module stands and what it is called; the routers are those that capture finds. A
model that hides an expert under a name of its own falls to "other": look at `places` once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from workbench.capture.adapters.find import find_routers
from workbench.capture.adapters.module_names import parent
from workbench.errors import CaptureError, UsageError

Kind = Literal["router", "experts", "attention", "norms", "embeddings", "other"]
Grain = Literal["kind", "layer", "kind-layer", "expert"]

KINDS: tuple[Kind, ...] = ("router", "experts", "attention", "norms", "embeddings", "other")
GRAINS: tuple[Grain, ...] = ("kind", "layer", "kind-layer", "expert")

_ATTENTION = re.compile(r"attn|attention")
_NORM = re.compile(r"norm|^ln(_|\d|$)")
_ROUTER = re.compile(r"^(router|gate|gating|router_gate|shared_expert_gate)$")
_EXPERTS = re.compile(r"expert|shared_mlp")
_SHARED = re.compile(r"shared")
_EMBEDDING = re.compile(r"embed|^(wte|wpe|lm_head|shared|output_layer)$")
_NORM_CLASS = re.compile(r"RMSNorm|LayerNorm")
_EXPERTS_CLASS = re.compile(r"Experts|(MoE|MoeBlock)$")
_BIAS = re.compile(r"correction_bias|balancing_bias|^expert_bias$")
_OWN_NUMBER = re.compile(r"(?:^|\.)experts\.(?:expert_)?(\d+)(?:\.|$)")
_COUNTS = ("num_experts", "moe_num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class Place:
    """Where one parameter sits in the model."""

    kind: Kind
    layer: int
    """Block, from 0; -1: in none."""
    block: str
    """Name of the block, such as "blocks.1"; "" in none."""
    expert: int = -1
    """The expert that it is a weight of; -1: of none, or of several."""
    stacked: int = 0
    """Experts that lie one after the other along its first axis; 0: it is not of that kind."""


@dataclass(frozen=True)
class Slice:
    """A parameter, or one expert's stretch of it."""

    parameter: str
    expert: int = -1
    """-1: all of it."""
    stacked: int = 0
    """Experts along the first axis, where `expert` is one of them."""

    def of(self, tensor: Tensor) -> Tensor:
        """The stretch of a tensor that this slice means; shares its memory."""
        if self.expert < 0:
            return tensor
        length = tensor.shape[0] // self.stacked
        return tensor[self.expert * length : (self.expert + 1) * length]


@dataclass(frozen=True)
class Part:
    """Parameters that are moved together."""

    name: str
    """Such as "router", "blocks.1 experts", "blocks.1 expert 7"."""
    kind: str
    """One of KINDS; "block" at the grain "layer"."""
    layer: int
    """Block, from 0; -1: outside the blocks, or in all of them."""
    expert: int
    """-1: not a single expert."""
    slices: tuple[Slice, ...]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter, and every buffer that checkpoints keep, by name; tied ones once.

    Example:
        >>> list(tensors_of(nn.BatchNorm1d(2)))
        ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    """
    kept = set(model.state_dict(keep_vars=True))
    found: dict[str, Tensor] = dict(model.named_parameters())
    found.update((name, buffer) for name, buffer in model.named_buffers() if name in kept)
    return found


def places(model: nn.Module) -> dict[str, Place]:
    """Where each parameter of a model sits.

    Example:
        >>> from model.config import NANO
        >>> from model.lm import MoELM
        >>> place = places(MoELM(NANO))["blocks.1.mlp.experts.W_out"]
        >>> place.kind, place.layer, place.stacked
        ('experts', 1, 16)
    """
    tensors = tensors_of(model)
    routers = _router_names(model)
    lists = {found[0] for name in tensors if (found := _block(name))}
    return {name: _place(model, name, tensors[name], routers, len(lists)) for name in tensors}


def parts_of(model: nn.Module, grain: Grain = "kind") -> tuple[Part, ...]:
    """The model's parts; together they hold every parameter exactly once.

    Args:
        model: ours or of Hugging Face, with routers or without.
        grain: "kind", "layer", "kind-layer" or "expert"; the head of this file says what each is.

    Returns:
        Parts in the order of the blocks, within them of KINDS; outside the blocks last.

    Raises:
        UsageError: no such grain.

    Example:
        >>> from model.config import NANO
        >>> from model.lm import MoELM
        >>> [part.name for part in parts_of(MoELM(NANO))]
        ['router', 'experts', 'attention', 'norms', 'embeddings']
        >>> [part.name for part in parts_of(MoELM(NANO), "kind-layer")][-3:]
        ['blocks.2 norms', 'norms outside the blocks', 'embeddings']
    """
    if grain not in GRAINS:
        raise UsageError(f"grain={grain!r}: expected one of {', '.join(GRAINS)}.")
    members: dict[tuple[str, str, int, int], list[Slice]] = {}
    for name, place in places(model).items():
        for piece in _pieces(name, place, grain):
            members.setdefault(_label(place, piece.expert, place.expert, grain), []).append(
                piece if piece.stacked else Slice(name)
            )
    return tuple(
        Part(name, kind, layer, expert, tuple(slices))
        for (name, kind, layer, expert), slices in sorted(members.items(), key=_order)
    )


def _pieces(name: str, place: Place, grain: Grain) -> Iterator[Slice]:
    if grain == "expert" and place.stacked:
        for expert in range(place.stacked):
            yield Slice(name, expert, place.stacked)
    else:
        yield Slice(name)


def _label(place: Place, piece: int, own: int, grain: Grain) -> tuple[str, str, int, int]:
    """(name, kind, layer, expert) of the part that a piece of a parameter belongs to."""
    if grain == "kind":
        return place.kind, place.kind, -1, -1
    if place.layer < 0:
        # "norms" alone would sound like all of them.
        alone = place.kind if place.kind == "embeddings" else f"{place.kind} outside the blocks"
        return alone, place.kind, -1, -1
    if grain == "layer":
        return place.block, "block", place.layer, -1
    if grain == "expert" and place.kind == "experts":
        expert = max(piece, own)
        if expert >= 0:
            return f"{place.block} expert {expert}", "experts", place.layer, expert
        return f"{place.block} shared experts", "experts", place.layer, -1
    return f"{place.block} {place.kind}", place.kind, place.layer, -1


def _order(member: tuple[tuple[str, str, int, int], list[Slice]]) -> tuple[int, int, str, int]:
    name, kind, layer, expert = member[0]
    rank = KINDS.index(kind) if kind in KINDS else 0
    last = 1_000_000
    own = expert if expert >= 0 else last
    return (layer if layer >= 0 else last, rank, name.partition(" ")[0], own)


def _router_names(model: nn.Module) -> set[str]:
    """Modules that are a router and nothing else."""
    try:
        sites = find_routers(model)
    except CaptureError:
        # Not every router can be captured; its name then has to do.
        return set()
    by_id = {id(module): name for name, module in model.named_modules()}
    inside = {by_id[id(site.module)]: site.module for site in sites if id(site.module) in by_id}
    # The module that a site hooks may hold the experts as well: then the names inside it tell.
    return {
        name
        for name, module in inside.items()
        if not any(_EXPERTS.search(type(m).__name__.lower()) for m in module.modules())
        and not any(isinstance(m, nn.Embedding) for m in module.modules())
    }


def _block(name: str) -> tuple[str, int] | None:
    """The list of blocks that a parameter is in and the number of its block."""
    steps = name.split(".")
    for at, step in enumerate(steps):
        if step.isdigit():
            return ".".join(steps[:at]), int(step)
    return None


def _place(
    model: nn.Module, name: str, tensor: Tensor, routers: set[str], n_lists: int
) -> Place:  # fmt: skip
    found = _block(name)
    layer = found[1] if found else -1
    # Several lists of blocks (an encoder, a decoder) keep their names, so that none are confused.
    block = "" if found is None else f"blocks.{layer}" if n_lists == 1 else f"{found[0]}.{layer}"
    kind = _kind(model, name, layer, routers)
    if kind != "experts" or layer < 0:
        return Place(kind, layer, block)
    if (own := _OWN_NUMBER.search(name)) and not _SHARED.search(name):
        return Place(kind, layer, block, expert=int(own[1]))
    return Place(kind, layer, block, stacked=_stacked(model, name, tensor))


def _kind(model: nn.Module, name: str, layer: int, routers: set[str]) -> Kind:
    steps = name.lower().split(".")
    # The number of a block and what stands before it say nothing of the kind.
    if layer >= 0:
        steps = steps[next(i for i, s in enumerate(steps) if s.isdigit()) + 1 :]
    above = _modules_above(model, name)
    classes = [type(module).__name__ for module in above]
    embedding = bool(above) and isinstance(above[0], nn.Embedding)
    if any(name.startswith(f"{router}.") for router in routers) or _BIAS.search(steps[-1]):
        return "router"
    if not embedding and (
        any(map(_NORM_CLASS.search, classes)) or any(map(_NORM.search, steps[-2:]))
    ):
        return "norms"
    if any(map(_ATTENTION.search, steps)) or (
        layer >= 0 and any("Attention" in c for c in classes)
    ):
        return "attention"
    if any(map(_ROUTER.search, steps[:-1])):
        return "router"
    if any(map(_EXPERTS.search, steps)) or any(map(_EXPERTS_CLASS.search, classes)):
        return "experts"
    if layer < 0 and (embedding or any(map(_EMBEDDING.search, steps))):
        return "embeddings"
    return "other"


def _modules_above(model: nn.Module, name: str) -> list[nn.Module]:
    """The modules that hold a parameter, the innermost first, up to its block and without it."""
    found = _block(name)
    end = f"{found[0]}.{found[1]}".lstrip(".") if found else ""
    above, held = parent(name), []
    while above not in (end, ""):
        held.append(model.get_submodule(above))
        above = parent(above)
    return held


def _stacked(model: nn.Module, name: str, tensor: Tensor) -> int:
    """How many experts lie along the first axis; 0: it is of all experts at once."""
    if _SHARED.search(name) or tensor.ndim < 2:
        return 0
    above = _modules_above(model, name)
    # One row an expert, or (expert, ...).
    if tensor.ndim >= 3 or isinstance(above[0], nn.Embedding):
        return tensor.shape[0]
    if not _EXPERTS.search(name.lower()):
        return 0
    # Fused as (expert x rows, ...).
    counts = [getattr(module, n, None) for module in above for n in _COUNTS]
    return next((c for c in counts if isinstance(c, int) and tensor.shape[0] % c == 0), 0)
