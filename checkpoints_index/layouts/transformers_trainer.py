"""checkpoint-500/: what Trainer of transformers saves.

Needs   a folder's listing.
Yields  `transformers_trainer`: Found, or None where it is not one.

Trainer writes the weights, the optimizer, the random states, and trainer_state.json last: without
it the checkpoint is half-written. With FSDP the weights are a distributed checkpoint in
pytorch_model_fsdp_0/; with DeepSpeed they lie in global_step500/, which is not read here.

Source: transformers, trainer.py, `_save_checkpoint`; accelerate, utils/fsdp_utils.py.
"""

from __future__ import annotations

import json
import re
from typing import Any

from checkpoints_index.layouts.found import Found
from checkpoints_index.layouts.listing import Listing
from checkpoints_index.layouts.wholeness import folder_ailment, format_of, plain, zip_ailment

_NAME = re.compile(r"(?:tmp-)?checkpoint-(\d{1,15})")
_STATE = "trainer_state.json"
_STATE_AT_MOST = 1 << 28
_MARKS = {"training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth"}


def transformers_trainer(folder: Listing) -> Found | None:
    """Trainer's checkpoint-N, finished or not."""
    match = _NAME.fullmatch(folder.path.name)
    weights = folder.has(".safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json")
    inside = [n for n in folder.folders if n.startswith(("pytorch_model_fsdp", "global_step"))]
    if not match or not (_STATE in folder.files or _MARKS & folder.files or weights or inside):
        return None
    state, why = _state(folder)
    format = format_of(folder)
    # The optimizer's file is a pickle too: what counts is whether weights are.
    bins = [name for name in folder.has(".bin") if name.startswith("pytorch_model")]
    if format == "pickled" and not bins:
        format = "unknown"
    steps = [name for name in inside if name.startswith("global_step")]
    why = why or next(filter(None, (_deepspeed_ailment(folder.inside(name)) for name in steps)), "")
    if why or (steps and format == "unknown" and not weights):
        pass
    elif bins and format == "pickled":
        why = next(filter(None, (zip_ailment(folder.path / name) for name in bins)), "")
    elif format == "unknown" and not (weights or inside or folder.strays):
        why = plain(f"{folder.path}: no weights in it; use another checkpoint.")
    else:
        why = folder_ailment(folder)
    told = state.get("global_step")
    seen = state.get("num_input_tokens_seen")
    trained = bool({"optimizer.pt", "optimizer.bin"} & folder.files) or any(
        name.startswith(("optimizer_", "global_step")) for name in folder.folders
    )
    return Found(
        folder.path,
        format,
        "transformers",
        told if type(told) is int and 0 <= told < 2**63 else int(match[1]),
        seen if type(seen) is int and 0 < seen < 2**63 else None,
        not why,
        why,
        "training" if trained else "weights",
    )


def _deepspeed_ailment(folder: Listing) -> str:
    """What is wrong with global_step500/, told by its names alone."""
    if folder.has("model_states.pt"):
        return ""
    return plain(f"{folder.path}: no model_states.pt of DeepSpeed in it; use another checkpoint.")


def _state(folder: Listing) -> tuple[dict[str, Any], str]:
    """trainer_state.json, and what is wrong with it."""
    file = folder.path / _STATE
    if _STATE not in folder.files:
        return {}, plain(f"{folder.path}: {_STATE}, which Trainer writes last, is missing.")
    if folder.path.name.startswith("tmp-"):
        return {}, plain(f"{folder.path}: the folder that Trainer writes before it renames it.")
    try:
        if file.stat().st_size > _STATE_AT_MOST:
            raise ValueError("too large")
        state = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        state = None
    if not isinstance(state, dict):
        return {}, plain(f"{file}: not a JSON object; its writer ended before it was whole.")
    return state, ""
