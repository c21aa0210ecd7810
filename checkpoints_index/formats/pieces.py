"""One tensor out of the parts that several ranks saved.

Needs   Pieces: where a part begins in the whole tensor, and how large it is.
Yields  `check_cover`: that they make the whole, nothing twice; `assemble`: the tensor.

Unit: elements, a number for each dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np

from checkpoints_index.errors import CheckpointIncomplete
from checkpoints_index.formats.place import shown

if TYPE_CHECKING:
    import torch

Home = TypeVar("Home")
Shape = tuple[int, ...]


class Piece(NamedTuple, Generic[Home]):
    """A box of a tensor, and where it is kept."""

    offset: Shape
    sizes: Shape
    home: Home


def check_cover(name: str, shape: Shape, pieces: Sequence[Piece[Home]], where: object) -> None:
    """Nothing happens where the pieces tile the tensor; else CheckpointIncomplete.

    Example:
        >>> check_cover("w", (2, 3), [Piece((0, 0), (2, 3), "file")], "demo")
    """
    dims = len(shape)
    fits = all(len(p.offset) == len(p.sizes) == dims for p in pieces)
    held = sum(math.prod(p.sizes) for p in pieces) if fits else 0
    if fits and dims and pieces and max(shape) < 2**62:
        begin = np.array([p.offset for p in pieces], np.int64)
        end = begin + np.array([p.sizes for p in pieces], np.int64)
        inside = (begin >= 0) & (end >= begin) & (end <= np.array(shape, np.int64))
        fits = bool(inside.all()) and not _overlap(begin, end)
    elif dims or len(pieces) != 1:
        fits = False
    if not fits or held != math.prod(shape):
        raise CheckpointIncomplete(
            f"{where}: the {len(pieces)} parts of {shown(name)} hold {held} elements and do not "
            f"make its shape {list(shape)[:8]}; copy the missing files, or use another checkpoint."
        )


def _overlap(begin: np.ndarray, end: np.ndarray) -> bool:
    """Whether two boxes, given by their corners (box, dimension), share an element."""
    varies = np.flatnonzero((begin != begin[0]).any(0) | (end != end[0]).any(0))
    if len(varies) == 1:
        # Cut along one dimension, as nearly always: neighbours are enough.
        order = np.argsort(begin[:, varies[0]], kind="stable")
        first, last = begin[order, varies[0]], end[order, varies[0]]
        return bool((first[1:] < np.maximum.accumulate(last)[:-1]).any())
    for i in range(len(begin) - 1):
        # Two boxes share an element where they overlap along every dimension.
        shared = np.minimum(end[i], end[i + 1 :]) - np.maximum(begin[i], begin[i + 1 :])
        if bool((shared > 0).all(axis=1).any()):
            return True
    return False


def assemble(
    shape: Shape,
    pieces: Sequence[Piece[Home]],
    read: Callable[[Home], torch.Tensor],
    device: str,
) -> torch.Tensor:
    """The whole tensor on `device`; holds one piece at a time besides. Check the cover first."""
    import torch

    if len(pieces) == 1:
        return read(pieces[0].home).to(device)
    whole: torch.Tensor | None = None
    for piece in pieces:
        part = read(piece.home)
        if whole is None:
            whole = torch.empty(shape, dtype=part.dtype, device=device)
        box = tuple(slice(o, o + n) for o, n in zip(piece.offset, piece.sizes, strict=True))
        whole[box] = part.to(device)
    assert whole is not None
    return whole
