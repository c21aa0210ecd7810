"""The insides of experts: for chosen layers, the hidden row of every probe token that each expert
received.

Needs   a model whose experts show that row at a hook point (ours), or hold their weights in the
        uniform layout of transformers, from which the row is computed again.
Yields  Interiors: rows of all experts end to end (row, d_mlp), and offsets into them.

The row is the expert's hidden layer after its gated unit: what its last matrix reads, not yet
weighted by the gate. An expert receives as many tokens as the router sends it, so the rows are
ragged (store/ragged.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from workbench.capture.activations import HELD
from workbench.capture.adapters.module_names import outer_and_inner, parent
from workbench.capture.adapters.router_site import Reading, RouterSite
from workbench.errors import CaptureError, UsageError
from workbench.store.schema import INTERIORS, Variable

# Shapes: T tokens of a forward, K experts chosen a token, N = T x K assignments sorted by expert, D
# model width, F hidden width of an expert, E experts.


@dataclass
class _Layer:
    """What one layer has shown since the pass began."""

    tokens: int = 0
    ids_TK: Tensor | None = None
    gates_TK: Tensor | None = None
    expert_N: list[Tensor] = field(default_factory=list)
    token_N: list[Tensor] = field(default_factory=list)
    gate_N: list[Tensor] = field(default_factory=list)
    hidden_NF: list[Tensor] = field(default_factory=list)

    def routed(self, ids_TK: Tensor, gates_TK: Tensor) -> None:
        """The router's choice, which the hidden rows of the same forward follow."""
        self.ids_TK, self.gates_TK = ids_TK.detach(), gates_TK.detach()

    def show(self, hidden_NF: Tensor) -> None:
        """Hidden rows in the order of `_sorted`."""
        assert self.ids_TK is not None
        assert self.gates_TK is not None
        order_N = _sorted(self.ids_TK)
        self.expert_N.append(self.ids_TK.flatten()[order_N].cpu())
        self.token_N.append((order_N // self.ids_TK.shape[1]).cpu() + self.tokens)
        self.gate_N.append(self.gates_TK.flatten()[order_N].float().cpu())
        self.hidden_NF.append(hidden_NF.detach().to("cpu", copy=True))
        self.tokens += len(self.ids_TK)
        self.ids_TK = self.gates_TK = None


def _sorted(ids_TK: Tensor) -> Tensor:
    """Assignments by expert, within an expert by token; those of no expert (-1) left out.

    Example:
        >>> _sorted(torch.tensor([[1, 0], [-1, 1]])).tolist()
        [1, 0, 3]
    """
    ids_N = ids_TK.flatten()
    order_N = ids_N.argsort(stable=True)
    return order_N[ids_N[order_N] >= 0]


class Interiors:
    """Keeps the hidden rows of experts while the probe set runs.

    Args:
        model: as it is, or wrapped.
        routers: of the model, in the order of its layers.
        layers: which of them to look into, as places among `routers`.

    Raises:
        UsageError: a layer that is not there.
        CaptureError: experts whose insides cannot be had; says why.
    """

    def __init__(
        self, model: nn.Module, routers: Sequence[RouterSite], layers: Sequence[int]
    ) -> None:
        wrong = [layer for layer in layers if not 0 <= layer < len(routers)]
        if wrong:
            raise UsageError(
                f"interiors of layers {wrong}: the model has routers 0 to {len(routers) - 1}."
            )
        self.routers = routers
        self._experts = {layer: experts_of(model, routers[layer]) for layer in layers}
        self._shown: dict[int, _Layer] = {}

    def attach(self) -> list[RemovableHandle]:
        """Hooks the experts."""
        self._shown = {layer: _Layer() for layer in self._experts}
        handles: list[RemovableHandle] = []
        for layer, experts in self._experts.items():
            handles += _watch(experts, self.routers[layer], self._shown[layer])
        return handles

    def take(self) -> tuple[dict[str, np.ndarray], dict[str, Variable]]:
        """Rows and offsets as the store's group `interiors` takes them; forgets them here.

        Returns:
            values (row, d_mlp) float32, token (row,) int32, gate (row,) float32, offsets
            (1, layer, expert + 1) int64, counted from the first row; and what describes the values.
        """
        E = self.routers[0].num_experts
        offsets = np.zeros((1, len(self.routers), E + 1), np.int64)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        rows = 0
        for layer in range(len(self.routers)):
            counts = np.zeros(E, np.int64)
            shown = self._shown.get(layer)
            if shown is not None and shown.hidden_NF:
                expert_N = torch.cat(shown.expert_N)
                by_expert_N = expert_N.argsort(stable=True)
                counts = np.bincount(expert_N.numpy(), minlength=E)
                parts.append(
                    (
                        torch.cat(shown.hidden_NF)[by_expert_N],
                        torch.cat(shown.token_N)[by_expert_N],
                        torch.cat(shown.gate_N)[by_expert_N],
                    )
                )
            offsets[0, layer] = rows + np.concatenate([[0], np.cumsum(counts)])
            rows = int(offsets[0, layer, -1])
        self._shown = {}
        if not parts:
            raise CaptureError("no expert was run while the probe set passed: nothing to keep.")
        values, token, gate = (torch.cat(of_layers) for of_layers in zip(*parts, strict=True))
        if HELD.get(values.dtype) != "float32":
            raise CaptureError(
                f"interiors of {values.dtype}: the record holds float32, and bfloat16 and float16 "
                f"widened to it; convert a copy of the model, or record without interiors."
            )
        dtype = str(values.dtype).removeprefix("torch.")
        declared = replace(INTERIORS["values"], widened_from="" if dtype == "float32" else dtype)
        return {
            "values": values.float().numpy(),
            "token": token.numpy().astype(np.int32),
            "gate": gate.numpy(),
            "offsets": offsets,
        }, {"values": declared}


def experts_of(model: nn.Module, router: RouterSite) -> nn.Module:
    """The experts that a router feeds: the module beside it that can be looked into.

    Raises:
        CaptureError: there is none; says what was found and what it lacks.
    """
    _, modules = outer_and_inner(model)
    place = router.name
    reasons = []
    # Beside the router, or beside the module that holds it.
    for above in (place, parent(place), parent(parent(place))):
        prefix = f"{above}." if above else ""
        beside = {n: m for n, m in modules.items() if n.startswith(prefix) and n != place}
        for name, module in beside.items():
            lack = _lacks(module)
            if lack == "":
                return module
            if lack is not None:
                reasons.append(f"{name} ({type(module).__name__}): {lack}")
        if reasons:
            break
    found = "; ".join(reasons) or "found no module that holds the weights of several experts"
    raise CaptureError(
        f"the interiors of the experts of router {place} cannot be had: {found}. Expected a hook "
        f"point hook_post, or gate_up_proj and down_proj in the uniform layout of transformers: "
        f"record without interiors of this layer."
    )


def _lacks(module: nn.Module) -> str | None:
    """Why experts cannot be looked into: "" where they can, None where these are no experts."""
    if isinstance(getattr(module, "hook_post", None), nn.Module) and hasattr(module, "num_experts"):
        return ""
    if not (hasattr(module, "gate_up_proj") or hasattr(module, "up_proj")):
        return None
    weights = getattr(module, "gate_up_proj", getattr(module, "up_proj", None))
    if not isinstance(weights, Tensor) or weights.dim() != 3:
        return None
    needed = ("has_gate", "has_bias", "is_transposed", "_apply_gate", "down_proj")
    missing = [name for name in needed if not hasattr(module, name)]
    if missing:
        return f"its weights are not in the uniform layout, it has no {', '.join(missing)}"
    if getattr(module, "_is_expert_parallel", False):
        return "its experts are spread over ranks"
    return ""


def _watch(experts: nn.Module, router: RouterSite, layer: _Layer) -> list[RemovableHandle]:
    if hasattr(experts, "hook_post"):

        def keep(reading: Reading) -> None:
            layer.routed(reading.ids_TK, reading.gates_TK)

        point: Any = experts.hook_post
        shown = point.register_forward_hook(lambda module, inputs, output: layer.show(output))
        return [*router.attach(keep), shown]

    def before(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        order = ("hidden_states", "top_k_index", "top_k_weights")
        asked = dict(zip(order, inputs, strict=False)) | named
        x_TD, ids_TK, gates_TK = (asked[name] for name in order)
        layer.routed(ids_TK, gates_TK)
        layer.show(hidden_rows(experts, x_TD.reshape(-1, x_TD.shape[-1]), ids_TK))

    return [experts.register_forward_pre_hook(before, with_kwargs=True)]


def hidden_rows(experts: Any, x_TD: Tensor, ids_TK: Tensor) -> Tensor:
    """(N, F): hidden rows of experts in the uniform layout of transformers, computed expert by
    expert as its own plain loop does.

    Source: transformers/integrations/moe.py, transformers 5.23.
    """
    order_N = _sorted(ids_TK)
    expert_N, token_N = ids_TK.flatten()[order_N], order_N // ids_TK.shape[1]
    name = "gate_up_proj" if experts.has_gate else "up_proj"
    weights = getattr(experts, name)
    biases = getattr(experts, f"{name}_bias") if experts.has_bias else [None] * len(weights)
    unit: Callable[[Tensor], Tensor] = experts._apply_gate if experts.has_gate else experts.act_fn
    rows = []
    for e in range(len(weights)):
        x_nD = x_TD[token_N[expert_N == e]]
        weight = weights[e].T if experts.is_transposed else weights[e]
        rows.append(unit(F.linear(x_nD, weight, biases[e])))
    return torch.cat(rows)
