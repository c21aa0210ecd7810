"""CKA: do two layers, or two checkpoints, hold the same geometry of the same tokens?

Needs   the site resid_post (layer, token, d), in rows of text.
Yields  cka (layer, other_layer), dimensionless: 0 nothing linear in common, 1 equal up to rotation
        and one scale; with a 95 % interval.

cka = H_lm / sqrt(H_ll H_mm), H the unbiased estimate of the squared norm of the covariance between
two layers from pairs of tokens of different rows (cross_rows.py). The plain form is near 1 for any
two wide layers on few tokens; this one has expectation about 0 for unrelated layers. It may
come out slightly under 0. With one token a row it is the debiased linear CKA of the literature;
with text, where tokens of a row resemble one another, it lies at or under it.

The interval is a jackknife over rows on the scale of arctanh: other text of this kind, same
checkpoints. CKA is ruled by the directions of largest variance: a few outlier dimensions can hold
it near 1 while everything else has changed. NaN where a layer does not vary over tokens.

It misleads where outlier dimensions rule, and where a high value is read as the same function: two
layers may share their geometry and be read in different ways.

Sources: Kornblith et al. 2019, arXiv:1905.00414; debiased, Nguyen et al. 2021, arXiv:2010.15327.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from probes.registry import probe
from probes.statistics.cross_rows import cross_rows, jackknife_interval
from probes.statistics.resample import Floats
from workbench.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from probes.subject import Subject


@probe(
    "cka",
    question="Which layers hold the same geometry of the tokens?",
    reads="checkpoint",
    needs=("resid_post",),
)
def cka(subject: Subject) -> xr.Dataset:
    """Debiased linear CKA between the layers of one checkpoint.

    Returns:
        Dataset (layer, other_layer): cka, cka_low, cka_high; 1 without width on the diagonal.

    Raises:
        UsageError: fewer than five rows of text.

    Example:
        >>> from model.config import NANO
        >>> from model.lm import MoELM
        >>> from probes.exam import Exam
        >>> from probes.subject import Subject
        >>> exam = Exam(tokens=np.arange(64).reshape(8, 8), domains=tuple("aabbaabb"))
        >>> found = cka(Subject(MoELM(NANO), exam))["cka"]
        >>> found.dims, found.values[0, 0].item()
        (('layer', 'other_layer'), 1.0)
    """
    device = next(subject.model.parameters()).device
    layers = [x.to(device) for x in subject["resid_post"]]
    value, low, high = _cka(layers, subject.labels["row"].values)
    for bound in (value, low, high):
        diagonal = np.diagonal(value)
        np.fill_diagonal(bound, np.where(np.isnan(diagonal), np.nan, 1.0))
    return _described(value, low, high, subject, "another layer of the same checkpoint")


@probe(
    "cka-reference",
    question="Does each layer still hold the geometry that it had at the reference checkpoint?",
    reads="pair",
    needs=("resid_post",),
)
def cka_reference(subject: Subject, reference: Subject) -> xr.Dataset:
    """Debiased linear CKA between the layers of a checkpoint and those of a reference.

    Returns:
        Dataset (layer, other_layer): cka, cka_low, cka_high; `layer` is of the checkpoint,
        `other_layer` of the reference. Both on the same fixed tokens.

    Raises:
        UsageError: other tokens in the reference, fewer than five rows of text.

    Example:
        >>> from model.config import NANO
        >>> from model.lm import MoELM
        >>> from probes.exam import Exam
        >>> from probes.subject import Subject
        >>> exam = Exam(tokens=np.arange(64).reshape(8, 8), domains=tuple("aabbaabb"))
        >>> one, other = (Subject(MoELM(NANO, seed=s), exam) for s in (0, 1))
        >>> same, apart = (cka_reference(one, it)["cka"].values[0, 0] for it in (one, other))
        >>> bool(same > apart)
        True
    """
    if not np.array_equal(subject.exam.tokens, reference.exam.tokens):
        raise UsageError(
            "the reference read other tokens; give both checkpoints one exam: "
            "Subject.of(checkpoint, exam)."
        )
    device = next(subject.model.parameters()).device
    mine = [x.to(device) for x in subject["resid_post"]]
    theirs = [x.to(device) for x in reference["resid_post"]]
    n = len(mine)
    value, low, high = (
        bound[:n, n:] for bound in _cka(mine + theirs, subject.labels["row"].values)
    )
    result = _described(value, low, high, subject, "a layer of the reference checkpoint")
    return result.assign_attrs(reference_step=reference.step, reference_branch=reference.branch)


def _cka(layers: list[Tensor], row: np.ndarray) -> tuple[Floats, Floats, Floats]:
    sums = cross_rows(layers, row)
    value, without = _ratio(sums.shared), _ratio(sums.shared_without)
    # The scale on which its spread depends least on its size; 1 itself is at infinity.
    bend = lambda x: np.arctanh(np.clip(x, -1 + 1e-9, 1 - 1e-9))  # noqa: E731
    low, high = jackknife_interval(bend(value), bend(without))
    return value, np.minimum(np.tanh(low), value), np.maximum(np.tanh(high), value)


def _ratio(shared: Floats) -> Floats:
    own = np.diagonal(shared, axis1=-2, axis2=-1)
    size = own[..., :, None] * own[..., None, :]
    fine = (own[..., :, None] > 0) & (own[..., None, :] > 0)
    return np.divide(shared, np.sqrt(np.where(fine, size, 1.0)), where=fine,
                     out=np.full(shared.shape, np.nan))  # fmt: skip


def _described(value: Floats, low: Floats, high: Floats, subject: Subject, what: str) -> xr.Dataset:
    rows = len(subject.exam.tokens)
    interval = f"95 %, jackknife over {rows} rows of text: other text of this kind"
    attrs = {
        "units": "1", "long_name": f"debiased linear CKA with {what}", "chance_level": 0.0,
        "interval": interval,
    }  # fmt: skip
    dims = ("layer", "other_layer")
    named = {"cka": value, "cka_low": low, "cka_high": high}
    return xr.Dataset(
        {name: (dims, values, attrs) for name, values in named.items()},
        {"layer": np.arange(value.shape[0]), "other_layer": np.arange(value.shape[1])},
        {"n": rows, "n_meaning": "rows of text", "interval": interval},
    )
