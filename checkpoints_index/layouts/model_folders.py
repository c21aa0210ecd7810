"""Folders of a model: ours, Hugging Face's, safetensors; with no trainer's state but ours.

Needs   a folder's listing.
Yields  `workbench`, `model_folder`: Found, or None where it is not one.

Ours is whole when every file has the size that state.json tells; .partial-... is one being written.
A model in shards is whole when every file that its index names is there, and holds what the index
says. In the Hub's cache a snapshot's step and tokens are those in the names of its branches and
tags (step5000-tokens20B); elsewhere those in the folder's name.
"""

from __future__ import annotations

from checkpoints_index.errors import CheckpointIncomplete
from checkpoints_index.formats.hub import revision_clock
from checkpoints_index.formats.native import NATIVE, ONE_FILE, read_state
from checkpoints_index.formats.recognition import PARTIAL, PICKLED_INDEX, SHARD_INDEX
from checkpoints_index.layouts.found import Found
from checkpoints_index.layouts.listing import Listing, hub_home
from checkpoints_index.layouts.wholeness import folder_ailment, format_of, plain, zip_ailment


def workbench(folder: Listing) -> Found | None:
    """Our own checkpoint, finished or not."""
    partial = folder.path.name.startswith(PARTIAL)
    state = {}
    if "state.json" in folder.files:
        try:
            state = read_state(folder.path)
        except CheckpointIncomplete as error:
            if ONE_FILE not in folder.files or "config.json" in folder.files:
                return None
            return Found(folder.path, "native", "workbench", None, None, False, plain(error))
    if state.get("format") != NATIVE and not partial:
        return None
    why = folder_ailment(folder)
    step, tokens = state.get("step"), state.get("tokens_seen")
    return Found(
        folder.path,
        "native",
        "workbench",
        step if type(step) is int and step >= 0 else None,
        tokens if type(tokens) is int and tokens >= 0 else None,
        not why,
        why,
        "training" if "optimizer.safetensors" in folder.files else "weights",
    )


def model_folder(folder: Listing) -> Found | None:
    """A model's weights: in one file, in shards, or in the parts that ranks saved."""
    files = folder.has(".safetensors")
    pickled = {"pytorch_model.bin", PICKLED_INDEX} & folder.files
    shards = [name for name in files if "-of-" in name]
    if not ({ONE_FILE, SHARD_INDEX} & folder.files or shards or pickled or len(files) == 1):
        return None
    alone = len(files) == 1 and not (shards or ONE_FILE in files)
    if alone and not folder.has(".json"):
        # One of somebody's files, which single_files.py tells of.
        return None
    format = format_of(folder)
    if format == "pickled":
        bins = [name for name in folder.has(".bin") if name.startswith("pytorch_model")]
        why = next(filter(None, (zip_ailment(folder.path / name) for name in bins)), "")
    else:
        why = folder_ailment(folder, below=False)
    step, tokens = _clock(folder)
    return Found(folder.path, format, None, step, tokens, not why, why)


def _clock(folder: Listing) -> tuple[int | None, int | None]:
    """The step and tokens that the names of this revision, or of this folder, tell."""
    home = hub_home(folder.path)
    if home is None or home.name == folder.path.parent.name:
        return revision_clock(folder.path.name)
    refs = home / "refs"
    for ref in sorted(refs.rglob("*")) if refs.is_dir() else []:
        try:
            if ref.is_symlink() or not ref.is_file() or ref.stat().st_size > 64:
                continue
            if ref.read_text("ascii").strip() == folder.path.name:
                step, tokens = revision_clock(ref.relative_to(refs).as_posix())
                if step is not None or tokens is not None:
                    return step, tokens
        except (OSError, ValueError):
            continue
    return None, None
