"""One checkpoint held against what is known of it: its own markers, its record, its fingerprint.

Needs   an Entry.
Yields  `audit`: what is wrong, in words; empty where it is whole.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from checkpoints_index.entry import Entry
from checkpoints_index.errors import (
    CheckpointIncomplete,
    CheckpointNotFound,
    PickleRefused,
    RecordError,
)
from checkpoints_index.record import CheckpointRecord

_REMEDY = "use another checkpoint or copy this one again"


def audit(entry: Entry, *, deep: bool = True) -> str:
    """What is wrong with a checkpoint; empty where it is whole.

    Args:
        deep: read everything: files against their digests where they are known, else the weights
            against their fingerprint. Otherwise sizes and markers are looked at.
    """
    from checkpoints_index.formats import open_weights, verify

    if not entry.complete:
        return f"{entry.path}: {entry.why or 'not complete'}; {_REMEDY}."
    try:
        record = CheckpointRecord.from_json(entry.record) if entry.record else None
        digests = record.digests if record is not None else None
        # Digests in the record tell more than those that lie with the weights, which whoever
        # changes the one can change too; once is enough to read them all.
        verify(entry.path, deep=deep and not digests)
        if not deep:
            return ""
        if digests:
            return _by_digests(Path(entry.path), digests)
        if entry.fingerprint is not None:
            found = open_weights(entry.path).fingerprint()
            if found != entry.fingerprint:
                return (
                    f"{entry.path}: weights with fingerprint {found[:12]}, expected "
                    f"{entry.fingerprint[:12]}; {_REMEDY}."
                )
    except PickleRefused:
        return f"{entry.path}: only unpickling could read it, so it was not verified."
    except (CheckpointIncomplete, CheckpointNotFound, RecordError, OSError) as error:
        return str(error)
    return ""


def _by_digests(path: Path, digests: dict[str, str]) -> str:
    """The first file that is not what its record says."""
    for name, said in sorted(digests.items()):
        file = path / name
        if not file.is_file():
            return f"{file}: missing, expected by its record; {_REMEDY}."
        with file.open("rb") as handle:
            found = "sha256:" + hashlib.file_digest(handle, "sha256").hexdigest()
        if found != said:
            return f"{file}: {found[:19]}, but its record says {said[:19]}; {_REMEDY}."
    return ""
