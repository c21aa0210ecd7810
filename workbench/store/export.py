"""Export: a run's record in files that need no workbench to be read.

Needs   a run's folder or store; a target that does not exist yet; for NetCDF h5netcdf, for Parquet
        pyarrow (the extra `export`).
Yields  `export`: a Zarr v3 folder, a NetCDF file or a folder of Parquet tables, whole or not at
        all.

What is exported is one state of one branch, its last seconds included: units, meanings and labels,
and the run, branch and snapshot it is of. Values go from the store to the file some at a time, so
that memory does not grow with the run. Overviews stay behind: they can be computed again.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from workbench import __version__
from workbench.errors import RunExists, UsageError
from workbench.store.backend import STORE, find_snapshot, find_store
from workbench.store.durable import sync_tree
from workbench.store.lazy_group import open_group
from workbench.store.names import MAIN

FORMATS = {
    "zarr": (".zarr",),
    "netcdf": (".nc", ".nc4", ".h5", ".hdf5"),
    "parquet": (".parquet", ".pq"),
}
"""Formats, and the suffixes that ask for them."""
BLOCK_BYTES = 32 * 1024 * 1024
"""Values of one variable that are held at once."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    target: Path
    format: str
    groups: tuple[str, ...]
    files: tuple[Path, ...]
    """The file, the folder, or the tables of the folder."""
    origin: dict[str, Any]
    """Run, branch, snapshot and version of the workbench, as it is written into the files."""
    bytes: int
    """On disk, all files together."""


def export(
    run: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    branch: str | None = None,
    groups: Sequence[str] = (),
    format: str | None = None,
) -> Exported:
    """Write the record of a run to `to`.

    Args:
        run: folder of the run or of its store, or an s3:// URL of either.
        to: file or folder; it must not exist.
        branch: the arm; None: "main".
        groups: "router", "train", ...; none: all that hold rows.
        format: "zarr", "netcdf" or "parquet"; None: as the suffix of `to` says.

    Raises:
        UsageError: no such format, or the package that writes it is not installed.
        RunExists: something is at `to`; it is left as it is.
        RunNotFound: no such run, branch or group.

    Example:
        >>> import numpy as np
        >>> from workbench.store.layout import Layout
        >>> from workbench.store.run_store import RunStore
        >>> home = Path(tempfile.mkdtemp())
        >>> store = RunStore.create(home / "demo/store", Layout(layers=(0,), experts=4, k=2))
        >>> with store.writer() as w:
        ...     w.append("train", {"step": np.arange(3), "loss": np.ones(3, "float32")})
        >>> done = export(home / "demo", home / "demo.zarr")
        >>> float(xr.open_zarr(done.target, group="train", consolidated=False).loss.sum())
        3.0
    """
    target = Path(to)
    kind = _format(target, format)
    if os.path.lexists(target):
        raise RunExists(f"{target} exists already; choose another name, or remove it first.")
    store = find_store(run)
    snapshot = find_snapshot(store, branch=branch)
    names = tuple(dict.fromkeys(groups)) or snapshot.groups
    contents = {name: open_group(snapshot, name) for name in names}
    place = str(store.location).rstrip("/").removesuffix(f"/{STORE}")
    origin = {
        "run": place.rpartition("/")[2], "branch": branch or MAIN, "snapshot": snapshot.id,
        "k": snapshot.layout.k, "workbench_version": __version__,
    }  # fmt: skip
    write = _writer(kind)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-export-", dir=target.parent) as made:
        partial = Path(made) / "whole"
        write(partial, contents, origin)
        sync_tree(Path(made))
        if os.path.lexists(target):
            raise RunExists(f"{target} was made by another process just now; it is left as it is.")
        os.rename(partial, target)
        sync_tree(target.parent)
    tables = sorted(target.iterdir()) if kind == "parquet" else [target]
    return Exported(target, kind, names, tuple(tables), origin, _size(target))


def _format(target: Path, asked: str | None) -> str:
    if asked is not None:
        if asked not in FORMATS:
            raise UsageError(f"format {asked!r}: it is one of {', '.join(FORMATS)}.")
        return asked
    for name, suffixes in FORMATS.items():
        if target.suffix.lower() in suffixes:
            return name
    known = ", ".join(suffix for suffixes in FORMATS.values() for suffix in suffixes)
    raise UsageError(
        f"{target.name}: its suffix does not say in which format to write; use one of {known}, or "
        f"say format= (--format) {', '.join(FORMATS)}."
    )


def _writer(kind: str) -> Any:
    """The function that writes a format; UsageError where its package is not installed."""
    try:
        if kind == "parquet":
            from workbench.store.parquet_tables import write_parquet

            return write_parquet
        if kind == "netcdf":
            import h5netcdf  # noqa: F401

            from workbench.store.plain_files import write_netcdf

            return write_netcdf
    except ModuleNotFoundError as missing:
        raise UsageError(
            f"writing {kind} needs the package {missing.name}: "
            f"pip install 'training-dynamics-workbench[export]'"
        ) from missing
    from workbench.store.plain_files import write_zarr

    return write_zarr


def _size(target: Path) -> int:
    files = [target] if target.is_file() else target.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def blocks(
    shape: tuple[int, ...], chunks: tuple[int, ...], itemsize: int, at_most: int
) -> Iterator[tuple[slice, ...]]:
    """Parts of an array of about `at_most` bytes, in row-major order and along its chunks.

    Args:
        shape, chunks: of the array; () for one number.
        itemsize: bytes of a value.

    Example:
        >>> list(blocks((5,), (2,), 1, at_most=4))
        [(slice(0, 4, None),), (slice(4, 5, None),)]
    """
    if not shape:
        yield ()
        return
    row = itemsize
    for length in shape[1:]:
        row *= length
    step = max(1, at_most // max(row, 1) // chunks[0]) * chunks[0]
    divided = len(shape) > 1 and chunks[0] * row > at_most
    for first in range(0, shape[0], step):
        rows = slice(first, min(first + step, shape[0]))
        if not divided:
            yield (rows,)
            continue
        # A chunk's rows together are too many values: take them by stretches of the next axis.
        inner = max(1, at_most // (step * row // shape[1]) // chunks[1]) * chunks[1]
        for at in range(0, shape[1], inner):
            yield rows, slice(at, min(at + inner, shape[1]))


def stored_chunks(variable: xr.Variable) -> tuple[int, ...]:
    """Chunks of a variable in the store, or all of it where it was made in memory."""
    known = variable.encoding.get("chunks") or variable.shape
    return tuple(max(1, min(c, n)) for c, n in zip(known, variable.shape, strict=True))
