"""Routers of any torch model, found and read as its owner says.

Needs   which modules are routers, and one line that reads what they return.
Yields  Generic, an adapter for `Recorder(model, path, routers=Generic(...))`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from workbench.capture.adapters.module_names import modules_by_name
from workbench.capture.adapters.router_site import Reading, RouterSite, Scores, Show
from workbench.errors import CaptureError, UsageError

# Shapes: T tokens of all rows of one forward, row by row; E experts; K chosen a token.

Which = type | str | Callable[[str, nn.Module], bool]


@dataclass(frozen=True, kw_only=True)
class Generic:
    """How to find and read the routers of a model that no other adapter knows.

    Raises:
        UsageError: numbers that no router has, or a `read` that takes neither one nor three
            arguments.

    Example:
        >>> class Gate(nn.Linear):
        ...     def forward(self, x):
        ...         logits = super().forward(x)
        ...         chosen = logits.softmax(-1).topk(2)
        ...         return logits, chosen.indices, chosen.values
        >>> routers = Generic(modules=Gate, read=lambda o: o, num_experts=8, experts_per_token=2)
        >>> [site.name for site in routers.find(nn.Sequential(nn.Linear(4, 4), Gate(4, 8)))]
        ['1']
    """

    modules: Which
    """Which modules to hook: a class, a regular expression that matches the whole dotted path, or
    a function of path and module."""
    read: Callable[..., Sequence[Tensor]]
    """From a module's output, or from (module, args, output), to logits (..., expert), chosen ids
    (..., k) and gates (..., k). An id of -1 is an assignment that was dropped."""
    num_experts: int
    """Experts of a layer, over all ranks."""
    experts_per_token: int
    scores: Scores = Scores.LOGITS
    """What the logits are: LOGITS, SIGMOID or PROBABILITIES."""

    def __post_init__(self) -> None:
        if not 1 <= self.experts_per_token <= self.num_experts:
            raise UsageError(
                f"num_experts={self.num_experts}, experts_per_token={self.experts_per_token}: a "
                f"token goes to at least one expert and to no more than there are."
            )
        if _arguments(self.read) not in (1, 3):
            raise UsageError(
                f"read takes {_arguments(self.read)} arguments; expected the module's output, or "
                f"(module, args, output)."
            )

    def find(self, model: nn.Module) -> list[RouterSite]:
        """The model's routers, in the order of its modules.

        Raises:
            CaptureError: no module fits.
        """
        found: dict[str, nn.Module] = {}
        for name, module in modules_by_name(model):
            # A wrapper around a router comes first: what it returns is what the experts get.
            if name not in found and self._is_router(name, module):
                found[name] = module
        if not found:
            names = [name for name, _ in modules_by_name(model) if name]
            raise CaptureError(
                f"Generic(modules={self.modules!r}) fits none of the {len(names)} modules of "
                f"{type(model).__name__}; its paths are like {', '.join(names[-3:])}."
            )
        return [
            RouterSite(
                name,
                module,
                self.num_experts,
                self.experts_per_token,
                self.scores,
                self._attach(name, module),
            )
            for name, module in found.items()
        ]

    def _is_router(self, name: str, module: nn.Module) -> bool:
        if isinstance(self.modules, type):
            return isinstance(module, self.modules)
        if isinstance(self.modules, str):
            return re.fullmatch(self.modules, name) is not None
        return self.modules(name, module)

    def _attach(self, name: str, module: nn.Module) -> Callable[[Show], Sequence[RemovableHandle]]:
        whole = _arguments(self.read) == 3

        def attach(show: Show) -> Sequence[RemovableHandle]:
            def hook(called: nn.Module, args: Any, output: Any) -> None:
                # A deep copy of the model (a moving average, a reference) has taken the hook along.
                # By id: what is compiled for the one is run for the other where `is` tells them
                # apart, since that makes no guard (torch 2.13).
                if id(called) == id(module):
                    parts = self.read(module, args, output) if whole else self.read(output)
                    show(self._reading(name, parts))

            return [module.register_forward_hook(hook)]

        return attach

    def _reading(self, name: str, parts: Any) -> Reading:
        E, K = self.num_experts, self.experts_per_token
        if not isinstance(parts, (tuple, list)) or len(parts) != 3:
            several = isinstance(parts, (tuple, list))
            found = f"{len(parts)} things" if several else f"a {type(parts).__name__}"
            raise CaptureError(
                f"router {name}: read returned {found}; expected logits, ids, gates: correct read=."
            )
        if not all(isinstance(part, Tensor) for part in parts):
            kinds = ", ".join(type(part).__name__ for part in parts)
            raise CaptureError(
                f"router {name}: read returned ({kinds}); expected three tensors, logits, ids, "
                f"gates: correct read=."
            )
        logits, ids, gates = parts
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise CaptureError(
                f"router {name}: read returned ids of {ids.dtype}; expected integers, the numbers "
                f"of the experts: correct read=, whose order is logits, ids, gates."
            )
        if not (logits.ndim and ids.ndim):
            raise CaptureError(
                f"router {name}: read returned a number; expected tensors with a row for each "
                f"token: correct read=."
            )
        # Shapes are known without waiting for the device.
        if logits.shape[-1] != E or ids.shape[-1] != K or gates.shape != ids.shape:
            raise CaptureError(
                f"router {name}: read returned logits {tuple(logits.shape)}, ids "
                f"{tuple(ids.shape)}, gates {tuple(gates.shape)}; expected (..., {E}), (..., {K}), "
                f"(..., {K}): correct read=, num_experts= or experts_per_token=."
            )
        if logits.numel() // E != ids.numel() // K:
            raise CaptureError(
                f"router {name}: read returned logits of {logits.numel() // E} tokens and ids of "
                f"{ids.numel() // K}; expected the same tokens, row by row: correct read=."
            )
        # Detached: the record must not keep the graph, nor send a gradient back.
        return Reading(
            logits.detach().reshape(-1, E), ids.detach().reshape(-1, K),
            gates.detach().reshape(-1, K),
        )  # fmt: skip


def _arguments(function: Callable[..., Any]) -> int:
    """Arguments that it must be given by position; 1 where it does not say, as itemgetter."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 1
    by_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = sum(p.default is p.empty for p in by_place)
    # What has a default for everything, or takes any number, is given the output alone.
    takes_one = by_place or any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return required or (1 if takes_one else 0)
