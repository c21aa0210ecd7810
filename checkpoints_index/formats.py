"""Which format a checkpoint lies in, and its weights, read as they are asked for.

Needs   a file or folder.
Yields  `open_weights`: Weights, whatever the format; `verify`: whole or not, by size or by digest.

| format      | recognised by                                                              |
|-------------|----------------------------------------------------------------------------|
| native      | folder with state.json that says so: ours, model.safetensors and the rest  |
| huggingface | folder with config.json beside safetensors, sharded or not                 |
| safetensors | a .safetensors file, or a folder of one, or of shards with their index     |

What only pickle can read (.bin, .pt, .pth, .ckpt, .pkl) is refused: reading it would run code that
the file brings. A folder whose name begins with ".partial-" was being written when its writer
ended.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints_index.errors import (
    CheckpointIncomplete,
    CheckpointNotFound,
    PickleRefused,
    RecordError,
)
from checkpoints_index.fingerprint import digest
from checkpoints_index.safetensors_file import SafetensorsFile

if TYPE_CHECKING:
    import torch

NATIVE = "workbench-native-1"
PARTIAL = ".partial-"
PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
ONE_FILE = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"


def recognise(path: str | Path) -> str:
    """The format's name: "native", "huggingface" or "safetensors".

    Raises:
        CheckpointNotFound: nothing there, or nothing that is a checkpoint.
        CheckpointIncomplete: begun and not finished.
        PickleRefused: only pickle could read it.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointNotFound(f"no checkpoint at {path}.")
    if path.name.startswith(PARTIAL):
        raise CheckpointIncomplete(
            f"{path}: its writer ended before it was whole; delete it, and use an earlier one."
        )
    if path.is_file():
        if path.suffix == ".safetensors":
            return "safetensors"
        return _refuse(path, [path])
    if (path / "state.json").is_file() and read_state(path).get("format") == NATIVE:
        return "native"
    if (path / ONE_FILE).is_file() or (path / SHARD_INDEX).is_file():
        return "huggingface" if (path / "config.json").is_file() else "safetensors"
    found = list(path.glob("*.safetensors"))
    if len(found) == 1:
        return "safetensors"
    return _refuse(path, sorted(path.iterdir()))


def _refuse(path: Path, files: Sequence[Path]) -> str:
    pickled = [file.name for file in files if file.suffix in PICKLED]
    if pickled:
        raise PickleRefused(
            f"{path}: {pickled[0]} can only be read by unpickling, which runs code that it brings; "
            f"convert it to safetensors where you trust it."
        )
    if any("-of-" in file.name and file.suffix == ".safetensors" for file in files):
        raise CheckpointIncomplete(
            f"{path}: shards without {SHARD_INDEX}; copy the index that belongs to them."
        )
    raise CheckpointNotFound(
        f"{path}: no checkpoint format that is known; expected a folder of ours, a Hugging Face "
        f"folder or safetensors."
    )


def read_state(path: Path) -> dict[str, Any]:
    """What state.json of a folder says; CheckpointIncomplete where it is not readable."""
    return _read_object(path / "state.json")


def _read_object(file: Path) -> dict[str, Any]:
    try:
        plain = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise CheckpointIncomplete(
            f"{file.parent}: {file.name} is missing; use an earlier checkpoint or save it again."
        ) from None
    except (ValueError, RecursionError):
        plain = None
    if not isinstance(plain, dict):
        raise CheckpointIncomplete(
            f"{file}: not a JSON object; use an earlier checkpoint or save it again."
        )
    return plain


def _inside(folder: Path, name: object) -> Path:
    """The file `name` of `folder`, where it is a plain name: a manifest may not point elsewhere."""
    if not isinstance(name, str) or name != Path(name).name or name in ("", ".", ".."):
        raise RecordError(f"{folder}: names {ascii(name)[:80]}, expected a file of that folder.")
    return folder / name


