"""What a saved checkpoint says of itself, without its weights being read.

Needs   a file or folder in any known layout.
Yields  `particulars`: fields of its CheckpointRecord, those that its small files tell;
        `footprint`: bytes on disk, and a stamp that changes when a file of it does.

Read are state.json (ours), config.json (Hugging Face), trainer_state.json (transformers' Trainer)
and tokenizer.json. They may be anybody's, so what does not fit is left out and never believed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

JSON_AT_MOST = 64 << 20
"""Bytes; a Trainer's history of a long run is some ten million."""

_PASSING = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"}
"""Entries of config.json that say how it was saved or is used, and not what it is."""

_OF_A_TRAINING = (
    "optimizer.safetensors", "optimizer.pt", "optimizer.bin", "trainer_state.json", "train",
)  # fmt: skip
"""Files and folders that a training needs to go on, and weights alone do not have."""


def particulars(path: str | Path) -> dict[str, Any]:
    """Fields of a CheckpointRecord that the checkpoint at `path` tells; fewer where it tells less.

    Never raises for what the files hold: a checkpoint is entered all the same.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "config.json").write_text('{"model_type": "olmoe"}')
        >>> sorted(particulars(folder))
        ['architecture_hash', 'kind']
    """
    path = Path(path)
    if not path.is_dir():
        return {"kind": "weights"}
    state = _read_object(path / "state.json")
    if "model_config" in state:
        return _of_ours(state, path)
    told: dict[str, Any] = {"kind": _kind(path)}
    for folder in (path, path / "model", path / "weights"):
        config = _read_object(folder / "config.json")
        if config:
            lasting = {k: v for k, v in config.items() if k not in _PASSING}
            told["architecture_hash"] = _hash(lasting)
            break
    tokenizer = _read_object(path / "tokenizer.json")
    if tokenizer:
        # In the order of the file and without its white space, as the tokenizer writes itself.
        text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
        told["tokenizer_hash"] = _short(text.encode("utf-8", "surrogatepass"))
    history = _read_object(path / "trainer_state.json").get("log_history")
    rates = [
        entry["learning_rate"]
        for entry in (history if isinstance(history, list) else ())
        if isinstance(entry, dict) and _is_number(entry.get("learning_rate"))
    ]
    if rates:
        told["lr"] = float(rates[-1])
    return told


def _of_ours(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What the state.json of a checkpoint of this project says."""
    said = state.get("extra")
    extra: Mapping[str, Any] = said if isinstance(said, dict) else {}
    said = state.get("files")
    files: Mapping[str, Any] = said if isinstance(said, dict) else {}
    digests = {
        name: f"sha256:{file['sha256']}"
        for name, file in files.items()
        if isinstance(file, dict) and isinstance(file.get("sha256"), str)
    }
    return {
        "phase": str(extra.get("phase", "")),
        "lr": extra.get("lr"),
        "mixture_hash": extra.get("mixture"),
        "tokenizer_hash": extra.get("tokenizer"),
        "data_position": state.get("data_position"),
        "architecture_hash": _hash(state["model_config"]),
        "kind": _kind(path),
        "digests": digests or None,
    }


def _kind(path: Path) -> str:
    if any((path / name).exists() for name in _OF_A_TRAINING):
        return "training"
    return "weights"


def _hash(plain: object) -> str:
    return _short(json.dumps(plain, sort_keys=True).encode())


def _short(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:16]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_small_file(file: Path) -> bool:
    try:
        return file.is_file() and file.stat().st_size <= JSON_AT_MOST
    except OSError:
        return False


def _read_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; empty where there is none."""
    try:
        plain = json.loads(file.read_bytes()) if _is_small_file(file) else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return plain if isinstance(plain, dict) else {}


def footprint(path: str | Path) -> tuple[int, str]:
    """Bytes that a checkpoint takes, and a stamp that changes when a file of it does.

    Links are not followed where they lead to folders; a linked file, as the Hub's cache has them,
    counts with what it leads to.
    """
    total, stamp = 0, hashlib.blake2b(digest_size=12)
    for name, stat in _files(Path(path)):
        total += stat.st_size
        stamp.update(f"{name!r} {stat.st_size} {stat.st_mtime_ns}\n".encode("utf-8", "replace"))
    return total, stamp.hexdigest()


def _files(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    if not path.is_dir():
        yield path.name, path.stat()
        return
    for folder, below, names in os.walk(path):
        below.sort()
        for name in sorted(names):
            file = os.path.join(folder, name)
            try:
                yield os.path.relpath(file, path), os.stat(file)
            except OSError:
                continue
