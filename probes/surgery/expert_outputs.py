"""Expert outputs: what every expert of a layer answers to the same hidden states, chosen or not.

Needs   a Subject of our own model: its experts' matrices are read, which other models keep in other
        shapes.
Yields  the experts of each layer; their outputs on given hidden states, before the gate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.experts import Experts, gated_unit
from probes.subject import Subject
from workbench.errors import UsageError

EXPERT_INPUT = "blocks.{layer}.ln2.hook_normalized"
"""The site whose tokens (layer, token, d_model) router and experts read."""

# Shapes: T tokens, D d_model, F d_mlp, E experts.


def experts_of(subject: Subject) -> list[Experts]:
    """The experts of each layer, in the order of the layers.

    Raises:
        UsageError: a model that is not our own kind (model.lm.MoELM).
    """
    found = [module for module in subject.model.modules() if isinstance(module, Experts)]
    if not found:
        raise UsageError(
            f"found a {type(subject.model).__name__} without model.experts.Experts; this probe "
            f"reads the experts' matrices, whose place only our own model (model.lm.MoELM) tells. "
            f"A DBRX folder becomes one by model.hf.load_hf."
        )
    return found


def expert_output(x_TD: Tensor, W_gate_in: Tensor, W_out: Tensor) -> Tensor:
    """(silu(x W_gate) * (x W_in)) W_out of one expert, (T, d_model); or of many, (E, T, d_model).

    Args:
        W_gate_in: ([E,] D, 2 F).
        W_out: ([E,] F, D).

    Example:
        >>> one = torch.ones(1, 1)
        >>> round(expert_output(one, torch.ones(1, 2), 2 * one).item(), 3)  # 2 silu(1)
        1.462
    """
    gate, up = (x_TD @ W_gate_in).chunk(2, dim=-1)
    return gated_unit(gate, up) @ W_out


def all_outputs(experts: Experts, x_TD: Tensor) -> Tensor:
    """Every expert's output on every token, (E, T, d_model), float32."""
    x_TD = x_TD.to(experts.W_out.device)
    with torch.no_grad():
        return torch.stack(
            [
                expert_output(x_TD.to(W_gate_in.dtype), W_gate_in, W_out).float()
                for W_gate_in, W_out in zip(experts.W_gate_in, experts.W_out, strict=True)
            ]
        )