class Weights(Mapping[str, "torch.Tensor"]):
    """Named tensors of a checkpoint, each read when it is asked for. Opening reads headers only.

    Args:
        path: file or folder in any known format.

    Raises:
        CheckpointIncomplete: a file is missing, cut short, or not what an index of shards says.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.format = recognise(self.path)

    @cached_property
    def _homes(self) -> dict[str, SafetensorsFile]:
        """The file of every tensor."""
        if self.path.is_file():
            return _tensors_of([SafetensorsFile(self.path)])
        if self.format == "native":
            verify(self.path)
        index = self.path / SHARD_INDEX
        if (self.path / ONE_FILE).is_file() or not index.is_file():
            one = self.path / ONE_FILE
            file = one if one.is_file() else next(iter(self.path.glob("*.safetensors")), one)
            return _tensors_of([_open(file)])
        said = _read_object(index).get("weight_map")
        if not isinstance(said, dict):
            raise CheckpointIncomplete(f"{index}: no weight_map; copy the index again.")
        shards = {n: _open(_inside(self.path, n)) for n in sorted(set(map(str, said.values())))}
        homes = _tensors_of(list(shards.values()))
        lacking = [name for name, shard in said.items() if name not in shards[shard].entries]
        if lacking:
            raise CheckpointIncomplete(
                f"{self.path}: {said[lacking[0]]} lacks {lacking[0]!r}, which {SHARD_INDEX} "
                f"expects there; copy the shard again."
            )
        return homes

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.load([name])[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._homes))

    def __len__(self) -> int:
        return len(self._homes)

    def __contains__(self, name: object) -> bool:
        return name in self._homes

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header."""
        return self._home(name).entries[name].shape

    def dtype(self, name: str) -> str:
        """The type of a tensor as safetensors names it, such as "BF16", from the header."""
        return self._home(name).entries[name].dtype

    def _home(self, name: str) -> SafetensorsFile:
        try:
            return self._homes[name]
        except KeyError:
            raise CheckpointNotFound(
                f"no tensor {ascii(name)[:80]} in {self.path}; it has {len(self)}, such as "
                f"{next(iter(self), 'none')!r}."
            ) from None

    def load(
        self, names: Sequence[str] | str | None = None, device: str = "cpu"
    ) -> dict[str, torch.Tensor]:
        """Tensors by name; only their bytes are read.

        Args:
            names: which; a name that ends with "." stands for all below it ("blocks.0."). None:
                all.
            device: where to.
        """
        wanted: dict[SafetensorsFile, list[str]] = {}
        for name in self._chosen(names):
            wanted.setdefault(self._home(name), []).append(name)
        found: dict[str, torch.Tensor] = {}
        for file, some in wanted.items():
            found |= file.tensors(some, device)
        return found

    def _chosen(self, names: Sequence[str] | str | None) -> list[str]:
        if names is None:
            return list(self)
        chosen: list[str] = []
        for name in [names] if isinstance(names, str) else names:
            below = [n for n in self if n.startswith(name)] if name.endswith(".") else []
            chosen += below or [name]
        return chosen

    def fingerprint(self) -> str:
        """The digest of the weights (fingerprint.py); reads them all, one at a time, without
        torch.
        """
        return digest(
            (name, entry.dtype, entry.shape, file.raw(name))
            for name, file in self._homes.items()
            for entry in [file.entries[name]]
        )


def _open(file: Path) -> SafetensorsFile:
    try:
        return SafetensorsFile(file)
    except CheckpointNotFound:
        raise CheckpointIncomplete(
            f"{file.parent}: {file.name} is missing; copy it, or use another checkpoint."
        ) from None


def _tensors_of(files: list[SafetensorsFile]) -> dict[str, SafetensorsFile]:
    return {name: file for file in files for name in file.entries}


def open_weights(path: str | Path) -> Weights:
    """The weights at `path`, whatever the format; nothing but headers is read yet."""
    return Weights(path)


def size_bytes(path: str | Path) -> int:
    """Bytes of a checkpoint on disk, all its files."""
    path = Path(path)
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files)


def verify(path: str | Path, *, deep: bool = False) -> None:
    """Nothing happens where the checkpoint is whole; CheckpointIncomplete says what is wrong.

    Args:
        path: of any known format.
        deep: read everything, and compare digests where the format has them (native).
    """
    path = Path(path)
    if recognise(path) != "native":
        weights = Weights(path)
        for name in weights:
            if deep:
                weights._home(name).raw(name)
        return
    files = read_state(path).get("files")
    if not isinstance(files, dict) or ONE_FILE not in files:
        raise CheckpointIncomplete(
            f"{path}: state.json does not list {ONE_FILE}; use an earlier checkpoint."
        )
    for name, said in files.items():
        _verify_file(_inside(path, name), said if isinstance(said, dict) else {}, deep)


def _verify_file(file: Path, said: Mapping[str, Any], deep: bool) -> None:
    remedy = "use an earlier checkpoint or copy this one again"
    found = file.stat().st_size if file.is_file() else None
    if found is None or found != said.get("bytes"):
        there = "missing" if found is None else f"{found} bytes"
        raise CheckpointIncomplete(
            f"{file}: {there}, expected {said.get('bytes')} bytes; {remedy}."
        )
    if deep:
        with file.open("rb") as handle:
            sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
        if sha256 != said.get("sha256"):
            raise CheckpointIncomplete(
                f"{file}: sha256 {sha256[:12]}, expected {str(said.get('sha256'))[:12]}; {remedy}."
            )
