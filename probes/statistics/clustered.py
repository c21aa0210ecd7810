"""Clustered: intervals of means and shares counted over tokens that come in blocks of text.

Needs   sums (block, ...) and tokens (block), or counts by block and the stratum of each block.
Yields  mean, low, high by bootstrap over blocks; Wilson intervals of shares, with tokens counted
        for what they are worth.

Tokens of one text are alike, so that n of them are worth n / deff independent ones. The design
effect deff is the variance of the share between blocks over that of independent tokens, pooled over
experts (and domains) of a layer, because one expert's few blocks would tell it badly; at least 1.

Sources: Künsch 1989, Ann. Statist. 17(3); Kish 1965; Wilson's interval with an effective sample
size, Korn & Graubard 1998, Survey Methodology 24(2).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from probes.statistics.resample import bootstrap_weights, percentile_interval, wilson

Floats = NDArray[np.float64]


def block_mean(
    sums: Floats, sizes: Floats, n_boot: int, seed: int
) -> tuple[Floats, Floats, Floats]:
    """(mean, low, high) over all tokens, 95 %, by bootstrap over blocks (Student's t under ten);
    one block: no bounds.

    Args:
        sums: (block, ...), each summed over the block's tokens.
        sizes: (block,) or (block, ...): tokens behind each sum.

    Example:
        >>> mean, low, high = block_mean(np.array([2.0, 4, 6]), np.array([4.0, 4, 4]), 200, 0)
        >>> float(mean), bool(low < mean < high)
        (1.0, True)
    """
    blocks = len(sums)
    tokens = np.broadcast_to(
        sizes.reshape(sizes.shape + (1,) * (sums.ndim - sizes.ndim)), sums.shape
    )

    def mean(weights: Floats) -> Floats:
        above, below = np.tensordot(weights, sums, 1), np.tensordot(weights, tokens, 1)
        return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)

    point = mean(np.ones((1, blocks)))[0]
    low, high = percentile_interval(mean(bootstrap_weights(blocks, n_boot, seed)), blocks)
    return point, np.minimum(low, point), np.maximum(high, point)


def design_effect(counts: Floats, sizes: Floats, stratum: NDArray[np.intp]) -> Floats:
    """(layer,): variance between blocks over that of independent tokens, at least 1.

    NaN where no stratum has two blocks: nothing says how alike the tokens of a block are.

    Args:
        counts: (block, layer, expert), tokens that chose the expert.
        sizes: (block,), tokens.
        stratum: (block,), domain of each block; shares are compared within domains only.
    """
    between = np.zeros(counts.shape[1])
    independent = np.zeros(counts.shape[1])
    for s in np.unique(stratum):
        inside = stratum == s
        blocks, tokens = int(inside.sum()), sizes[inside].sum()
        if blocks < 2:
            continue
        share = counts[inside].sum(axis=0) / tokens
        apart = counts[inside] - share * sizes[inside][:, None, None]
        between += blocks / (blocks - 1) * (apart**2).sum(axis=(0, 2)) / tokens
        independent += (share * (1 - share)).sum(axis=-1)
    # A router that sends every token the same way leaves nothing to compare: worth every token.
    known = bool((np.bincount(stratum) >= 2).any())
    effect = np.divide(between, independent, out=np.ones_like(between), where=independent > 0)
    return np.maximum(effect, 1) if known else np.full_like(effect, np.nan)


def share_interval(counts: Floats, tokens: Floats, effect: Floats) -> tuple[Floats, Floats]:
    """(low, high), 95 %: Wilson's interval with tokens / effect as the number of tokens.

    Args:
        counts, tokens, effect: of shapes that broadcast; NaN in `effect` gives NaN.
    """
    worth = np.broadcast_to(tokens / effect, np.broadcast_shapes(counts.shape, np.shape(effect)))
    share = np.divide(counts, tokens, out=np.zeros(worth.shape), where=tokens > 0)
    unknown = np.isnan(worth)
    n = np.where(unknown, 1.0, worth)
    low, high = wilson(share * n, n)
    return np.where(unknown, np.nan, low), np.where(unknown, np.nan, high)
