"""iter_0001000/ and latest_checkpointed_iteration.txt: what Megatron-LM saves.

Needs   a folder's listing.
Yields  `megatron`: Found, or None where it is not one; `megatron_lost`: the iteration that the
        tracker names and that is not there.

| format     | holds                                         | written last                        |
|------------|-----------------------------------------------|-------------------------------------|
| torch      | mp_rank_00[_000[_000]]/model_optim_rng.pt     | the tracker beside it               |
| torch_dist | .distcp, .metadata, metadata.json, (common.pt)| metadata.json, then the tracker     |
| torch_dcp  | .distcp, .metadata                            | .metadata, then the tracker         |

The tracker holds the last iteration that was saved whole, or "release". An iteration after it was
being saved when its writer ended.

Source: megatron/training/checkpointing.py; megatron/core/dist_checkpointing/core.py.
"""

from __future__ import annotations

import re

from checkpoints_index.formats.recognition import DCP_TABLE
from checkpoints_index.layouts.found import Found
from checkpoints_index.layouts.listing import Listing, listed
from checkpoints_index.layouts.wholeness import folder_ailment, plain, zip_ailment

TRACKER = "latest_checkpointed_iteration.txt"
_ITERATION = re.compile(r"iter_(\d{7,15})")
_RANK = re.compile(r"mp_rank_(\d{2,5})(?:_(\d{3,5}))?(?:_(\d{3,5}))?")
_STATES = ("model_optim_rng.pt", "model_rng.pt")


def megatron(folder: Listing) -> Found | None:
    """Megatron-LM's iteration, finished or not."""
    match = _ITERATION.fullmatch(folder.path.name)
    ranks = sorted(name for name in folder.folders if _RANK.fullmatch(name))
    shards = folder.has(".distcp") or DCP_TABLE in folder.files
    release = folder.path.name == "release" and bool(ranks or "metadata.json" in folder.files)
    empty = not (folder.files or folder.folders)
    if not release and not (match and (ranks or shards or empty)):
        return None
    step = int(match[1]) if match else None
    why = _torch_ailment(folder, ranks) if ranks else _dist_ailment(folder)
    tracked = _tracked(listed(folder.path.parent, folder.root))
    if not why and step is not None and isinstance(tracked, int) and step > tracked:
        why = plain(
            f"{folder.path}: {TRACKER} names {tracked} as the last iteration saved whole; this one "
            f"was being written."
        )
    form = "pickled" if ranks else "dcp" if shards else "unknown"
    return Found(folder.path, form, "megatron", step, None, not why, why, "training")


def megatron_lost(folder: Listing) -> Found | None:
    """The iteration that the tracker in this folder names, where it is not there."""
    tracked = _tracked(folder)
    if not isinstance(tracked, int):
        return None
    name = f"iter_{tracked:07d}"
    if name in folder.folders:
        return None
    why = plain(f"{folder.path / TRACKER} names iteration {tracked}, and there is no {name}.")
    return Found(folder.path / name, "unknown", "megatron", tracked, None, False, why, "training")


def _tracked(folder: Listing) -> int | str | None:
    """What the tracker says: an iteration, or "release"; None where it says neither."""
    if TRACKER not in folder.files:
        return None
    try:
        with (folder.path / TRACKER).open("rb") as file:
            text = file.read(64).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    if text == "release":
        return text
    return int(text) if re.fullmatch(r"\d{1,15}", text) else None


def _torch_ailment(folder: Listing, ranks: list[str]) -> str:
    """Every rank's folder from the first to the last, with its file whole."""
    numbers = [tuple(int(n) for n in m.groups() if n) for m in map(_RANK.fullmatch, ranks) if m]
    sizes = [max(along) + 1 for along in zip(*numbers, strict=False)]
    expected = 1
    for size in sizes:
        expected *= size
    if len(set(map(len, numbers))) != 1 or expected != len(ranks):
        return plain(
            f"{folder.path}: folders of {len(ranks)} ranks, expected {expected} "
            f"(tensor x pipeline x expert: {sizes}); copy the missing ones."
        )
    for rank in ranks:
        inside = folder.inside(rank)
        state = next((name for name in _STATES if name in inside.files), None)
        if state is None:
            return plain(f"{inside.path}: {_STATES[0]} is missing.")
        if why := zip_ailment(inside.path / state):
            return why
    return ""


def _dist_ailment(folder: Listing) -> str:
    if DCP_TABLE not in folder.files:
        return plain(
            f"{folder.path}: {DCP_TABLE} is missing; its writer ended before it was whole."
        )
    if "common.pt" in folder.files and "metadata.json" not in folder.files:
        return plain(f"{folder.path}: metadata.json, which Megatron writes last, is missing.")
    return folder_ailment(folder)
