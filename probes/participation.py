"""Participation ratio: over how many directions the residual stream spreads its variance.

Needs   the site resid_post (layer, token, d), in rows of text.
Yields  participation (layer), in dimensions, from 1 to d, with a 95 % interval; and the plain
        ratio of the sample covariance.

participation = (sum λ)² / sum λ², λ the eigenvalues of the covariance Σ of tokens: d when all are
equal, 1 when one has everything. Of N tokens the plain ratio is too small (about
1/plain = 1/true + 1/N, and with text, whose tokens come in rows that resemble one another, worse).
Here (tr Σ)² and tr Σ² are each estimated without bias from tokens of different rows
(cross_rows.py); the estimate can therefore exceed d by chance.

The interval is a jackknife over rows of its logarithm: other text of this kind, same checkpoint.
One massive dimension makes the ratio 1 whatever the others hold. NaN where nothing varies.

It misleads where one massive dimension has all the variance, where few texts stand for many, and
where it is read as the number of features: superposed features share directions.

Source: Gao et al. 2017, bioRxiv 214262; its bias, Chun et al. 2025, arXiv:2509.26560.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from probes.registry import probe
from probes.statistics.cross_rows import cross_rows, jackknife_interval
from probes.statistics.resample import Floats

if TYPE_CHECKING:
    from torch import Tensor

    from probes.subject import Subject


@probe(
    "participation",
    question="Over how many directions does the residual stream spread its variance?",
    reads="checkpoint",
    needs=("resid_post",),
)
def participation(subject: Subject) -> xr.Dataset:
    """The participation ratio of every layer's residual stream, corrected for few tokens.

    Returns:
        Dataset (layer): participation, participation_low, participation_high, plain.

    Raises:
        UsageError: fewer than five rows of text.

    Example:
        >>> from model.config import NANO
        >>> from model.lm import MoELM
        >>> from probes.exam import Exam
        >>> from probes.subject import Subject
        >>> exam = Exam(tokens=np.arange(256).reshape(32, 8), domains=("a",) * 32)
        >>> found = participation(Subject(MoELM(NANO), exam))
        >>> bool((found["participation"] > found["plain"]).all())
        True
    """
    device = next(subject.model.parameters()).device
    layers = [x.to(device) for x in subject["resid_post"]]
    value, low, high = ratio(layers, subject.labels["row"].values)
    rows = len(subject.exam.tokens)
    interval = f"95 %, jackknife over {rows} rows of text: other text of this kind"
    attrs = {
        "units": "dimensions", "long_name": "directions that share the variance, unbiased sums",
        "interval": interval,
    }  # fmt: skip
    result = xr.Dataset(
        {
            "participation": ("layer", value, attrs),
            "participation_low": ("layer", low, attrs),
            "participation_high": ("layer", high, attrs),
        },
        {"layer": np.arange(len(layers))},
        {"n": rows, "n_meaning": "rows of text", "interval": interval},
    )
    result["plain"] = ("layer", np.array([_plain(x) for x in layers]), {
        "units": "dimensions", "long_name": "participation ratio of the sample covariance",
        "interval": "point estimate: too small with few tokens",
    })  # fmt: skip
    return result


def ratio(layers: list[Tensor], row: np.ndarray) -> tuple[Floats, Floats, Floats]:
    """Participation of each layer (token, d), and its 95 % bounds."""
    sums = cross_rows(layers, row)
    rows = len(sums.variance_without)
    off = sums.variance_without - sums.variance_without.mean(0)
    # The square of an estimate is too large by its variance.
    noise = (rows - 1) / rows * (off**2).sum(0)
    squared = np.diagonal(sums.shared)
    squared_without = np.diagonal(sums.shared_without, axis1=1, axis2=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = (sums.variance**2 - noise) / squared
        without = (sums.variance_without**2 - noise) / squared_without
        value = np.where((squared > 0) & (value > 0), value, np.nan)
        without = np.where((squared_without > 0) & (without > 0), without, np.nan)
        low, high = jackknife_interval(np.log(value), np.log(without))
    # 1 is the least there can be.
    return value, np.maximum(np.exp(low), 1.0), np.exp(high)


def _plain(x_ND: Tensor) -> float:
    import torch

    x = x_ND.double() - x_ND.double().mean(0)
    gram = x.T @ x if x.shape[1] <= x.shape[0] else x @ x.T
    total, square = torch.trace(gram), gram.square().sum()
    return float(total**2 / square) if square > 0 else float("nan")
