"""The checkup: what capture would do to a training, and for it, found out before it begins.

Needs   a model, what a step of it looks like, the folder that the run would go to.
Yields  Checkup, by `check_up`: what is captured, bytes, overhead, faults. Bytes, seconds, shares.

Nothing of the caller's is changed but the weights of the model that is tried; everything that is
written goes below temporary folders on the disk in question, and is removed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.capture.checkup.faults import Fault, Retention, find_faults
from workbench.capture.checkup.machine import Machine, look, nearest
from workbench.capture.checkup.overhead import Trial, loss_of, try_out
from workbench.capture.checkup.record_size import RecordSize, Weight, weigh
from workbench.capture.checkup.routers import Seen, examine
from workbench.errors import UsageError
from workbench.store.layout import Layout

SECONDS = 8.0
"""For the trial, about."""
DAY = 86_400
TELLING_STEP = 0.05
"""Seconds of a trial's step above which it is taken for a training's. A shorter one is of a toy, or
of a batch much smaller than the training's: no year goes on at that pace."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the training would be like."""

    rows: int = 8
    """Of a batch."""
    length: int = 128
    """Positions of a row, tokens."""
    step_seconds: float | None = None
    """Of a training step, where it is known better than from a trial here."""
    traces: float = 1e-3
    """Share of the tokens that would be traced; 0 for none."""
    coactivation_every: int = 25
    """Steps between two samples of co-activation."""
    domains: tuple[str, ...] = ()
    into: Path = Path("runs")
    """Folder of the runs."""
    retention: Retention | None = None
    omp_wait_policy: str | None = None
    """As the training's environment has it."""

    def __post_init__(self) -> None:
        for name in ("rows", "length", "coactivation_every"):
            if (value := getattr(self, name)) < 1:
                raise UsageError(f"{name}={value}: must be 1 or more.")
        if not 0 <= self.traces <= 1:
            raise UsageError(f"traces={self.traces}: a share of the tokens, from 0 to 1.")
        seconds = self.step_seconds
        if seconds is not None and not (seconds > 0 and isfinite(seconds)):
            raise UsageError(f"step_seconds={seconds}: must be above 0, and finite.")
        if self.retention is not None and self.retention.saved < 1:
            raise UsageError(f"{self.retention.saved} checkpoints: must be 1 or more.")
        if self.retention is not None and (self.retention.kept or 0) < 0:
            raise UsageError(f"{self.retention.kept} checkpoints kept: must be 0 or more.")

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.rows * self.length


@dataclass(frozen=True, kw_only=True)
class Checkup:
    """What was found out."""

    plan: Plan
    machine: Machine
    seen: Seen
    trial: Trial | None
    """None: the model was not run."""
    not_run: str | None
    """Why."""
    size: RecordSize | None
    """None: there are no routers, or nowhere to write."""
    step_seconds: float | None
    """Of a training step: as the plan says, else as measured; None: not known."""
    per_step: Weight | None
    """Bytes of the record a step, all tiers."""
    per_day: Weight | None
    days_until_full: float | None
    faults: tuple[Fault, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing that was found would lose data."""
        return not any(fault.loses for fault in self.faults)


def check_up(
    model: nn.Module,
    plan: Plan | None = None,
    *,
    routers: Any = None,
    loss: Callable[[nn.Module], Tensor] | None = None,
    seconds: float | None = None,
) -> Checkup:
    """Looks at a model and a machine, runs the one on the other, and says what would go wrong.

    Args:
        model: as the recorder would be given it; on the device "meta" it is looked at and not run.
        plan: of the training.
        routers: an adapter such as `Generic`, as of the recorder.
        loss: a forward of the model down to a scalar; None: on random token ids.
        seconds: for the trial, about; None: SECONDS.

    Example:
        >>> check_up(nn.Linear(2, 2)).faults[0].name
        'routers-refused'
    """
    plan = plan or Plan()
    device = next(model.parameters(), torch.zeros(0)).device
    seen = examine(model, routers)
    machine = look(plan.into, _trained_on(device), plan.omp_wait_policy)
    place = nearest(plan.into) if machine.writable else Path(tempfile.gettempdir())
    trial = not_run = None
    if seen.refusal is not None:
        not_run = "there is nothing to capture"
    elif device.type == "meta":
        not_run = "too large to build here: shapes alone"
    elif not all(router.training for router in seen.routers):
        not_run = "routers are in evaluation mode"
    else:
        trial = try_out(
            model, loss or loss_of(_tokens(seen, plan, device)), folder=place,
            seconds=SECONDS if seconds is None else seconds, tokens=plan.tokens,
            traces=0 if seen.embedding is None else plan.traces, routers=routers,
        )  # fmt: skip
        not_run = trial.failure
    step_seconds = plan.step_seconds
    if step_seconds is None and trial is not None and trial.overhead is not None:
        step_seconds = trial.overhead.bare.median
    size = _size(seen, plan, place)
    telling = plan.step_seconds is not None or (step_seconds or 0) > TELLING_STEP
    per_step = per_day = days = None
    if size is not None:
        per_step = size.per_step(
            coactivation_every=plan.coactivation_every, traced_tokens=plan.tokens * plan.traces
        )
    if per_step is not None and step_seconds is not None:
        per_day = per_step * (DAY / step_seconds)
        days = machine.free_bytes / per_day.stored
    return Checkup(
        plan=plan, machine=machine, seen=seen, trial=trial, not_run=not_run, size=size,
        step_seconds=step_seconds, per_step=per_step, per_day=per_day, days_until_full=days,
        faults=find_faults(
            machine=machine, seen=seen, trial=trial, size=size, step_seconds=step_seconds,
            days_until_full=days if telling else None,
            coactivation_every=plan.coactivation_every, traces=plan.traces,
            domains=len(plan.domains), retention=plan.retention,
        ),
    )  # fmt: skip


def _trained_on(device: torch.device) -> torch.device:
    if device.type != "meta":
        return device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _tokens(seen: Seen, plan: Plan, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (plan.rows, plan.length)
    return torch.randint(0, seen.vocabulary or 100, shape, generator=generator).to(device)


def _size(seen: Seen, plan: Plan, place: Path) -> RecordSize | None:
    if not seen.routers:
        return None
    first = seen.routers[0]
    layout = Layout(
        layers=tuple(range(len(seen.routers))), experts=first.experts, k=first.k,
        domains=plan.domains,
    )  # fmt: skip
    return weigh(layout, tokens=plan.tokens, traced=plan.tokens * plan.traces, folder=place)
