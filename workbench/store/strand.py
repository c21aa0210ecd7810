"""Rows that grow together: the variables of one group along one dim.

Needs   arrays whose first dim is the growing one, labelled by it, or numbered.
Yields  the same rows at the end of the group's Zarr arrays.

The variables of a strand always have equal length. What its first rows had every later one must
have, except sites, which may come and go from recorder to recorder; a variable that begins late, or
stops, reads as missing where it was not recorded. Rows wait in memory until `write`. A last chunk
that was partly filled is read and written again by Zarr: keeping its rows in memory instead was
measured to save nothing that shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import groupby
from typing import Any

import numpy as np
import zarr
from zarr.api.asynchronous import open_array
from zarr.storage import StorePath

from workbench.errors import SchemaError
from workbench.store.arrays import create_array
from workbench.store.schema import CLOCKS, COORDINATES, SCHEMA, SITES, Variable

Rows = Mapping[str, np.ndarray]


def variables_along(group: str, dim: str) -> dict[str, Variable]:
    """Every variable and coordinate of `group` that grows along `dim`, the one that says the step
    first.
    """
    stored = {**COORDINATES[group], **SCHEMA[group]}
    along = {name: v for name, v in stored.items() if v.dims[0] == dim}
    clock = CLOCKS[dim]
    return along if clock is None else {clock: along.pop(clock), **along}


class Strand:
    """The end of one group's rows along one dim, open for more.

    Args:
        group, dim: which strand, such as "router" and "step".
        stored: the group as the branch holds it now, or None where nothing was written yet.
    """

    def __init__(self, group: str, dim: str, stored: zarr.Group | None) -> None:
        self.group = group
        self.dim = dim
        self.clock = CLOCKS[dim]
        self.known = variables_along(group, dim)
        self.count = 0
        self.waiting = 0
        """Rows appended and not yet written."""
        self.last: int | None = None
        """Step of the last row, waiting ones included; None: no row, or rows without a step."""
        self.sizes: dict[str, int] = {}
        """Lengths of the dims that no layout states, such as a site's, once they are known."""
        self._made: set[str] = set()
        self._pending: dict[str, list[tuple[int, np.ndarray]]] = {}
        self._writing = 0
        self._settled: dict[str, Any] = {}
        self._written: dict[str, Any] = {}
        if stored is not None:
            self._read_end(dict(stored.arrays()))

    def _read_end(self, arrays: Mapping[str, zarr.Array]) -> None:
        for name, array in arrays.items():
            dims = tuple(str(d) for d in array.metadata.dimension_names or ())  # type: ignore[union-attr]
            if dims[:1] != (self.dim,):
                continue
            self._made.add(name)
            self.count = array.shape[0]
            self.sizes |= dict(zip(dims[1:], array.shape[1:], strict=True))
            if name not in self.known:
                noted = {key: str(array.attrs[key]) for key in ("units", "long_name")}
                self.known[name] = Variable(dims, str(array.dtype), *noted.values())
        if self.count and self.clock:
            self.last = int(np.asarray(arrays[self.clock][-1:])[0])

    @property
    def _names(self) -> set[str]:
        """Variables that hold rows, or will."""
        return self._made | self._pending.keys()

    def declare(self, declared: Mapping[str, Variable]) -> list[str]:
        """Takes in sites, and what is said anew of variables known; every fault of theirs."""
        faults = []
        for name, variable in declared.items():
            there = self.known.get(name)
            if there is None and (
                self.group != SITES or name in {*COORDINATES[self.group], *self.sizes}
            ):
                faults.append(f"{name}: not a name that {self.group!r} can take for a site")
            elif there and (there.dims, there.dtype) != (variable.dims, variable.dtype):
                faults.append(
                    f"{name}: {variable.dims} {variable.dtype}, was recorded as {there.dims} "
                    f"{there.dtype} so far; record it in another run"
                )
            else:
                self.known[name] = variable
        return faults

    def check(self, rows: Rows, sizes: Mapping[str, int]) -> list[str]:
        """Every way in which `rows` depart from the schema, the layout and the rows before them."""
        faults = []
        count = len(next(iter(rows.values())))
        for name, array in rows.items():
            want = self.known[name]
            settled = {**self.sizes, **{dim: n for dim, n in sizes.items() if n}, self.dim: count}
            lengths = dict(zip(want.dims, array.shape, strict=False)) | {
                dim: settled[dim] for dim in want.dims if dim in settled
            }
            if array.dtype != np.dtype(want.dtype) or array.shape != tuple(lengths.values()):
                expected = ", ".join(f"{dim}={n}" for dim, n in lengths.items())
                faults.append(
                    f"{name}: shape {array.shape} {array.dtype}, expected ({expected}) {want.dtype}"
                )
        own = {*COORDINATES[self.group], *SCHEMA[self.group]}
        faults += [
            f"{name}: missing, and the rows before have it"
            for name in self.known
            if name in self._names & own and name not in rows
        ]
        return faults

    def check_order(self, rows: Rows, branch: str) -> None:
        """SchemaError where the steps do not ascend from the last row on; those of numbered rows
        may repeat.
        """
        if self.clock is None or not len(rows[self.clock]):
            return
        labels, least = rows[self.clock], int(self.clock == self.dim)
        first, previous = int(labels[0]), self.last
        if previous is not None and first < previous + least:
            raise SchemaError(
                f"{self.group}: {self.clock} {first} comes after {self.clock} {previous} on branch "
                f"{branch!r}; they must ascend. To go back to a checkpoint, roll the branch back "
                f"first: store.rollback({branch!r}, to_step=...)."
            )
        if (np.diff(labels) < least).any():
            at = int(np.argmax(np.diff(labels) < least))
            raise SchemaError(
                f"{self.group}: {self.clock} {labels[at + 1]} comes after {self.clock} "
                f"{labels[at]} within one append; they must ascend."
            )

    def push(self, rows: Rows) -> None:
        """Keep checked rows until the next `write`. The arrays are copied: the caller may reuse
        them.
        """
        count = len(next(iter(rows.values())))
        if not count:
            return
        for name, values in rows.items():
            self._pending.setdefault(name, []).append((self.count + self.waiting, np.array(values)))
            self.sizes |= dict(zip(self.known[name].dims[1:], values.shape[1:], strict=True))
        self.waiting += count
        if self.clock:
            self.last = int(rows[self.clock][-1])

    async def write(self, root: zarr.Group, sizes: Mapping[str, int]) -> None:
        """Write what waits; it counts as written only when `settle` follows, so a failed commit can
        be tried again. All variables at once: one after the other takes twice as long.
        """
        sizes = {**self.sizes, **sizes}
        self._written = {}
        self._writing = self.waiting
        await asyncio.gather(*(self._write_one(root, name, sizes) for name in self._names))

    async def _write_one(self, root: zarr.Group, name: str, sizes: Mapping[str, int]) -> None:
        if name not in self._made:
            group = root[self.group]
            assert isinstance(group, zarr.Group)
            create_array(group, name, self.known[name], sizes, self.waiting)
        array = await self._array(root, name)
        await array.resize((self.count + self.waiting, *array.shape[1:]))
        for start, block in _joined(self._pending.get(name, [])):
            await array.setitem(slice(start, start + len(block)), block)
        self._written[name] = array.metadata

    async def _array(self, root: zarr.Group, name: str) -> zarr.AsyncArray[Any]:
        """The array as the last commit left it. Nobody else writes to the branch, so what it was
        then need not be read and parsed again: that is a fifth of a commit.
        """
        path = f"{self.group}/{name}"
        if name in self._settled:
            return zarr.AsyncArray(self._settled[name], StorePath(root.store, path))
        return await open_array(store=root.store, path=path, mode="r+", zarr_format=3)

    def settle(self) -> None:
        """The rows of the last `write` are committed; those pushed since go on waiting."""
        if not self._writing:
            return
        self._made = self._made | self._written.keys()
        self._settled, self._written = self._written, {}
        self.count += self._writing
        self.waiting -= self._writing
        self._writing = 0
        waiting = {
            name: [(start, block) for start, block in pieces if start >= self.count]
            for name, pieces in self._pending.items()
        }
        self._pending = {name: pieces for name, pieces in waiting.items() if pieces}

    def beyond(self, rows: Rows) -> dict[str, np.ndarray]:
        """Those of `rows` whose step comes after the last row here; all where rows have no step."""
        if self.clock is None or self.last is None or self.clock not in rows:
            return dict(rows)
        late = np.asarray(rows[self.clock]) > self.last
        return {name: np.asarray(values)[late] for name, values in rows.items()}


def _joined(pieces: list[tuple[int, np.ndarray]]) -> list[tuple[int, np.ndarray]]:
    """Pieces that follow each other without a gap, as one: each write reads a chunk first."""
    ends = np.cumsum([0, *(len(block) for _, block in pieces)])
    runs = groupby(zip(pieces, ends, strict=False), key=lambda item: item[0][0] - item[1])
    joined = []
    for _, run in runs:
        whole = [piece for piece, _ in run]
        joined.append((whole[0][0], np.concatenate([block for _, block in whole])))
    return joined
