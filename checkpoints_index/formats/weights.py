"""Named tensors of a checkpoint, each read when it is asked for.

Needs   a format's reader, which says what tensors there are and fetches some of them.
Yields  Weights: a mapping of names to tensors; `load`, `shape`, `dtype`, `fingerprint`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from checkpoints_index.errors import CheckpointNotFound
from checkpoints_index.fingerprint import digest
from checkpoints_index.formats.dbrx_names import own_names
from checkpoints_index.formats.place import LocalPlace, Place, RemotePlace, shown

if TYPE_CHECKING:
    import torch


class Held(NamedTuple):
    """One tensor as the checkpoint holds it, all ranks' parts together."""

    dtype: str
    """As safetensors names it, such as "BF16"."""
    shape: tuple[int, ...]


class Weights(Mapping[str, "torch.Tensor"]):
    """Named tensors of a checkpoint. Opening it reads headers only; torch comes with the first
    tensor.

    Raises:
        CheckpointIncomplete: a file is missing, cut short, or not what the others say of it.
    """

    format: str
    """How it lies on disk: "native", "huggingface", "safetensors", "dcp" or "pickled"."""

    def __init__(self, place: Place) -> None:
        self.place = place

    @property
    def path(self) -> Path | str:
        """Where it lies: a path, or the URL."""
        if isinstance(self.place, RemotePlace):
            return self.place.url
        return self.place.path if isinstance(self.place, LocalPlace) else str(self.place)

    @abstractmethod
    def table(self) -> Mapping[str, object]:
        """The tensors by name."""

    @abstractmethod
    def _held(self, name: str) -> Held:
        """Type and shape of a tensor that is there."""

    @abstractmethod
    def _fetch(self, names: list[str], device: str) -> dict[str, torch.Tensor]:
        """The tensors of these names, all of which are there."""

    @abstractmethod
    def _raw(self, name: str) -> bytes:
        """The bytes of one tensor, little-endian, row-major."""

    def check(self, *, deep: bool = False) -> None:
        """CheckpointIncomplete where a file is missing or does not add up; `deep` reads them
        all.
        """
        for name in self:
            self._held(name)
            if deep:
                self._raw(name)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.load([name])[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.table()))

    def __len__(self) -> int:
        return len(self.table())

    def __contains__(self, name: object) -> bool:
        return name in self.table()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, all ranks' parts together, from the header."""
        return self._held(self._there(name)).shape

    def dtype(self, name: str) -> str:
        """The type of a tensor as safetensors names it, such as "BF16", from the header."""
        return self._held(self._there(name)).dtype

    def _there(self, name: str) -> str:
        if name in self.table():
            return name
        raise CheckpointNotFound(
            f"no tensor {shown(name)} in {self.place}; it has {len(self)}, such as "
            f"{shown(next(iter(self), 'none'))}."
        )

    def load(
        self, names: Sequence[str] | str | None = None, device: str = "cpu"
    ) -> dict[str, torch.Tensor]:
        """Tensors by name; only their bytes are read.

        Args:
            names: which; a name that ends with "." stands for all below it ("blocks.0."). None:
                all.
            device: where to.

        Raises:
            CheckpointNotFound: there is no tensor of that name.
            CheckpointIncomplete: a file that is needed for them is missing or cut short.
        """
        return self._fetch([self._there(name) for name in self._chosen(names)], device)

    def _chosen(self, names: Sequence[str] | str | None) -> list[str]:
        if names is None:
            return list(self)
        chosen: list[str] = []
        for name in [names] if isinstance(names, str) else names:
            below = [n for n in self if n.startswith(name)] if name.endswith(".") else []
            chosen += below or [name]
        return list(dict.fromkeys(chosen))

    def fingerprint(self) -> str:
        """The digest of the weights (fingerprint.py); reads them all, one at a time."""
        return digest(own_names({name: self._held(name) for name in self}, self._raw))
