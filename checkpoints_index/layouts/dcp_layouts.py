"""Distributed checkpoints: torchtitan's, OLMo-core's, Composer's, and those of no known trainer.

Needs   a folder's listing.
Yields  `torchtitan`, `olmo_core`, `composer_folder`, `plain_dcp`: Found, or None where it is not
        theirs.

| trainer    | folder            | whole when                                                      |
|------------|-------------------|-----------------------------------------------------------------|
| torchtitan | step-1000/        | .metadata, or model.safetensors.index.json for its last save    |
| OLMo-core  | step1000/         | .metadata.json (written last), train/rank0.pt,                  |
|            |                   | model_and_optim/.metadata; step1000-tmp/ is one being written   |
| Composer   | ep0-ba100/        | .metadata                                                       |

and every file is there that `.metadata` names, as long as it says.

Source: torchtitan/components/checkpointer/dcp.py; olmo_core/train/checkpoint.py;
composer/utils/checkpoint.py.
"""

from __future__ import annotations

import re

from checkpoints_index.formats.hub import revision_clock
from checkpoints_index.formats.native import ONE_FILE
from checkpoints_index.formats.recognition import DCP_TABLE, SHARD_INDEX
from checkpoints_index.layouts.found import Found
from checkpoints_index.layouts.listing import Listing
from checkpoints_index.layouts.torch_zip import TorchZip
from checkpoints_index.layouts.wholeness import dcp_health, folder_ailment, format_of, plain

_TORCHTITAN = re.compile(r"step-(\d{1,15})")
_OLMO = re.compile(r"step(\d{1,15})(-tmp)?")
_COMPOSER = re.compile(r"ep(\d{1,15})-ba(\d{1,15})")


def torchtitan(folder: Listing) -> Found | None:
    """torchtitan's step-N, finished or not."""
    match = _TORCHTITAN.fullmatch(folder.path.name)
    marks = {DCP_TABLE, SHARD_INDEX, ONE_FILE} & folder.files
    started = marks or folder.has(".distcp", ".safetensors") or not (folder.files or folder.folders)
    distributed = DCP_TABLE in marks or folder.has(".distcp")
    if not match or not started or ("config.json" in folder.files and not distributed):
        # torchtitan writes no config.json: such a folder is a model of Hugging Face.
        return None
    why, kind = dcp_health(folder) if marks else (_unfinished(folder), "weights")
    return Found(
        folder.path, _format(folder), "torchtitan", int(match[1]), None, not why, why, kind
    )


def olmo_core(folder: Listing) -> Found | None:
    """OLMo-core's stepN, finished or not."""
    match = _OLMO.fullmatch(folder.path.name)
    marks = {"model_and_optim", "train"} & folder.folders or ".metadata.json" in folder.files
    if not match or not (marks or match[2]):
        return None
    state = folder.path / "train" / "rank0.pt"
    why, tokens = "", None
    if match[2]:
        why = plain(f"{folder.path}: the folder that OLMo-core writes before it renames it.")
    elif ".metadata.json" not in folder.files:
        why = plain(f"{folder.path}: .metadata.json, which OLMo-core writes last, is missing.")
    elif "rank0.pt" not in folder.inside("train").files:
        why = plain(f"{folder.path}: train/rank0.pt is missing.")
    else:
        why = folder_ailment(folder)
        try:
            tokens = TorchZip(state).number("global_train_tokens_seen")
        except ValueError as error:
            why = why or plain(f"{state}: {error}.")
    form = format_of(folder)
    return Found(
        folder.path,
        "dcp" if "model_and_optim" in folder.folders else form,
        "olmo-core",
        int(match[1]),
        tokens,
        not why,
        why,
        "training" if "model_and_optim" in folder.folders else "weights",
    )


def composer_folder(folder: Listing) -> Found | None:
    """Composer's sharded epE-baB, finished or not; its step is the batch."""
    match = _COMPOSER.fullmatch(folder.path.name)
    if not match or not (folder.has(".distcp") or DCP_TABLE in folder.files):
        return None
    why, kind = dcp_health(folder)
    return Found(folder.path, "dcp", "composer", int(match[2]), None, not why, why, kind)


def plain_dcp(folder: Listing) -> Found | None:
    """Any other distributed checkpoint, finished or not."""
    if not folder.has(".distcp") and DCP_TABLE not in folder.files:
        return None
    why, kind = dcp_health(folder)
    step, tokens = revision_clock(folder.path.name)
    return Found(folder.path, "dcp", None, step, tokens, not why, why, kind)


def _format(folder: Listing) -> str:
    return "dcp" if folder.has(".distcp") else format_of(folder)


def _unfinished(folder: Listing) -> str:
    return plain(
        f"{folder.path}: neither {DCP_TABLE} nor {SHARD_INDEX}, one of which torchtitan writes "
        f"last."
    )
