"""Loss barrier: does the loss rise on the straight path between two checkpoints?

Needs   two checkpoints of one model, any model that gives logits; rows of text.
Yields  loss (share): mean loss on the path at (1 - share) W_reference + share W, with bounds;
        barrier: highest loss on the path less the mean of the two ends, nats per token;
        above_chord: highest excess over the straight line between the losses of the ends.

barrier is the definition of Frankle et al. (error at the worst point less the mean error of the
ends), made for two copies that were trained equally long. Between an earlier and a later checkpoint
the ends differ, and half their difference counts as barrier even where the loss falls all the way:
`above_chord` leaves that out, and is 0 exactly where the path never rises above the chord.

chance  0: both are 0 for two checkpoints in one convex basin with equal ends, and on the path from
        a checkpoint to itself.

The intervals resample rows, the same rows at every point: other texts like these, same two
checkpoints. The highest of several noisy points leans upward; its bounds come from draws in which
the highest is found anew. A barrier between the points looked at is missed: raise `points`.

It misleads where two checkpoints differ by a permutation of their units, which puts a barrier
between equal functions, and where a barrier is read as a difference in skill: it is one of
geometry.

Source: Frankle et al. 2020, arXiv:1912.05671, linear interpolation instability; the chord,
Entezari et al. 2022, arXiv:2110.06296.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import nn

from probes.inputs.rows import FEW_ROWS, OVER_ROWS, following_logprob, mean_over_rows, text_rows
from probes.registry import probe
from probes.statistics.resample import BOOT, Floats, bootstrap_weights, percentile_interval
from probes.subject import Subject
from probes.surgery.parts import tensors_of
from workbench.errors import UsageError


@probe(
    "barrier",
    question="Does the loss rise on the straight path between two checkpoints?",
    reads="pair",
)
def barrier(
    subject: Subject,
    reference: Subject,
    *,
    points: int = 11,
    rows: Sequence[Sequence[int]] | None = None,
    n_boot: int = BOOT,
    seed: int = 0,
) -> xr.Dataset:
    """Loss along the straight path from the reference to the checkpoint, and its barrier.

    Args:
        subject, reference: two checkpoints of one architecture.
        points: on the path, both ends among them; 3 or more.
        rows: texts to read, (row, pos); None: the exam's.
        n_boot, seed: bootstrap draws over rows, and their seed.

    Returns:
        Dataset: loss (share) with bounds; barrier, above_chord with bounds; worst_share, where on
        the path the excess over the chord is highest. Bounds of the two are NaN under 10 rows,
        too few to find a highest point anew.

    Raises:
        UsageError: too few points, or two different architectures.

    Example:
        >>> from model.config import NANO
        >>> from model.lm import MoELM
        >>> from probes.exam import Exam
        >>> exam = Exam(tokens=np.arange(64).reshape(4, 16), domains=("a",) * 4)
        >>> one = Subject(MoELM(NANO), exam)
        >>> round(barrier(one, one, points=3)["above_chord"].item(), 6)
        0.0
    """
    if points < 3:
        raise UsageError(f"points={points}: expected 3 or more, the two ends among them.")
    texts = text_rows(subject, rows)
    share = np.linspace(0, 1, points)
    model = subject.copy()
    losses = []
    for at in share:
        _set_between(model, reference.model, subject.model, float(at))
        losses.append(-following_logprob(subject, texts, model).mean(axis=1))
    loss_SR = np.stack(losses)
    mean, low, high = mean_over_rows(loss_SR.T, n_boot, seed)
    result = xr.Dataset(
        {"loss": ("share", mean), "loss_low": ("share", low), "loss_high": ("share", high)},
        coords={"share": share},
    )
    draws = bootstrap_weights(len(texts), n_boot, seed) @ loss_SR.T / len(texts)
    for name, measure in (("barrier", _barrier), ("above_chord", _above_chord)):
        value = measure(mean, share)
        low, high = percentile_interval(measure(draws, share), len(texts))
        if len(texts) < FEW_ROWS:
            low = high = np.full((), np.nan)
        bounds = (value, np.minimum(low, value), np.maximum(high, value))
        for end, number in zip(("", "_low", "_high"), bounds, strict=True):
            result[name + end] = ((), number)
    result["worst_share"] = ((), share[np.argmax(mean - _chord(mean, share))])
    return _described(result, len(texts), points, reference.step)


def _chord(loss: Floats, share: Floats) -> Floats:
    """The straight line between the losses (..., share) of the two ends."""
    return loss[..., :1] * (1 - share) + loss[..., -1:] * share


def _barrier(loss: Floats, share: Floats) -> Floats:
    return loss.max(axis=-1) - (loss[..., 0] + loss[..., -1]) / 2


def _above_chord(loss: Floats, share: Floats) -> Floats:
    # The ends lie on the chord, but for rounding.
    return np.maximum((loss - _chord(loss, share)).max(axis=-1), 0.0)


@torch.no_grad()
def _set_between(model: nn.Module, start: nn.Module, end: nn.Module, share: float) -> None:
    """Sets every parameter and kept buffer of `model` to the point on the path."""
    here, first, last = (tensors_of(m) for m in (model, start, end))
    shapes = [{n: t.shape for n, t in side.items()} for side in (first, last)]
    if shapes[0] != shapes[1]:
        raise UsageError(
            "found two checkpoints whose parameters differ in name or shape, expected two of one "
            "architecture: there is no straight path between these."
        )
    for name, tensor in here.items():
        if not tensor.is_floating_point():
            continue
        # The ends themselves, bit for bit: a checkpoint of half precision would round otherwise.
        if share in (0.0, 1.0):
            tensor.copy_((first if share == 0 else last)[name])
            continue
        wide = torch.promote_types(tensor.dtype, torch.float32)
        a, b = (side[name].to(tensor.device, wide) for side in (first, last))
        tensor.copy_(torch.lerp(a, b, share))


def _described(result: xr.Dataset, n: int, points: int, step: int) -> xr.Dataset:
    meanings = {
        "loss": "next-token loss at this share of the way from the reference",
        "barrier": "highest loss on the path less the mean of its ends",
        "above_chord": "highest excess of the loss over the line between the ends' losses",
        "worst_share": "share of the way at which that excess is highest",
    }
    for name in map(str, result.data_vars):
        stem = name.removesuffix("_low").removesuffix("_high")
        bound = {"_low": "lower bound: ", "_high": "upper bound: "}.get(name[len(stem) :], "")
        attrs: dict[str, object] = {
            "units": "nats",
            "long_name": bound + meanings[stem],
            "interval": OVER_ROWS,
        }
        if stem in ("barrier", "above_chord"):
            attrs["chance_level"] = 0.0
        if stem == "worst_share":
            attrs |= {"units": "1", "interval": f"point estimate: one of {points} points"}
        result[name].attrs = attrs
    result["share"].attrs = {"units": "1", "long_name": "share of the way from the reference"}
    result.attrs = {
        "n": n, "n_meaning": "rows", "points": points, "reference_step": step,
        "interval": OVER_ROWS,
    }  # fmt: skip
    return result
