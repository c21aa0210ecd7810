"""Lesioned: what a model says with one expert gone, for every expert of every layer.

Needs   a model; which tokens are to be found after which positions of which rows.
Yields  Answers: log-probability of each of these tokens, nats, intact (question,) and with each
        expert gone (layer, expert, question); how often each expert was used (layer, expert, row).

Two ways of losing an expert:

    zero     its output is 0; the gates of the other chosen experts stay as they are
    reroute  its router logit is minus infinity: each of its tokens goes to the next best expert
             instead, and the gates are made anew

One intact pass keeps the residual stream. A lesion in block l then costs the blocks after l alone,
and only for the rows that it can reach: where no token at or before a question was routed to the
expert, nothing is computed and the intact value stands, so that its effect is 0 exactly. In the
last block only the token right before the question counts.

Elsewhere batches of another shape are summed in another order: differences under `ROUNDING` nats
are that, and are set to 0. Nothing of the model is changed; a half-precision one is widened on a
copy. For models other than ours the way "zero" is done by a hook on the experts of the layer, which
sets the gates of that expert to 0 and is removed afterwards; whole forwards, so it takes longer.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from model.attention import rotary_tables
from model.block import Block
from model.lm import MoELM
from probes.inputs.finite import is_number
from probes.statistics.resample import Floats
from workbench.capture.adapters.find import find_routers
from workbench.capture.adapters.router_site import Show
from workbench.errors import UsageError

Way = Literal["zero", "reroute"]
WAYS: tuple[Way, ...] = ("zero", "reroute")
ROUNDING = 2e-5
"""Nats: a smaller change of one log-probability is float32 rounding, not an effect."""
TOKENS_AT_ONCE = 16_384
"""Tokens of one pass; the streams of that many are held for every layer."""

# Shapes: B rows, P positions, D d_model, T = B x P tokens, K experts per token, E experts,
# Q questions, N tokens routed to one expert.


@dataclass(frozen=True, eq=False)
class Questions:
    """Tokens to be found: `token[q]` follows position `position[q]` of row `row[q]`."""

    tokens: Tensor
    """(row, pos), int64."""
    row: NDArray[np.intp]
    position: NDArray[np.intp]
    token: NDArray[np.int64]

    def part(self, first: int, stop: int) -> tuple[Questions, NDArray[np.bool_]]:
        """The questions on rows first..stop-1, cut after the last one; and which they are."""
        here = (self.row >= first) & (self.row < stop)
        length = int(self.position[here].max(initial=0)) + 1
        part = Questions(
            self.tokens[first:stop, :length],
            self.row[here] - first,
            self.position[here],
            self.token[here],
        )
        return part, here


@dataclass(frozen=True, eq=False)
class Answers:
    """Log-probabilities of the tokens asked for, nats."""

    intact: Floats
    """(question,)"""
    lesioned: Floats
    """(layer, expert, question)"""
    used: NDArray[np.int64]
    """(layer, expert, row): tokens at or before the row's last question that chose the expert."""
    reach: NDArray[np.int64]
    """(row,): tokens at or before the row's last question."""


