"""Weights of a torch.distributed.checkpoint: parts that ranks saved, put together again.

Needs   a folder with .metadata and .distcp files.
Yields  DcpWeights. A tensor reads only its own parts: other files may be missing.

`.metadata` is read by dcp_table.py, the parts by torch's restricted unpickler (weights_only):
nothing that the files bring is run. Names are those of the model that was saved; saved_state.py
says how they are told from the optimizer's.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from checkpoints_index.errors import CheckpointIncomplete
from checkpoints_index.fingerprint import held_bytes
from checkpoints_index.formats.dcp_table import DcpTable, DcpTensor, Part, read_table
from checkpoints_index.formats.pieces import Piece, assemble, check_cover
from checkpoints_index.formats.place import Place, shown
from checkpoints_index.formats.recognition import DCP_TABLE
from checkpoints_index.formats.saved_state import weight_names
from checkpoints_index.formats.weights import Held, Weights
from checkpoints_index.safetensors_file import BITS, TORCH_NAMES

if TYPE_CHECKING:
    import torch


class DcpWeights(Weights):
    """The model's tensors of a distributed checkpoint, whole.

    Args:
        place: what was opened.
        folder: where .metadata lies; the same, or a subfolder of it.
    """

    format = "dcp"

    def __init__(self, place: Place, folder: Place) -> None:
        super().__init__(place)
        self.folder = folder

    @cached_property
    def all(self) -> DcpTable:
        """Everything in the checkpoint, the optimizer's tensors included, by saved names."""
        return read_table(self.folder.child(DCP_TABLE))

    @cached_property
    def _names(self) -> dict[str, str]:
        return weight_names({name: self.all.paths.get(name, (name,)) for name in self.all.tensors})

    def table(self) -> Mapping[str, object]:
        """The weights by name."""
        return self._names

    def _tensor(self, name: str) -> DcpTensor:
        return self.all.tensors[self._names[name]]

    def _held(self, name: str) -> Held:
        tensor = self._tensor(name)
        return Held(tensor.dtype, tensor.shape)

    def _fetch(self, names: list[str], device: str) -> dict[str, torch.Tensor]:
        return {name: self._whole(name, device) for name in names}

    def _whole(self, name: str, device: str) -> torch.Tensor:
        tensor = self._tensor(name)
        check_cover(name, tensor.shape, tensor.parts, self.folder)

        def read(piece: Piece[Part]) -> torch.Tensor:
            return self._part(name, tensor.dtype, piece)

        # A part is read with its box in hand: what the file holds has to be just that.
        boxes = [Piece(piece.offset, piece.sizes, piece) for piece in tensor.parts]
        return assemble(tensor.shape, boxes, read, device)

    def _part(self, name: str, dtype: str, piece: Piece[Part]) -> torch.Tensor:
        import torch

        file = self._file(piece.home)
        raw = file.read(piece.home.begin, piece.home.begin + piece.home.length)
        least = math.prod(piece.sizes) * BITS[dtype] // 8
        try:
            # Not mmap: the bytes are a range of a file, and of nothing more.
            found = torch.load(io.BytesIO(raw), weights_only=True, map_location="cpu")
        except Exception as error:  # a broken zip or pickle raises nearly anything
            reason = " ".join(str(error).split())[:120]
            raise CheckpointIncomplete(
                f"{file}: the part of {shown(name)} at byte {piece.home.begin} cannot be read "
                f"({type(error).__name__}: {ascii(reason)[1:-1]}); copy the file again, or use "
                f"another checkpoint."
            ) from None
        if (
            len(raw) < least
            or not isinstance(found, torch.Tensor)
            or tuple(found.shape) != piece.sizes
            or found.dtype != getattr(torch, TORCH_NAMES[dtype])
        ):
            raise CheckpointIncomplete(
                f"{file}: the part of {shown(name)} at byte {piece.home.begin} is not the "
                f"{dtype} {list(piece.sizes)[:8]} that {DCP_TABLE} expects; copy the file again."
            )
        return found.detach()

    def _file(self, part: Part) -> Place:
        """The file of a part, which is there and long enough for it."""
        file = self.folder.child(part.file)
        found = file.size() if file.is_file() else None
        if found is None or found < part.begin + part.length:
            there = "missing" if found is None else f"{found} bytes"
            raise CheckpointIncomplete(
                f"{file}: {there}, expected {part.begin + part.length} bytes at least; copy it "
                f"again, or use another checkpoint."
            )
        return file

    def _raw(self, name: str) -> bytes:
        return held_bytes(self._whole(name, "cpu"))

    def check(self, *, deep: bool = False) -> None:
        """CheckpointIncomplete where a file is missing or short, or parts do not make a tensor."""
        ends: dict[str, Part] = {}
        for name, tensor in self.all.tensors.items():
            check_cover(name, tensor.shape, tensor.parts, self.folder)
            for piece in tensor.parts:
                last = ends.get(piece.home.file)
                if last is None or last.begin + last.length < piece.home.begin + piece.home.length:
                    ends[piece.home.file] = piece.home
        for file in sorted(self.all.files):
            self._file(ends.get(file, Part(file, 0, 0)))
        super().check(deep=deep)
