"""Co-activation: which experts are chosen together, more or less often than their loads explain.

Needs   of the stream: router: coactivation (sample, layer, expert, expert2), tokens (step).
        of the fixed tokens: a checkpoint's expert_ids.
Yields  conditional P(j | i) = N_ij / N_i; lift = N_ij N / (N_i N_j), with bounds; chance, the lift
        that the loads and k alone would give; (layer, expert, expert2), of the stream
        (sample, layer, expert, expert2).

All pairs of the k chosen are counted, and exactly. OLMoE's published script counts only pairs that
are neighbours in the order of their probability: 7 of the 28 pairs of a top-8 choice.

A lift of 1 is independence, but a router that takes k different experts cannot reach it: who takes
one has fewer places left. With equal loads the lift of unlinked experts is E(k-1) / (k(E-1)): 0.8
for 4 of 16, 0 for k = 1. Judge a pair by `chance`, not by 1: two experts go together where the
interval of `lift` lies above `chance`. Of E(E-1)/2 pairs one in twenty does so by accident.

The interval is on the logarithm of the lift, by its change from block to block (rows of the fixed
tokens; groups of samples of the stream), with Student's t. A pair that is seen in fewer than 5
blocks has too little of that: there the lower bound is 0 and the upper one is Wilson's for
P(j | i), with tokens counted for what they are worth.

It misleads where several domains are pooled (experts of one domain go together though nothing links
them on a token), and where the largest of many pairs is picked without a correction.

Sources: expert co-activation, Muennighoff et al. 2024, OLMoE, section 5.2, arXiv:2409.02060; chance
by Chen, Dempster & Liu 1994 (fixed_size.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from probes.caption import Caption, captioned
from probes.inputs.routing import Routing, over_checkpoints
from probes.registry import probe
from probes.source import Source, group_of
from probes.statistics.clustered import share_interval
from probes.statistics.fixed_size import meeting_chance
from probes.statistics.resample import CONFIDENCE
from workbench.errors import SchemaError, UsageError

if TYPE_CHECKING:
    from probes.subject import Subject

Floats = NDArray[np.float64]
Counts = NDArray[np.floating]

MOST_GROUPS = 40
"""Blocks are joined into at most this many, so that memory does not grow with the text."""

FEWEST_SEEN = 5
"""A pair must be seen in this many blocks for its own change from block to block to count."""

PAIR = ("layer", "expert", "expert2")


def _captions(interval: str) -> dict[str, Caption]:
    return {
        "conditional": Caption(
            "1", "share of the tokens of `expert` that also chose `expert2`", "of lift only",
            "chance x load of expert2",
        ),
        "lift": Caption("1", "how often both are chosen, over independence", interval, "chance"),
        "chance": Caption(
            "1", "lift of unlinked experts with these loads, k of them a token", "of lift only"
        ),
    }  # fmt: skip


@probe(
    "coactivation",
    question="Which experts are chosen together, over the training stream?",
    reads="record",
    needs=("router",),
)
def coactivation(source: Source, *, samples: int | None = None) -> xr.Dataset:
    """Which experts the training stream's tokens chose together, all pairs, exactly.

    Args:
        source: router dataset, Run, Window or anything with `.router`.
        samples: samples of the record to pool; None pools all that are there. A last pool that does
            not fill up is left out.

    Returns:
        Dataset (sample, layer, expert, expert2), pools labelled by their last sample: conditional,
        lift, lift_low, lift_high, chance. NaN where an expert was never chosen, on the diagonal of
        lift and chance, and in the bounds of a pool of one sample. attrs: n (tokens), k.

    Raises:
        UsageError: no sample, or fewer than asked for.
        SchemaError: the record lacks the counters, or the tokens of a sampled step.

    Example:
        >>> from workbench.testing import router_record
        >>> found = coactivation(router_record(steps=40, experts=8, k=2))
        >>> round(float(found["chance"].mean()), 2)  # 8 x 1 / (2 x 7)
        0.57
    """
    router = group_of(source, "router", ["coactivation", "tokens"])
    there = router.sizes["sample"]
    pool = there if samples is None else samples
    if not 0 < pool <= there:
        raise UsageError(
            f"found {there} samples of co-activation, expected {max(pool, 1)} or more; widen the "
            "window, or pool fewer."
        )
    if not np.isin(router["sample"].values, router["step"].values).all():
        raise SchemaError(
            "some samples of co-activation have no step in this record, whose tokens are needed; "
            "pass a window of the run, which cuts both."
        )
    tokens = router["tokens"].sel(step=router["sample"].values).values.astype(np.float64)
    counters = router["coactivation"].transpose("sample", *PAIR)
    k = router.attrs.get("k")
    rows, ends = [], []
    for first in range(0, there - pool + 1, pool):
        cuts = np.linspace(0, pool, min(MOST_GROUPS, pool) + 1).astype(np.intp) + first
        groups = np.stack(
            [counters[a:b].values.sum(axis=0, dtype=np.float64) for a, b in pairwise(cuts)]
        )
        rows.append(_measured(groups, np.add.reduceat(tokens[: cuts[-1]], cuts[:-1]), k))
        ends.append(router["sample"].values[first + pool - 1])
    interval = (
        f"95 %, from how the counts change over {min(MOST_GROUPS, pool)} groups of sampled steps "
        "of each pool: other text of the same stream. No correction for many pairs"
    )
    result = xr.Dataset(
        {name: (("sample", *PAIR), np.stack([row[name] for row in rows])) for name in rows[0]},
        coords={"sample": ends, **_labels(router)},
    )
    return captioned(result, _captions(interval)).assign_attrs(
        n=int(tokens.sum()), n_meaning="training tokens of the sampled steps", samples=pool,
        k=k if k is not None else "not known",
    )  # fmt: skip


def _labels(router: xr.Dataset) -> dict[str, object]:
    return {
        name: router[name].values
        for name in ("layer", "expert", "expert2")
        if name in router.coords
    }


@probe(
    "coactivation-fixed",
    question="Which experts does each checkpoint choose together, on the fixed tokens?",
    reads="checkpoint",
    needs=("expert_ids",),
)
def coactivation_fixed(source: Source | Subject) -> xr.Dataset:
    """Which experts the fixed tokens choose together, all pairs, exactly.

    Args:
        source: a Subject; or a record with `.activations` (every checkpoint of it).

    Returns:
        Dataset (layer, expert, expert2), of a record with `checkpoint` first: conditional, lift,
        lift_low, lift_high, chance; NaN as in `coactivation`. attrs: n (tokens), blocks, k.

    Example:
        >>> from workbench.testing import activations_record
        >>> found = coactivation_fixed(activations_record(checkpoints=2, tokens=400))
        >>> round(float(found["lift"].mean()), 1)
        0.8
    """
    return over_checkpoints(source, _of)


def _of(routing: Routing) -> xr.Dataset:
    groups, tokens = pair_counts(routing)
    columns = _measured(groups, tokens, routing.k)
    interval = (
        f"95 %, from how the counts change over {len(groups)} groups of "
        f"{routing.tokens.blocks_are}: other text of the same kind, same checkpoint. No correction "
        "for many pairs"
    )
    experts = np.arange(routing.experts)
    result = routing.result(
        {name: (PAIR, column) for name, column in columns.items()},
        {"expert": experts, "expert2": experts},
    )
    return captioned(result, _captions(interval))


def pair_counts(routing: Routing) -> tuple[Counts, Floats]:
    """Tokens that chose both (group, layer, expert, expert2), and tokens (group), by text."""
    starts = routing.tokens.groups(MOST_GROUPS)
    ends = [*starts[1:], routing.tokens.count]
    chosen = routing.chosen
    pairs = [
        np.matmul(chosen[:, a:b].transpose(0, 2, 1), chosen[:, a:b])
        for a, b in zip(starts, ends, strict=True)
    ]
    return np.stack(pairs), np.diff([*starts, ends[-1]]).astype(np.float64)


def _measured(groups: Counts, tokens: Floats, k: float | None) -> dict[str, Counts]:
    """conditional, lift with bounds, and chance, of counts (group, layer, expert, expert2)."""
    both, n = groups.sum(axis=0, dtype=np.float64), float(tokens.sum())
    one = np.einsum("lee->le", both)
    unlinked = one[:, :, None] * one[:, None, :] / n
    conditional = np.divide(
        both, one[:, :, None], out=np.full_like(both, np.nan), where=one[:, :, None] > 0
    )
    lift = np.divide(both, unlinked, out=np.full_like(both, np.nan), where=unlinked > 0)
    diagonal = np.arange(both.shape[-1])
    lift[:, diagonal, diagonal] = np.nan
    chance = np.full_like(both, np.nan)
    if k is not None and n > 0 and float(k).is_integer():
        meeting = meeting_chance(one / n, int(k))
        chance = np.divide(meeting * n, unlinked, out=chance, where=unlinked > 0)
    low, high = _bounds(_Spread.of(groups, tokens), lift)
    found = {"conditional": conditional, "lift": lift, "lift_low": low, "lift_high": high}
    return {name: v.astype(np.float32) for name, v in (found | {"chance": chance}).items()}


@dataclass(frozen=True)
class _Spread:
    """Sums over groups from which every variance between groups follows."""

    count: int
    n: float
    both: Floats
    """(layer, expert, expert2): tokens that chose both."""
    squares: Floats
    """Sum over groups of the group's count, squared."""
    with_one: Floats
    """Sum over groups of the count times the group's share of `expert`'s tokens."""
    with_size: Floats
    """Sum over groups of the count times the group's share of all tokens."""
    seen: Floats
    """Groups in which the pair was seen at all."""
    shares: Floats
    """(group, layer, expert): the group's share of the expert's tokens."""
    sizes: Floats
    """(group,): the group's share of all tokens."""

    @classmethod
    def of(cls, groups: Counts, tokens: Floats) -> _Spread:
        # One group in memory at a time as float64: this is the costly loop of the probe.
        n = float(tokens.sum())
        both = groups.sum(axis=0, dtype=np.float64)
        each = np.einsum("glee->gle", groups).astype(np.float64)
        one = each.sum(axis=0)
        shares = np.divide(each, one, out=np.zeros_like(each), where=one > 0)
        squares, with_one, with_size, seen = (np.zeros_like(both) for _ in range(4))
        for group, share, size in zip(groups, shares, tokens / n, strict=True):
            count = group.astype(np.float64)
            with_size += count * size
            with_one += count * share[:, :, None]
            seen += count > 0
            squares += np.square(count, out=count)
        return cls(len(groups), n, both, squares, with_one, with_size, seen, shares, tokens / n)


