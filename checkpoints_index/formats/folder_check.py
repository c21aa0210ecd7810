"""Whether a checkpoint is whole, and how much room it takes.

Needs   a checkpoint of any known format.
Yields  `verify`, `size_bytes`.
"""

from __future__ import annotations

from pathlib import Path

from checkpoints_index.formats.hub import HubPlace
from checkpoints_index.formats.native import verify_native
from checkpoints_index.formats.opening import open_weights
from checkpoints_index.formats.place import LocalPlace, Place, place_of
from checkpoints_index.formats.recognition import recognise


def verify(path: str | Path, *, deep: bool = False) -> None:
    """Nothing happens where the checkpoint is whole; CheckpointIncomplete says what is wrong.

    Args:
        path: of any known format; or a URL.
        deep: read everything, and compare digests where the format has them (native).
    """
    place = place_of(path)
    if recognise(place) == "native":
        verify_native(place, deep=deep)
        return
    open_weights(place).check(deep=deep)


def size_bytes(path: str | Path) -> int:
    """Bytes of a checkpoint where it lies, all its files; of the Hub, those in the cache.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "a").write_bytes(b"12345")
        >>> size_bytes(folder)
        5
    """
    place = place_of(path)
    if isinstance(place, LocalPlace):
        here = place.path
        files = [here] if here.is_file() else [p for p in here.rglob("*") if p.is_file()]
        return sum(file.stat().st_size for file in files)
    return _size(place)


def _size(place: Place) -> int:
    if isinstance(place, HubPlace):
        # To ask a file that is not in the cache for its size would fetch it.
        return sum(place.child(name).size() for name in place.cached_names())
    if place.is_file():
        return place.size()
    return sum(_size(place.child(name)) for name in place.names())
