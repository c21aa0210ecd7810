"""Causes: for the capability that came last, the part of the model it came with and what moved
before it.

Needs   a Study; to compute, the run's checkpoints.
Yields  `emergent`, which capability that is; Causes: transplant (by kind of part, and by layer) and
        lead-lag of it, or why there is none.

Models are only loaded where that is asked for (`workbench report RUN --causes`, `workbench plot
transplant RUN`, the demo): a report of a large run shows what is kept and says how to get the
rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from probes.examine import examine
from workbench.app.study import Study
from workbench.errors import RunNotFound

LEAST_GAIN = 0.1
"""Chance-normalised accuracy that a capability must gain in the final stretch to be asked about."""


@dataclass(frozen=True)
class Emergent:
    """The capability that came in the final stretch."""

    task: str
    arm: str
    onset: float
    """Step."""
    gain: float
    """Chance-normalised accuracy at the end less that at the stretch's start."""
    verdict: str
    """Of its onset: jump, smooth, cannot tell."""


def emergent(study: Study) -> Emergent | None:
    """Of the capabilities whose onset lies in the final stretch and that gained at least LEAST_GAIN
    there: a jump before a smooth rise, then the one that gained most. None where none arrived.
    """
    found = []
    for arm, onsets in study.onsets.items():
        skill = study.skills[arm]["normalized"]
        before = skill.sel(checkpoint=slice(None, study.final_start))
        if not before.sizes["checkpoint"]:
            continue
        for task, onset in onsets.items():
            if not onset.reached or onset.step <= study.final_start:
                continue
            ends = skill.isel(checkpoint=-1), before.isel(checkpoint=-1)
            gain = float(ends[0].sel(task=task) - ends[1].sel(task=task))
            if gain >= LEAST_GAIN:
                verdict = str(onset.verdict)
                one = Emergent(task=task, arm=arm, onset=onset.step, gain=gain, verdict=verdict)
                found.append(one)
    return max(
        found, key=lambda one: (one.verdict == "jump", one.gain, one.arm, one.task), default=None
    )


@dataclass(frozen=True)
class Question:
    """One probe, as it is asked about the emergent capability."""

    probe: str
    where: str
    """"end": the last checkpoint against the fork; "all": the whole arm."""
    params: Mapping[str, Any] = field(default_factory=dict)


def questions(task: str, since: int = 0) -> dict[str, Question]:
    """What is asked about a capability, by name.

    Args:
        since: the step at which the data mix changed. What it moved at once leads every later
            onset, so leaders are sought after it.
    """
    return {
        "transplant": Question("transplant", "end", {"task": task}),
        "transplant by layer": Question(
            "transplant", "end", {"task": task, "parts": "kind-layer", "n_permutations": 8}
        ),
        "lead-lag": Question("lead-lag", "all", {"task": task, "start": since}),
    }


@dataclass
class Causes:
    """What is known about why a capability came."""

    about: Emergent | None
    found: dict[str, xr.Dataset] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """Why there is none, by question."""


def causes(study: Study, *, compute: bool, progress: bool = False) -> Causes:
    """The answers about the emergent capability of a run.

    Args:
        compute: whether models are loaded for what is not kept yet.
        progress: whether bars are shown.
    """
    about = emergent(study)
    result = Causes(about)
    if about is None:
        return result
    for name, question in questions(about.task, study.final_start).items():
        try:
            answer = _ask(study, about, question, compute, progress)
        except Exception as error:  # a plan, a tokenizer or weights that cannot be read: say so
            result.missing[name] = str(error) or type(error).__name__
            continue
        if answer is None:
            result.missing[name] = "not computed yet; it loads the models of two checkpoints"
        else:
            result.found[name] = answer
    return result


def _ask(
    study: Study, about: Emergent, question: Question, compute: bool, progress: bool
) -> xr.Dataset | None:
    arm = study.arms[about.arm]
    source: Any = arm
    against: str | int = "final"
    if question.where == "end":
        steps = [c.step for c in arm.checkpoints if c.record.complete]
        before = [step for step in steps if step <= study.final_start]
        if not before or steps[-1] == before[-1]:
            raise RunNotFound(
                "the weights of a checkpoint on both sides of the final stretch are needed."
            )
        source = arm.checkpoints.chosen([arm.checkpoints.steps.index(steps[-1])])
        against = int(np.max(before))
    found = examine(
        source, question.probe, params={question.probe: dict(question.params)}, against=against,
        compute=compute, progress=progress,
    )  # fmt: skip
    answer = found.get(question.probe)
    if answer is None:
        return None
    # One checkpoint, one task: what is left is the answer itself.
    single = [dim for dim in ("checkpoint", "task") if answer.sizes.get(dim) == 1]
    return answer.squeeze(single)
