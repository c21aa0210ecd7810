"""What the `.metadata` of a torch.distributed.checkpoint says, without running what it brings.

Needs   the bytes of `.metadata`: a pickle.
Yields  `read_table`: DcpTable: every tensor's type, shape and parts, and where each part lies.

A pickle is a program that may call anything it names. This one is read by an unpickler that knows
only the names in `ADMITTED`, and stands plain containers of our own in for all of them: neither
torch nor any class of the file's is imported. A file that names anything else is refused.

Source: torch.distributed.checkpoint.metadata (classes) and .filesystem (`_StorageInfo`).
"""

from __future__ import annotations

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from checkpoints_index.errors import CheckpointIncomplete, PickleRefused, RecordError
from checkpoints_index.formats.pickle_memo import MemoTooLarge, check_memo
from checkpoints_index.formats.pieces import Piece
from checkpoints_index.formats.place import Place, shown
from checkpoints_index.safetensors_file import TORCH_NAMES

TABLE_AT_MOST = 1 << 30
"""Bytes of a `.metadata` that are believed; one of 100,000 tensors takes about 50 MB."""


class _Plain:
    """Stands in for a class of the file: holds what the pickle says of it, and does nothing."""

    def __init__(self, *said: Any) -> None:
        self.said: Any = said

    def __setstate__(self, state: Any) -> None:
        self.said = state

    def get(self, name: str) -> Any:
        """What was said under `name`; None where nothing was."""
        return self.said.get(name) if isinstance(self.said, dict) else None

    def __hash__(self) -> int:
        # Keys of a dictionary are hashed before they are filled in: each is its own.
        return id(self)


class _Table(_Plain):
    pass


class _Tensor(_Plain):
    pass


class _Chunk(_Plain):
    pass


class _Other(_Plain):
    pass


class _Index(_Plain):
    pass


class _Stored(_Plain):
    pass


class _Properties(_Plain):
    pass


class _DType(str):
    """A torch dtype by safetensors' name."""

    __slots__ = ()


class _Size:
    """Stands in for torch.Size. No function: of those a pickle may set attributes."""

    __slots__ = ()

    def __call__(self, *said: Any) -> tuple[int, ...]:
        numbers = said[0] if said else ()
        if not isinstance(numbers, tuple | list) or not all(
            type(n) is int and 0 <= n < 2**63 for n in numbers
        ):
            raise ValueError("not a torch.Size")
        return tuple(numbers)


class _Nothing:
    """Stands in for what the table can do without."""

    __slots__ = ()

    def __call__(self, *said: Any) -> None:
        return None


_size, _nothing = _Size(), _Nothing()


_METADATA = "torch.distributed.checkpoint.metadata"
_PLANNER = "torch.distributed.checkpoint.planner"
_SHARDED = "torch.distributed._shard.sharded_tensor.metadata"
_KINDS = {kind: name for name, kind in TORCH_NAMES.items()} | {"double": "F64", "float": "F32",
    "half": "F16", "long": "I64", "int": "I32", "short": "I16"}  # fmt: skip
_OTHER_KIND = re.compile(r"(?:b?float|complex|q?u?int|bits)[0-9]+(?:x[0-9]+|_[a-z0-9_]+)?")
"""Types of torch that safetensors has no name for, by how they are called."""

ADMITTED: dict[tuple[str, str], Any] = {
    (_METADATA, "Metadata"): _Table,
    (_METADATA, "TensorStorageMetadata"): _Tensor,
    (_METADATA, "ChunkStorageMetadata"): _Chunk,
    (_METADATA, "BytesStorageMetadata"): _Other,
    (_METADATA, "MetadataIndex"): _Index,
    (_METADATA, "StorageMeta"): _Other,
    (_METADATA, "TensorProperties"): _Properties,
    (_METADATA, "_MEM_FORMAT_ENCODING"): _nothing,
    (_SHARDED, "TensorProperties"): _Properties,
    (_SHARDED, "MEM_FORMAT_ENCODING"): _nothing,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _Stored,
    ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"): _Other,
    ("olmo_core.distributed.checkpoint.filesystem", "_StorageInfo"): _Stored,
    # Megatron-LM leaves its plan of the save in the table.
    (_PLANNER, "SavePlan"): _Other,
    (_PLANNER, "WriteItem"): _Other,
    (_PLANNER, "WriteItemType"): _nothing,
    (_PLANNER, "TensorWriteData"): _Other,
    (_PLANNER, "BytesIOWriteData"): _Other,
    ("torch", "Size"): _size,
    ("torch.serialization", "_get_layout"): _nothing,
    ("collections", "OrderedDict"): OrderedDict,
    ("pathlib", "Path"): _nothing,
    ("pathlib", "PosixPath"): _nothing,
    ("pathlib", "WindowsPath"): _nothing,
    ("pathlib._local", "PosixPath"): _nothing,
    **{("torch", kind): _DType(name) for kind, name in _KINDS.items()},
}
"""What a `.metadata` may name, and what stands in for it here."""


