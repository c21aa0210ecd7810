"""Weights that were pickled (.bin, .pt, .pth, .ckpt, .pkl), for a user who allows it.

Needs   such a file; a folder of one; or a folder of shards and pytorch_model.bin.index.json.
Yields  PickledWeights.

torch's restricted unpickler (weights_only) comes first: it admits tensors and plain containers and
runs nothing that the file brings. Only `unsafe` goes beyond, for what that refuses. The tensors
stay in the file until they are used (mmap), where torch.save wrote it as a zip.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from checkpoints_index.errors import (
    CheckpointIncomplete,
    CheckpointNotFound,
    PickleRefused,
    RecordError,
)
from checkpoints_index.fingerprint import held_bytes
from checkpoints_index.formats.native import read_object
from checkpoints_index.formats.place import LocalPlace, Place, shown
from checkpoints_index.formats.recognition import PICKLED, PICKLED_INDEX, suffix
from checkpoints_index.formats.saved_state import weight_names
from checkpoints_index.formats.weights import Held, Weights
from checkpoints_index.safetensors_file import TORCH_NAMES

if TYPE_CHECKING:
    import torch

NOT_WEIGHTS = ("optimizer", "scheduler", "rng_state", "training_args", "scaler")
"""How files that lie beside the weights, and are no weights, begin."""
_BY_KIND = {kind: name for name, kind in TORCH_NAMES.items()}


class PickledWeights(Weights):
    """The model's tensors of a pickled checkpoint.

    Args:
        place: file or folder on this machine.
        unsafe: let the files run what they bring, where torch's restricted unpickler refuses.
    """

    format = "pickled"

    def __init__(self, place: Place, *, unsafe: bool = False) -> None:
        super().__init__(place)
        self.unsafe = unsafe
        if not isinstance(place, LocalPlace):
            raise PickleRefused(
                f"{place}: pickled weights are read from this machine only, since no part of "
                f"them can be told from outside; copy the file here first."
            )

    def _files(self) -> list[Place]:
        if self.place.is_file():
            return [self.place]
        names = self.place.names()
        if PICKLED_INDEX in names:
            said = read_object(self.place, PICKLED_INDEX).get("weight_map")
            names = list(map(str, said.values())) if isinstance(said, dict) else []
        files = sorted({n for n in names if suffix(n) in PICKLED and not n.startswith(NOT_WEIGHTS)})
        if PICKLED_INDEX not in names and len(files) > 1 and "pytorch_model.bin" in files:
            files = ["pytorch_model.bin"]
        if not files or (len(files) > 1 and not all("-of-" in name for name in files)):
            raise CheckpointNotFound(
                f"{self.place}: {len(files)} pickled files ({shown(', '.join(files))}), and "
                f"nothing that says which are the weights; name the file."
            )
        return [self.place.child(name) for name in files]

    @cached_property
    def _tensors(self) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for file in self._files():
            flat = dict(_leaves(self._unpickled(file), ()))
            try:
                names = weight_names({path: path for path in flat})
            except RecordError as error:
                raise RecordError(f"{file}: {error}") from None
            for own, path in names.items():
                if own in found and not _same(found[own], flat[path]):
                    raise CheckpointIncomplete(
                        f"{file}: holds {shown(own)}, and so does a file before it, with other "
                        f"values; copy the files of one checkpoint again."
                    )
                found[own] = flat[path]
        return found

    def _unpickled(self, file: Place) -> Any:
        import torch

        if not file.is_file():
            raise CheckpointIncomplete(f"{file}: missing; copy it, or use another checkpoint.")
        assert isinstance(file, LocalPlace)
        refused = ""
        for restricted, mmap in ((True, True), (True, False), (False, False)):
            if not restricted and not self.unsafe:
                break
            try:
                return torch.load(file.path, map_location="cpu", weights_only=restricted, mmap=mmap)
            except pickle.UnpicklingError as error:
                refused = refused or shown(" ".join(str(error).split())).strip("'\"")
            except Exception as error:  # a broken file raises nearly anything
                if not mmap:
                    raise CheckpointIncomplete(
                        f"{file}: not a whole file of torch.save ({type(error).__name__}); copy it "
                        f"again, or use another checkpoint."
                    ) from None
        raise PickleRefused(
            f"{file}: torch's restricted unpickler refuses it ({refused}); where you made this "
            f"file yourself, allow_pickle='unsafe' lets it run what it brings."
        )

    def table(self) -> Mapping[str, object]:
        """The weights by name."""
        return self._tensors

    def _held(self, name: str) -> Held:
        tensor = self._tensors[name]
        kind = str(tensor.dtype).removeprefix("torch.")
        return Held(_BY_KIND.get(kind, kind), tuple(tensor.shape))

    def _fetch(self, names: list[str], device: str) -> dict[str, torch.Tensor]:
        return {name: self._tensors[name].detach().to(device) for name in names}

    def _raw(self, name: str) -> bytes:
        return held_bytes(self._tensors[name])


def _leaves(value: Any, path: tuple[Any, ...]) -> Any:
    """Every tensor of nested dictionaries and lists, with the keys that lead to it."""
    import torch

    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _leaves(inner, (*path, i))


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are alike to the last bit: weights that are shared may lie twice."""
    alike = one.dtype == other.dtype and one.shape == other.shape
    return alike and held_bytes(one) == held_bytes(other)