def _bounds(spread: _Spread, lift: Floats) -> tuple[Floats, Floats]:
    """95 % bounds of the lift; see the head of this file."""
    if spread.count < 2:
        return np.full_like(lift, np.nan), np.full_like(lift, np.nan)
    both, shares, sizes = spread.both, spread.shares, spread.sizes
    inverse = np.divide(1, both, out=np.zeros_like(both), where=both > 0)
    # log lift answers to a group by count/both - share_i - share_j + size; its square, multiplied
    # out, needs no array over groups and pairs at once.
    meet = np.einsum("gli,glj->lij", shares, shares)
    own = np.einsum("lii->li", meet)
    sized = np.einsum("gli,g->li", shares, sizes)
    crossed = spread.with_one + spread.with_one.transpose(0, 2, 1)
    squares = (
        spread.squares * inverse**2
        + 2 * inverse * (spread.with_size - crossed)
        + own[:, :, None] + own[:, None, :] + 2 * meet
        - 2 * (sized[:, :, None] + sized[:, None, :])
        + (sizes**2).sum()
    )  # fmt: skip
    error = np.sqrt(spread.count / (spread.count - 1) * np.maximum(squares, 0))
    width = np.exp(np.minimum(stats.t.ppf((1 + CONFIDENCE) / 2, spread.count - 1) * error, 300))
    low, high = lift / width, lift * width
    rare = spread.seen < FEWEST_SEEN
    if rare.any():
        low[rare] = 0.0
        high[rare] = _rare_high(spread)[rare]
    undefined = np.isnan(lift)
    low[undefined] = high[undefined] = np.nan
    return low, high


def _rare_high(spread: _Spread) -> Floats:
    """Wilson's upper bound of P(j | i) over the load of j, for pairs that are hardly seen."""
    both = spread.both
    one = np.einsum("lii->li", both)[:, :, None]
    share = np.divide(both, one, out=np.zeros_like(both), where=one > 0)
    own = np.einsum("gli,gli->li", spread.shares, spread.shares)[:, :, None]
    apart = spread.squares - 2 * both * spread.with_one + both**2 * own
    between = spread.count / (spread.count - 1) * np.maximum(apart, 0).sum(axis=(1, 2))
    independent = (one * share * (1 - share)).sum(axis=(1, 2))
    ratio = np.divide(between, independent, out=np.ones_like(between), where=independent > 0)
    effect = np.maximum(ratio, 1)[:, None, None]
    high = share_interval(both, np.maximum(one, 1e-12), effect)[1]
    load = one.transpose(0, 2, 1) / spread.n
    return np.divide(high, load, out=np.full_like(high, np.nan), where=load > 0)
