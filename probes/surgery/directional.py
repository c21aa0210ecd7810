"""Directional: how the loss of every row changes as all weights move along one direction.

Needs   a model; rows of tokens with what is to be found in them (`Questions`, lesioned.py).
Yields  gradient of the mean loss of some rows; `along`: the derivative of every row's loss along a
        direction, nats per unit of it.

The inner product of one row's gradient with a direction v is the derivative of that row's loss
along v. So the products of all rows with v cost two forwards, and no row's gradient is ever held:

    <g_row, v> = (loss_row(w + h v) - loss_row(w - h v)) / 2h, up to h^2 and rounding / h

h moves the weights by `RELATIVE_STEP` of their length. In a MoELM the chosen experts are held as
they are at w: the loss is smooth then, and its gradient is the one that training takes, which does
not see the choice either. Other models may send a token elsewhere at w + h v; what that and all
else adds to the error shows in the mean over rows, which the gradient gives exactly.

A copy is moved; the model that was given stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from model.attention import rotary_tables
from model.lm import MoELM
from probes.statistics.resample import Floats
from probes.surgery.lesioned import Questions

RELATIVE_STEP = 1e-5
"""Length of the step over the length of the weights. Measured on a NANO through its training, in
float32: the error of derivatives along gradients is least there, 0.5 % of the largest or under
(below 3e-6 rounding grows, above 3e-5 curvature: to 5 %, at 1e-3 to half). In float64 too: router
logits are float32 always."""
TOKENS_AT_ONCE = 8192
"""Tokens of one forward."""

Direction = Sequence[Tensor]
"""A tensor for each parameter, in the order of `Directional.parameters`."""

# Shapes: B rows, P positions, Q questions.


class Directional:
    """A copy of a model that can be differentiated and moved.

    Example:
        >>> from model.config import NANO
        >>> asked = Questions(torch.zeros(1, 4, dtype=torch.long), *np.array([[0], [2], [7]]))
        >>> model = Directional(MoELM(NANO))
        >>> rows = model.rows(asked, "sum")
        >>> gradient = model.gradient(rows, np.array([0]))
        >>> bool(model.along(rows, gradient)[0] > 0)
        True
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).eval()
        if next(model.parameters()).dtype in (torch.bfloat16, torch.float16):
            self.model = self.model.float()
        self.parameters = [p.requires_grad_(True) for p in self.model.parameters()]
        self.names = [name for name, _ in self.model.named_parameters()]
        self.at = [p.detach().clone() for p in self.parameters]
        self.length = float(norm(self.at))

    def rows(self, questions: Questions, total: Literal["sum", "mean"]) -> Rows:
        """The rows of these questions; a row's loss is the sum or the mean over its questions."""
        return Rows(questions, total, self.parameters[0].device)

    def gradient(self, rows: Rows, which: np.ndarray) -> list[Tensor]:
        """Gradient of the mean loss of the rows `which` (their numbers)."""
        gradient = [torch.zeros_like(p) for p in self.parameters]
        for part in rows.parts(which):
            losses = self._losses(part)
            found = torch.autograd.grad(
                losses.sum() / len(which), self.parameters, allow_unused=True
            )
            for sum_, term in zip(gradient, found, strict=True):
                if term is not None:
                    sum_ += term
        return gradient

    @torch.no_grad()
    def along(self, rows: Rows, direction: Direction, finer: float = 1.0) -> Floats:
        """(row,): derivative of each row's loss along the direction, nats per unit of it.

        Args:
            finer: how many times smaller than `RELATIVE_STEP` the step is.
        """
        size = float(norm(direction))
        every = np.arange(rows.count)
        if size == 0:
            return np.zeros(rows.count)
        h = RELATIVE_STEP / finer * self.length / size
        ends = []
        parts = list(rows.parts(every))
        chosen = [self._choice(part) for part in parts]
        try:
            for sign in (1, -1):
                for p, at, v in zip(self.parameters, self.at, direction, strict=True):
                    p.copy_(at + sign * h * v)
                ends.append([self._losses(p, c) for p, c in zip(parts, chosen, strict=True)])
        finally:
            for p, at in zip(self.parameters, self.at, strict=True):
                p.copy_(at)
        up, down = (torch.cat(end) for end in ends)
        return ((up - down) / (2 * h)).cpu().numpy()

    # One forward

    def _losses(self, part: _Part, chosen: Sequence[Tensor] | None = None) -> Tensor:
        """(row,) float64."""
        with _held(self.model, chosen):
            logits_UV = _logits(self.model, part)
        logprobs_Q = logits_UV.float().log_softmax(-1)[part.place_of_Q, part.token_Q]
        lost_B = torch.zeros(part.count, dtype=torch.float64, device=logprobs_Q.device)
        lost_B = lost_B.index_add(0, part.row_Q, -logprobs_Q.double())
        return lost_B / part.counts_B if part.total == "mean" else lost_B

    def _choice(self, part: _Part) -> list[Tensor] | None:
        """The experts that each layer of a MoELM chooses as it stands."""
        if not isinstance(self.model, MoELM):
            return None
        chosen: list[Tensor] = []
        handles = [
            point.register_forward_hook(lambda _m, _i, ids: chosen.append(ids))
            for point in _choice_points(self.model)
        ]
        try:
            _logits(self.model, part)
        finally:
            for handle in handles:
                handle.remove()
        return chosen


