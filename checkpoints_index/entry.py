"""One line of the catalogue: a checkpoint of some run, ours or another trainer's.

Needs   a CheckpointRecord and where its run lies, or a checkpoint that was found without a record.
Yields  Entry: `recorded`, `found`; `plain`, for JSON.

A record is believed for what it says of the past; whether its weights are still there is looked at.
What is found without a record gets names from its folders, which may be anybody's: they are
labels, cut and freed of what a terminal or a database would stumble over, and never used as paths.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from checkpoints_index.layouts import Found
from checkpoints_index.particulars import particulars
from checkpoints_index.record import BRANCH_NAME, KINDS, CheckpointRecord, Merged

CONTAINERS = {"checkpoint", "checkpoints", "ckpt", "ckpts", "weights", "snapshots", "models"}
"""Folders that hold a run's checkpoints and do not name it."""

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
LABEL_AT_MOST = 200


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A checkpoint as the catalogue knows it. What is not known is None."""

    run_path: str
    """Folder of its run, absolute."""

    run: str
    """Name of the run; a label, not unique."""

    branch: str
    step: int | None = None
    tokens_seen: int | None = None
    utc: float | None = None
    phase: str = ""
    trainer: str | None = None
    format: str
    kind: str | None = None
    complete: bool = True
    why: str = ""
    """Where it is not complete, what is known of the reason."""

    path: str
    """Where the weights lie: absolute, or a URL."""

    size_bytes: int = 0
    dtype: str | None = None
    fingerprint: str | None = None
    architecture_hash: str | None = None
    parent: tuple[str, int] | None = None
    merged_from: tuple[Merged, ...] = ()
    recorded: bool = True
    """Whether the run has a record of it; else it was found by its layout."""

    record: str | None = None
    """The record's JSON, where there is one."""

    def plain(self) -> dict[str, Any]:
        """All that is known, as plain data: the record's fields, and those of the catalogue."""
        known = json.loads(self.record) if self.record else {}
        own = asdict(self)
        del own["record"]
        return known | own

    @property
    def name(self) -> str:
        """Branch and step in one word, such as "main@400"."""
        return f"{self.branch}@{'?' if self.step is None else self.step}"

    @classmethod
    def of_record(cls, record: CheckpointRecord, run: Path, *, there: bool = True) -> Entry:
        """The entry of a record of the run in the folder `run`.

        Args:
            there: whether anything lies where the record says.
        """
        where = record.uri if record.is_remote else str(record.path(run))
        why = record.pruned or ("" if record.complete else "marked incomplete by its record")
        if record.complete and not there:
            why = "recorded, but nothing lies there"
        return cls(
            run_path=str(run), run=record.run, branch=record.branch, step=record.step,
            tokens_seen=record.tokens_seen, utc=record.utc, phase=record.phase,
            trainer=record.trainer or ("workbench" if record.format == "native" else None),
            format=record.format, kind=record.kind, complete=record.complete and there, why=why,
            path=where, size_bytes=record.size_bytes, dtype=record.dtype,
            fingerprint=record.fingerprint, architecture_hash=record.architecture_hash,
            parent=record.parent, merged_from=record.merged_from, record=record.to_json(),
        )  # fmt: skip

    @classmethod
    def of_found(cls, found: Found, *, run: Path | None, size_bytes: int) -> Entry:
        """The entry of a checkpoint that has no record.

        Args:
            run: folder of the run of ours that it lies in; None: told from its folders.
        """
        home = run or run_of(found)
        told = particulars(found.path)
        kind = found.kind if found.kind in KINDS else told.get("kind")
        return cls(
            run_path=str(home), run=label(_name(home)), branch=_branch(found.path, home),
            step=_count(found.step), tokens_seen=_count(found.tokens),
            utc=found.path.stat().st_mtime, phase=label(told.get("phase") or ""),
            trainer=found.trainer, format=found.format, kind=kind,
            complete=found.complete, why=label(found.why), path=str(found.path),
            size_bytes=size_bytes, architecture_hash=_word(told.get("architecture_hash")),
            recorded=False,
        )  # fmt: skip

    def with_fingerprint(self, fingerprint: str | None) -> Entry:
        """The same with the digest of its weights."""
        return replace(self, fingerprint=fingerprint)


def run_of(found: Found) -> Path:
    """Folder of the run that a found checkpoint belongs to: the one above it that has a name of its
    own; where it tells no step, the checkpoint itself, being a model that somebody put there.
    """
    if found.step is None:
        return found.path
    folder = found.path.parent
    while folder.name.lower() in CONTAINERS and folder.parent != folder:
        folder = folder.parent
    return folder


def _name(run: Path) -> str:
    return os.fsdecode(os.fsencode(run.name or str(run)))


def _branch(path: Path, run: Path) -> str:
    """The branch by whose name a checkpoint's folder is called inside its run; else "main"."""
    if path != run and path.is_relative_to(run):
        parts = path.relative_to(run).parts
        if len(parts) == 3 and parts[0] == "checkpoints" and BRANCH_NAME.fullmatch(parts[1]):
            return parts[1]
    return "main"


def _count(value: object) -> int | None:
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
    return value if good and isinstance(value, int) else None


def _word(value: object) -> str | None:
    return label(value) if isinstance(value, str) else None


def label(text: str) -> str:
    """`text` fit to be shown and stored: no control characters, and not long.

    Example:
        >>> label("a\\x1b[31m" + "b" * 9)
        'a?[31mbbbbbbbbb'
    """
    clean = _UNPRINTABLE.sub("?", text)
    return clean if len(clean) <= LABEL_AT_MOST else clean[: LABEL_AT_MOST - 3] + "..."
