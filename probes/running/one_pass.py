"""One pass: a checkpoint is loaded once, runs once over the fixed tokens, and feeds every probe.

Needs   a checkpoint, an Exam, orders (probes with their parameters), perhaps a reference.
Yields  `sit`: what each probe found, or why it could not.

A failure of one probe is told in its place and stops no other, and a probe that changes what it was
given in place fails, and the checkpoint is loaded anew for the others. At most two models are in
memory: the checkpoint's and the reference's, which is kept for the next checkpoint of the same
examination.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import xarray as xr

from probes.exam import Exam
from probes.registry import Probe
from probes.subject import Subject
from workbench.checkpoints import Checkpoint
from workbench.errors import WorkbenchError

_HELD: dict[int, tuple[str, list[Subject]]] = {}
"""By thread: the examination, and the subjects that its next checkpoint may need."""
_LOCK = threading.Lock()


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
    *,
    examination: str,
) -> Outcome:
    """What each ordered probe finds at one checkpoint, by the probe's name.

    Args:
        reference: what pair probes hold the checkpoint against.
        device: where the model runs.
        examination: a word for exam, device and moment: models are kept for the next checkpoint of
            the same one only.

    Raises:
        Whatever loading the checkpoint raises: then there is nothing that a probe could look at.
    """
    pairs = [order for order in orders if order.probe.reads == "pair"]
    needed = [checkpoint, *([reference] if pairs and reference is not None else [])]
    held = _held(examination, needed)
    against = None
    if pairs and reference is not None:
        against = held.get(_name(reference)) or _subject(reference, exam, pairs, device)
        held[_name(reference)] = against
    subject = held.get(_name(checkpoint)) or _subject(checkpoint, exam, orders, device)
    outcome: Outcome = {}
    for order in orders:
        given = [s for s in (subject, against) if s is not None]
        before = [s.versions() for s in given]
        outcome[order.probe.name] = _answer(order, subject, against)
        if any(_changed(s, then) for s, then in zip(given, before, strict=True)):
            outcome[order.probe.name] = Failure(
                "it changed weights or sites that it was given, in place; work on "
                "subject.copy() or on site.clone()"
            )
            subject = _subject(checkpoint, exam, orders, device)
            if against is not None and reference is not None:
                same = _name(reference) == _name(checkpoint)
                against = subject if same else _subject(reference, exam, pairs, device)
    kept = [subject] if against is None or against is subject else [against, subject]
    with _LOCK:
        _HELD[threading.get_ident()] = (examination, kept)
    return outcome


def forget(examination: str) -> None:
    """Lets go of the models that are kept for the next checkpoint of an examination."""
    with _LOCK:
        for thread in [t for t, (name, _) in _HELD.items() if name == examination]:
            del _HELD[thread]


def _held(examination: str, needed: Sequence[Checkpoint]) -> dict[Any, Subject]:
    """The subjects that this thread holds and will need; the others are let go of first."""
    names = {_name(checkpoint) for checkpoint in needed}
    with _LOCK:
        of, subjects = _HELD.pop(threading.get_ident(), ("", []))
    if of != examination:
        return {}
    return {_name(s.checkpoint): s for s in subjects if _name(s.checkpoint) in names}


def _name(checkpoint: Checkpoint | None) -> Any:
    """What tells one checkpoint of a run from another, and from one that was saved in its place."""
    if checkpoint is None:
        return None
    record = checkpoint.record
    return checkpoint.run_path, record.branch, record.step, record.utc, record.uri


def _subject(checkpoint: Checkpoint, exam: Exam, orders: Sequence[Order], device: str) -> Subject:
    subject = Subject.of(checkpoint, exam, device=device)
    # Where a site that one probe wants is not there, each reads its own, and only that one fails.
    with suppress(WorkbenchError):
        subject.look(site for order in orders for site in order.probe.needs)
    return subject


def _changed(subject: Subject, before: Mapping[str, int]) -> bool:
    now = subject.versions()
    return any(now.get(name) != version for name, version in before.items())


def _answer(order: Order, subject: Subject, against: Subject | None) -> xr.Dataset | Failure:
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
