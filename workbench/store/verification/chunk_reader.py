"""Reading every chunk of an array against its checksum, and telling which one is not what was
written.

Needs   the arrays of a snapshot.
Yields  ChunkReader: values where they can be read, Faults where not.

A chunk is decoded with its CRC-32C, so reading is checking. What fails is read again chunk by
chunk, so that one bad chunk is told and not its neighbours. Memory is bounded by PIECE_BYTES, or by
a chunk where that is more.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from workbench.store.damage import in_a_line, panics_as_errors
from workbench.store.verification.fault import FROM_A_COPY, Fault, Report

PIECE_BYTES = 16 * 1024 * 1024
"""Values that are held at once."""
FILES_AT_MOST = 8
_CHUNK_FILE = re.compile(r"chunks/[0-9A-Z]{20}")

Region = tuple[slice, ...]


def row_bytes(array: zarr.Array[Any]) -> int:
    """Bytes of one row, decoded."""
    return max(1, array.dtype.itemsize * math.prod(array.shape[1:]))


def chunk_name(array: zarr.Array[Any], region: Region) -> str:
    """The chunk at the beginning of a region, as its place in the grid."""
    places = (r.start // c for r, c in zip(region, array.chunks, strict=True))
    return f"chunk ({', '.join(map(str, places))})"


class ChunkReader:
    """Reads arrays of one state of a store; what cannot be read goes into the report.

    Args:
        report: where faults and counts go.
        branch: the state's name, for faults.
        folder: of the store, where it is one: damaged files can be named then.
    """

    def __init__(self, report: Report, branch: str, folder: Path | None) -> None:
        self.report = report
        self.branch = branch
        self.folder = folder

    def rows(self, array: zarr.Array[Any], first: int, stop: int) -> np.ndarray | None:
        """Rows first up to stop; None where a chunk of theirs cannot be read, which is told."""
        whole = (slice(first, stop), *(slice(0, n) for n in array.shape[1:]))
        return self._read(array, whole)

    def scan(self, array: zarr.Array[Any], first: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """Pieces of the array from row `first` on, each with its first row; all chunks are read."""
        if array.ndim == 0 or 0 in array.shape:
            return
        size = list(array.chunks)
        held = array.dtype.itemsize * math.prod(size)
        for axis in reversed(range(array.ndim)):
            more = max(1, min(-(-array.shape[axis] // size[axis]), PIECE_BYTES // held))
            size[axis], held = size[axis] * more, held * more
        starts = [range(0, n, step) for n, step in zip(array.shape, size, strict=True)]
        starts[0] = range(first // array.chunks[0] * array.chunks[0], array.shape[0], size[0])
        for corner in itertools.product(*starts):
            region = tuple(
                slice(at, min(at + step, n))
                for at, step, n in zip(corner, size, array.shape, strict=True)
            )
            values = self._read(array, region)
            if values is not None:
                yield region[0].start, values

    def count(self, array: zarr.Array[Any], first: int = 0) -> None:
        """Enters the chunks from row `first` on as read."""
        if array.ndim and array.shape[0] > first:
            grid = [-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True)]
            grid[0] -= first // array.chunks[0]
            self.report.count("chunks", math.prod(grid))

    def _read(self, array: zarr.Array[Any], region: Region) -> np.ndarray | None:
        try:
            with panics_as_errors():
                return np.asarray(array[region])
        except Exception:
            # Whatever it is that storage, codecs and Zarr raise on bytes that are not theirs.
            faults = list(self._one_by_one(array, region))
        if not faults:
            # A disk may fail once and read the next time; nothing is wrong with the bytes then.
            return self._read_again(array, region)
        self.report.add(faults)
        return None

    def _read_again(self, array: zarr.Array[Any], region: Region) -> np.ndarray | None:
        try:
            with panics_as_errors():
                return np.asarray(array[region])
        except Exception as error:
            self.report.add([self._fault(array, region, error)])
            return None

    def _one_by_one(self, array: zarr.Array[Any], region: Region) -> Iterator[Fault]:
        spans = [
            range(r.start // c * c, r.stop, c) for r, c in zip(region, array.chunks, strict=True)
        ]
        for corner in itertools.product(*spans):
            one = tuple(
                slice(at, min(at + c, n))
                for at, c, n in zip(corner, array.chunks, array.shape, strict=True)
            )
            try:
                with panics_as_errors():
                    array[one]
            except Exception as error:
                yield self._fault(array, one, error)

    def _fault(self, array: zarr.Array[Any], region: Region, error: Exception) -> Fault:
        named = _CHUNK_FILE.findall(str(error))
        group, _, name = array.path.rpartition("/")
        return Fault(
            kind="chunk",
            branch=self.branch,
            group=group,
            variable=name,
            place=f"{chunk_name(array, region)}, rows {region[0].start} to {region[0].stop - 1}",
            files=tuple(dict.fromkeys(named)) or self.damaged_files,
            found=in_a_line(error),
            expected="the bytes that were written",
            remedy=FROM_A_COPY,
        )

    @cached_property
    def damaged_files(self) -> tuple[str, ...]:
        """Chunk files of the store whose own checksum does not hold, the first few: one of them
        holds a chunk that cannot be read.
        """
        if self.folder is None:
            return ()
        import google_crc32c

        found = []
        for file in sorted((self.folder / "chunks").iterdir()):
            held = file.read_bytes()
            if len(held) < 4 or google_crc32c.value(held[:-4]) != int.from_bytes(
                held[-4:], "little"
            ):
                found.append(f"chunks/{file.name}")
                if len(found) == FILES_AT_MOST:
                    break
        return tuple(found)
