"""Arms: what one continuation of a run can do that another, from the same checkpoint, cannot.

Needs   two evaluations records over the same items: correct, logprob (checkpoint, task, item).
Yields  difference b - a of accuracy and of mean log-probability (checkpoint, task), with 95 %
        intervals, n; at the last checkpoint p-values and which differences survive FDR 5 %.

Both arms answered the same items, so differences are taken item by item: what is hard for both
cancels, and the interval shrinks by the correlation between the arms.

accuracy  Bonett & Price's adjusted Wald interval for paired proportions: it keeps its width where
          no item differs, where a bootstrap and a plain paired t give the impossible [0, 0].
          p by McNemar's exact test.
logprob   paired t: a mean of many differences; p by the same t.
FDR       Benjamini-Hochberg over tasks at the last checkpoint, accuracy and logprob each.

The intervals are about items: they say that these two checkpoints differ, and nothing about what
another seed of the same arm would do. Before the fork the arms are one: such checkpoints are left
out but for the last, where the difference is 0 with no uncertainty.

Sources: Miller 2024, arXiv:2411.00640; Bonett & Price 2012, J. Educ. Behav. Stat.
37(4), recommended by Fagerland et al. 2014, Stat. Med. 33(16); Benjamini & Hochberg 1995.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from scipy import stats

from probes.capability import capability
from probes.source import Source
from probes.statistics.resample import CONFIDENCE, Floats
from workbench.errors import SchemaError, UsageError

FDR = 0.05
"""Expected share of false ones among the differences called real."""

DIMS = ("checkpoint", "task")


def arm_difference(a: Source, b: Source, task: str | Sequence[str] | None = None) -> xr.Dataset:
    """b - a for each task at each common checkpoint, paired by item, with 95 % intervals.

    Args:
        a, b: evaluations datasets, Runs on two branches, Windows or anything with `.evaluations`.
            b less a: put the baseline first.
        task: one name, several, or None for all.

    Returns:
        Dataset (checkpoint, task): accuracy, accuracy_low, accuracy_high (fraction), logprob and
        bounds (nats), n (items). (task), at the last checkpoint: accuracy_p, logprob_p,
        accuracy_real, logprob_real (True where 0 is excluded at FDR 5 %). attrs: fork_step where
        the arms share history, arm_a, arm_b where known.

    Raises:
        UsageError: no common checkpoint, or no evaluations.
        RunNotFound: no such task.
        SchemaError: the arms were not put to the same items.

    Example:
        >>> from workbench.testing import two_arms
        >>> a, b = two_arms(gain={"code/add": 0.4}, seed=2)
        >>> gap = arm_difference(a, b)
        >>> bool(gap["accuracy_real"].sel(task="code/add"))
        True
    """
    names = None if task is None else [task] if isinstance(task, str) else list(task)
    one, two = (capability(source, task=names, n_boot=2) for source in (a, b))
    one, two = _same_tasks_and_steps(one, two)
    one, two, fork = _from_the_fork(one, two)
    asked = one["correct"].values >= 0
    if (asked != (two["correct"].values >= 0)).any():
        raise SchemaError(
            "the arms were put to different items; expected the same items at every common "
            "checkpoint. Evaluate both with the same item set."
        )
    n = asked.sum(axis=-1)
    right_a, right_b = ((arm["correct"].values > 0) for arm in (one, two))
    gained, lost = (right_b & ~right_a).sum(-1), (right_a & ~right_b).sum(-1)
    difference, low, high = bonett_price(gained, lost, n)
    moved = two["item_logprob"].values.astype(np.float64) - one["item_logprob"].values
    mean, mean_low, mean_high, mean_p = paired_t(moved)
    if fork is not None:
        # One and the same model: the difference is 0 and known.
        for bound in (low, high, mean_low, mean_high):
            bound[0] = np.where(n[0] > 0, 0.0, np.nan)
    p = mcnemar(gained[-1], lost[-1])
    result = xr.Dataset(
        {
            "accuracy": (DIMS, difference),
            "accuracy_low": (DIMS, low),
            "accuracy_high": (DIMS, high),
            "logprob": (DIMS, mean),
            "logprob_low": (DIMS, mean_low),
            "logprob_high": (DIMS, mean_high),
            "n": (DIMS, n),
            "accuracy_p": ("task", p),
            "accuracy_real": ("task", survives(p)),
            "logprob_p": ("task", mean_p[-1]),
            "logprob_real": ("task", survives(mean_p[-1])),
        },
        coords=one.drop_vars([str(v) for v in one.data_vars])
        .drop_dims("item", errors="ignore")
        .coords,
    )
    return _described(result, a, b, fork)


def bonett_price(
    gained: np.ndarray, lost: np.ndarray, n: np.ndarray
) -> tuple[Floats, Floats, Floats]:
    """(difference, low, high) of two paired proportions, from the counts of items that changed.

    Example:
        >>> d, low, high = bonett_price(np.array([0]), np.array([0]), np.array([98]))
        >>> d.item(), round(high.item(), 3)
        (0.0, 0.028)
    """
    z = stats.norm.ppf((1 + CONFIDENCE) / 2)
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = z * np.sqrt((up + down - (up - down) ** 2) / (n + 2))
    observed = np.divide(gained - lost, n, out=np.full(np.shape(n), np.nan), where=n > 0)
    low, high = np.clip(up - down - half, -1, 1), np.clip(up - down + half, -1, 1)
    return observed, np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)


def mcnemar(gained: np.ndarray, lost: np.ndarray) -> Floats:
    """Two-sided exact p that the arms differ: given that an item changed, both ways are alike.

    Example:
        >>> mcnemar(np.array([5]), np.array([0])).item()
        0.0625
    """
    changed = gained + lost
    tail = stats.binom.cdf(np.minimum(gained, lost), changed, 0.5)
    return np.minimum(1.0, 2 * tail)


def paired_t(difference: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """(mean, low, high, p) over the last axis of per-item differences; NaN items left out."""
    there = ~np.isnan(difference)
    n = there.sum(axis=-1)
    enough = n > 1
    filled = np.where(there, difference, 0.0)
    mean = np.divide(filled.sum(-1), n, out=np.full(n.shape, np.nan), where=n > 0)
    spread = (np.where(there, difference - mean[..., None], 0.0) ** 2).sum(-1)
    variance = np.divide(spread, n - 1, out=np.full(n.shape, np.nan), where=enough)
    error = np.sqrt(np.divide(variance, n, out=np.full(n.shape, np.nan), where=enough))
    freedom = np.maximum(n - 1, 1)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * error
    # No spread and no difference: nothing speaks against 0.
    t = np.divide(np.abs(mean), error, out=np.zeros(n.shape), where=error > 0)
    p = np.where(error > 0, 2 * stats.t.sf(t, freedom), np.where(mean == 0, 1.0, 0.0))
    return mean, mean - half, mean + half, np.where(enough, p, np.nan)


def survives(p: Floats, fdr: float = FDR) -> np.ndarray:
    """Benjamini-Hochberg: which of these p-values count as found at this false discovery rate.

    Example:
        >>> survives(np.array([0.001, 0.03, 0.04, 0.9])).tolist()
        [True, False, False, False]
    """
    known = ~np.isnan(p)
    found = np.zeros(p.shape, dtype=bool)
    if known.any():
        found[known] = stats.false_discovery_control(p[known]) <= fdr
    return found


def _same_tasks_and_steps(one: xr.Dataset, two: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    tasks = [t for t in one["task"].values if t in set(two["task"].values)]
    steps = np.intersect1d(one["checkpoint"].values, two["checkpoint"].values)
    for what, common in (("task", tasks), ("checkpoint", steps)):
        if not len(common):
            raise UsageError(
                f"found no {what} that both arms have (a: {_ends(one[what])}; b: "
                f"{_ends(two[what])}); expected the same evaluations in both."
            )
    if one.sizes["item"] != two.sizes["item"]:
        raise SchemaError(
            f"a has {one.sizes['item']} items, b has {two.sizes['item']}; expected the same items."
        )
    return one.sel(task=tasks, checkpoint=steps), two.sel(task=tasks, checkpoint=steps)


def _ends(labels: xr.DataArray) -> str:
    values = labels.values
    return f"{len(values)} from {values[0]} to {values[-1]}" if len(values) else "none"


def _from_the_fork(one: xr.Dataset, two: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset, int | None]:
    """Drops the shared history but its last checkpoint: known by equal answers to the last bit."""
    same = np.ones(one.sizes["checkpoint"], dtype=bool)
    for name in ("correct", "item_logprob"):
        left, right = one[name].values, two[name].values
        same &= ((left == right) | (np.isnan(left) & np.isnan(right))).all(axis=(1, 2))
    shared = int(np.argmin(same)) if not same.all() else len(same)
    if shared == 0:
        return one, two, None
    kept = slice(shared - 1, None)
    one, two = one.isel(checkpoint=kept), two.isel(checkpoint=kept)
    return one, two, int(one["checkpoint"].values[0])


def _described(result: xr.Dataset, a: Source, b: Source, fork: int | None) -> xr.Dataset:
    items = "95 %, paired by item: other items of the same kind, the same two checkpoints"
    notes = {
        "accuracy": ("1", "accuracy, b less a", f"{items} (Bonett-Price)"),
        "logprob": ("nats", "mean log-probability of the right answer, b less a", f"{items} (t)"),
        "n": ("items", "items that both arms answered", "none: a count"),
    }
    for name in result.data_vars:
        stem, _, end = str(name).partition("_")
        unit, meaning, interval = notes[stem]
        if end == "p":
            unit, meaning = "1", f"p of no difference in {stem} at the last checkpoint"
        elif end == "real":
            unit, meaning = "1", f"difference in {stem} at the last checkpoint survives FDR 5 %"
        elif end:
            meaning = f"{'lower' if end == 'low' else 'upper'} bound: {meaning}"
        result[name].attrs = {"units": unit, "long_name": meaning, "interval": interval}
        if stem != "n":
            result[name].attrs["chance_level"] = 0.0
    result.attrs = {"n": "variable `n` (checkpoint, task)", "fdr": FDR, "direction": "b - a"}
    if fork is not None:
        result.attrs["fork_step"] = fork
    for arm, source in (("arm_a", a), ("arm_b", b)):
        name = getattr(source, "branch", None) or getattr(source, "attrs", {}).get("branch")
        if name:
            result.attrs[arm] = str(name)
    return result
