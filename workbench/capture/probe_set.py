"""The fixed probe set: the same held-out tokens at every checkpoint, and what a model does with
them.

Needs   rows of tokens with the domain of each, the routers of a model, and what else is asked for:
        sites (activations.py), the insides of experts (interiors.py).
Yields  ProbeSet; `route`, expert ids (token, layer, k) and probabilities (token, layer, expert);
        ProbeReader, everything of one checkpoint as rows for the store.

On the training stream a router's load drifts because the router changes and because the data do; on
fixed tokens only the first remains.

The model runs eagerly, in evaluation mode and without gradients, and is left as it was: every
module's training flag, the state of the random number generators, the hooks. A compiled model runs
uncompiled, because hooks added after its first compiled call would never fire. Where parameters are
sharded over ranks a forward needs all of them: then every rank reads the probe set.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from workbench.capture.activations import Activations
from workbench.capture.adapters.router_site import Reading, RouterSite, probabilities
from workbench.capture.interiors import Interiors
from workbench.errors import UsageError
from workbench.store.schema import ACTIVATIONS, COORDINATES, SITES, Variable

TAKEN = {*ACTIVATIONS, *COORDINATES[SITES]} | {
    dim for variable in ACTIVATIONS.values() for dim in variable.dims
}
"""Names in the group of the sites that mean something else."""
TOKENS_AT_ONCE = 2048
"""Tokens of one forward: its logits over 100,000 words take 0.8 GiB in float32."""


@dataclass(frozen=True)
class ProbeSet:
    """Held-out rows, and the domain each comes from."""

    tokens: np.ndarray
    """(row, pos), int64."""
    domains: tuple[str, ...]
    """One name a row."""

    def __post_init__(self) -> None:
        tokens: Any = self.tokens
        if isinstance(tokens, Tensor):
            tokens = tokens.detach().cpu().numpy()
        if not isinstance(tokens, np.ndarray) or tokens.ndim != 2 or tokens.dtype.kind not in "iu":
            found = (
                f"{tokens.dtype} of shape {tokens.shape}"
                if isinstance(tokens, np.ndarray)
                else f"a {type(tokens).__name__}"
            )
            raise UsageError(
                f"probe tokens: found {found}, expected an array of integers (row, pos): "
                f"np.asarray(rows, dtype=np.int64)."
            )
        if not tokens.size:
            raise UsageError(
                f"probe tokens of shape {tokens.shape}: expected 1 row or more of 1 token or more."
            )
        if tokens.min() < 0:
            raise UsageError(
                f"probe tokens: found {tokens.min()}, expected ids of the vocabulary, from 0."
            )
        names: Any = self.domains
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise UsageError(
                f"probe domains: found {names!r}, expected a name for each row: "
                f'("web",) * {len(tokens)}.'
            )
        if len(names) != len(tokens):
            raise UsageError(
                f"probe domains: found {len(names)} names for {len(tokens)} rows, expected one a "
                f"row."
            )
        object.__setattr__(self, "tokens", tokens.astype(np.int64, copy=False))
        object.__setattr__(self, "domains", tuple(names))


class Watch(Protocol):
    """Whoever looks on while the probe set runs."""

    def attach(self) -> Iterable[RemovableHandle]:
        """Hooks the model; the handles undo it."""


class Portion(NamedTuple):
    """Rows for one group of the store."""

    group: str
    rows: dict[str, np.ndarray]
    declared: Mapping[str, Variable]
    """Variables that the schema cannot know, as `StoreWriter.append` takes them."""


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[Callable[[Tensor], Any]]:
    """Yields the model's forward, eager, in evaluation mode; afterwards all is as it was."""
    inner: nn.Module = model
    while isinstance(inner, DistributedDataParallel) or hasattr(inner, "_orig_mod"):
        # DDP would wait for the other ranks before a forward.
        inner = inner.module if isinstance(inner, DistributedDataParallel) else inner._orig_mod  # type: ignore[assignment]
    device = next(inner.parameters()).device
    trained = [module for module in model.modules() if module.training]
    devices = [device] if device.type == "cuda" else []
    # Where the compiler was never loaded nothing is compiled, and loading it takes seconds.
    compiled = "torch._dynamo" in sys.modules
    eagerly = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    with torch.no_grad(), torch.random.fork_rng(devices=devices), eagerly:
        model.eval()
        try:
            yield lambda tokens: inner(tokens.to(device))
        finally:
            for module in trained:
                module.training = True


