"""Shapley values: what each part of a whole contributes, when parts need or replace each other.

Needs   a value function: which parts are in (part,) bool -> value of each item (item,).
Yields  ShapleyValues: by item, their mean, standard error of the sampling, and the interval.

A part's value is what it adds when it joins, averaged over all orders in which parts can join. The
values of all parts sum to value(all) - value(none): exactly, item by item, and that also where only
some orders are sampled, because what the parts add along one order telescopes to it.

exact     every one of the 2^M coalitions is measured, each one part away from the one before (Gray
          code). Done whenever it costs no more measurements than the sampling asked for.
sampled   n_permutations / 2 pairs of orders, each with its reverse (antithetic: a part that came
          early comes late), coalitions measured once. The standard error is that of the mean of
          independent pairs.

The interval is about other items of the same kind, with the sampling of orders on top where there
is any: bootstrap over items and over pairs at once (Student's t from fewer than ten items, no
bounds from one). Where an item's value is a right or wrong
answer, Bonett & Price's adjustment is used instead (one item more each way, of the size of the
part's effects), since a bootstrap of answers that never change says [0, 0], which is not known.

It misleads where the value of a half-exchanged model means little: Shapley values share out the
gain whatever the coalitions on the way look like. Read them with `alone` and `last`, the first and
the last place of every order: where the two differ much, parts need each other or can stand in for
each other, and the share is a convention.

Sources: Shapley 1953; sampling of orders, Castro et al. 2009, Comput. Oper. Res. 36(5), and
antithetic pairs, Mitchell et al. 2022, JMLR 23(43); bootstrap of two crossed factors, Owen 2007,
Ann. Appl. Stat. 1(2); Bonett & Price 2012, J. Educ. Behav. Stat. 37(4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import factorial

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from probes.statistics.resample import (
    BOOT,
    CONFIDENCE,
    Floats,
    bootstrap_weights,
    percentile_interval,
)
from workbench.errors import UsageError

Value = Callable[[NDArray[np.bool_]], Floats]

MOST_EXACT = 20
"""Parts of which all coalitions can be measured: about a million measurements."""

# Shapes: M parts, I items, P pairs of orders (1 where exact), D bootstrap draws.


@dataclass(frozen=True, eq=False)
class ShapleyValues:
    """What each part contributes to each item."""

    by_pair: Floats
    """(pair, part, item): of each pair of orders; one "pair" of all orders where exact."""
    none: Floats
    """(item,): value without any part."""
    every: Floats
    """(item,): value with all parts."""
    alone: Floats
    """(part, item): value({m}) - value(none), the first place of an order."""
    last: Floats
    """(part, item): value(all) - value(all but m), the last place."""
    coalitions: int
    """Coalitions that were measured."""
    exact: bool
    """Whether all were."""

    @property
    def by_item(self) -> Floats:
        """(part, item): Shapley values of each item. They sum over parts to every - none."""
        return self.by_pair.mean(0)

    @property
    def values(self) -> Floats:
        """(part,): mean over items."""
        return self.by_item.mean(-1)

    @property
    def standard_error(self) -> Floats:
        """(part,): of `values`, from the sampling of orders alone, these items given; 0 if exact.

        An estimate from P pairs; its own relative error is about 1 / sqrt(2 (P - 1)).
        """
        if self.exact:
            return np.zeros(self.by_pair.shape[1])
        return self.by_pair.mean(-1).std(0, ddof=1) / np.sqrt(len(self.by_pair))

    def interval(self, *, answers: bool = False, n_boot: int = BOOT, seed: int = 0) -> Floats:
        """(2, part): lower and upper 95 % bound of `values`, over items and sampled orders.

        Args:
            answers: each item's value is 0 or 1 (wrong, right), so that what a part adds lies in
                [-1, 1].
            n_boot, seed: bootstrap draws; not used with `answers`.
        """
        pairs, _, items = self.by_pair.shape
        # Few pairs give an uncertain standard error: Student's t where the normal would be short.
        wider = 1.0 if self.exact else _reach(pairs - 1) / _reach(np.inf)
        if answers:
            return adjusted_interval(self.by_item, wider * self.standard_error)
        rng = np.random.SeedSequence(seed).generate_state(2)
        weights_DI = bootstrap_weights(items, n_boot, int(rng[0])) / items
        draws_DM = weights_DI @ self.by_item.T
        if not self.exact:
            weights_DP = bootstrap_weights(pairs, n_boot, int(rng[1])) / pairs
            # The spread of a bootstrap of P units is too small by sqrt((P - 1) / P).
            wider *= np.sqrt(pairs / (pairs - 1))
            draws_DM += wider * (weights_DP @ self.by_pair.mean(-1) - self.values)
        low, high = percentile_interval(draws_DM, items)
        return np.stack([np.minimum(low, self.values), np.maximum(high, self.values)])

    def gap_interval(self, *, answers: bool = False, n_boot: int = BOOT, seed: int = 0) -> Floats:
        """(2,): 95 % bounds of the mean of every - none over items."""
        gap_1I = (self.every - self.none)[None]
        if answers:
            return adjusted_interval(gap_1I, np.zeros(1))[:, 0]
        items = gap_1I.shape[1]
        state = np.random.SeedSequence(seed).generate_state(2)
        draws = bootstrap_weights(items, n_boot, int(state[0])) / items @ gap_1I.T
        low, high = percentile_interval(draws, items)[:, 0]
        return np.array([min(low, gap_1I.mean()), max(high, gap_1I.mean())])


def shapley(
    value: Value, n_parts: int, *, n_permutations: int | None = 64, seed: int = 0
) -> ShapleyValues:
    """The Shapley values of a game, item by item.

    Args:
        value: members (part,) bool to (item,) values; must not depend on the order of the calls.
            Consecutive calls differ in few parts.
        n_parts: M, 1 or more.
        n_permutations: orders sampled where that is cheaper than all coalitions; even, 8 or more.
            None: all coalitions, whatever it costs.
        seed: of the orders.

    Raises:
        UsageError: no part; an odd number of permutations or fewer than 8; all coalitions of more
            than 20 parts.

    Example:
        >>> gloves = lambda m: np.array([min(m[0] + 0, m[1] + m[2])], float)  # one left, two right
        >>> np.round(shapley(gloves, 3).values, 3).tolist()
        [0.667, 0.167, 0.167]
    """
    if n_parts < 1:
        raise UsageError(f"found {n_parts} parts, expected 1 or more.")
    if n_permutations is not None and (n_permutations < 8 or n_permutations % 2):
        raise UsageError(
            f"n_permutations={n_permutations}: expected an even number, 8 or more (orders are "
            f"drawn in pairs, and a standard error takes some), or None for all coalitions."
        )
    if n_permutations is None or 2**n_parts <= n_permutations * (n_parts - 1) + 2:
        if n_parts > MOST_EXACT:
            raise UsageError(
                f"found {n_parts} parts, expected {MOST_EXACT} or fewer for all 2^{n_parts} "
                f"coalitions; sample orders: n_permutations=64."
            )
        return _exact(value, n_parts)
    return _sampled(value, n_parts, n_permutations, seed)


def adjusted_interval(values: Floats, standard_error: Floats) -> Floats:
    """(2, part): 95 % of the mean of what parts add to answers, sampling added.

    One item is added each way, as large as the part's effect on the items that it has any on (root
    mean square; 1 where there is none). For values of -1, 0 and 1 that is Bonett & Price's
    interval.

    Args:
        values: (part, item), in [-1, 1].
        standard_error: (part,), of anything else that varies; 0 for nothing.

    Example:
        >>> np.round(adjusted_interval(np.zeros((1, 62)), np.zeros(1))[:, 0], 4).tolist()
        [-0.0433, 0.0433]
    """
    items = values.shape[1] + 2
    # Sums of thirds and the like leave 1e-17 where nothing changed.
    changed = (np.abs(values) > 1e-9).sum(1)
    squares = (values**2).sum(1)
    size2 = np.divide(squares, changed, out=np.ones_like(squares), where=changed > 0)
    mean = values.sum(1) / items
    variance = (squares + 2 * size2) / items - mean**2
    half = _reach(np.inf) * np.sqrt(variance / items + standard_error**2)
    point = values.mean(1)
    return np.stack(
        [np.fmin(np.maximum(mean - half, -1), point), np.fmax(np.minimum(mean + half, 1), point)]
    )


def _reach(freedom: float) -> float:
    """Half the width of a 95 % interval in standard errors: Student's t, 1.96 at infinity."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))


