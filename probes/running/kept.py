"""Kept results: which of those in a run still belong to it as it is, and what each was asked.

Needs   a run, and what `run.results.list()` names.
Yields  `holds`; Asking: the stretch, checkpoints, reference, parameters and exam of a result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from probes import registry
from probes.exam import Exam
from probes.running.series import weights_of
from workbench.errors import WorkbenchError
from workbench.run import Run
from workbench.store.results import Stored


@dataclass(frozen=True)
class Asking:
    """What a kept result was asked, as far as it differs from the probe by its name alone."""

    params: Mapping[str, Any]
    part: str
    """The steps or checkpoints that it covers, in words; "" for the whole branch."""
    against: int | str | None
    """What a pair probe held each checkpoint against, where that is not the last one."""
    own_exam: bool
    """Whether the run's own fixed tokens and tasks were put to it, or some that were given."""

    @property
    def plain(self) -> bool:
        """Whether `examine(run, name)` asks just this."""
        return not self.params and not self.part and self.against is None and self.own_exam

    @property
    def words(self) -> str:
        """What differs, for a title; "" where nothing does.

        Example:
            >>> Asking({"layer": 2}, "steps 1 to 80", None, True).words
            'layer=2, steps 1 to 80'
        """
        said = [f"{name}={value!r}" for name, value in sorted(self.params.items())]
        said += [self.part] if self.part else []
        said += [f"against {_named(self.against)}"] if self.against is not None else []
        return ", ".join(said + ([] if self.own_exam else ["an exam that was given"]))


def holds(run: Run, stored: Stored) -> bool:
    """Whether a kept whole still belongs to the run as it is: its record or its weights, and the
    version of its probe. False as well for the parts of a whole.

    Args:
        run: on any branch.
        stored: as `run.results.list()` names it.
    """
    return asking(run, stored) is not None


def asking(run: Run, stored: Stored) -> Asking | None:
    """What a kept whole was asked; None where it does not hold any more.

    Args:
        run: on any branch.
        stored: as `run.results.list()` names it.
    """
    branch = stored.inputs.get("branch")
    if branch not in run.branches or stored.probe not in registry.names():
        return None
    if stored.version != str(registry.find(stored.probe).key_version):
        return None
    arm = run.arm(str(branch))
    return _of_record(arm, stored) if "record" in stored.inputs else _of_weights(arm, stored)


def _of_record(arm: Run, stored: Stored) -> Asking | None:
    assert arm.store is not None
    start, stop = int(stored.inputs.get("start", 0)), int(stored.inputs.get("stop", 0))
    if stored.inputs["record"] not in {arm.state, arm.store.identity(arm.branch, stop)}:
        return None
    part = "" if start <= 0 and stop >= arm.last_step else f"steps {start + 1:,} to {stop:,}"
    chosen = stored.inputs.get("checkpoints")
    if chosen is not None and chosen != arm.checkpoints.steps:
        part = _of_steps(chosen)
    return Asking(stored.params, part, None, own_exam=True)


def _of_weights(arm: Run, stored: Stored) -> Asking | None:
    """The weights of every checkpoint and of every reference must be the ones that are there, at
    the step and on the branch where they were.
    """
    usable = [c for c in arm.checkpoints if c.record.complete]
    known = {(c.branch, c.step, c.tokens_seen): weights_of(c) for c in usable}
    at = [tuple(triple) for triple in stored.inputs.get("checkpoints", [])]
    each = stored.inputs.get("each", [])
    if not each or len(at) != len(each):
        return None
    if any(known.get(place) != part.get("weights") for place, part in zip(at, each, strict=True)):
        return None
    references = [part.get("reference") for part in each]
    if any(r is not None and r not in known.values() for r in references):
        return None
    every = list(known)
    pair = references[0] is not None
    against, whole = _against(references, at, known) if pair else (None, every)
    part = "" if at == whole else _of_steps([step for _, step, _ in at])
    exams = {part.get("exam") for part in each}
    return Asking(stored.params, part, against, own_exam=exams == {_own_exam(arm)})


def _against(
    references: Sequence[Any], at: Sequence[Any], known: Mapping[Any, Any]
) -> tuple[int | str | None, list[Any]]:
    """What the pairs were held against (None: the last checkpoint of all), and the places that the
    whole branch would have.
    """
    every = list(known)
    if all(r == references[0] for r in references):
        # Equal weights may stand twice (an arm begins with its fork's): the last is the default.
        step = [place[1] for place in every if known[place] == references[0]][-1]
        return (None if step == every[-1][1] else step), every
    before = [known[every[every.index(place) - 1]] if every.index(place) else None for place in at]
    return ("previous" if list(references) == before else "several"), every[1:]


def _own_exam(arm: Run) -> str | None:
    try:
        return Exam.of(arm).identity
    except (WorkbenchError, OSError, ValueError, KeyError):
        return None  # a run without fixed tokens or a plan: every exam of it was given


def _of_steps(steps: Sequence[int]) -> str:
    if len(steps) <= 3:
        return f"step{'s' * (len(steps) > 1)} " + ", ".join(f"{step:,}" for step in steps)
    return f"{len(steps)} checkpoints from step {steps[0]:,} to {steps[-1]:,}"


def _named(against: int | str | None) -> str:
    return f"step {against:,}" if isinstance(against, int) else str(against)