def run(model: nn.Module, probe: ProbeSet, watches: Sequence[Watch]) -> None:
    """Shows the probe set to the model, some rows at a time, while `watches` look on."""
    rows_at_once = max(1, TOKENS_AT_ONCE // probe.tokens.shape[1])
    handles = [handle for watch in watches for handle in watch.attach()]
    try:
        with undisturbed(model) as forward:
            for first in range(0, len(probe.tokens), rows_at_once):
                forward(torch.from_numpy(probe.tokens[first : first + rows_at_once]))
    finally:
        for handle in handles:
            handle.remove()


class _Routes:
    """What all routers did with the probe set."""

    def __init__(self, routers: Sequence[RouterSite]) -> None:
        self.routers = routers
        self.seen: list[list[Reading]] = [[] for _ in routers]

    def attach(self) -> list[RemovableHandle]:
        pairs = zip(self.seen, self.routers, strict=True)
        return [handle for seen, router in pairs for handle in router.attach(seen.append)]

    def take(self) -> dict[str, np.ndarray]:
        ids = [torch.cat([r.ids_TK for r in seen]).cpu().numpy() for seen in self.seen]
        probs = [
            torch.cat([probabilities(r.logits_TE, router.scores) for r in seen]).cpu().numpy()
            for seen, router in zip(self.seen, self.routers, strict=True)
        ]
        return {
            "expert_ids": np.stack(ids, axis=1).astype(np.int16),
            "router_probs": np.stack(probs, axis=1).astype(np.float32),
        }


def route(
    model: nn.Module, routers: Sequence[RouterSite], probe: ProbeSet
) -> dict[str, np.ndarray]:
    """How each router treats the probe set.

    Returns:
        expert_ids (token, layer, k) int16; router_probs (token, layer, expert) float32; tokens row
        by row.
    """
    routes = _Routes(routers)
    run(model, probe, [routes])
    return routes.take()


def _check_asked(sites: Any, interiors: Any) -> None:
    """UsageError where what is asked for is no list, or cannot stand in the record."""
    if isinstance(sites, str):
        raise UsageError(f"sites is one string; expected a list of names: sites=[{sites!r}].")
    layers = list(interiors) if isinstance(interiors, Iterable) else []
    numbers = all(isinstance(one, Integral) and not isinstance(one, bool) for one in layers)
    if not isinstance(interiors, Iterable) or not numbers:
        raise UsageError(
            f"interiors={interiors!r}: expected a list of layers, by number, such as interiors=[0]."
        )
    for name in sites:
        if not isinstance(name, str):
            raise UsageError(f"site {name!r}: expected a name, as dict(model.named_modules()) has.")
        if name in TAKEN or "/" in name:
            raise UsageError(
                f"site {name!r} cannot be recorded under its name: a name in the record holds no "
                f"'/' and is none of {', '.join(sorted(TAKEN))}. Give the module another name."
            )


@dataclass
class ProbeReader:
    """Everything that is recorded of the probe set at a checkpoint, in one pass.

    Args:
        model, routers, probe: what runs, and on what.
        sites: names of sites to keep whole, of TransformerLens or of modules.
        interiors: layers whose experts' hidden rows are kept.

    Raises:
        UsageError: (when it is made) a site or layer that the model does not have.
        CaptureError: (when it is made) experts that cannot be looked into; says why.
    """

    model: nn.Module
    routers: Sequence[RouterSite]
    probe: ProbeSet
    sites: Sequence[str] = ()
    interiors: Sequence[int] = ()
    _activations: Activations | None = field(default=None, init=False, repr=False)
    _interiors: Interiors | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        _check_asked(self.sites, self.interiors)
        if self.sites:
            self._activations = Activations(self.model, self.sites)
        if self.interiors:
            self._interiors = Interiors(self.model, self.routers, self.interiors)

    def read(self, step: int, tokens_seen: int) -> list[Portion]:
        """Runs the probe set; the rows are those of one checkpoint.

        Args:
            step: of the checkpoint.
            tokens_seen: training tokens that it has learned from.
        """
        labels = {"checkpoint": np.array([step]), "tokens_seen": np.array([tokens_seen])}
        routes = _Routes(self.routers)
        watches: list[Watch] = [routes]
        if self._activations is not None:
            if not self._activations.learnt:
                with undisturbed(self.model) as forward:
                    self._activations.learn(forward, torch.from_numpy(self.probe.tokens[:1]))
            watches.append(self._activations)
        if self._interiors is not None:
            watches.append(self._interiors)
        run(self.model, self.probe, watches)
        rows = labels | {name: values[None] for name, values in routes.take().items()}
        declared: dict[str, Variable] = {}
        if self._activations is not None:
            for name, (values, variable) in self._activations.take().items():
                rows[name], declared[name] = values[None], variable
        portions = [Portion("activations", rows, declared)]
        if self._interiors is not None:
            inside, declared = self._interiors.take()
            portions.append(Portion("interiors", labels | inside, declared))
        return portions