def answers(model: nn.Module, questions: Questions, way: Way = "zero") -> Answers:
    """Every question put to the model intact, and with each expert of each layer gone.

    Raises:
        UsageError: an unknown way; a way that this model does not allow.

    Example:
        >>> from model.config import NANO
        >>> asked = Questions(torch.zeros(1, 4, dtype=torch.long), *np.array([[0], [2], [7]]))
        >>> answers(MoELM(NANO), asked).lesioned.shape
        (3, 16, 1)
    """
    if way not in WAYS:
        raise UsageError(f"way={way!r}: expected 'zero' or 'reroute'.")
    model = _wide(model)
    subject = _Ours(model, way) if isinstance(model, MoELM) else _Other(model, way)
    rows, length = questions.tokens.shape
    shape = (subject.layers, subject.experts)
    intact = np.full(len(questions.row), np.nan)
    lesioned = np.full((*shape, len(questions.row)), np.nan)
    used = np.zeros((*shape, rows), dtype=np.int64)
    reach = np.zeros(rows, dtype=np.int64)
    np.maximum.at(reach, questions.row, questions.position + 1)
    step = max(1, TOKENS_AT_ONCE // length)
    with torch.no_grad():
        for first in range(0, rows, step):
            part, here = questions.part(first, first + step)
            if not here.any():
                continue
            asked = _Asked(part, subject.device)
            intact[here] = whole = subject.intact(asked)
            for layer in range(subject.layers):
                used[layer, :, first : first + step] = subject.used(layer, asked)
                for expert in range(subject.experts):
                    found = whole.copy()
                    rows_B = subject.reached(layer, expert, asked)
                    if rows_B.any():
                        found = subject.lesioned(layer, expert, asked, rows_B, found)
                        same = np.abs(found - whole) < ROUNDING
                        found[same] = whole[same]
                    lesioned[layer, expert, here] = found
            subject.forget()
    return Answers(intact, lesioned, used, reach)


def _wide(model: nn.Module) -> nn.Module:
    """The model, or where it computes in half precision a float32 copy of it."""
    if next(model.parameters()).dtype in (torch.float32, torch.float64):
        return model.eval()
    return copy.deepcopy(model).float().eval()


class _Asked:
    """The questions of one pass, on the device."""

    def __init__(self, questions: Questions, device: torch.device) -> None:
        self.tokens_BP = questions.tokens.to(device)
        rows, self.length = self.tokens_BP.shape
        at = questions.row * self.length + questions.position
        # Several choices are asked after one position: its logits are made once.
        places, of_place = np.unique(at, return_inverse=True)
        self.place_U = torch.from_numpy(places).to(device)
        self.row_U = self.place_U // self.length
        self.place_of_Q = torch.from_numpy(of_place).to(device)
        self.token_Q = torch.from_numpy(questions.token).to(device)
        self.row_Q = questions.row
        self.asked_BP = torch.zeros(rows, self.length, dtype=torch.bool, device=device)
        self.asked_BP.view(-1)[self.place_U] = True
        # A question sees its own position and those before it.
        self.seen_BP = self.asked_BP.flip(1).cumsum(1).flip(1) > 0

    def read(self, logits_UV: Tensor, kept_U: Tensor | None = None) -> tuple[Floats, Any]:
        """Log-probabilities at (some of) the places, and the questions that they answer."""
        logprobs_UV = logits_UV.float().log_softmax(-1)
        if kept_U is None:
            return _host(logprobs_UV[self.place_of_Q, self.token_Q]), slice(None)
        line_U = torch.cumsum(kept_U, 0) - 1
        kept_Q = kept_U[self.place_of_Q]
        found = logprobs_UV[line_U[self.place_of_Q[kept_Q]], self.token_Q[kept_Q]]
        return _host(found), kept_Q.cpu().numpy()


def _host(found: Tensor) -> Floats:
    return found.double().cpu().numpy()


@dataclass(frozen=True, eq=False)
class _Layer:
    """What passed at one block of the intact model."""

    mid_BPD: Tensor
    post_BPD: Tensor
    read_BPD: Tensor
    """What router and experts read."""
    logits_BPE: Tensor
    ids_BPK: Tensor
    gates_BPK: Tensor


class _Ours:
    """A MoELM: the blocks after the lesion are run again, the rest is kept."""

    def __init__(self, model: MoELM, way: Way) -> None:
        self.model, self.way = model, way
        self.blocks: list[Block] = list(model.blocks)  # type: ignore[arg-type]
        self.layers, self.experts = len(self.blocks), model.cfg.num_experts
        self.device = next(model.parameters()).device
        self.seen: list[_Layer] = []
        if way == "reroute" and self.experts == 1:
            raise UsageError(
                "way='reroute' in a model of 1 expert: there is no next best; use way='zero'."
            )

    def intact(self, asked: _Asked) -> Floats:
        self.rotary = rotary_tables(self.model.cfg, asked.length, self.device)
        x_BPD = self.model.hook_embed(self.model.embed(asked.tokens_BP))
        self.seen = []
        for block in self.blocks:
            with _watched(block) as passed:
                x_BPD, _ = block(x_BPD, self.rotary)
            self.seen.append(_Layer(**passed))
        return asked.read(self._logits(x_BPD.flatten(0, 1)[asked.place_U]))[0]

    def forget(self) -> None:
        self.seen = []

    def _logits(self, x_UD: Tensor) -> Tensor:
        return _numbers(self.model.unembed(self.model.ln_final(x_UD)))

    def used(self, layer: int, asked: _Asked) -> NDArray[np.int64]:
        chosen_BPE = F.one_hot(self.seen[layer].ids_BPK, self.experts).sum(-2)
        return (chosen_BPE * asked.seen_BP[..., None]).sum(1).T.cpu().numpy()

    def reached(self, layer: int, expert: int, asked: _Asked) -> Tensor:
        counts_BP = asked.asked_BP if layer == self.layers - 1 else asked.seen_BP
        return ((self.seen[layer].ids_BPK == expert).any(-1) & counts_BP).any(1)

    def lesioned(
        self, layer: int, expert: int, asked: _Asked, rows_B: Tensor, found: Floats
    ) -> Floats:
        x_BPD = self._without(layer, expert, rows_B)
        for block in self.blocks[layer + 1 :]:
            x_BPD, _ = block(x_BPD, self.rotary)
        kept_U = rows_B[asked.row_U]
        row_B = torch.cumsum(rows_B, 0) - 1
        place_U = asked.place_U[kept_U]
        place_U = row_B[place_U // asked.length] * asked.length + place_U % asked.length
        values, which = asked.read(self._logits(x_BPD.flatten(0, 1)[place_U]), kept_U)
        found[which] = values
        return found

    def _without(self, layer: int, expert: int, rows_B: Tensor) -> Tensor:
        """The stream after the block, for those rows, had the expert not been there."""
        seen, moe = self.seen[layer], self.blocks[layer].mlp
        x_BPD = seen.post_BPD[rows_B]
        ids_BPK = seen.ids_BPK[rows_B]
        its_BP = (ids_BPK == expert).any(-1)
        read_ND, ids_NK = seen.read_BPD[rows_B][its_BP], ids_BPK[its_BP]
        if self.way == "zero":
            gates_NK = seen.gates_BPK[rows_B][its_BP].masked_fill(ids_NK == expert, 0)
        else:
            logits_NE = seen.logits_BPE[rows_B][its_BP]
            logits_NE[:, expert] = float("-inf")
            top = logits_NE.softmax(-1).topk(ids_NK.shape[-1], dim=-1)
            ids_NK, gates_NK = top.indices, top.values / top.values.sum(-1, keepdim=True)
        # Made anew: the stream less the expert's output would keep its rounding, and break ties.
        x_BPD[its_BP] = seen.mid_BPD[rows_B][its_BP] + moe.experts(read_ND, ids_NK, gates_NK)
        return x_BPD


@contextmanager
def _watched(block: Block) -> Iterator[dict[str, Tensor]]:
    """Keeps what passes at the points of a block while it runs once."""
    router = block.mlp.router
    points = {
        "mid_BPD": block.hook_resid_mid,
        "post_BPD": block.hook_resid_post,
        "read_BPD": block.ln2.hook_normalized,
        "logits_BPE": router.hook_logits,
        "ids_BPK": router.hook_expert_indices,
        "gates_BPK": router.hook_expert_weights,
    }
    passed: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: passed.__setitem__(name, output)

    handles = [point.register_forward_hook(keep(name)) for name, point in points.items()]
    try:
        yield passed
    finally:
        for handle in handles:
            handle.remove()


class _Other:
    """Any other model whose experts are called with the chosen ids and gates."""

    def __init__(self, model: nn.Module, way: Way) -> None:
        if way != "zero":
            raise UsageError(
                f"way={way!r} with a {type(model).__name__}: only a MoELM can be rerouted; use "
                f"way='zero'."
            )
        self.model = model
        self.routers = find_routers(model)
        self.layers, self.experts = len(self.routers), self.routers[0].num_experts
        self.device = next(model.parameters()).device
        self.modules = [_experts_beside(model, router.name) for router in self.routers]
        self.ids: list[Tensor] = []

    def _logits(self, tokens_BP: Tensor) -> Tensor:
        output = self.model(tokens_BP)
        logits: Tensor = getattr(output, "logits", output)
        return _numbers(logits.flatten(0, 1))

    def intact(self, asked: _Asked) -> Floats:
        ids: list[list[Tensor]] = [[] for _ in self.routers]
        handles = [
            handle
            for seen, router in zip(ids, self.routers, strict=True)
            for handle in router.attach(_keeping(seen))
        ]
        try:
            logits_TV = self._logits(asked.tokens_BP)
        finally:
            for handle in handles:
                handle.remove()
        self.ids = [seen[0].view(*asked.tokens_BP.shape, -1) for seen in ids]
        return asked.read(logits_TV[asked.place_U])[0]

    def forget(self) -> None:
        self.ids = []

    def used(self, layer: int, asked: _Asked) -> NDArray[np.int64]:
        chosen = torch.stack([(self.ids[layer] == e).sum(-1) for e in range(self.experts)])
        return (chosen * asked.seen_BP).sum(-1).cpu().numpy()

    def reached(self, layer: int, expert: int, asked: _Asked) -> Tensor:
        return ((self.ids[layer] == expert).any(-1) & asked.seen_BP).any(1)

    def lesioned(
        self, layer: int, expert: int, asked: _Asked, rows_B: Tensor, found: Floats
    ) -> Floats:
        module, (ids_at, gates_at) = self.modules[layer]

        def silence(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            ids = args[ids_at] if ids_at < len(args) else kwargs["top_k_index"]
            gates = args[gates_at] if gates_at < len(args) else kwargs["top_k_weights"]
            gates = gates.masked_fill(ids == expert, 0)
            if gates_at < len(args):
                return (*args[:gates_at], gates, *args[gates_at + 1 :]), kwargs
            return args, {**kwargs, "top_k_weights": gates}

        handle = module.register_forward_pre_hook(silence, with_kwargs=True)
        try:
            logits_TV = self._logits(asked.tokens_BP[rows_B])
        finally:
            handle.remove()
        kept_U = rows_B[asked.row_U]
        row_B = torch.cumsum(rows_B, 0) - 1
        place_U = asked.place_U[kept_U]
        place_U = row_B[place_U // asked.length] * asked.length + place_U % asked.length
        values, which = asked.read(logits_TV[place_U], kept_U)
        found[which] = values
        return found


def _keeping(seen: list[Tensor]) -> Show:
    return lambda reading: seen.append(reading.ids_TK)


def _experts_beside(model: nn.Module, router: str) -> tuple[nn.Module, tuple[int, int]]:
    """The module of experts that a router serves, and where it takes ids and gates."""
    modules = dict(model.named_modules())
    for holder in (router, router.rpartition(".")[0]):
        for name, module in modules.items():
            if name.rpartition(".")[0] != holder:
                continue
            taken = list(inspect.signature(module.forward).parameters)
            if {"top_k_index", "top_k_weights"} <= set(taken):
                return module, (taken.index("top_k_index"), taken.index("top_k_weights"))
    raise UsageError(
        f"found no experts beside router {router} of this {type(model).__name__} that are called "
        f"with (hidden states, top_k_index, top_k_weights); its single experts cannot be told "
        f"apart. Load the checkpoint as a MoELM (model.hf.load_hf) or as a Hugging Face model."
    )


def _numbers(logits: Tensor) -> Tensor:
    if not is_number(logits):
        raise UsageError(
            "logits are not finite, expected numbers. Look at the loss of this checkpoint and "
            "leave it out."
        )
    return logits
