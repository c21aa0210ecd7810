"""One checkpoint held against what is known of it: its own markers, its record, its fingerprint.

Needs   an Entry; or a run's records.
Yields  `judge`: Verdict, whole or wrong or not to be told; `audit`: what is wrong, in words;
        `Standing`: which checkpoints of a run a prune may count on; `digests_of`: what a record is
        told of the bytes of a checkpoint.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from checkpoints_index.entry import Entry
from checkpoints_index.errors import (
    CheckpointIncomplete,
    CheckpointNotFound,
    PickleRefused,
    RecordError,
)
from checkpoints_index.layouts import find
from checkpoints_index.record import NAMES_AT_MOST, CheckpointRecord

_REMEDY = "use another checkpoint or copy this one again"
_WEIGHTS = {".safetensors", ".distcp", ".bin", ".pt", ".pth", ".ckpt"}
"""Endings of the files that are a checkpoint; the text beside them may be edited, and a trainer
goes on writing its logs."""

_OPAQUE = ("pickled", "unknown")
"""Formats that nothing here reads."""


@dataclass(frozen=True)
class Verdict:
    """What became of a checkpoint."""

    kind: Literal["whole", "wrong", "unverified"]
    """"unverified": nothing is known to be wrong, and nothing here could read it."""

    why: str = ""
    by_digest: bool = False
    """Whether every file of weights was compared byte for byte; otherwise sizes and headers were,
    and the values as far as the fingerprint tells them apart, which is to bfloat16."""


def audit(entry: Entry, *, deep: bool = True) -> str:
    """What is wrong with a checkpoint; empty where nothing is, or where nobody can tell.

    Args:
        deep: as of `judge`.
    """
    verdict = judge(entry, deep=deep)
    return verdict.why if verdict.kind == "wrong" else ""


def judge(entry: Entry, *, deep: bool = True) -> Verdict:
    """Whether a checkpoint is whole.

    Args:
        deep: read everything: files against their digests where they are known, and the weights
            against their fingerprint where digests do not cover them. Otherwise sizes and markers
            are looked at.
    """
    from checkpoints_index.formats import verify

    if not entry.complete:
        return Verdict("wrong", f"{entry.path}: {entry.why or 'not complete'}; {_REMEDY}.")
    remote = "://" in entry.path
    if not remote and not os.path.exists(entry.path):
        return Verdict("wrong", f"{entry.path}: nothing lies there; {_REMEDY}.")
    if entry.format in _OPAQUE:
        return Verdict("unverified", f"{entry.path}: nothing here reads it without unpickling.")
    try:
        record = CheckpointRecord.from_json(entry.record) if entry.record else None
        digests = (record.digests if record is not None and not remote else None) or {}
        # Digests in the record tell more than those that lie with the weights, which whoever
        # changes the one can change too; once is enough to read them all.
        verify(entry.path, deep=deep and not digests)
        return _by_bytes(entry, digests) if deep else Verdict("whole")
    except (PickleRefused, ImportError) as error:
        return Verdict("unverified", f"{entry.path}: could not be read: {error}")
    except (CheckpointIncomplete, CheckpointNotFound, RecordError, OSError) as error:
        return Verdict("wrong", str(error))


def _by_bytes(entry: Entry, digests: dict[str, str]) -> Verdict:
    """Files against their digests, then the weights against their fingerprint where some of them
    have none.
    """
    from checkpoints_index.formats import open_weights

    path = Path(entry.path)
    if wrong := unlike_its_digest(path, digests):
        return Verdict("wrong", wrong)
    # A native checkpoint has a digest of every file beside it, and they were compared.
    covered = entry.format == "native"
    if digests:
        covered = weight_files(path).keys() <= digests.keys()
    if not covered and entry.fingerprint is not None:
        found = open_weights(entry.path).fingerprint()
        if found != entry.fingerprint:
            return Verdict(
                "wrong",
                f"{entry.path}: weights with fingerprint {found[:12]}, expected "
                f"{entry.fingerprint[:12]}; {_REMEDY}.",
            )
    return Verdict("whole", by_digest=covered)


def unlike_its_digest(path: Path, digests: dict[str, str]) -> str:
    """The first file that is not what its record says."""
    for name, said in sorted(digests.items()):
        file = path if path.is_file() and path.name == name else path / name
        if not file.is_file():
            return f"{file}: missing, expected by its record; {_REMEDY}."
        found = _sha256(file)
        if found != said:
            return f"{file}: {found[:19]}, but its record says {said[:19]}; {_REMEDY}."
    return ""


def digests_of(path: str | Path) -> dict[str, str] | None:
    """The digest of every file of weights and of training state at `path`, by its name in it; None
    for more files than a record holds. Reads them all.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "model.safetensors").write_bytes(b"1")
        >>> digests_of(folder)["model.safetensors"][:15]
        'sha256:6b86b273'
    """
    files = weight_files(Path(path))
    if not 0 < len(files) <= NAMES_AT_MOST:
        return None
    return {name: _sha256(file) for name, file in files.items()}


def weight_files(path: Path) -> dict[str, Path]:
    """Files of weights and of training state of the checkpoint at `path`, by their names in it."""
    if not path.is_dir():
        return {path.name: path}
    # A trainer leaves checkpoint-500/ inside the folder of the finished model.
    others = {str(found.path) for found in find(path)} - {str(path)}
    files = {}
    for here, below, names in os.walk(path):
        below[:] = sorted(name for name in below if os.path.join(here, name) not in others)
        for name in sorted(names):
            file = Path(here, name)
            ours = file.suffix in _WEIGHTS or name == ".metadata"
            if ours and str(file) not in others and file.is_file():
                files[file.relative_to(path).as_posix()] = file
    return files


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return "sha256:" + hashlib.file_digest(handle, "sha256").hexdigest()


Place = tuple[str, int]
"""Branch and step."""


class Standing:
    """The records of a run, held against what lies there: a prune must not keep a checkpoint that
    is lost, in place of one that could be gone on from.

    Every checkpoint is looked for; of every branch the newest are opened, back to the first that is
    found whole. Sizes and headers are read, no weights.
    """

    def __init__(self, run: str | Path, records: Sequence[CheckpointRecord]) -> None:
        self._run = Path(os.path.realpath(run))
        self._by_place = {(r.branch, r.step): r for r in records}
        self._verdicts: dict[Place, Verdict] = {}
        self.broken: dict[Place, str] = {}
        """What is wrong with those that their records call complete."""
        self.relied_on: dict[Place, str] = {}
        """The newest found whole, where newer ones could not be verified; and why it stays."""
        for place, record in self._by_place.items():
            here = record.is_remote or os.path.exists(record.path(self._run))
            if record.complete and not here:
                self.broken[place] = "recorded, but nothing lies there"
        lines: dict[tuple[str, bool], list[Place]] = defaultdict(list)
        for place, record in sorted(self._by_place.items()):
            for training in {False, record.kind != "weights"} if record.complete else ():
                lines[record.branch, training].append(place)
        for line in lines.values():
            self._walk_back(line)

    def _walk_back(self, line: list[Place]) -> None:
        unverified = False
        for place in reversed(line):
            if not self.is_whole(place):
                continue
            if self._verdicts[place].kind == "whole":
                if unverified:
                    self.relied_on[place] = "the newest that could be verified"
                return
            unverified = True

    def is_whole(self, place: Place) -> bool:
        """Whether nothing is known to be wrong with the checkpoint; looked at once."""
        record = self._by_place.get(place)
        if record is None or not record.complete or place in self.broken:
            return False
        if place not in self._verdicts:
            try:
                self._verdicts[place] = judge(Entry.of_record(record, self._run), deep=False)
            except Exception as error:
                # A bucket's client has errors of its own; one that cannot be asked says nothing.
                self._verdicts[place] = Verdict("unverified", str(error))
        verdict = self._verdicts[place]
        if verdict.kind == "wrong":
            self.broken[place] = verdict.why
        return verdict.kind != "wrong"

    @property
    def records(self) -> list[CheckpointRecord]:
        """The records; those of broken checkpoints say that they are not complete."""
        return [
            replace(record, complete=False) if place in self.broken else record
            for place, record in self._by_place.items()
        ]
