"""What to doubt: the reasons not to believe a report, computed from the run it is about.

Needs   a Study whose measures have been asked for.
Yields  `doubts`: heading and text of each, the gravest first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from workbench.app.study import Study, evaluated_gaps
from workbench.figures.wording import count, listed, many, number, plain


@dataclass(frozen=True)
class Doubt:
    """One reason for doubt."""

    title: str
    text: str


def doubts(study: Study) -> list[Doubt]:
    """Every doubt that applies to this run."""
    found = [
        _dropped(study), _gaps_in_record(study), _missing(study), _one_seed(study),
        _few_items(study), _many_comparisons(study), _spacing(study), _verdicts(study),
        _losses(study), _noise(study),
    ]  # fmt: skip
    return [doubt for doubt in found if doubt is not None]


def _dropped(study: Study) -> Doubt | None:
    capture = study.run.attrs.get("capture")
    if not isinstance(capture, Mapping):
        return None
    lost = {
        str(arm): int(said["dropped"])
        for arm, said in capture.items()
        if isinstance(said, Mapping) and str(said.get("dropped", 0)).isdecimal()
    }
    lost = {arm: n for arm, n in lost.items() if n}
    if not lost:
        return None
    told = listed([f"{n:,} of {plain(arm)}" for arm, n in lost.items()])
    return Doubt(
        "Samples were dropped",
        f"Capture gave up samples so that training need not wait: {told}. Counts over a window "
        "that holds such a gap are too low.",
    )


def _gaps_in_record(study: Study) -> Doubt | None:
    told = []
    for arm, load in study.loads.items():
        steps = load["step"].values
        absent = int(steps[-1] - steps[0] + 1 - len(steps)) if len(steps) else 0
        if absent:
            told.append(f"{absent:,} of {len(steps) + absent:,} steps of {plain(arm)}")
    if not told:
        return None
    return Doubt(
        "Steps are missing from the record",
        f"The router record lacks {listed(told)}; figures join what stands to both sides of a gap.",
    )


def _missing(study: Study) -> Doubt | None:
    if not study.missing:
        return None
    return Doubt(
        "Some measures could not be taken",
        " ".join(f"{plain(what, 80)}: {plain(why, 300)}" for what, why in study.missing.items()),
    )


def _one_seed(study: Study) -> Doubt:
    many_arms = len(study.arms) > 1
    ran = "The arms were trained once each" if many_arms else "The training was run once"
    return Doubt(
        "One seed",
        f"{ran}. Intervals are over items and over text; they "
        "say nothing about what another seed of the same training would do, which for a skill that "
        "arrives late can be a different onset, or none.",
    )


def _few_items(study: Study) -> Doubt | None:
    if not study.skills:
        return None
    n = min(int(skill["n"].min()) for skill in study.skills.values())
    if not n:
        return Doubt("Items are missing", "Some tasks were not put to some checkpoints.")
    half = 196 * math.sqrt(0.25 / n)
    return Doubt(
        "Few items" if n < 400 else "Items",
        f"The smallest task has {many(n, 'item')}: an accuracy near one half is known to about "
        f"±{half:.0f} percentage points. The items are of the same kind as the training documents "
        "of their task; they stand for that kind and not for the capability at large.",
    )


def _many_comparisons(study: Study) -> Doubt | None:
    if not study.differences:
        return None
    pairs = sum(gap.sizes["task"] for gap in study.differences.values())
    return Doubt(
        "Many comparisons",
        f"{many(pairs, 'difference')} between arms were tested at the last checkpoint. Those "
        "called clear survive a false discovery rate of 5 %: of them one in twenty may still be "
        "luck. Intervals are for one task at a time and are not widened.",
    )


def _spacing(study: Study) -> Doubt | None:
    if not study.skills:
        return None
    skill = next(iter(study.skills.values()))
    early, late = evaluated_gaps(skill, study.final_start)
    if early is None and late is None:
        return Doubt(
            "One evaluated checkpoint", "No course over training can be told from a single one."
        )
    told = [f"{early:,} steps apart before the final stretch"] if early else []
    told += [f"{late:,} apart in it"] if late else []
    return Doubt(
        "Between checkpoints nothing is known",
        f"Evaluated checkpoints are typically {listed(told, longest=80)}. What happened between "
        "two of them may have been a jump or a slope; intervals of onsets include that gap.",
    )


def _verdicts(study: Study) -> Doubt | None:
    reached = [o for found in study.onsets.values() for o in found.values() if o.reached]
    unsure = [o for o in reached if o.verdict == "cannot tell"]
    if not unsure:
        return None
    return Doubt(
        "Jump or slope?",
        f"For {len(unsure)} of {many(len(reached), 'onset')} the record does not decide whether "
        "the capability jumped or rose evenly; the table gives the reason for each.",
    )


def _losses(study: Study) -> Doubt | None:
    if len(study.train) < 2:
        return None
    return Doubt(
        "Losses of different text",
        "After the fork each arm's loss is measured on its own training mix. A lower loss can mean "
        "easier text; the evaluations, on the same items for all arms, are what compares.",
    )


def _noise(study: Study) -> Doubt | None:
    if not study.balances:
        return None
    balance = next(iter(study.balances.values()))
    spread = float(balance.attrs.get("cv_at_random", math.nan))
    tokens = next(iter(study.arms.values())).router["tokens"].values
    if not math.isfinite(spread) or not len(tokens):
        return None
    return Doubt(
        "Loads are counted, and counts scatter",
        f"A step has {count(float(np.median(tokens)))} tokens. Even a perfectly fair router would "
        f"deal them with a coefficient of variation of {number(spread)} in a single step: "
        "differences of that size between neighbouring steps mean nothing.",
    )