class _Unpickler(pickle.Unpickler):
    """Knows the names in ADMITTED, and no others."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ADMITTED[module, name]
        except KeyError:
            pass
        if module == "torch" and _OTHER_KIND.fullmatch(name):
            raise RecordError(
                f"holds tensors of type torch.{shown(name)[1:-1]}, which is not read here; save "
                f"them as one of {', '.join(sorted(TORCH_NAMES.values()))}."
            )
        raise PickleRefused(f"asks for {shown(f'{module}.{name}')}")

    def persistent_load(self, pid: Any) -> Any:
        raise PickleRefused("asks for an object that lies elsewhere")


@dataclass(frozen=True)
class Part:
    """Where one part of a tensor lies: bytes [begin, begin + length) of a file of the folder."""

    file: str
    begin: int
    length: int


@dataclass(frozen=True)
class DcpTensor:
    """One tensor of the checkpoint, all ranks' parts together."""

    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Piece[Part], ...]


@dataclass(frozen=True)
class DcpTable:
    """All that `.metadata` says."""

    tensors: Mapping[str, DcpTensor]
    """By the name in the file."""

    paths: Mapping[str, tuple[Any, ...]]
    """The keys that led to each entry in the nested state that was saved."""

    files: frozenset[str]
    """Every file that holds something."""


def read_table(file: Place) -> DcpTable:
    """The table in `file`.

    Raises:
        PickleRefused: it asks for more than the classes of such a table.
        CheckpointIncomplete: cut short, or not such a table.
    """
    if file.size() > TABLE_AT_MOST:
        raise CheckpointIncomplete(f"{file}: {file.size()} bytes, too large for a table.")
    try:
        raw = file.whole()
        check_memo(raw)
        plain = _Unpickler(io.BytesIO(raw)).load()
        return _table(plain, _said_nothing)
    except PickleRefused as error:
        raise PickleRefused(
            f"{file}: {error}, which a table of a distributed checkpoint has no need of; reading "
            f"it would run code that it brings. Save the checkpoint again with "
            f"torch.distributed.checkpoint."
        ) from None
    except RecordError as error:
        raise RecordError(f"{file}: {error}") from None
    except (CheckpointIncomplete, KeyboardInterrupt):
        raise
    except Exception as error:  # a broken pickle raises nearly anything
        raise CheckpointIncomplete(
            f"{file}: not a whole table of a distributed checkpoint ({_reason(error)}); copy it "
            f"again, or use another checkpoint."
        ) from None


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, MemoTooLarge) else type(error).__name__


def _said_nothing() -> ValueError:
    return ValueError("not such a table")


def _table(plain: Any, wrong: Callable[[], ValueError]) -> DcpTable:
    entries, stored = plain.get("state_dict_metadata"), plain.get("storage_data")
    if type(plain) is not _Table or not isinstance(entries, dict) or not isinstance(stored, dict):
        raise wrong()
    homes: dict[tuple[str, tuple[int, ...] | None], Part] = {}
    transformed: set[str] = set()
    for index, where in stored.items():
        if type(index) is not _Index or type(where) is not _Stored:
            raise wrong()
        part = Part(where.get("relative_path"), where.get("offset"), where.get("length"))
        if not isinstance(part.file, str) or not all(
            type(n) is int and 0 <= n < 2**63 for n in (part.begin, part.length)
        ):
            raise wrong()
        homes[index.get("fqn"), index.get("offset")] = part
        if where.get("transform_descriptors"):
            transformed.add(index.get("fqn"))
    tensors = {}
    for name, entry in entries.items():
        if not isinstance(name, str):
            raise wrong()
        if type(entry) is not _Tensor:
            continue
        if name in transformed:
            raise RecordError(
                f"{shown(name)} is stored compressed or encrypted, which is not read here; save it "
                f"without extensions."
            )
        tensors[name] = _tensor(name, entry, homes, wrong)
    said = plain.get("planner_data")
    paths = {
        name: path
        for name, path in (said.items() if isinstance(said, dict) else ())
        if isinstance(path, tuple) and path and all(isinstance(key, str | int) for key in path)
    }
    return DcpTable(tensors, paths, frozenset(part.file for part in homes.values()))


def _tensor(
    name: str,
    entry: _Tensor,
    homes: Mapping[tuple[str, tuple[int, ...] | None], Part],
    wrong: Callable[[], ValueError],
) -> DcpTensor:
    properties, shape, chunks = entry.get("properties"), entry.get("size"), entry.get("chunks")
    if type(properties) is not _Properties or not isinstance(shape, tuple):
        raise wrong()
    said = properties.said
    dtype = said[0] if isinstance(said, tuple) else properties.get("dtype")
    if not isinstance(dtype, _DType) or not isinstance(chunks, list):
        raise wrong()
    parts = []
    for chunk in chunks:
        begin, sizes = chunk.get("offsets"), chunk.get("sizes")
        home = homes.get((name, begin)) or (homes.get((name, None)) if len(chunks) == 1 else None)
        if not isinstance(begin, tuple) or not isinstance(sizes, tuple):
            raise wrong()
        if home is None:
            raise CheckpointIncomplete(
                f".metadata does not say where the part of {shown(name)} at {begin} lies; use "
                f"another checkpoint."
            )
        parts.append(Piece(begin, sizes, home))
    return DcpTensor(str(dtype), shape, tuple(parts))
