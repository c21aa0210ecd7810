"""Emergence: at which step a capability arrived, and whether it jumped.

Needs   a capability dataset of one task: correct, item_logprob (checkpoint, item), chance.
Yields  Onset: step, 95 % interval in steps, verdict jump / smooth / cannot tell, the evidence.

Onset. The first step from which the chance-normalised accuracy is at or above the level and stays
there to the end. "Stays" allows for noise: the curve is read through its isotonic fit (ascent.py),
and only a fall that is significant undoes an onset (bracket.py). Between checkpoints: linear.

Interval. 95 %, over draws of items, each the same at every checkpoint (bracket.py). Its ends are
checkpoints: nothing is assumed of the curve between them. Where only one gap is left, the crossing
is anywhere in it, and 2.5 % of the gap at either end are cut off: checkpoints are laid without
knowledge of the crossing. Denser checkpoints, not more items, narrow such an interval. An end may
be open: high is inf where no checkpoint is significantly at the level. On planted curves the
interval of a clear jump holds the truth in 95 % of draws, that of a smooth rise in 98 to 100 %: a
crossing that is known to several gaps only is known by tests that hold at every checkpoint at once.
The worst case is a long plateau exactly at the level: 84 %.

Verdict. Most of the rise (at least MOST = 2/3) in a short stretch (SHORT = 1/5 of the evaluated
window; an even pace would put 1/5 there) makes a jump. Between checkpoints the curve is unknown,
so a share of the rise has a least and a greatest value (ascent.Stretches).
  jump         one and the same stretch surely holds MOST of the accuracy's rise over the window
               and MOST of the log-probability's rise over the surroundings (three stretches): the
               lower 95 % bound of the lesser share is at least MOST.
  smooth       no stretch can hold MOST: the upper 95 % bound of the greatest share is under MOST,
               for the accuracy over the window, or for the log-probability over the surroundings
               of the accuracy's steepest stretch: a threshold on a smooth quantity is no jump.
  cannot tell  everything else: too few checkpoints or items, no rise, or a rise out of view.
The log-probability counts only near the jump because early in training it leaps when the model
learns which tokens are answers at all. That leap ends at guessing, ln(chance). It is read twice, as
it is and with what lies under ln(chance) cut off; a jump must be one in both readings, and so
must a smooth rise.

Sources: metrics that make jumps, Schaeffer et al. 2023, arXiv:2304.15004; bootstrap over items,
Miller 2024, arXiv:2411.00640. MOST and SHORT are ours; what they do is measured by
tests/probes/rates_emergence.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import xarray as xr

from probes.inputs.item_curves import ItemCurves
from probes.statistics.ascent import (
    Stretches,
    breakthroughness,
    crossings,
    linearity,
    monotone,
    share,
)
from probes.statistics.bracket import bracket
from probes.statistics.resample import BOOT, CONFIDENCE, Floats, tails, wilson
from probes.statistics.smooth_rise import MOST, SHORT
from workbench.errors import UsageError

Verdict = Literal["jump", "smooth", "cannot tell"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Onset:
    """When a capability arrived: a step with its 95 % interval, a verdict and the evidence."""

    task: str
    """Which task."""

    level: float
    """The level crossed, on the chance-normalised scale: 0 chance, 1 perfect."""

    reached: bool
    """Did the curve reach the level and stay to the last checkpoint?"""

    step: float
    """Optimizer step of the crossing; NaN where not reached."""

    low: float
    """Lower end of the 95 % interval, steps. Where not reached: no onset up to this step."""

    high: float
    """Upper end, steps; inf where it is open."""

    verdict: Verdict
    """jump, smooth or cannot tell."""

    evidence: dict[str, Any] = field(default_factory=dict)
    """Every number behind the verdict, and `reason`, a sentence."""

    def __repr__(self) -> str:
        if not self.reached:
            return (
                f"Onset({self.task}: level {self.level:g} not reached; none before step "
                f"{self.low:.0f}; {self.verdict})"
            )
        high = "open" if np.isinf(self.high) else f"{self.high:.0f}"
        return (
            f"Onset({self.task}: level {self.level:g} at step {self.step:.0f}, 95 % "
            f"{self.low:.0f} to {high}; {self.verdict})"
        )


def onset(skill: xr.Dataset, level: float = 0.5, *, n_boot: int = BOOT, seed: int = 0) -> Onset:
    """The step at which a capability arrived, with interval and verdict; rules in the file's head.

    Args:
        skill: what `capability` returned, of one task: (checkpoint, item).
        level: on the chance-normalised scale, between 0 and 1.
        n_boot, seed: bootstrap draws over items, and their seed.

    Returns:
        Onset. Steps are optimizer steps. At a level reached already at the first checkpoint:
        step = that checkpoint, low = 0, verdict "cannot tell".

    Raises:
        UsageError: several tasks, a level outside (0, 1), under two evaluated checkpoints, or
            checkpoints out of order.
        SchemaError: not a capability dataset.

    Example:
        >>> from workbench.testing import PlantedSkill, evaluations_record
        >>> from probes.capability import capability
        >>> record = evaluations_record({"code/add": PlantedSkill("jump", at=500)}, seed=1)
        >>> arrived = onset(capability(record, task="code/add"))
        >>> arrived.low <= 500 <= arrived.high, arrived.verdict
        (True, 'jump')
    """
    if not 0 < level < 1:
        raise UsageError(
            f"level={level}: expected between 0 (chance) and 1 (perfect), both excluded."
        )
    curves = ItemCurves.of(skill, n_boot, seed)
    before, after = bracket(curves.accuracy, level, curves.least_error())
    # A fall below the level undoes what came before it: the onset is sought after the last one.
    kept = slice(max(before, 0), None)
    fit = monotone(curves.accuracy[:1, kept])
    step, left, right = (float(x[0]) for x in crossings(fit, curves.steps[kept], level))
    reached = bool(np.isfinite(step))
    ends = np.array([0.0, *curves.steps, np.inf])
    # Reached at the first checkpoint: it came at some time since the start of training.
    low = min(ends[before + 1], 0.0 if step <= curves.steps[0] else left)
    high = max(ends[after + 1], right)
    low, high = _within_a_gap(float(low), float(high), curves.steps)
    verdict, evidence = _verdict(curves, reached=reached, seen=step > curves.steps[0])
    return Onset(
        task=curves.task,
        level=float(level),
        reached=reached,
        step=step if reached else float("nan"),
        low=float(low),
        high=float(high),
        verdict=verdict,
        evidence=evidence,
    )


def _within_a_gap(low: float, high: float, steps: Floats) -> tuple[float, float]:
    """The central 95 % of an interval that is one gap of the clock; others as they are."""
    at = int(np.searchsorted(steps, low))
    if at + 1 < len(steps) and (low, high) == (steps[at], steps[at + 1]):
        cut = (1 - CONFIDENCE) / 2 * (high - low)
        return low + cut, high - cut
    return low, high


def onsets(
    skill: xr.Dataset, level: float = 0.5, *, n_boot: int = BOOT, seed: int = 0
) -> dict[str, Onset]:
    """`onset` of every task of a capability dataset, by task name."""
    if "task" not in skill.dims:
        return {str(skill["task"].item()): onset(skill, level, n_boot=n_boot, seed=seed)}
    return {
        str(task): onset(skill.sel(task=task), level, n_boot=n_boot, seed=seed)
        for task in skill["task"].values
    }


def _verdict(curves: ItemCurves, *, reached: bool, seen: bool) -> tuple[Verdict, dict[str, Any]]:
    accuracy = curves.accuracy[0]
    evidence: dict[str, Any] = {
        "items": curves.n,
        "checkpoints": len(curves.steps),
        "linearity": linearity(accuracy),
        "breakthroughness": breakthroughness(accuracy),
        "final_normalized": float(accuracy[-1]),
        "final_normalized_at_most": _one_sided_upper(curves),
    }
    if curves.logprob is not None:
        evidence["logprob_linearity"] = linearity(curves.logprob[0])
        evidence["logprob_breakthroughness"] = breakthroughness(curves.logprob[0])
    if not reached:
        return "cannot tell", evidence | {"reason": "the level was not reached"}
    if not seen:
        return "cannot tell", evidence | {"reason": "the rise lies before the first checkpoint"}
    if curves.logprob is None:
        return "cannot tell", evidence | {"reason": "no log-probability for every item"}
    return _judged(curves, evidence)


def _judged(curves: ItemCurves, evidence: dict[str, Any]) -> tuple[Verdict, dict[str, Any]]:
    """The verdict of a rise that is in view, with the shares that it rests on."""
    assert curves.logprob is not None
    stretches = Stretches.of(curves.steps, SHORT * (curves.steps[-1] - curves.steps[0]))
    fits = monotone(curves.accuracy)
    total = fits[:, -1:] - fits[:, :1]
    surely = share(stretches.rise_inside(fits), total, unknown=0.0)
    accuracy_most = share(stretches.rise_outside(fits), total, unknown=1.0).max(axis=1)
    rows = np.arange(len(fits))
    steepest = stretches.rise_outside(fits).argmax(axis=1)
    logprob_most = np.zeros(len(fits))
    for reading in _readings(curves.logprob, curves.chance):
        ascent = monotone(reading)
        around = stretches.rise_around(ascent)
        surely = np.minimum(surely, share(stretches.rise_inside(ascent), around, unknown=0.0))
        near = _within(stretches, steepest)
        most = np.where(near, stretches.rise_outside(ascent), 0.0).max(axis=1)
        logprob_most = np.maximum(logprob_most, share(most, around[rows, steepest], unknown=1.0))
    both = surely.max(axis=1)
    low, high = tails(curves.n)
    evidence |= {
        "jump_share": float(both[0]),
        "jump_share_low": float(np.quantile(both, low)),
        "accuracy_share_at_most": float(accuracy_most[0]),
        "accuracy_share_at_most_high": float(np.quantile(accuracy_most, high)),
        "logprob_share_at_most": float(logprob_most[0]),
        "logprob_share_at_most_high": float(np.quantile(logprob_most, high)),
        "stretch_steps": SHORT * float(curves.steps[-1] - curves.steps[0]),
    }
    if evidence["jump_share_low"] >= MOST:
        reason = "accuracy and log-probability make most of their rise in one short stretch"
        return "jump", evidence | {"reason": reason}
    if evidence["accuracy_share_at_most_high"] < MOST:
        return "smooth", evidence | {"reason": "no short stretch holds most of the accuracy's rise"}
    if evidence["logprob_share_at_most_high"] < MOST:
        reason = "accuracy is steep, but the log-probability behind it rises evenly"
        return "smooth", evidence | {"reason": reason}
    reason = "items or checkpoints are too few, or the two curves disagree"
    return "cannot tell", evidence | {"reason": reason}


def _readings(logprob: Floats, chance: float) -> list[Floats]:
    """The log-probability as it is, and with what lies below guessing cut off."""
    return [logprob] if chance <= 0 else [logprob, np.maximum(logprob, np.log(chance))]


def _within(stretches: Stretches, chosen: np.ndarray) -> np.ndarray:
    """(draw, stretch): does the stretch lie in the surroundings of the chosen one?"""
    low, high = stretches.around[:, chosen]
    return (stretches.begin >= low[:, None]) & (stretches.outside <= high[:, None])


def _one_sided_upper(curves: ItemCurves) -> float:
    """95 % one-sided upper bound of the last checkpoint's normalised accuracy."""
    right = curves.right[0, -1] * curves.n
    # Two-sided 90 % is one-sided 95 %.
    upper = wilson(np.array([right]), np.array([float(curves.n)]), 0.90)[1].item()
    return float((upper - curves.chance) / (1 - curves.chance))
