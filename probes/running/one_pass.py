"""One pass: a checkpoint is loaded once, runs once over the fixed tokens, and feeds every probe.

Needs   a checkpoint, an Exam, orders (probes with their parameters), perhaps a reference.
Yields  `sit`: what each probe found, or why it could not.

A failure of one probe is told in its place and stops no other, and a probe that changes what it was
given in place, or leaves a hook on it, fails, and the checkpoint is loaded anew for the others. Two
models are in memory at most, and a probe's own copy: the checkpoint's and the reference's, which is
kept for the next checkpoint of the same examination. What a probe changed is let go of before it
is loaded anew.
"""

from __future__ import annotations

import threading
from collections import deque
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
_FORGOTTEN: deque[str] = deque(maxlen=1000)
"""Examinations that are over: a task of theirs that ends later keeps nothing."""
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
    there = _held(examination, needed)
    mine = _name(checkpoint)
    other = _name(reference) if pairs and reference is not None else None

    def load() -> None:
        """What is needed and not there; the reference first, which later checkpoints need too."""
        if other is not None and reference is not None and other not in there:
            there[other] = _subject(reference, exam, pairs, device)
        if mine not in there:
            there[mine] = _subject(checkpoint, exam, orders, device)

    load()
    states = {name: subject.state() for name, subject in there.items()}
    outcome: Outcome = {}
    for order in orders:
        outcome[order.probe.name] = _answer(order, there[mine], there.get(other))
        changed = {name: subject.changed(states[name]) for name, subject in there.items()}
        if what := [one for names in changed.values() for one in names]:
            outcome[order.probe.name] = Failure(_told(what))
            for name in [name for name, names in changed.items() if names]:
                del there[name]  # before it is loaded anew: there would be a third model
            load()
            states = {name: subject.state() for name, subject in there.items()}
    with _LOCK:
        if examination not in _FORGOTTEN:
            _HELD[threading.get_ident()] = (examination, list(there.values()))
    return outcome


def _told(what: Sequence[str]) -> str:
    more = f" and {len(what) - 1} more" if len(what) > 1 else ""
    return (
        f"it left what it was given changed ({what[0]}{more}): nothing may be written in place; "
        f"work on subject.copy() or on site.clone(), and take off the hooks you put on"
    )


def forget(examination: str) -> None:
    """Lets go of the models that are kept for the next checkpoint of an examination, also of those
    that a task of it still has at work.
    """
    with _LOCK:
        _FORGOTTEN.append(examination)
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
    # Where a site that one probe wants is not there, or breaks the pass (others' models may raise
    # anything), each reads its own, and only that one fails.
    with suppress(Exception):
        subject.look(site for order in orders for site in order.probe.needs)
    return subject


def _answer(order: Order, subject: Subject, against: Subject | None) -> xr.Dataset | Failure:
    pair = order.probe.reads == "pair"
    try:
        if pair:
            found = order.probe.function(subject, against, **order.params)
        else:
            found = order.probe.function(subject, **order.params)
        if isinstance(found, xr.Dataset):
            found = found.load()
    except WorkbenchError as error:
        return Failure(str(error))
    except Exception as error:  # a scientist's probe must not take the others down
        return Failure(f"{type(error).__name__}: {error}", by_chance=True)
    if not isinstance(found, xr.Dataset):
        kind = type(found).__name__
        return Failure(f"it returned a {kind}, expected an xr.Dataset; array.to_dataset(name=...)")
    if "checkpoint" in found.dims:
        return Failure("its result has a dim 'checkpoint'; the runner adds it: return one alone")
    return found
