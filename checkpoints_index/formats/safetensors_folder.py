"""Weights in safetensors: one file, shards and their index, or the parts that ranks saved.

Needs   a place that is such a file or folder.
Yields  SafetensorsWeights.

Of a model in shards, model.safetensors.index.json says which file holds which tensor. Where
torch.distributed.checkpoint wrote safetensors rank by rank (shard-00001-model-...), there is no
index: a tensor lies in parts, and each file says at which offset its parts begin. Such a folder
does not say how many ranks there were: where the last ones' files are lost, tensors look shorter.

Source: `HuggingFaceStorageWriter` of torch.distributed.checkpoint, for the parts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from checkpoints_index.errors import CheckpointIncomplete, CheckpointNotFound
from checkpoints_index.formats.native import ONE_FILE, read_object, verify_native
from checkpoints_index.formats.pieces import Piece, assemble, check_cover
from checkpoints_index.formats.place import Place, shown
from checkpoints_index.formats.recognition import SHARD_INDEX, suffix
from checkpoints_index.formats.weights import Held, Weights
from checkpoints_index.safetensors_file import SafetensorsFile

if TYPE_CHECKING:
    import torch

_PARTS = "DCP_SHARDING_INFO"


class SafetensorsWeights(Weights):
    """Tensors of one or several safetensors files."""

    def __init__(self, place: Place, format: str) -> None:
        super().__init__(place)
        self.format = format
        self._opened: dict[str, SafetensorsFile] = {}

    @cached_property
    def _homes(self) -> dict[str, str]:
        """The file's name of every tensor that lies whole in one file."""
        if self.place.is_file():
            self._opened[""] = SafetensorsFile(self.place)
            return dict.fromkeys(self._opened[""].entries, "")
        if self.format == "native":
            verify_native(self.place, deep=False)
        names = self.place.names()
        if ONE_FILE in names or SHARD_INDEX not in names:
            plain = [name for name in names if suffix(name) == ".safetensors"]
            one = ONE_FILE if ONE_FILE in names or not plain else plain[0]
            return dict.fromkeys(self._open(one).entries, one)
        return self._indexed()

    def _indexed(self) -> dict[str, str]:
        said = read_object(self.place, SHARD_INDEX).get("weight_map")
        if not isinstance(said, dict):
            raise CheckpointIncomplete(
                f"{self.place.child(SHARD_INDEX)}: no weight_map; copy the index again."
            )
        homes = {name: str(file) for name, file in said.items()}
        for file in sorted(set(homes.values())):
            self.place.child(file)
        if self.place.eager:
            for name, file in homes.items():
                self._entry(name, file)
        return homes

    def _open(self, file: str) -> SafetensorsFile:
        if file not in self._opened:
            there = self.place.child(file)
            try:
                self._opened[file] = SafetensorsFile(there)
            except CheckpointNotFound as error:
                if not self.place.eager:
                    raise CheckpointIncomplete(str(error)) from None
                raise CheckpointIncomplete(
                    f"{self.place}: {shown(file)[1:-1]} is missing; copy it, or use another "
                    f"checkpoint."
                ) from None
        return self._opened[file]

    def _entry(self, name: str, file: str) -> Held:
        opened = self._opened[file] if file in self._opened else self._open(file)
        entry = opened.entries.get(name)
        if entry is None:
            raise CheckpointIncomplete(
                f"{self.place}: {shown(file)[1:-1]} lacks {shown(name)}, which {SHARD_INDEX} "
                f"expects there; copy the shard again."
            )
        return Held(entry.dtype, entry.shape)

    def table(self) -> Mapping[str, object]:
        """The tensors by name."""
        return self._homes

    def _held(self, name: str) -> Held:
        return self._entry(name, self._homes[name])

    def _fetch(self, names: list[str], device: str) -> dict[str, torch.Tensor]:
        wanted: dict[str, list[str]] = {}
        for name in names:
            self._held(name)
            wanted.setdefault(self._homes[name], []).append(name)
        found: dict[str, torch.Tensor] = {}
        for file, some in wanted.items():
            found |= self._opened[file].tensors(some, device)
        return found

    def _raw(self, name: str) -> bytes:
        self._held(name)
        return self._opened[self._homes[name]].raw(name)


class PartedSafetensorsWeights(Weights):
    """Tensors whose parts several ranks saved, each into its own safetensors file."""

    format = "safetensors"

    @cached_property
    def _pieces(self) -> dict[str, list[Piece[SafetensorsFile]]]:
        pieces: dict[str, list[Piece[SafetensorsFile]]] = {}
        for name in self.place.names():
            if suffix(name) != ".safetensors":
                continue
            file = SafetensorsFile(self.place.child(name))
            begins = _begins(file)
            for tensor, entry in file.entries.items():
                begin = begins.get(tensor, (0,) * len(entry.shape))
                pieces.setdefault(tensor, []).append(Piece(begin, entry.shape, file))
        return pieces

    def table(self) -> Mapping[str, object]:
        """The tensors by name."""
        return self._pieces

    def _held(self, name: str) -> Held:
        pieces = self._pieces[name]
        corners = [[o + n for o, n in zip(p.offset, p.sizes, strict=False)] for p in pieces]
        shape = tuple(max(along) for along in zip(*corners, strict=False))
        check_cover(name, shape, pieces, self.place)
        return Held(pieces[0].home.entries[name].dtype, shape)

    def _fetch(self, names: list[str], device: str) -> dict[str, torch.Tensor]:
        def one(name: str) -> torch.Tensor:
            def read(file: SafetensorsFile) -> torch.Tensor:
                return file.tensors([name])[name]

            return assemble(self._held(name).shape, self._pieces[name], read, device)

        return {name: one(name) for name in names}

    def _raw(self, name: str) -> bytes:
        from checkpoints_index.fingerprint import held_bytes

        return held_bytes(self._fetch([name], "cpu")[name])


def _begins(file: SafetensorsFile) -> dict[str, tuple[int, ...]]:
    """Where this file's parts begin in their tensors."""
    try:
        said = json.loads(file.metadata.get(_PARTS, "{}"))
        begins = {name: tuple(about["saved_offsets"]) for name, about in said.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        begins = {"": ("?",)}
    if not all(type(n) is int and 0 <= n < 2**63 for begin in begins.values() for n in begin):
        raise CheckpointIncomplete(
            f"{file.place}: its header says nothing readable of where its parts belong; copy it "
            f"again."
        )
    return begins
