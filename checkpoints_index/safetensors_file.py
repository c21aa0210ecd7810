"""One .safetensors file, read as it is needed: names, shapes and dtypes from its header, one tensor
at a time.

Needs   a file, here or behind a URL; torch only for `tensors`.
Yields  SafetensorsFile.

Format: 8 bytes little-endian length n, n bytes of JSON {name: {dtype, shape, data_offsets}}, then
the data. The header is believed only when it adds up to the size of the file: a file cut short,
grown or altered is named before a single number is used.

Source: https://github.com/huggingface/safetensors, section "Format".
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints_index.errors import CheckpointIncomplete, CheckpointNotFound
from checkpoints_index.formats.place import LocalPlace, Place, place_of, shown

if TYPE_CHECKING:
    import torch

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Width of an element by safetensors' dtype name."""

TORCH_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I16": "int16", "U16": "uint16", "F16": "float16",
    "BF16": "bfloat16", "I32": "int32", "U32": "uint32", "F32": "float32", "I64": "int64",
    "U64": "uint64", "F64": "float64", "C64": "complex64",
}  # fmt: skip
"""The same types by torch's name."""

HEADER_AT_MOST = 100_000_000


@dataclass(frozen=True)
class Entry:
    """One tensor of the file: its type, its shape, and where its bytes begin and end."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """The tensors of one file. Opening it reads the header only.

    Raises:
        CheckpointNotFound: there is no such file.
        CheckpointIncomplete: the file is cut short or does not add up.
    """

    def __init__(self, path: str | Path | Place) -> None:
        self.place = place_of(path)
        if not self.place.is_file():
            raise CheckpointNotFound(f"no file {self.place}.")
        self.size = self.place.size()
        prefix = self.place.read(0, min(8, self.size))
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(HEADER_AT_MOST, self.size - 8):
            raise self._broken(f"{self.size} bytes, too few for its header of {length}")
        text = self.place.read(8, 8 + length)
        self.metadata, self.entries = self._parse(text, 8 + length)

    def _broken(self, found: str) -> CheckpointIncomplete:
        return CheckpointIncomplete(
            f"{self.place}: {found}; expected a whole safetensors file. Save or copy it again."
        )

    def _parse(self, text: bytes, data: int) -> tuple[dict[str, str], dict[str, Entry]]:
        """Metadata and entries of the header; `data` is where the tensors' bytes begin."""
        try:
            plain = json.loads(text)
            metadata = dict(plain.pop("__metadata__", None) or {})
            entries = {name: _entry(info, data) for name, info in plain.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise self._broken("a header that is not one") from None
        end = data
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.begin != end or entry.end - entry.begin != _bytes(entry):
                raise self._broken(f"tensor {shown(name)} does not lie where it should")
            end = entry.end
        if end != self.size:
            raise self._broken(f"{self.size} bytes where its header tells {end}")
        return metadata, entries

    def raw(self, name: str) -> bytes:
        """The bytes of one tensor, little-endian, row-major."""
        entry = self.entries[name]
        return self.place.read(entry.begin, entry.end)

    def tensors(self, names: list[str], device: str = "cpu") -> dict[str, torch.Tensor]:
        """The named tensors; only their bytes are read."""
        if isinstance(self.place, LocalPlace):
            from safetensors import SafetensorError, safe_open

            try:
                with safe_open(self.place.path, framework="pt", device=device) as file:
                    return {name: file.get_tensor(name) for name in names}
            except (SafetensorError, FileNotFoundError) as error:
                raise self._broken(f"changed since it was opened ({shown(str(error))})") from None
        spans = [(self.entries[name].begin, self.entries[name].end) for name in names]
        read = self.place.ranges(spans)
        return {
            name: tensor_of(raw, self.entries[name].dtype, self.entries[name].shape).to(device)
            for name, raw in zip(names, read, strict=True)
        }


def tensor_of(raw: bytes, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor that `raw` holds, of a type by safetensors' name."""
    import torch

    kind = getattr(torch, TORCH_NAMES[dtype])
    if not raw:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(bytearray(raw), dtype=kind).reshape(shape)


def _entry(info: dict[str, Any], data: int) -> Entry:
    begin, end = info["data_offsets"]
    shape = tuple(info["shape"])
    if info["dtype"] not in BITS or not all(
        type(n) is int and 0 <= n < 2**63 for n in (begin, end, *shape)
    ):
        raise ValueError("not an entry")
    return Entry(info["dtype"], shape, data + begin, data + end)


def _bytes(entry: Entry) -> int:
    return math.prod(entry.shape) * BITS[entry.dtype] // 8
