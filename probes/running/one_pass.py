"""One pass: a checkpoint is loaded once, runs once over the fixed tokens, and feeds every probe.

Needs   a checkpoint, an Exam, orders (probes with their parameters), perhaps a reference.
Yields  `sit`: what each probe found, or why it could not.

A failure of one probe is told in its place and stops no other. At most two models are in memory:
the checkpoint's and the reference's, which is kept for the next checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xarray as xr

from probes.exam import Exam
from probes.registry import Probe
from probes.subject import Subject
from workbench.checkpoints import Checkpoint
from workbench.errors import WorkbenchError

_here = threading.local()


@dataclass(frozen=True)
class Order:
    """A probe, and the parameters that it is to be called with."""

    probe: Probe
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Failure:
    """Why there is no result."""

    why: str
    by_chance: bool = False
    """Whether another try could succeed: an error that is none of ours."""


Outcome = dict[str, xr.Dataset | Failure]


def sit(
    checkpoint: Checkpoint,
    exam: Exam,
    orders: Sequence[Order],
    reference: Checkpoint | None = None,
    device: str = "cpu",
) -> Outcome:
    """What each ordered probe finds at one checkpoint, by the probe's name.

    Args:
        reference: what pair probes hold the checkpoint against.
        device: where the model runs.

    Raises:
        Whatever loading the checkpoint raises: then there is nothing that a probe could look at.
    """
    sites = [site for order in orders for site in order.probe.needs]
    paired = [site for o in orders if o.probe.reads == "pair" for site in o.probe.needs]
    against = _subject(reference, exam, paired, device) if paired or _any_pair(orders) else None
    subject = _subject(checkpoint, exam, sites, device)
    # The next checkpoint may be held against this one or against the same reference again.
    _here.held = [s for s in (against, subject) if s is not None]
    return {order.probe.name: _answer(order, subject, against) for order in orders}


def forget() -> None:
    """Lets go of the models that are kept for the next checkpoint."""
    _here.held = []


def _any_pair(orders: Sequence[Order]) -> bool:
    return any(order.probe.reads == "pair" for order in orders)


def _subject(
    checkpoint: Checkpoint | None, exam: Exam, sites: Sequence[str], device: str
) -> Subject | None:
    if checkpoint is None:
        return None
    for held in getattr(_here, "held", ()):
        if held.checkpoint == checkpoint and held.exam.digest == exam.digest:
            return held
    return Subject.of(checkpoint, exam, sites=sites, device=device)


def _answer(order: Order, subject: Subject | None, against: Subject | None) -> xr.Dataset | Failure:
    pair = order.probe.reads == "pair"
    try:
        if pair:
            found = order.probe.function(subject, against, **order.params)
        else:
            found = order.probe.function(subject, **order.params)
    except WorkbenchError as error:
        return Failure(str(error))
    except Exception as error:  # a scientist's probe must not take the others down
        return Failure(f"{type(error).__name__}: {error}", by_chance=True)
    if not isinstance(found, xr.Dataset):
        kind = type(found).__name__
        return Failure(f"it returned a {kind}, expected an xr.Dataset; array.to_dataset(name=...)")
    if "checkpoint" in found.dims:
        return Failure("its result has a dim 'checkpoint'; the runner adds it: return one alone")
    return found.load()
