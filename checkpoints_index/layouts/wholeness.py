"""What is wrong with a checkpoint's weights, in one line.

Needs   a file or folder.
Yields  `ailment`: "" where nothing is; `plain`: text fit for a line of a table.
"""

from __future__ import annotations

from pathlib import Path

from checkpoints_index.errors import (
    CheckpointIncomplete,
    CheckpointNotFound,
    PickleRefused,
    RecordError,
)
from checkpoints_index.formats.dcp import DcpWeights
from checkpoints_index.formats.folder_check import verify
from checkpoints_index.formats.opening import open_weights
from checkpoints_index.formats.place import printable
from checkpoints_index.formats.recognition import recognise
from checkpoints_index.layouts.listing import Listing
from checkpoints_index.layouts.torch_zip import TorchZip

WHY_AT_MOST = 400
OPTIMIZER_KEYS = {"optim", "optimizer", "optimizers"}
_TOLD = (CheckpointIncomplete, CheckpointNotFound, RecordError, PickleRefused)


def plain(text: object) -> str:
    """Text on one line, 400 characters at most."""
    line = printable(str(text))
    return line if len(line) <= WHY_AT_MOST else line[: WHY_AT_MOST - 3] + "..."


def ailment(path: Path) -> str:
    """What is wrong with the weights at `path`, by headers and sizes alone; "" where nothing is."""
    try:
        verify(path)
    except _TOLD as error:
        return plain(error)
    except OSError as error:
        return plain(f"{path}: cannot be read ({error.strerror}).")
    return ""


def folder_ailment(folder: Listing, *, below: bool = True) -> str:
    """The same of a folder; one with a link that leaves the search is told so, and not opened.

    Args:
        below: look for such links in its subfolders too: they are part of it.
    """
    stray = folder.stray if below else next(iter(folder.strays), "")
    if stray:
        return plain(
            f"{folder.path}: {stray} is a link that leads out of the folder that is searched, or "
            f"nowhere; search the folder that it leads to."
        )
    return ailment(folder.path)


def dcp_health(folder: Listing) -> tuple[str, str]:
    """What is wrong with a distributed checkpoint, and its kind: "training" where its table names
    an optimizer's state, else "weights".
    """
    why, kind = folder_ailment(folder) if folder.stray else "", "weights"
    if why:
        return why, kind
    try:
        weights = open_weights(folder.path)
        if isinstance(weights, DcpWeights):
            # Before the check, which stops at what is wrong.
            keys = {str(key) for path in weights.all.paths.values() for key in path[:-1]}
            flat = any(name.startswith(("optimizer.", "optim.")) for name in weights.all.tensors)
            kind = "training" if flat or keys & OPTIMIZER_KEYS else kind
        weights.check()
    except _TOLD as error:
        return plain(error), kind
    except OSError as error:
        return plain(f"{folder.path}: cannot be read ({error.strerror})."), kind
    return "", kind


def zip_ailment(path: Path) -> str:
    """What is wrong with a file of torch.save, told from its outside; "" where nothing is."""
    try:
        TorchZip(path)
    except ValueError as error:
        return plain(f"{path}: {error}; use another checkpoint.")
    return ""


def format_of(folder: Listing) -> str:
    """The format's name; "pickled" where only pickle reads it, "unknown" where none is told."""
    if folder.strays:
        return "unknown"
    try:
        return recognise(folder.path)
    except PickleRefused:
        return "pickled"
    except (CheckpointIncomplete, CheckpointNotFound, RecordError, OSError):
        return "unknown"
