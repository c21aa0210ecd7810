"""Our own checkpoints: a folder with state.json, which lists every file with its size and digest.

Needs   such a folder.
Yields  `read_state`: what state.json says; `verify_native`: every file against it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints_index.errors import CheckpointIncomplete
from checkpoints_index.formats.place import LocalPlace, Place, place_of

NATIVE = "workbench-native-1"
ONE_FILE = "model.safetensors"
_BLOCK = 1 << 24


def read_state(path: str | Path | Place) -> dict[str, Any]:
    """What state.json of a folder says; CheckpointIncomplete where it is not readable."""
    return read_object(place_of(path), "state.json")


def read_object(folder: Place, name: str) -> dict[str, Any]:
    """The JSON object in a file of `folder`; CheckpointIncomplete where there is none."""
    file = folder.child(name)
    if not file.is_file():
        raise CheckpointIncomplete(
            f"{folder}: {name} is missing; use an earlier checkpoint or save it again."
        )
    try:
        plain = json.loads(file.whole())
    except (ValueError, RecursionError):
        plain = None
    if not isinstance(plain, dict):
        raise CheckpointIncomplete(
            f"{file}: not a JSON object; use an earlier checkpoint or save it again."
        )
    return plain


def verify_native(folder: Place, *, deep: bool) -> None:
    """Compares every file with its size in state.json, and with its digest where `deep`."""
    files = read_state(folder).get("files")
    if not isinstance(files, dict) or ONE_FILE not in files:
        raise CheckpointIncomplete(
            f"{folder}: state.json does not list {ONE_FILE}; use an earlier checkpoint."
        )
    for name, said in files.items():
        _verify_file(folder.child(name), said if isinstance(said, dict) else {}, deep)


def _verify_file(file: Place, said: Mapping[str, Any], deep: bool) -> None:
    remedy = "use an earlier checkpoint or copy this one again"
    found = file.size() if file.is_file() else None
    if found is None or found != said.get("bytes"):
        there = "missing" if found is None else f"{found} bytes"
        raise CheckpointIncomplete(
            f"{file}: {there}, expected {said.get('bytes')} bytes; {remedy}."
        )
    if deep:
        sha256 = _sha256(file, found)
        if sha256 != said.get("sha256"):
            raise CheckpointIncomplete(
                f"{file}: sha256 {sha256[:12]}, expected {str(said.get('sha256'))[:12]}; {remedy}."
            )


def _sha256(file: Place, size: int) -> str:
    if isinstance(file, LocalPlace):
        with file.path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    whole = hashlib.sha256()
    for begin in range(0, size, _BLOCK):
        whole.update(file.read(begin, min(begin + _BLOCK, size)))
    return whole.hexdigest()
