"""Every checkpoint below a folder.

Needs   a folder.
Yields  `find`: Found, one a checkpoint.

A folder is shown to each layout in turn; the first that knows it says what it is. What a trainer
keeps inside its checkpoint is not looked at again; below a plain model's folder the search goes on,
since trainers leave checkpoint-500/ beside the finished model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from checkpoints_index.errors import CheckpointNotFound
from checkpoints_index.formats.place import LocalPlace
from checkpoints_index.formats.recognition import PARTIAL
from checkpoints_index.layouts.dcp_layouts import (
    composer_folder,
    olmo_core,
    plain_dcp,
    torchtitan,
)
from checkpoints_index.layouts.found import Found
from checkpoints_index.layouts.listing import Listing, listed
from checkpoints_index.layouts.megatron import megatron, megatron_lost
from checkpoints_index.layouts.model_folders import model_folder, workbench
from checkpoints_index.layouts.single_files import lightning_folder, single_files
from checkpoints_index.layouts.transformers_trainer import transformers_trainer
from checkpoints_index.layouts.wholeness import plain

WHOLE_FOLDERS: tuple[Callable[[Listing], Found | None], ...] = (
    workbench, megatron, olmo_core, torchtitan, transformers_trainer, composer_folder,
    lightning_folder, plain_dcp,
)  # fmt: skip
"""Layouts that own everything below their folder."""

RANKS_PARTS = "sharded"
"""Where torch.distributed.checkpoint leaves the ranks' parts of a model that it put together."""

_NOT_SEARCHED = frozenset({".locks", ".git", ".no_exist"})
_OF_THE_HUB = frozenset({"blobs", "refs"})
"""The same, in a repository of the Hub's cache."""


def find(folder: str | Path) -> Iterator[Found]:
    """Every checkpoint at or below `folder`, whole or half-written, in the order of their paths.

    Weights are told whole by headers and sizes, never read, and nothing is unpickled. Links to
    folders are not followed, and what has a link out of `folder` in it is told incomplete unread.
    Folders that may not be read are passed over.

    Raises:
        CheckpointNotFound: there is no such folder.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> (folder / "step-1000").mkdir()
        >>> [(f.trainer, f.step, f.complete) for f in find(folder)]
        [('torchtitan', 1000, False)]
    """
    top = Path(folder)
    if not LocalPlace(top).is_folder():
        raise CheckpointNotFound(f"no folder {plain(top)}.")
    root = top.resolve()
    waiting = [top]
    while waiting:
        here = listed(waiting.pop(), root)
        found, owned = _seen(here)
        yield from found
        skipped = _NOT_SEARCHED
        if here.path.name.startswith(("models--", "datasets--", "spaces--")):
            skipped |= _OF_THE_HUB
        below = () if owned is None else here.folders - skipped - owned
        waiting += [here.path / name for name in sorted(below, reverse=True)]


def _seen(here: Listing) -> tuple[list[Found], frozenset[str] | None]:
    """The checkpoints right in this folder, and which subfolders are part of them; None: all."""
    for layout in WHOLE_FOLDERS:
        if (one := layout(here)) is not None:
            return [one], None
    if here.path.name.startswith(PARTIAL):
        return [], None
    model = model_folder(here)
    if model is not None:
        pickles = [one for one in single_files(here) if one.format == "pickled"]
        return [model, *pickles], frozenset({RANKS_PARTS})
    lost = megatron_lost(here)
    return [*single_files(here), *([lost] if lost else [])], frozenset()
