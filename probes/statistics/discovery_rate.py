"""Discovery rate: of the signals called, how many are called wrongly?

Needs   p-values of any shape, NaN where nothing was tested.
Yields  q-values, dimensionless, same shape: call everything at or under 0.05 and at most 5 % of
        the calls are wrong in the mean.

q_(i) = min over j >= i of p_(j) m / j, over the m p-values that are there (Benjamini-Hochberg).

Dependence. The rate holds for independent p-values and for positively dependent ones (PRDS), as of
signals that move together: entropy and margin of one layer. For any dependence at all the rate
is at most 0.05 (1 + 1/2 + ... + 1/m), and `dependence="any"` (Benjamini-Yekutieli) multiplies q by
that sum. With strong dependence the mean hides a lot: mostly no false call, now and then many.

Sources: Benjamini & Hochberg 1995, J. R. Statist. Soc. B 57(1); Benjamini & Yekutieli 2001,
Ann. Statist. 29(4). Computed by scipy.stats.false_discovery_control.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import false_discovery_control

from probes.statistics.resample import Floats
from workbench.errors import UsageError

RATE = 0.05
"""Share of wrong calls, in the mean, that the package's own calls allow."""


def q_values(p: ArrayLike, *, dependence: Literal["positive", "any"] = "positive") -> Floats:
    """The false discovery rate at which each test would just be called.

    Args:
        p: p-values of one family of tests, any shape; NaN is no test and stays NaN.
        dependence: "positive" for Benjamini-Hochberg, "any" for Benjamini-Yekutieli.

    Returns:
        q-values of the same shape, dimensionless, in [0, 1]; never under p.

    Raises:
        UsageError: a p-value outside [0, 1], or an unknown dependence.

    Example:
        >>> q_values([0.01, 0.02, 0.9, np.nan]).tolist()
        [0.03, 0.03, 0.9, nan]
    """
    values = np.asarray(p, dtype=np.float64)
    there = ~np.isnan(values)
    known = values[there]
    if dependence not in ("positive", "any"):
        raise UsageError(f"dependence={dependence!r}: expected 'positive' or 'any'.")
    if ((known < 0) | (known > 1)).any():
        raise UsageError(
            f"found p-values from {known.min():.3g} to {known.max():.3g}, expected 0 to 1."
        )
    q = np.full(values.shape, np.nan)
    if len(known):
        q[there] = false_discovery_control(known, method="bh" if dependence == "positive" else "by")
    return q
