"""What the index is told of a checkpoint when it is saved.

Needs   a run's folder, the checkpoint's path, branch and clock.
Yields  `enter_checkpoint`: a CheckpointRecord, entered; what the checkpoint itself says of its
        phase, data and shape is taken over. `uri_of`: a path as the index writes it.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpoints_index.errors import (
    CheckpointIncomplete,
    CheckpointNotFound,
    PickleRefused,
    RecordError,
)
from checkpoints_index.formats import open_weights, read_state, recognise, size_bytes
from checkpoints_index.index import CheckpointIndex
from checkpoints_index.record import CheckpointRecord


def enter_checkpoint(
    run: Path,
    path: Path,
    *,
    branch: str,
    step: int,
    tokens_seen: int,
    parent: tuple[str, int] | None,
    about: Mapping[str, Any],
) -> CheckpointRecord:
    """Enters the checkpoint at `path` into the index of `run` and returns its record.

    A record of the same branch and step is replaced: after a resume the checkpoint is made again.
    Unless the same weights were saved twice, and the first path still holds them: that one stays.
    A record of another step at this path is marked incomplete, with a warning: its weights have
    been overwritten.

    Raises:
        CheckpointNotFound: there is no checkpoint at `path`, or of no known format.
        CheckpointIncomplete: it was begun and not finished.
    """
    kind = recognise(path)
    said = _said_by(path) if kind == "native" else {}
    index = CheckpointIndex(run)
    weights = open_weights(path)
    fingerprint, uri = weights.fingerprint(), uri_of(run, path)
    known = {(r.branch, r.step): r for r in index.list()}
    before = known.pop((branch, step), None)
    for other in known.values():
        if other.uri == uri and other.complete:
            _mark_overwritten(index, other, step)
    if (
        before is not None
        and (before.fingerprint, before.tokens_seen) == (fingerprint, tokens_seen)
        and before.uri != uri
        and _still_there(run, before)
    ):
        return before
    record = CheckpointRecord(
        run=run.resolve().name,
        branch=branch,
        step=step,
        tokens_seen=tokens_seen,
        utc=time.time(),
        format=kind,
        uri=uri,
        size_bytes=size_bytes(path),
        parent=_previous(index, branch, step) or parent,
        dtype=weights.dtype(next(iter(weights))),
        fingerprint=fingerprint,
        **{**said, **about},
    )
    index.add(record, replace=True)
    return record


def _said_by(path: Path) -> dict[str, Any]:
    """Fields of the record that a native checkpoint's state.json holds."""
    state = read_state(path)
    extra = state.get("extra", {})
    shape = json.dumps(state.get("model_config", {}), sort_keys=True)
    return {
        "phase": str(extra.get("phase", "")),
        "lr": extra.get("lr"),
        "mixture_hash": extra.get("mixture"),
        "tokenizer_hash": extra.get("tokenizer"),
        "data_position": state.get("data_position"),
        "architecture_hash": hashlib.sha256(shape.encode()).hexdigest()[:16],
    }


def _previous(index: CheckpointIndex, branch: str, step: int) -> tuple[str, int] | None:
    """The last checkpoint of the branch before this one."""
    earlier = [r.step for r in index.list(branch=branch) if r.step < step]
    return (branch, max(earlier)) if earlier else None


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
            record.complete and open_weights(record.path(run)).fingerprint() == record.fingerprint
        )
    except (CheckpointIncomplete, CheckpointNotFound, PickleRefused, RecordError, OSError):
        return False


def uri_of(run: Path, path: Path) -> str:
    """`path` relative to the run's folder where it lies in it, else absolute."""
    run, path = run.resolve(), path.resolve()
    return path.relative_to(run).as_posix() if path.is_relative_to(run) else str(path)
