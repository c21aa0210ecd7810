"""One .safetensors file, read as it is needed: names, shapes and dtypes from its header, one tensor
at a time.

Needs   a file; torch only for `tensor`.
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

if TYPE_CHECKING:
    import torch

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Width of an element by safetensors' dtype name."""

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

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise CheckpointNotFound(f"no file {self.path}.")
        self.size = self.path.stat().st_size
        with self.path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(HEADER_AT_MOST, self.size - 8):
                raise self._broken(f"{self.size} bytes, too few for its header of {length}")
            text = file.read(length)
        self.metadata, self.entries = self._parse(text, 8 + length)

    def _broken(self, found: str) -> CheckpointIncomplete:
        return CheckpointIncomplete(
            f"{self.path}: {found}; expected a whole safetensors file. Save or copy it again."
        )

    def _parse(self, text: bytes, data: int) -> tuple[dict[str, str], dict[str, Entry]]:
        """Metadata and entries of the header; `data` is where the tensors' bytes begin."""
        try:
            plain = json.loads(text)
            metadata = plain.pop("__metadata__", None) or {}
            entries = {name: _entry(info, data) for name, info in plain.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise self._broken("a header that is not one") from None
        end = data
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.begin != end or entry.end - entry.begin != _bytes(entry):
                raise self._broken(f"tensor {ascii(name)[:80]} does not lie where it should")
            end = entry.end
        if end != self.size:
            raise self._broken(f"{self.size} bytes where its header tells {end}")
        return dict(metadata), entries

    def raw(self, name: str) -> bytes:
        """The bytes of one tensor, little-endian, row-major."""
        entry = self.entries[name]
        with self.path.open("rb") as file:
            file.seek(entry.begin)
            return file.read(entry.end - entry.begin)

    def tensors(self, names: list[str], device: str = "cpu") -> dict[str, torch.Tensor]:
        """The named tensors; only their bytes are read."""
        from safetensors import safe_open

        with safe_open(self.path, framework="pt", device=device) as file:
            return {name: file.get_tensor(name) for name in names}


def _entry(info: dict[str, Any], data: int) -> Entry:
    begin, end = info["data_offsets"]
    shape = tuple(info["shape"])
    if info["dtype"] not in BITS or not all(
        type(n) is int and n >= 0 for n in (begin, end, *shape)
    ):
        raise ValueError("not an entry")
    return Entry(info["dtype"], shape, data + begin, data + end)


def _bytes(entry: Entry) -> int:
    return math.prod(entry.shape) * BITS[entry.dtype] // 8
