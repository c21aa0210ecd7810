"""In which format a checkpoint lies, told by its files' names.

Needs   a file or folder, here or behind a URL.
Yields  `recognise`: the format's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from checkpoints_index.errors import CheckpointIncomplete, CheckpointNotFound, PickleRefused
from checkpoints_index.formats.native import NATIVE, ONE_FILE, read_state
from checkpoints_index.formats.place import Place, place_of

PARTIAL = ".partial-"
PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
SHARD_INDEX = "model.safetensors.index.json"
PICKLED_INDEX = "pytorch_model.bin.index.json"
DCP_TABLE = ".metadata"
DCP_INSIDE = ("model_and_optim", "pytorch_model_fsdp_0")
"""Subfolders that OLMo-core, and Trainer with FSDP, put their distributed checkpoint in."""
_SHARD = re.compile(r".*?(\d{1,15})-of-(\d{1,15})\.safetensors", re.ASCII | re.S)


def recognise(path: str | Path | Place) -> str:
    """The format's name: "native", "huggingface", "safetensors" or "dcp".

    Raises:
        CheckpointNotFound: nothing there, or nothing that is a checkpoint.
        CheckpointIncomplete: begun and not finished.
        PickleRefused: only pickle could read it.
    """
    place = place_of(path)
    if place.name.startswith(PARTIAL) and (place.is_file() or place.is_folder()):
        raise CheckpointIncomplete(
            f"{place}: its writer ended before it was whole; delete it, and use an earlier one."
        )
    if place.is_file():
        if suffix(place.name) == ".safetensors":
            return "safetensors"
        return _refuse(place, [place.name])
    if not place.is_folder():
        raise CheckpointNotFound(f"no checkpoint at {place}.")
    names = place.names()
    if "state.json" in names and _is_native(place, names):
        return "native"
    if ONE_FILE in names or SHARD_INDEX in names:
        return "huggingface" if "config.json" in names else "safetensors"
    if dcp_folder(place, names) is not None:
        return "dcp"
    shards = [name for name in names if suffix(name) == ".safetensors"]
    if len(shards) == 1 or (shards and all(name.startswith("shard-") for name in shards)):
        if lost := lost_shards(shards):
            raise CheckpointIncomplete(
                f"{place}: lacks shard {', '.join(map(str, lost[:8]))}, which the names of the "
                f"others count, and {SHARD_INDEX}; copy them, or use another checkpoint."
            )
        return "safetensors"
    return _refuse(place, names)


def _is_native(place: Place, names: list[str]) -> bool:
    try:
        return read_state(place).get("format") == NATIVE
    except CheckpointIncomplete:
        if {"config.json", SHARD_INDEX, DCP_TABLE} & set(names):
            # None of ours has those: a state.json of somebody else's.
            return False
        raise


def lost_shards(files: Iterable[str]) -> list[int]:
    """The numbers that are missing among files called ...-00001-of-00004.safetensors.

    Example:
        >>> lost_shards(["model-00001-of-00003.safetensors"]), lost_shards(["weights.safetensors"])
        ([2, 3], [])
    """
    told = [(int(m[1]), int(m[2])) for m in map(_SHARD.fullmatch, files) if m]
    # A name may count to anything: some that are missing are enough to tell.
    last = min(max((of for _, of in told), default=0), len(told) + 9)
    return sorted(set(range(1, last + 1)) - {number for number, _ in told})


def suffix(name: str) -> str:
    """The ending of a file's name, with its dot."""
    return PurePosixPath(name).suffix


def dcp_folder(place: Place, names: list[str]) -> Place | None:
    """The folder at or right below `place` that is a finished torch.distributed.checkpoint."""
    if DCP_TABLE in names:
        return place
    for inside in DCP_INSIDE:
        if inside in names and place.child(inside).child(DCP_TABLE).is_file():
            return place.child(inside)
    return None


def _refuse(place: Place, names: list[str]) -> str:
    pickled = [name for name in names if suffix(name) in PICKLED]
    if any(suffix(name) == ".distcp" for name in names):
        raise CheckpointIncomplete(
            f"{place}: shards without {DCP_TABLE}, which is written last: its writer ended before "
            f"it was whole. Use an earlier checkpoint."
        )
    if pickled:
        raise PickleRefused(
            f"{place}: {pickled[0]} can only be read by unpickling, which runs code that it "
            f"brings; convert it to safetensors where you trust it, or allow it "
            f"(allow_pickle=True)."
        )
    if any("-of-" in name and suffix(name) == ".safetensors" for name in names):
        raise CheckpointIncomplete(
            f"{place}: shards without {SHARD_INDEX}; copy the index that belongs to them."
        )
    raise CheckpointNotFound(
        f"{place}: no checkpoint format that is known; expected a folder of ours, a Hugging Face "
        f"folder, safetensors, or a torch.distributed.checkpoint."
    )