def _exact(value: Value, n_parts: int) -> ShapleyValues:
    members = np.zeros(n_parts, dtype=bool)
    first = np.asarray(value(members.copy()), dtype=np.float64)
    measured = np.empty((2**n_parts, *first.shape))
    measured[0] = first
    code = 0
    for count in range(1, 2**n_parts):
        # Gray code: the lowest set bit of the count is the one part that joins or leaves.
        part = (count & -count).bit_length() - 1
        members[part] = ~members[part]
        code ^= 1 << part
        measured[code] = value(members.copy())
    codes = np.arange(2**n_parts)
    sizes = np.array([int(c).bit_count() for c in codes])
    values = np.empty((n_parts, *first.shape))
    orders = np.array(
        [factorial(s) * factorial(n_parts - 1 - s) / factorial(n_parts) for s in range(n_parts)]
    )
    for part in range(n_parts):
        without = codes[codes & (1 << part) == 0]
        added = measured[without | (1 << part)] - measured[without]
        values[part] = np.tensordot(orders[sizes[without]], added, 1)
    singles = 1 << np.arange(n_parts)
    return ShapleyValues(
        values[None], measured[0], measured[-1], measured[singles] - measured[0],
        measured[-1] - measured[codes[-1] ^ singles], len(codes), True,
    )  # fmt: skip


def _sampled(value: Value, n_parts: int, n_permutations: int, seed: int) -> ShapleyValues:
    known: dict[bytes, Floats] = {}

    def measured(members: NDArray[np.bool_]) -> Floats:
        key = members.tobytes()
        if key not in known:
            known[key] = np.asarray(value(members.copy()), dtype=np.float64)
        return known[key]

    def along(order: NDArray[np.int64]) -> Floats:
        """(part, item): what each part adds when it joins in this order."""
        members = np.zeros(n_parts, dtype=bool)
        before = measured(members)
        added = np.empty((n_parts, *before.shape))
        for part in order:
            members[part] = True
            after = measured(members)
            added[part] = after - before
            before = after
        return added

    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(n_permutations // 2):
        order = rng.permutation(n_parts)
        pairs.append((along(order) + along(order[::-1])) / 2)
    one = np.eye(n_parts, dtype=bool)
    none, every = measured(~one[0] & one[0]), measured(~one[0] | one[0])
    return ShapleyValues(
        np.stack(pairs), none, every,
        np.stack([measured(m) - none for m in one]),
        np.stack([every - measured(~m) for m in one]), len(known), False,
    )  # fmt: skip
