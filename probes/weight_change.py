"""Weight change: how far each part of the model moved, as a share of its own size.

Needs   two checkpoints of one model, any model.
Yields  change (part): ||W_b - W_a|| / ||W_a||, "model" first, then every kind, then every kind of
        every block; expert_change (layer, expert); tensor_change (tensor). Dimensionless, from 0.

W_b is the checkpoint, W_a the reference; a part's norm is the root of the sum of squares over all
its parameters (Frobenius). 0: nothing moved. Against a checkpoint that shares nothing with the
reference but its size, the change is about sqrt(2) = 1.41: that far is "drawn anew".

Exact: it follows from the weights alone, there is nothing to sample. It misleads where weights may
grow without changing the function (before a normalisation), and between parts whose norms differ: a
router's 0.3 and an embedding's 0.3 are not the same amount of learning. NaN where ||W_a|| = 0. Sums
run in float64, so that a bfloat16 checkpoint's small change is not lost in the sum.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from probes.registry import probe
from probes.subject import Subject
from probes.surgery.parts import KINDS, Part, parts_of, tensors_of
from workbench.errors import UsageError

EXACT = "exact: it follows from the weights alone"
ANEW = "0 where nothing moved; about 1.41 between unrelated weights of equal norm"

Squares = dict[tuple[str, int], np.ndarray]
"""(parameter, expert or -1) -> squared norms of the difference and of the reference."""


@probe(
    "weight-change",
    question="How far did each part of the model move, as a share of its size?",
    reads="pair",
    version=2,
)
def weight_change(subject: Subject, reference: Subject) -> xr.Dataset:
    """||W_b - W_a|| / ||W_a|| of the model, of each part and of each parameter.

    Args:
        subject: the checkpoint, b.
        reference: a; of the same architecture.

    Returns:
        Dataset: change and reference_norm (part) with coordinates kind, layer_of_part (-1: in no
        block, or in all) and parameters, their number; expert_change (layer, expert) where the
        model has experts, NaN in blocks without any; tensor_change (tensor).

    Raises:
        UsageError: the two are not the same architecture.

    Example:
        >>> from model.config import NANO
        >>> from model.lm import MoELM
        >>> from probes.exam import Exam
        >>> exam = Exam(tokens=np.zeros((2, 4), int), domains=("a", "a"))
        >>> old, new = (Subject(MoELM(NANO, seed=0), exam) for _ in range(2))
        >>> for parameter in new.model.parameters():
        ...     parameter.data *= 1.5
        >>> round(weight_change(new, old)["change"].sel(part="blocks.1 experts").item(), 6)
        0.5
    """
    now, then = tensors_of(subject.model), tensors_of(reference.model)
    _same_shapes(now, then)
    by_kind, by_block = parts_of(subject.model), parts_of(subject.model, "kind-layer")
    by_expert = [part for part in parts_of(subject.model, "expert") if part.expert >= 0]
    squares = _squares(now, then, by_kind, by_expert)

    # A kind that stands outside the blocks alone is one part at both grains.
    parts = {part.name: part for part in (*by_kind, *by_block)}
    whole = [_total(squares, [(name, -1) for name in now])]
    sums = np.array(whole + [_total(squares, _keys(part)) for part in parts.values()])
    tensors = np.array([squares[name, -1] for name in now])
    counts = [tensor.numel() for tensor in now.values()]
    own = [sum(p.of(now[p.parameter]).numel() for p in part.slices) for part in parts.values()]
    result = xr.Dataset(
        {
            "change": ("part", _ratio(sums)),
            "reference_norm": ("part", np.sqrt(sums[:, 1])),
            "tensor_change": ("tensor", _ratio(tensors)),
        },
        coords={
            "part": ["model", *parts],
            "kind": ("part", ["model", *(part.kind for part in parts.values())]),
            "layer_of_part": ("part", [-1, *(part.layer for part in parts.values())]),
            "parameters": ("part", [sum(counts), *own]),
            "tensor": list(now),
        },
    )
    if by_expert:
        result["expert_change"] = _of_experts(squares, by_expert)
    return _described(result, sum(counts))


def _squares(
    now: dict[str, Tensor], then: dict[str, Tensor], parts: Iterable[Part], experts: Iterable[Part]
) -> Squares:
    """Squared norms of every parameter, and of every expert's stretch of it."""
    found: Squares = {}
    for part in (*parts, *experts):
        for piece in part.slices:
            if (key := (piece.parameter, piece.expert)) in found:
                continue
            b, a = (piece.of(side[piece.parameter].detach()).double() for side in (now, then))
            squared = torch.stack(
                [(b - a.to(b.device)).square().sum(), a.square().sum().to(b.device)]
            )
            found[key] = squared.cpu().numpy()
    return found


def _keys(part: Part) -> list[tuple[str, int]]:
    return [(piece.parameter, piece.expert) for piece in part.slices]


def _total(squares: Squares, keys: Iterable[tuple[str, int]]) -> np.ndarray:
    """(difference, reference), summed."""
    return np.sum([squares[key] for key in keys], axis=0)


def _ratio(sums: np.ndarray) -> np.ndarray:
    """Change from sums (..., 2) of squares; NaN where the reference is all zeros."""
    difference, size = sums[..., 0], sums[..., 1]
    return np.sqrt(np.divide(difference, size, out=np.full(size.shape, np.nan), where=size > 0))


def _of_experts(squares: Squares, parts: list[Part]) -> xr.DataArray:
    layers = sorted({part.layer for part in parts})
    table = np.full((len(layers), max(part.expert for part in parts) + 1), np.nan)
    for part in parts:
        table[layers.index(part.layer), part.expert] = _ratio(_total(squares, _keys(part)))
    return xr.DataArray(
        table, dims=("layer", "expert"), coords={"layer": layers, "expert": range(table.shape[1])}
    )


def _same_shapes(now: dict[str, Tensor], then: dict[str, Tensor]) -> None:
    shapes, before = ({n: tuple(t.shape) for n, t in side.items()} for side in (now, then))
    differing = [n for n in {**shapes, **before} if shapes.get(n) != before.get(n)]
    if differing:
        name = differing[0]
        raise UsageError(
            f"{len(differing)} parameters differ in name or shape, the first of them {name}: "
            f"{before.get(name, 'none')} in the reference, {shapes.get(name, 'none')} here; "
            f"expected two checkpoints of one model."
        )


def _described(result: xr.Dataset, n: int) -> xr.Dataset:
    meanings = {
        "change": "distance moved over the norm of the reference, per part",
        "tensor_change": "distance moved over the norm of the reference, per parameter tensor",
        "expert_change": "distance moved over the norm of the reference, per expert",
        "reference_norm": "Frobenius norm of the reference, per part",
    }
    for name in result.data_vars:
        result[name].attrs = {"units": "1", "long_name": meanings[str(name)], "interval": EXACT}
        if name != "reference_norm":
            result[name].attrs["chance_level"] = ANEW
    result.attrs = {
        "n": n,
        "n_meaning": "parameters",
        "kinds": ", ".join(KINDS),
        "interval": EXACT,
    }
    return result
