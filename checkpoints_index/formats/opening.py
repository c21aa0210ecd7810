"""The weights of a checkpoint in any format, opened.

Needs   a file, folder or URL.
Yields  `open_weights`: Weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from checkpoints_index.errors import PickleRefused
from checkpoints_index.formats.place import Place, place_of
from checkpoints_index.formats.recognition import (
    ONE_FILE,
    SHARD_INDEX,
    dcp_folder,
    recognise,
    suffix,
)
from checkpoints_index.formats.weights import Weights

AllowPickle = bool | Literal["unsafe"]


def open_weights(
    path_or_url: str | Path | Place,
    allow_pickle: AllowPickle = False,
    **storage_options: Any,
) -> Weights:
    """The weights at a path or URL, whatever the format; nothing but headers is read yet.

    Args:
        path_or_url: file or folder; a URL that fsspec reads (s3://, gs://, memory://, ...); or
            hf://owner/name@revision, which is looked up in the Hub's cache first.
        allow_pickle: False refuses what only pickle can read. True reads it with torch's
            restricted unpickler (weights_only), which admits tensors and plain containers.
            "unsafe" lets the file run any code that it brings: for files of your own making.
        storage_options: handed to fsspec's file system, such as `anon=True`.

    Raises:
        CheckpointNotFound: nothing there, or of no known format.
        CheckpointIncomplete: begun and not finished, cut short, or lacking a file.
        PickleRefused: reading it would run code that it brings.
        RecordError: it names a file outside its folder.

    Example:
        >>> import numpy, tempfile
        >>> from safetensors.numpy import save_file
        >>> file = tempfile.mkdtemp() + "/w.safetensors"
        >>> save_file({"embed": numpy.zeros((2, 3))}, file)
        >>> open_weights(file).shape("embed")
        (2, 3)
    """
    place = place_of(path_or_url, **storage_options)
    try:
        format = recognise(place)
    except PickleRefused:
        if not allow_pickle:
            raise
        from checkpoints_index.formats.pickled import PickledWeights

        return PickledWeights(place, unsafe=allow_pickle == "unsafe")
    if format == "dcp":
        from checkpoints_index.formats.dcp import DcpWeights

        return DcpWeights(place, dcp_folder(place, place.names()) or place)
    from checkpoints_index.formats.safetensors_folder import (
        PartedSafetensorsWeights,
        SafetensorsWeights,
    )

    if place.is_folder() and not {ONE_FILE, SHARD_INDEX} & set(names := place.names()):
        files = [name for name in names if suffix(name) == ".safetensors"]
        if all(name.startswith("shard-") for name in files):
            return PartedSafetensorsWeights(place)
    return SafetensorsWeights(place, format)
