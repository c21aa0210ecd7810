"""Evenness: one number for how unequal a set of loads is. Five usual ones, for any leading dims.

Needs   load (..., expert), fraction; sums to 1 over `expert`.
Yields  max_violation, cv, gini, normalized_entropy, effective_experts, each (...), dimensionless.

All five see only the multiset of loads: permuting the experts changes none of them.

Sources: MaxVio, Wang et al. 2024, arXiv:2408.15664; the coefficient of variation as
a load measure, Shazeer et al. 2017, arXiv:1701.06538, section 4; effective number, Hill 1973.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from workbench.errors import SchemaError


def max_violation(load: xr.DataArray) -> xr.DataArray:
    """MaxVio, (max - mean) / mean of the loads: 0 is fair, E - 1 is collapse on one expert.

    With top-k each expert takes a token at most once, so it cannot pass E/k - 1.

    Example:
        >>> max_violation(xr.DataArray([0.5, 0.25, 0.25, 0.0], dims="expert")).item()
        1.0
    """
    checked(load)
    return load.max("expert") * load.sizes["expert"] - 1


def cv(load: xr.DataArray) -> xr.DataArray:
    """Coefficient of variation, sd / mean over experts (population sd): 0 is fair.

    Example:
        >>> cv(xr.DataArray([0.75, 0.25], dims="expert")).item()
        0.5
    """
    checked(load)
    return load.std("expert") * load.sizes["expert"]


def gini(load: xr.DataArray) -> xr.DataArray:
    """Gini coefficient, sum_i (2i - E - 1) l_(i) / E over sorted loads: 0 fair, 1 - 1/E collapse.

    Example:
        >>> gini(xr.DataArray([0.75, 0.25], dims="expert")).item()
        0.25
    """
    checked(load)
    experts = load.sizes["expert"]
    rank = 2 * np.arange(1, experts + 1) - experts - 1

    def weigh(values: np.ndarray) -> np.ndarray:
        return np.sort(values, axis=-1) @ rank / experts

    return xr.apply_ufunc(
        weigh,
        load,
        input_core_dims=[["expert"]],
        dask="parallelized",
        output_dtypes=[np.float64],
    )


def entropy(load: xr.DataArray) -> xr.DataArray:
    """Entropy of the loads, nats: ln E is fair, 0 is one expert. An expert without load adds 0."""
    checked(load)
    # log(1) = 0 stands in where the load is 0, so that 0 ln 0 is 0 without a warning.
    return -(load * np.log(load.where(load != 0, 1.0))).sum("expert", skipna=False)


def normalized_entropy(load: xr.DataArray) -> xr.DataArray:
    """Entropy of the loads over ln E: 1 is fair, 0 is one expert.

    Example:
        >>> normalized_entropy(xr.DataArray([0.5, 0.5, 0.0, 0.0], dims="expert")).item()
        0.5
    """
    return entropy(load) / np.log(load.sizes["expert"])


def effective_experts(load: xr.DataArray) -> xr.DataArray:
    """exp(entropy): the number of equally loaded experts that would be as uneven; 1 to E.

    Example:
        >>> round(effective_experts(xr.DataArray([0.5, 0.5, 0.0, 0.0], dims="expert")).item(), 6)
        2.0
    """
    return xr.apply_ufunc(np.exp, entropy(load), dask="allowed")


def checked(load: xr.DataArray) -> xr.DataArray:
    """`load` if it is one; chunked arrays are taken at their word, so that they stay lazy.

    Raises:
        SchemaError: no `expert` dim, or loads that do not sum to 1.
    """
    if "expert" not in load.dims:
        raise SchemaError(
            f"a load has the dim 'expert'; found {load.dims}. Name the expert axis so."
        )
    if load.chunks is None:
        total = load.sum("expert", skipna=False)
        if not np.allclose(total.fillna(1), 1, atol=1e-4):
            raise SchemaError(
                f"{load.name or 'load'} sums to between {float(total.min()):.4g} and "
                f"{float(total.max()):.4g} over 'expert'; a load sums to 1. For raw counts, divide "
                "first: counts / counts.sum('expert')."
            )
    return load
