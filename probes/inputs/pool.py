"""Pool: consecutive steps of a router record joined until they hold a stated number of tokens.

Needs   router: tokens (step), and the counts or sums to join.
Yields  the same variables, summed, labelled by the last step of each pool.

A single step is a small sample: with few tokens even a fair router looks uneven. A pool states
its size in tokens, so that runs with different batch sizes can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from workbench.errors import UsageError

BLOCK_VALUES = 1_000_000
"""Numbers of one variable that are held in memory at a time (8 MB as float64)."""


def pool_edges(router: xr.Dataset, window: int | None) -> list[int]:
    """Positions on the step axis that cut the record into pools of at least `window` tokens.

    A last pool that does not fill up is left out: it would be noisier than its neighbours and
    look like news. None makes every step a pool of its own.

    Raises:
        UsageError: `window` is under one token, or more than the record holds.

    Example:
        >>> pool_edges(xr.Dataset({"tokens": ("step", [4, 4, 4, 4, 4])}), 8)
        [0, 2, 4]
    """
    if window is None:
        return list(range(router.sizes["step"] + 1))
    if window < 1:
        raise UsageError(f"window={window}: expected tokens to pool, 1 or more, or None for steps.")
    if "tokens" not in router:
        raise UsageError("a window in tokens needs `tokens` (step), which this record lacks.")
    edges, held = [0], 0
    for position, count in enumerate(router["tokens"].values, start=1):
        held += int(count)
        if held >= window:
            edges.append(position)
            held = 0
    if len(edges) == 1:
        raise UsageError(
            f"window={window:,}: the record holds {int(router['tokens'].sum()):,} tokens; ask for "
            "a smaller window."
        )
    return edges


def pooled_blocks(
    router: xr.Dataset, names: Sequence[str], window: int | None
) -> Iterator[tuple[xr.Dataset, xr.Dataset]]:
    """(steps, pools): the named sums, a stretch of the record that fits in memory at a time.

    Each number is read once, `BLOCK_VALUES` at a time whatever the length of the record, from
    numpy, from a lazily opened store or from dask alike. Steps after the last full pool are not
    read.
    """
    edges = np.asarray(pool_edges(router, window))
    per_step = max(router[name].isel(step=0).size for name in names) if len(edges) > 1 else 1
    steps = max(1, BLOCK_VALUES // per_step)
    first = 0
    while first < len(edges) - 1:
        # As many whole pools as fit, and one at least.
        last = int(np.searchsorted(edges, edges[first] + steps, side="right")) - 1
        last = max(last, first + 1)
        block = router[list(names)].isel(step=slice(int(edges[first]), int(edges[last]))).load()
        yield block, _summed(block, edges[first : last + 1] - edges[first])
        first = last


def _summed(block: xr.Dataset, edges: NDArray[np.intp]) -> xr.Dataset:
    if len(edges) - 1 == block.sizes["step"]:
        return block
    sums = {
        str(name): (variable.dims, np.add.reduceat(variable.values, edges[:-1], axis=0))
        for name, variable in block.transpose("step", ...).data_vars.items()
    }
    return xr.Dataset(sums, coords=block.isel(step=edges[1:] - 1).coords)
