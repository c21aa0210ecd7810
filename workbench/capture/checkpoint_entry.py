"""What the index is told of a checkpoint when it is saved.

Needs   a run's folder, the checkpoint's path, branch and clock.
Yields  `enter_checkpoint`: a CheckpointRecord, entered; what the checkpoint itself says of its
        phase, data, shape and tokenizer is taken over. `uri_of`: a path as the index writes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Container, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from checkpoints_index.audit import digests_of
from checkpoints_index.errors import (
    CheckpointIncomplete,
    CheckpointNotFound,
    PickleRefused,
    RecordError,
)
from checkpoints_index.formats import Weights, open_weights, recognise, size_bytes
from checkpoints_index.index import CheckpointIndex
from checkpoints_index.layouts import find
from checkpoints_index.particulars import particulars
from checkpoints_index.record import CheckpointRecord

TOLD = {f.name for f in fields(CheckpointRecord)} - {
    "run", "branch", "step", "tokens_seen", "format", "uri", "size_bytes", "complete", "pruned",
}  # fmt: skip
"""Fields that the caller may know better than the checkpoint does."""

FINGERPRINT_AT_MOST = 1 << 30
"""Bytes of a checkpoint that are read for its fingerprint while a training waits: a few seconds.
Above, `workbench checkpoints scan --fingerprints` reads them at leisure."""


def enter_checkpoint(
    run: Path,
    path: str | Path,
    *,
    branch: str,
    step: int,
    tokens_seen: int,
    parent: tuple[str, int] | None,
    about: Mapping[str, Any],
    history: Container[int] | None = None,
) -> CheckpointRecord:
    """Enters the checkpoint at `path` into the index of `run` and returns its record.

    A record of the same branch and step is replaced: after a resume the checkpoint is made again.
    Unless the same weights were saved twice, and the first path still holds them: that one stays.
    Of more than FINGERPRINT_AT_MOST bytes the fingerprint and the digests are left out.
    A record of another step at this path is marked incomplete, with a warning: its weights have
    been overwritten.

    Args:
        path: file or folder in any format of formats/, or a URL.
        about: fields of the record that the caller knows, such as lr=, phase=, merged_from=; and
            mixture=, shares by domain, of which the digest is kept.
        history: steps of the checkpoints that the training on this branch came from, as its store
            knows them; what a rollback took off the branch is no parent. None: all of the index.

    Raises:
        CheckpointNotFound: there is no checkpoint at `path`, or of no known format.
        CheckpointIncomplete: it was begun and not finished.
        PickleRefused: only unpickling could read it.
        RecordError: `about` says what no record holds.
    """
    told = _told(about)
    format, weights = recognise(path), open_weights(path)
    index = CheckpointIndex(run)
    size, uri = size_bytes(path), uri_of(run, path)
    small = size <= FINGERPRINT_AT_MOST
    fingerprint = weights.fingerprint() if small else None
    known = {(r.branch, r.step): r for r in index.list()}
    before = known.pop((branch, step), None)
    for other in known.values():
        if other.uri == uri and other.complete:
            _mark_overwritten(index, other, step)
    if (
        before is not None
        and fingerprint is not None
        and (before.fingerprint, before.tokens_seen) == (fingerprint, tokens_seen)
        and before.uri != uri
        and _still_there(run, before)
    ):
        return before
    earlier = [
        r.step for r in known.values()
        if r.branch == branch and r.step < step and (r.complete or r.pruned)
        and (history is None or r.step in history)
    ]  # fmt: skip
    said = {
        "parent": (branch, max(earlier)) if earlier else parent,
        "utc": time.time(),
        "dtype": _dtype(weights),
        "fingerprint": fingerprint,
        **_said_by(path, digests=small),
    }
    record = CheckpointRecord(
        run=run.resolve().name, branch=branch, step=step, tokens_seen=tokens_seen, format=format,
        uri=uri, size_bytes=size, **{**said, **told},
    )  # fmt: skip
    index.add(record, replace=True)
    return record


def _said_by(path: str | Path, *, digests: bool) -> dict[str, Any]:
    """What a checkpoint tells of itself, by its small files and its layout.

    Args:
        digests: take those of its files where it does not bring them along.
    """
    if _is_url(path):
        return {}
    said = particulars(path)
    if digests and not said.get("digests"):
        # A fingerprint rounds to bfloat16 and leaves out all but the weights.
        said["digests"] = digests_of(path)
    return {**_believable(said), **_by_layout(Path(path))}


def _told(about: Mapping[str, Any]) -> dict[str, Any]:
    """What the caller says, as fields of the record."""
    told = {name: value for name, value in about.items() if value is not None}
    mixture = told.pop("mixture", None)
    if mixture is not None:
        text = json.dumps(mixture, sort_keys=True, default=str)
        told.setdefault("mixture_hash", hashlib.sha256(text.encode()).hexdigest()[:16])
    if unknown := sorted(told.keys() - TOLD):
        raise RecordError(
            f"a checkpoint's record has no {', '.join(unknown)}; it takes mixture, "
            f"{', '.join(sorted(TOLD))}."
        )
    return told


def _by_layout(path: Path) -> dict[str, Any]:
    """Whose checkpoint it is, and whether a training could go on from it."""
    found = next(find(path), None) if path.is_dir() else None
    if found is None or found.path != path:
        return {}
    return {"trainer": found.trainer, "kind": found.kind}


def _believable(said: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of itself, less what cannot be: it is entered all the same."""
    plain = {"run": "a", "branch": "a", "step": 0, "tokens_seen": 0, "utc": 0.0, "format": "a",
             "uri": "a", "size_bytes": 0}  # fmt: skip
    good = {}
    for name, value in said.items():
        try:
            CheckpointRecord(**{**plain, name: value})
        except RecordError as error:
            warnings.warn(f"left out of the record: {error}", RuntimeWarning, stacklevel=4)
        else:
            good[name] = value
    return good


def _dtype(weights: Weights) -> str | None:
    first = next(iter(weights), None)
    return None if first is None else weights.dtype(first)


def _mark_overwritten(index: CheckpointIndex, record: CheckpointRecord, step: int) -> None:
    index.add(replace(record, complete=False), replace=True)
    warnings.warn(
        f"the checkpoint of step {record.step} of branch {record.branch!r} at {record.uri} was "
        f"overwritten by that of step {step}: its weights are gone, and the index says so. Save "
        f"every step under a name of its own.",
        RuntimeWarning,
        stacklevel=5,
    )


def _still_there(run: Path, record: CheckpointRecord) -> bool:
    """Whether the checkpoint of a record that is no longer believed blindly can be read."""
    try:
        return (
            record.complete
            and open_weights(record.uri if record.is_remote else record.path(run)).fingerprint()
            == record.fingerprint
        )
    except (CheckpointIncomplete, CheckpointNotFound, PickleRefused, RecordError, OSError):
        return False


def _is_url(path: str | Path) -> bool:
    return "://" in str(path)


def uri_of(run: Path, path: str | Path) -> str:
    """`path` relative to the run's folder where it lies in it, else absolute; a URL as it is."""
    if _is_url(path):
        return str(path)
    run, path = run.resolve(), Path(os.path.realpath(path))
    return path.relative_to(run).as_posix() if path.is_relative_to(run) else str(path)
