"""Seed card: everything known of how one capability emerged in one training run.

Needs   a capability dataset of one task.
Yields  SeedCard: onset, change points, age of acquisition, linearity, breakthroughness, a verdict
        with its reasons; as a row of numbers, `NUMBERS`.

Verdict, from evidence that is independent in kind:
    smooth       the onset says so (emergence.py): no short stretch holds most of the rise.
    jump         the onset says so, and neither curve could be a smooth rise with noise that
                 remembers: p of the accuracy's and of the log-probability's change point is at or
                 under 0.05 (change_point.py). The onset's own rule knows the luck of the items, but
                 not the wandering of the training; the change point's knows that.
    cannot tell  everything else. `reasons` says which piece of evidence stands where.

Its error rates on planted curves are measured by tests/probes/rates_emergence.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from probes.acquisition import FITS, Acquisition, age_of_acquisition
from probes.change_point import ALPHA, NULL, ChangePoint, change_point
from probes.emergence import Onset, Verdict, onset
from probes.statistics.resample import BOOT
from workbench.errors import UsageError

CURVES = ("accuracy", "logprob")

ITEMS = "95 %: other items, same training run"
NUMBERS: dict[str, tuple[str, str, str]] = {
    "onset": ("steps", "step from which the accuracy stays at the level", ITEMS),
    "onset_low": ("steps", "lower bound of the onset", ITEMS),
    "onset_high": ("steps", "upper bound of the onset; inf where open", ITEMS),
    "age": ("steps", "step at which half of it was acquired", ITEMS),
    "age_low": ("steps", "lower bound of the age", ITEMS),
    "age_high": ("steps", "upper bound of the age", ITEMS),
    "plateau": ("1", "chance-normalised accuracy to which it rises", "point estimate: of the fit"),
    **{
        f"{curve}_{name}": (units, f"{curve}: {meaning}", interval)
        for curve in CURVES
        for name, units, meaning, interval in (
            ("change", "steps", "middle of the gap in which it changes most", ITEMS),
            ("change_low", "steps", "lower bound of the change point", ITEMS),
            ("change_high", "steps", "upper bound of the change point", ITEMS),
            (
                "change_p",
                "1",
                "share of smooth rises with AR(1) noise that look as broken",
                "exact",
            ),
            ("linearity", "1", "BIG-bench linearity", "point estimate: no error is known"),
            ("breakthroughness", "1", "BIG-bench breakthroughness", "point estimate: likewise"),
        )
    },
}


@dataclass(frozen=True, kw_only=True)
class SeedCard:
    """The sheet of one training seed."""

    onset: Onset
    """Where the accuracy came to stay at the level."""

    changes: dict[str, ChangePoint | None]
    """Change point of "accuracy" and of "logprob"; None where the curve is too short or missing."""

    acquisition: Acquisition
    """Where half of it was acquired."""

    linearity: dict[str, float]
    """BIG-bench linearity of each curve."""

    breakthroughness: dict[str, float]
    """BIG-bench breakthroughness of each curve."""

    verdict: Verdict
    """jump, smooth or cannot tell; the rule is in the file's head."""

    reasons: tuple[str, ...]
    """Each piece of evidence, in a sentence."""


def seed_card(
    skill: xr.Dataset,
    level: float = 0.5,
    *,
    n_boot: int = BOOT,
    n_null: int = NULL,
    seed: int = 0,
) -> SeedCard:
    """The sheet of one task of one run.

    Args:
        skill: what `capability` returned, of one task: (checkpoint, item).
        level: of the onset, chance-normalised.
        n_boot, n_null, seed: draws over items, simulated curves behind the change points' p, seed.

    Raises:
        As `onset`.
    """
    arrived = onset(skill, level, n_boot=n_boot, seed=seed)
    changes: dict[str, ChangePoint | None] = {}
    for curve in CURVES:
        try:
            changes[curve] = change_point(skill, curve, n_boot=n_boot, n_null=n_null, seed=seed)
        except UsageError:
            # Too few checkpoints, or no log-probability for every item: said among the reasons.
            changes[curve] = None
    evidence = arrived.evidence
    verdict, reasons = _judged(arrived, changes)
    return SeedCard(
        onset=arrived,
        changes=changes,
        acquisition=age_of_acquisition(skill, n_boot=min(n_boot, FITS), seed=seed),
        linearity={
            "accuracy": evidence["linearity"],
            "logprob": evidence.get("logprob_linearity", float("nan")),
        },
        breakthroughness={
            "accuracy": evidence["breakthroughness"],
            "logprob": evidence.get("logprob_breakthroughness", float("nan")),
        },
        verdict=verdict,
        reasons=reasons,
    )


def _judged(
    arrived: Onset, changes: dict[str, ChangePoint | None]
) -> tuple[Verdict, tuple[str, ...]]:
    reasons = [arrived.evidence["reason"]]
    for curve, change in changes.items():
        if change is None:
            reasons.append(f"no change point of the {curve} can be sought")
        elif np.isnan(change.p):
            reasons.append(f"too few checkpoints to tell a step of the {curve} from a smooth rise")
        elif change.p <= ALPHA:
            reasons.append(
                f"the {curve} steps as no smooth rise with noise does (p={change.p:.3g})"
            )
        else:
            reasons.append(f"the {curve} may be a smooth rise with noise (p={change.p:.3g})")
    steps = all(change is not None and change.found for change in changes.values())
    verdict = arrived.verdict
    if verdict == "jump" and not steps:
        verdict = "cannot tell"
    return verdict, tuple(reasons)


def row_of(card: SeedCard) -> dict[str, Any]:
    """The card as plain numbers, by the names in `NUMBERS`, and its verdict."""
    nothing = float("nan")
    row: dict[str, Any] = {
        "verdict": card.verdict,
        "onset": card.onset.step,
        "onset_low": card.onset.low,
        "onset_high": card.onset.high,
        "age": card.acquisition.age,
        "age_low": card.acquisition.low,
        "age_high": card.acquisition.high,
        "plateau": card.acquisition.plateau,
    }
    for curve, change in card.changes.items():
        row[f"{curve}_change"] = change.step if change else nothing
        row[f"{curve}_change_low"] = change.low if change else nothing
        row[f"{curve}_change_high"] = change.high if change else nothing
        row[f"{curve}_change_p"] = change.p if change else nothing
        row[f"{curve}_linearity"] = card.linearity[curve]
        row[f"{curve}_breakthroughness"] = card.breakthroughness[curve]
    return row
