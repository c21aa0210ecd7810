"""Checkpoints of one file: Lightning's .ckpt, Composer's ep0-ba100-rank0.pt, lone safetensors.

Needs   a folder's listing.
Yields  `lightning_folder`, and `single_files`: Found, one a checkpoint.

Lightning's step stands in the file; what is no Lightning file gets the step that its name tells.
Composer's step is the batch. A link to another file of the folder, such as Composer's
latest-rank0.pt or Lightning's last.ckpt, is not counted.
A .ckpt that is a folder is Lightning's sharded checkpoint: a distributed one, and meta.pt.

Source: lightning, `Trainer.save_checkpoint` and ModelParallelStrategy; composer,
callbacks/checkpoint_saver.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from checkpoints_index.formats.recognition import DCP_TABLE
from checkpoints_index.layouts.found import Found
from checkpoints_index.layouts.listing import Listing
from checkpoints_index.layouts.torch_zip import TorchZip
from checkpoints_index.layouts.wholeness import ailment, folder_ailment, plain

_NAMED_STEP = re.compile(r"(?:^|[-_/.])step[=_-]?(\d{1,15})")
_COMPOSER = re.compile(r"ep(\d{1,15})-ba(\d{1,15})(?:-rank(\d{1,6}))?\.pt")


def single_files(folder: Listing) -> Iterator[Found]:
    """Checkpoints among the files of a folder that is none itself."""
    for name in sorted(folder.files):
        path = folder.path / name
        if path.is_symlink() and _is_found_elsewhere(path, folder):
            continue
        match = _COMPOSER.fullmatch(name)
        if name.endswith(".ckpt"):
            yield _lightning(path)
        elif match and match[3] in (None, "0"):
            yield _composer(path, int(match[2]))
        elif name.endswith(".safetensors") and "-of-" not in name:
            why = ailment(path)
            yield Found(path, "safetensors", None, _named_step(name), None, not why, why)


def _is_found_elsewhere(link: Path, folder: Listing) -> bool:
    """Whether a link, such as Lightning's last.ckpt, leads to a checkpoint that is found itself."""
    target = link.resolve()
    if _COMPOSER.fullmatch(target.name):
        return True
    beside = target.parent == folder.path.resolve() and target.name in folder.files
    return beside and target.suffix == link.suffix


def lightning_folder(folder: Listing) -> Found | None:
    """Lightning's sharded .ckpt folder, finished or not."""
    if not folder.path.name.endswith(".ckpt") or not (
        {"meta.pt", DCP_TABLE} & folder.files or folder.has(".distcp")
    ):
        return None
    step, why = _named_step(folder.path.name), ""
    if "meta.pt" not in folder.files:
        why = plain(f"{folder.path}: meta.pt, which Lightning writes last, is missing.")
    else:
        try:
            step = TorchZip(folder.path / "meta.pt").number("global_step") or step
        except ValueError as error:
            why = plain(f"{folder.path / 'meta.pt'}: {error}.")
    why = why or folder_ailment(folder)
    return Found(folder.path, "dcp", "lightning", step, None, not why, why, "training")


def _lightning(path: Path) -> Found:
    step = _named_step(path.name)
    try:
        outside = TorchZip(path)
    except ValueError as error:
        why = plain(f"{path}: {error}; use another checkpoint.")
        return Found(path, "pickled", "lightning", step, None, False, why)
    ours = outside.mentions("pytorch-lightning_version")
    told = outside.number("global_step") if ours else None
    kind = "training" if outside.mentions("optimizer_states") else "weights"
    return Found(
        path, "pickled", "lightning" if ours else None, step if told is None else told, kind=kind
    )


def _composer(path: Path, batch: int) -> Found:
    try:
        outside = TorchZip(path)
    except ValueError as error:
        why = plain(f"{path}: {error}; use another checkpoint.")
        return Found(path, "pickled", "composer", batch, None, False, why)
    kind = "training" if outside.mentions("optimizers") else "weights"
    return Found(path, "pickled", "composer", batch, kind=kind)


def _named_step(name: str) -> int | None:
    match = _NAMED_STEP.search(name)
    return int(match[1]) if match else None
