"""Cross rows: sums over pairs of tokens of different texts, for every pair of layers.

Needs   representations (layer, token, d) of the same tokens, in rows of equal length.
Yields  H (layer, layer): an unbiased estimate of |Σ_lm|², the squared norm of the covariance of two
        layers; the same with each row left out; and the total variance of each layer.

With K_ij = x_i · x_j (layer l) and L_ij (layer m), the estimate is

    mean K_ij L_ij − 2 mean K_ij L_ik + mean K_ij L_kh

each mean over tokens i, j, k, h of different rows. With one token a row this is the unbiased HSIC
of a linear kernel. Tokens of one row share their text: counted as pairs they would make every two
layers look alike. What is left out of one row only enters sums of rows, so the estimates without a
row (for the jackknife) cost nothing more.

Sources: Song et al. 2012, JMLR 13, section 2.3; delete-a-group jackknife, Kott 2001.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from probes.statistics.resample import CONFIDENCE, Floats
from workbench.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

FEWEST_ROWS = 5
"""Four rows make the estimate, a fifth its jackknife."""

# Shapes: S layers of all given models together, N tokens, R rows, M tokens of a row, D width.


@dataclass(frozen=True, eq=False)
class CrossRows:
    """The sums of all pairs of layers."""

    shared: Floats
    """(layer, layer): |Σ_lm|² estimated; may be under 0 where there is nothing in common."""
    shared_without: Floats
    """(row, layer, layer): the same without each row."""
    variance: Floats
    """(layer,): tr Σ."""
    variance_without: Floats
    """(row, layer)."""


def cross_rows(layers: Sequence[Tensor], row: NDArray[np.int64]) -> CrossRows:
    """The sums for these layers.

    Args:
        layers: (token, d) each; the widths may differ. Where they are is where it is computed.
        row: (token,): the row of each token, rows contiguous and of one length.

    Raises:
        UsageError: fewer than five rows, rows of unequal length, values that are not finite.

    Example:
        >>> import torch
        >>> x = torch.randn(600, 3, generator=torch.Generator().manual_seed(0))
        >>> sums = cross_rows([x, 2 * x], np.arange(600))
        >>> bool(abs(sums.shared[0, 0] - 3) < 0.5), round(sums.shared[1, 1] / sums.shared[0, 0])
        (True, 16)
    """
    import torch

    rows, length = _rows(row)
    unit = [_unit(x) for x in layers]
    centred = [x for x, _ in unit]
    scale = np.array([s for _, s in unit])
    products = np.zeros((rows, len(layers), len(layers)))
    sums = np.zeros((len(layers), rows * length, rows))
    own = np.zeros((len(layers), rows))
    for r in range(rows):
        here = slice(r * length, (r + 1) * length)
        gram_SMN = torch.stack([x[here] @ x.T for x in centred])
        own[:, r] = gram_SMN[:, :, here].diagonal(dim1=1, dim2=2).sum(1).double().cpu().numpy()
        gram_SMN[:, :, here] = 0
        flat = gram_SMN.flatten(1)
        products[r] = (flat @ flat.T).double().cpu().numpy()
        parts = gram_SMN.view(len(layers), length, rows, length).sum(-1, dtype=torch.float64)
        sums[:, here] = parts.cpu().numpy()
    whole, without = _estimates(products, sums, length)
    variance, variance_without = _variances(own, sums, length)
    square = np.outer(scale, scale)
    return CrossRows(
        shared=whole * square,
        shared_without=without * square,
        variance=variance * scale,
        variance_without=variance_without * scale,
    )


def _rows(row: NDArray[np.int64]) -> tuple[int, int]:
    _, counts = np.unique(row, return_counts=True)
    changes = int((row[1:] != row[:-1]).sum()) + 1
    if len(set(counts.tolist())) != 1 or changes != len(counts):
        raise UsageError(
            f"found {len(counts)} rows of {counts.min()} to {counts.max()} tokens, expected rows "
            f"one after the other and of one length."
        )
    if len(counts) < FEWEST_ROWS:
        raise UsageError(
            f"found {len(counts)} rows of text, expected {FEWEST_ROWS} or more: pairs are of "
            f"different rows. Give the exam more rows."
        )
    return len(counts), int(counts[0])


def _unit(x_ND: Tensor) -> tuple[Tensor, float]:
    """Centred, of mean square length 1; and that mean square length. Neither changes what is
    estimated; both keep float32 exact.
    """
    import torch

    if not torch.isfinite(x_ND).all():
        raise UsageError("a representation has values that are not finite; look at the loss.")
    x = x_ND.double()
    x = x - x.mean(0)
    square = float(x.square().sum(1).mean())
    # What is left of a constant by rounding is no variance.
    if square <= 1e-24 * float(x_ND.double().square().sum(1).mean()):
        return torch.zeros_like(x_ND, dtype=torch.float32), 0.0
    return (x / square**0.5).float(), square


def _estimates(products: Floats, sums: Floats, length: int) -> tuple[Floats, Floats]:
    """(layer, layer), and the same without each row."""
    rows = len(products)
    at = np.arange(sums.shape[1]) // length
    row_sums = np.stack([sums[:, at == r].sum(1) for r in range(rows)], axis=1)  # S R R
    token = sums.sum(2)  # S N

    def by_row(values: Floats) -> Floats:
        """(row, S, S) of sums over the tokens of each row."""
        return values.reshape(*values.shape[:2], rows, length).sum(-1).transpose(2, 0, 1)

    pair = products.sum(0)
    squares = np.stack([sums[:, at == r].reshape(len(sums), -1) for r in range(rows)])
    inner = squares @ squares.transpose(0, 2, 1)  # sum over i of the row, h of R_ih R'_ih
    outer = by_row(token[:, None] * token[None])
    three = (outer - inner).sum(0)
    to_row = np.einsum("in,jnr->rij", token, sums, optimize=True)
    shared = np.einsum("inr,jnr->rij", sums, sums, optimize=True)
    three_without = three - (outer - inner) - to_row - to_row.transpose(0, 2, 1) + 2 * shared

    row_total = row_sums.sum(2)  # S R
    total = row_total.sum(1)
    crossed = np.einsum("ir,jr->rij", row_total, row_total)
    both = np.einsum("irh,jrh->rij", row_sums, row_sums, optimize=True)
    four = np.outer(total, total) - 4 * crossed.sum(0) + 2 * both.sum(0)
    rest = total[None] - 2 * row_total.T  # R S
    mixed = np.einsum("ih,jhr->rij", row_total, row_sums, optimize=True)
    crossed_without = crossed.sum(0) - crossed - mixed - mixed.transpose(0, 2, 1) + both
    four_without = (
        rest[:, :, None] * rest[:, None] - 4 * crossed_without + 2 * (both.sum(0) - 2 * both)
    )

    def combined(two: Floats, three: Floats, four: Floats, g: int) -> Floats:
        n2 = length**2 * g * (g - 1)
        n3 = length * n2 * (g - 2)
        n4 = length * n3 * (g - 3)
        return two / n2 - 2 * three / n3 + four / n4

    whole = combined(pair, three, four, rows)
    return whole, combined(pair - 2 * products, three_without, four_without, rows - 1)


def _variances(own: Floats, sums: Floats, length: int) -> tuple[Floats, Floats]:
    """tr Σ = E|x|² − E x·x' over different rows; and without each row."""
    layers, rows = own.shape
    between = sums.reshape(layers, rows, length, rows).sum((2, 3))

    def estimate(square: Floats, cross: Floats, g: int) -> Floats:
        return square / (g * length) - cross / (length**2 * g * (g - 1))

    square, cross = own.sum(1), between.sum(1)
    without = estimate(square[:, None] - own, cross[:, None] - 2 * between, rows - 1)
    return estimate(square, cross, rows), without.T


def jackknife_interval(value: Floats, without: Floats) -> tuple[Floats, Floats]:
    """95 % interval of a smooth statistic from its values without each unit (unit, ...).

    Student's t on units − 1 degrees of freedom; NaN where any value is.

    Example:
        >>> x = np.array([1.0, 2.0, 3.0, 4.0])
        >>> low, high = jackknife_interval(x.mean(), (x.sum() - x) / 3)
        >>> round(float(high - low), 3)  # 2 t s / sqrt(n)
        4.109
    """
    units = len(without)
    spread = np.sqrt((units - 1) / units * ((without - without.mean(0)) ** 2).sum(0))
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, units - 1) * spread
    return value - reach, value + reach
