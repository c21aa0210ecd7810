"""A mixture-of-experts language model in plain torch, for machines that have torch alone.

Needs   a Shape, a device and a dtype.
Yields  PlainMoE: `model(tokens)` is the loss of predicting each token from those before it;
        `router_sites`, its routers as capture knows them.

With `grouped` the experts run as one grouped matrix product over tokens sorted by expert, and the
host never waits; without, every expert runs on every token, which any device can do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workbench.capture.adapters.router_site import Reading, RouterSite, Scores, on_output

# Shapes: B rows, P positions, T = B x P tokens, M model width, H expert width, E experts, K chosen.


@dataclass(frozen=True)
class Shape:
    """Sizes of a model."""

    vocabulary: int = 512
    d_model: int = 64
    d_expert: int = 64
    layers: int = 3
    heads: int = 4
    experts: int = 8
    k: int = 2
    length: int = 32
    grouped: bool = False


TOY = Shape()
M420 = Shape(32_768, 1024, 512, 12, 16, 16, 4, 1024, grouped=True)
"""420 million parameters, 193 million of them at work on a token."""


class Routing(NamedTuple):
    """What a router returns."""

    logits_TE: Tensor
    ids_TK: Tensor
    gates_TK: Tensor


class Router(nn.Module):
    """Softmax over all experts, the k most probable, their weights scaled to sum to 1."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.k = shape.k
        self.weight = nn.Parameter(torch.empty(shape.experts, shape.d_model))

    def forward(self, x_TM: Tensor) -> Routing:
        logits_TE = F.linear(x_TM, self.weight)
        probs_TK, ids_TK = logits_TE.float().softmax(-1).topk(self.k, -1)
        return Routing(logits_TE, ids_TK, probs_TK / probs_TK.sum(-1, keepdim=True))


class Experts(nn.Module):
    """Gated feed-forward networks, one an expert."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        E, M, H = shape.experts, shape.d_model, shape.d_expert
        self.grouped = shape.grouped
        self.w_in = nn.Parameter(torch.empty(E, M, 2 * H))
        self.w_out = nn.Parameter(torch.empty(E, H, M))

    def forward(self, x_TM: Tensor, routing: Routing) -> Tensor:
        return self._grouped(x_TM, routing) if self.grouped else self._dense(x_TM, routing)

    def _dense(self, x_TM: Tensor, routing: Routing) -> Tensor:
        gates_TK = routing.gates_TK.to(x_TM.dtype)
        gate_TE = torch.zeros_like(routing.logits_TE).scatter(1, routing.ids_TK, gates_TK)
        up, gate = torch.einsum("tm,emh->eth", x_TM, self.w_in).chunk(2, -1)
        out_ETM = torch.einsum("eth,ehm->etm", F.silu(gate) * up, self.w_out)
        return torch.einsum("etm,te->tm", out_ETM, gate_TE)

    def _grouped(self, x_TM: Tensor, routing: Routing) -> Tensor:
        K = routing.ids_TK.shape[1]
        product = getattr(F, "grouped_mm", None) or torch._grouped_mm
        flat_N = routing.ids_TK.flatten()
        order_N = flat_N.argsort()
        # Not bincount: it sizes its result from the data, so the host waits.
        count_E = torch.zeros(len(self.w_in), dtype=torch.int32, device=x_TM.device)
        count_E.scatter_add_(0, flat_N, torch.ones_like(flat_N, dtype=torch.int32))
        ends_E = count_E.cumsum(0, dtype=torch.int32)
        up, gate = product(x_TM[order_N // K], self.w_in, offs=ends_E).chunk(2, -1)
        out_NM = product(F.silu(gate) * up, self.w_out, offs=ends_E)
        weight_N1 = routing.gates_TK.flatten()[order_N, None].to(out_NM.dtype)
        return torch.zeros_like(x_TM).index_add(0, order_N // K, out_NM * weight_N1)


class Block(nn.Module):
    """Attention, then experts, each added to the residual stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        M = shape.d_model
        self.heads = shape.heads
        self.qkv = nn.Linear(M, 3 * M, bias=False)
        self.out = nn.Linear(M, M, bias=False)
        self.router = Router(shape)
        self.experts = Experts(shape)

    def forward(self, x_BPM: Tensor) -> Tensor:
        B, P, M = x_BPM.shape
        normed = F.rms_norm(x_BPM, (M,))
        q, k, v = self.qkv(normed).view(B, P, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BPM = x_BPM + self.out(mixed.transpose(1, 2).reshape(B, P, M))
        x_TM = F.rms_norm(x_BPM, (M,)).reshape(B * P, M)
        return x_BPM + self.experts(x_TM, self.router(x_TM)).view(B, P, M)


class PlainMoE(nn.Module):
    """The model.

    Args:
        recompute: activation checkpointing of each block: None, "reentrant" or "not reentrant".
        around: what becomes of each block, such as torch.compile; recomputation goes around that.
    """

    def __init__(
        self,
        shape: Shape,
        device: torch.device,
        dtype: torch.dtype,
        *,
        recompute: str | None = None,
        around: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(shape.vocabulary, shape.d_model)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.head = nn.Linear(shape.d_model, shape.vocabulary, bias=False)
        self.to(device, dtype)
        made = torch.Generator(device).manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=made)
        self._run = [around(b) if around else b for b in self.blocks]
        if recompute is not None:
            reentrant = recompute == "reentrant"
            self._run = [partial(checkpoint, run, use_reentrant=reentrant) for run in self._run]

    def forward(self, tokens_BP: Tensor) -> Tensor:
        x_BPM = self.embed(tokens_BP)
        for run in self._run:
            x_BPM = run(x_BPM)
        logits = self.head(F.rms_norm(x_BPM, x_BPM.shape[-1:]))[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens_BP[:, 1:].flatten())


def router_sites(model: nn.Module) -> list[RouterSite]:
    """The model's routers, in the order of its layers."""

    def read(output: Routing) -> Reading:
        return Reading(*(part.detach() for part in output))

    return [
        RouterSite(name, m, len(m.weight), m.k, Scores.LOGITS, on_output(m, read))
        for name, m in model.named_modules()
        if isinstance(m, Router)
    ]


def some_tokens(
    shape: Shape, rows: int, device: torch.device, seed: int = 0, length: int | None = None
) -> Tensor:
    """Random tokens (row, position)."""
    made = torch.Generator().manual_seed(seed)
    size = (rows, length or shape.length)
    return torch.randint(shape.vocabulary, size, generator=made).to(device)
