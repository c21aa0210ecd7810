"""One saved checkpoint, described: whose it is, when it was, what it was made from, where it lies.

Needs   what the trainer knows when it saves.
Yields  CheckpointRecord, and its JSON text, checked both ways.

The record is the truth and every table (index.py, catalogue.py) a copy that can be made again. A
record that comes from a file may have been edited, cut short or made up: everything is checked
before it is believed, and one RecordError names every fault. Fields were added over time; a record
that lacks them reads as one whose writer did not say.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from checkpoints_index.errors import RecordError
from checkpoints_index.url import URL, without_password

BRANCH_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""What a branch may be called: it becomes a folder, a part of a tag and a word of a command
line.
"""

TEXT_AT_MOST = 4096
NAMES_AT_MOST = 1000
"""Of what one checkpoint was merged from, and of the files whose digests are kept."""

KINDS = ("training", "weights")
"""With all that a training needs to go on (optimizer, data position), or weights alone."""

FINGERPRINT = re.compile(r"[0-9a-f]{8,128}")
Merged = tuple[str, int] | str
"""A checkpoint that weights were taken from: branch and step in the same run, or a fingerprint."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """A checkpoint's particulars. Optional ones are None where the trainer did not say.

    Example:
        >>> record = CheckpointRecord(run="demo", branch="main", phase="stable", step=400,
        ...     tokens_seen=1_638_400, utc=1.7e9, format="native",
        ...     uri="checkpoints/main/step-00000400", size_bytes=3_300_000)
        >>> CheckpointRecord.from_json(record.to_json()) == record
        True
    """

    run: str
    """Name of the run."""

    branch: str
    """Branch of the run that it was saved on."""

    step: int
    """Optimizer steps taken."""

    tokens_seen: int
    """Training tokens learned from, the whole history counted."""

    utc: float
    """When it was saved: seconds since 1970, UTC."""

    format: str
    """How it lies on disk: a name of formats/."""

    uri: str
    """Where it lies: relative to the run's folder where it lies inside it, else a path or URL."""

    size_bytes: int
    """Bytes on disk, all files."""

    phase: str = ""
    """Phase of the training schedule, such as "warmup", "stable" or "final"."""

    parent: tuple[str, int] | None = None
    """Branch and step of the checkpoint that training went on from; None where it began afresh."""

    lr: float | None = None
    """Learning rate of the last step."""

    mixture_hash: str | None = None
    """Digest of the data mixture's weights at that moment."""

    data_position: dict[str, Any] | None = None
    """What the data reader needs to go on: plain data of its own making."""

    architecture_hash: str | None = None
    """Digest of the model's configuration."""

    tokenizer_hash: str | None = None
    """Digest of the tokenizer."""

    dtype: str | None = None
    """Type of the saved weights, such as "float32"."""

    complete: bool = True
    """False for one that was begun and not finished."""

    fingerprint: str | None = None
    """Digest of the weights that does not depend on format or dtype (fingerprint.py)."""

    kind: str | None = None
    """"training" or "weights": whether a training could go on from it."""

    trainer: str | None = None
    """What saved it, such as "workbench" or "torchtitan"."""

    merged_from: tuple[Merged, ...] = ()
    """Checkpoints whose weights were averaged into it: (branch, step), or fingerprints."""

    digests: dict[str, str] | None = None
    """Digest of each file by its name in the checkpoint, such as "sha256:9f86...", where known."""

    pruned: str | None = None
    """Why its weights were deleted on purpose; None where they were not. Then not complete."""

    def __post_init__(self) -> None:
        faults = list(_faults(self))
        if faults:
            raise RecordError("checkpoint record: " + "; ".join(faults) + ".")

    @property
    def is_remote(self) -> bool:
        """Whether it lies at a URL and not on a file system."""
        return URL.match(self.uri) is not None

    def path(self, run_path: str | Path) -> Path:
        """Where the checkpoint lies, for a run at `run_path`; RecordError for a URL."""
        if self.is_remote:
            where = without_password(self.uri)
            raise RecordError(f"checkpoint at {where}: not a local path; copy it here first.")
        return Path(run_path, *PurePosixPath(self.uri).parts)

    def to_json(self) -> str:
        """The record as JSON text, keys in order, one a line: made to be read and compared."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> CheckpointRecord:
        """The record in `text`; keys that a later version added are ignored.

        Raises:
            RecordError: not JSON, not an object, or not a record; every fault is named.
        """
        try:
            plain = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise RecordError(f"checkpoint record: not JSON ({str(error)[:80]}).") from None
        if not isinstance(plain, dict):
            raise RecordError(f"checkpoint record: a {type(plain).__name__}, expected an object.")
        known = {f.name: plain[f.name] for f in fields(cls) if f.name in plain}
        missing = [name for name in REQUIRED if name not in known]
        if missing:
            raise RecordError(f"checkpoint record: {', '.join(missing)} missing.")
        if isinstance(known.get("parent"), list):
            known["parent"] = tuple(known["parent"])
        if isinstance(known.get("merged_from"), list):
            known["merged_from"] = tuple(
                tuple(one) if isinstance(one, list) else one for one in known["merged_from"]
            )
        return cls(**known)


REQUIRED = ("run", "branch", "step", "tokens_seen", "utc", "format", "uri", "size_bytes")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _faults(record: CheckpointRecord) -> Any:
    """Every fault of a record, in words."""
    for name in ("run", "format", "uri"):
        value = getattr(record, name)
        if not isinstance(value, str) or not 0 < len(value) <= TEXT_AT_MOST or _controls(value):
            yield f"{name}={_shown(value)}, expected plain text, {TEXT_AT_MOST} characters at most"
    for name in ("phase", "mixture_hash", "architecture_hash", "tokenizer_hash", "dtype",
                 "fingerprint", "trainer", "pruned"):  # fmt: skip
        value = getattr(record, name)
        if value is None and name != "phase":
            continue
        if not isinstance(value, str) or len(value) > TEXT_AT_MOST or _controls(value):
            yield f"{name}={_shown(value)}, expected plain text"
    if not isinstance(record.branch, str) or not BRANCH_NAME.fullmatch(record.branch):
        yield f"branch={_shown(record.branch)}, expected 1 to 64 of a-z, 0-9, '_' and '-'"
    for name in ("step", "tokens_seen", "size_bytes"):
        value = getattr(record, name)
        if not _is_int(value) or not 0 <= value < 2**63:
            yield f"{name}={_shown(value)}, expected a whole number from 0"
    if not _is_number(record.utc):
        yield f"utc={_shown(record.utc)}, expected seconds since 1970"
    if record.lr is not None and not _is_number(record.lr):
        yield f"lr={_shown(record.lr)}, expected a number"
    if not isinstance(record.complete, bool):
        yield f"complete={_shown(record.complete)}, expected true or false"
    if record.kind is not None and record.kind not in KINDS:
        yield f"kind={_shown(record.kind)}, expected {' or '.join(KINDS)}"
    if record.pruned is not None and record.complete is True:
        yield "complete=True of one that was pruned; expected false"
    if record.parent is not None and not _is_place(record.parent):
        yield f"parent={_shown(record.parent)}, expected a branch and a step"
    yield from _merged_faults(record.merged_from)
    yield from _digest_faults(record.digests)
    yield from _position_faults(record.data_position)
    if isinstance(record.uri, str) and not URL.match(record.uri):
        parts = PurePosixPath(record.uri).parts
        if ".." in parts or "\\" in record.uri:
            yield f"uri={_shown(record.uri)} climbs out of its folder; give a plain path"


def _controls(text: str) -> bool:
    # C1 too: U+009B alone begins a terminal's escape sequence.
    return any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in text)


def _is_place(value: object) -> bool:
    """Whether `value` is a branch and a step."""
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and isinstance(value[0], str)
        and BRANCH_NAME.fullmatch(value[0]) is not None
        and _is_int(value[1])
        and 0 <= value[1] < 2**63
    )


def _merged_faults(merged: object) -> Any:
    if not isinstance(merged, tuple) or len(merged) > NAMES_AT_MOST:
        yield f"merged_from={_shown(merged)}, expected a list of at most {NAMES_AT_MOST}"
        return
    for one in merged:
        if not _is_place(one) and not (isinstance(one, str) and FINGERPRINT.fullmatch(one)):
            yield f"merged_from: {_shown(one)}, expected a branch and a step, or a fingerprint"
            return


def _digest_faults(digests: object) -> Any:
    if digests is None:
        return
    if not isinstance(digests, dict) or len(digests) > NAMES_AT_MOST:
        yield f"digests={_shown(digests)}, expected an object of at most {NAMES_AT_MOST} files"
        return
    for name, digest in digests.items():
        if not _is_file_name(name):
            yield f"digests: file {_shown(name)}, expected a plain name inside the checkpoint"
            return
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            yield f"digests: {_shown(digest)}, expected 'sha256:' and 64 hexadecimal digits"
            return


def _is_file_name(name: object) -> bool:
    if not isinstance(name, str) or not 0 < len(name) <= TEXT_AT_MOST or _controls(name):
        return False
    return "\\" not in name and ".." not in name.split("/") and not name.startswith("/")


def _position_faults(position: object) -> Any:
    if position is None:
        return
    try:
        plain = isinstance(position, dict) and json.loads(json.dumps(position, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        plain = None
    if plain != position:
        yield "data_position: expected an object of plain data (text keys, numbers, lists)"