class _Part:
    """Some rows, on the device."""

    def __init__(self, questions: Questions, total: str, device: torch.device) -> None:
        self.tokens_BP = questions.tokens.to(device)
        self.count, self.length = self.tokens_BP.shape
        self.total = total
        at = questions.row * self.length + questions.position
        places, of_place = np.unique(at, return_inverse=True)
        self.place_U = torch.from_numpy(places).to(device)
        self.place_of_Q = torch.from_numpy(of_place).to(device)
        self.token_Q = torch.from_numpy(questions.token).to(device)
        self.row_Q = torch.from_numpy(questions.row).to(device)
        counts = np.bincount(questions.row, minlength=self.count)
        self.counts_B = torch.from_numpy(np.maximum(counts, 1)).to(device)


class Rows:
    """Rows of tokens with what is to be found in them, in parts of a forward each."""

    def __init__(self, questions: Questions, total: str, device: torch.device) -> None:
        self.questions, self.total, self.device = questions, total, device
        self.count = len(questions.tokens)

    def parts(self, which: np.ndarray) -> Iterator[_Part]:
        """The rows of these numbers, in their order."""
        asked = self.questions
        step = max(1, TOKENS_AT_ONCE // asked.tokens.shape[1])
        for first in range(0, len(which), step):
            chosen = which[first : first + step]
            place = np.full(self.count, -1)
            place[chosen] = np.arange(len(chosen))
            here = place[asked.row] >= 0
            length = int(asked.position[here].max(initial=0)) + 1
            part = Questions(
                asked.tokens[torch.from_numpy(chosen), :length],
                place[asked.row[here]], asked.position[here], asked.token[here],
            )  # fmt: skip
            yield _Part(part, self.total, self.device)


def _logits(model: nn.Module, part: _Part) -> Tensor:
    """Logits at the places that are asked for, (place, vocab)."""
    if not isinstance(model, MoELM):
        output = model(part.tokens_BP)
        logits: Tensor = getattr(output, "logits", output)
        return logits.flatten(0, 1)[part.place_U]
    # The output matrix, for the few places alone: half of a small model's time.
    rotary = rotary_tables(model.cfg, part.length, part.tokens_BP.device)
    x_BPD = model.hook_embed(model.embed(part.tokens_BP))
    for block in model.blocks:
        x_BPD, _ = block(x_BPD, rotary)
    found: Tensor = model.unembed(model.ln_final(x_BPD.flatten(0, 1)[part.place_U]))
    return found


@contextmanager
def _held(model: nn.Module, chosen: Sequence[Tensor] | None) -> Iterator[None]:
    """While it lasts, a MoELM's tokens go to these experts, whatever its routers say."""
    handles: list[Any] = []
    if chosen is not None:
        assert isinstance(model, MoELM)
        for point, ids in zip(_choice_points(model), chosen, strict=True):
            handles.append(point.register_forward_hook(_always(ids)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _choice_points(model: MoELM) -> list[nn.Module]:
    blocks: list[Any] = list(model.blocks)
    return [block.mlp.router.hook_expert_indices for block in blocks]


def _always(ids: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    return lambda _module, _inputs, _output: ids


def inner(one: Direction, two: Direction) -> float:
    """Inner product of two directions, summed in float64.

    Example:
        >>> inner([torch.ones(2)], [torch.full((2,), 3.0)])
        6.0
    """
    return float(sum((a.double() * b.double()).sum().item() for a, b in zip(one, two, strict=True)))


def norm(direction: Direction) -> float:
    """Its length.

    Example:
        >>> norm([torch.tensor([3.0]), torch.tensor([4.0])])
        5.0
    """
    return inner(direction, direction) ** 0.5
