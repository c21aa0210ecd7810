"""Hybrid: a model some of whose parts are another checkpoint's.

Needs   two models of one shape (body and donor) and the parts that may be exchanged.
Yields  Hybrid: `model`, and `take(members)`, which says which parts are the donor's.

The model is a copy whose parameters point at the memory of the body's or the donor's, so that it
costs no memory of its own and an exchange costs no copying; both stay as they are, whatever
happens to the hybrid's forward. Only parameters that are cut into single experts are copied.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from probes.surgery.parts import Part, Slice, tensors_of
from workbench.errors import UsageError


class Hybrid:
    """A model between two.

    Args:
        body: what it is made of at first.
        donor: what parts are taken from.
        parts: that can be taken (`probes.surgery.parts.parts_of`).

    Raises:
        UsageError: the two do not have the same parameters, shapes and types of numbers.

    Example:
        >>> from model.config import NANO
        >>> from model.lm import MoELM
        >>> from probes.surgery.parts import parts_of
        >>> a, b = MoELM(NANO, seed=1), MoELM(NANO, seed=2)
        >>> hybrid = Hybrid(a, b, parts_of(a))
        >>> hybrid.take(np.array([True, False, False, False, False]))
        >>> held = hybrid.model.blocks[0].mlp.router.weight
        >>> bool((held == b.blocks[0].mlp.router.weight).all())
        True
    """

    def __init__(self, body: nn.Module, donor: nn.Module, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self._body, self._donor = tensors_of(body), tensors_of(donor)
        check_same_shape(body, donor)
        self.model = sharing_copy(body)
        self._own = tensors_of(self.model)
        self._taken = np.zeros(len(self.parts), dtype=bool)
        cut = {s.parameter for p in self.parts for s in p.slices if s.expert >= 0}
        for name in cut:
            # Some of its experts will be the body's and some the donor's.
            self._own[name].data = self._body[name].detach().clone()

    def take(self, members: NDArray[np.bool_]) -> None:
        """Makes these parts the donor's and all others the body's.

        Args:
            members: (part,).
        """
        for number in np.flatnonzero(members != self._taken):
            source = self._donor if members[number] else self._body
            for piece in self.parts[number].slices:
                put(self._own[piece.parameter], source[piece.parameter], piece)
        self._taken = np.array(members, dtype=bool)

    def differing(self) -> NDArray[np.bool_]:
        """(part,): whether any number of the part differs between the two."""
        return np.array([not all(map(self._same, part.slices)) for part in self.parts], dtype=bool)

    def _same(self, piece: Slice) -> bool:
        body, donor = (piece.of(side[piece.parameter]) for side in (self._body, self._donor))
        return torch.equal(body, donor.to(body.device))


def put(own: Tensor, source: Tensor, piece: Slice | None = None) -> None:
    """Makes a tensor of a copy point at `source`; or copies one expert's stretch of it.

    Args:
        own: of a `sharing_copy`.
        source: of the same shape.
        piece: None: all of it.
    """
    with torch.no_grad():
        if piece is None or piece.expert < 0:
            given = source.detach().to(own.device)
            # Some forwards write to their buffers, and these are small.
            own.data = given if isinstance(own, nn.Parameter) else given.clone()
        else:
            piece.of(own.data).copy_(piece.of(source.detach()))


def sharing_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose parameters share the model's memory and take no gradients;
    its parameters can be pointed elsewhere (`put`) and the model stays as it is. Tied parameters
    stay tied; buffers are copied.

    Example:
        >>> one = nn.Linear(2, 2)
        >>> two = sharing_copy(one)
        >>> put(two.weight, torch.zeros(2, 2))
        >>> bool((one.weight == 0).any())
        False
    """
    shared: dict[int, object] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()
    }
    return copy.deepcopy(model, shared).eval()


def check_same_shape(one: nn.Module, other: nn.Module) -> None:
    """Whether parts of one fit into the other.

    Raises:
        UsageError: they differ; the message names the first parameter that does.
    """
    told = [
        {name: f"{tuple(t.shape)} {t.dtype}" for name, t in tensors_of(model).items()}
        for model in (one, other)
    ]
    differing = [n for n in {**told[0], **told[1]} if told[0].get(n) != told[1].get(n)]
    if differing:
        name = differing[0]
        raise UsageError(
            f"{len(differing)} parameters differ in name, shape or type, the first of them {name}: "
            f"{told[0].get(name, 'none')} in one, {told[1].get(name, 'none')} in the other; "
            f"expected two checkpoints of one model, loaded alike."
        )
