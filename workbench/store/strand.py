"""Rows that grow together: the variables of one group along one dim.

Needs   arrays whose first dim is the growing one, labelled by it.
Yields  the same rows at the end of the group's Zarr arrays.

The variables of a strand are settled by its first rows and always have equal length. Rows wait in
memory until `write`. A last chunk that was partly filled is read and written again by Zarr: keeping
its rows in memory instead was measured to save nothing that shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import numpy as np
import zarr
from zarr.api.asynchronous import open_array

from workbench.errors import SchemaError
from workbench.store.arrays import create_array
from workbench.store.schema import COORDINATES, SCHEMA, Variable

Rows = Mapping[str, np.ndarray]


def variables_along(group: str, dim: str) -> dict[str, Variable]:
    """Every variable and coordinate of `group` that grows along `dim`, the label first."""
    stored = {**COORDINATES[group], **SCHEMA[group]}
    along = {name: v for name, v in stored.items() if v.dims[0] == dim}
    return {dim: along.pop(dim), **along}


class Strand:
    """The end of one group's rows along one dim, open for more.

    Args:
        group, dim: which strand, such as "router" and "step".
        stored: the group as the branch holds it now, or None where nothing was written yet.
    """

    def __init__(self, group: str, dim: str, stored: zarr.Group | None) -> None:
        self.group = group
        self.dim = dim
        self.known = variables_along(group, dim)
        self.count = 0
        self.last: int | None = None
        self._names: tuple[str, ...] = ()
        self._pending: dict[str, list[np.ndarray]] = {}
        if stored is not None and dim in stored:
            self._read_end(stored)

    def _read_end(self, stored: zarr.Group) -> None:
        arrays = dict(stored.arrays())
        self._names = tuple(name for name in self.known if name in arrays)
        self.count = arrays[self.dim].shape[0]
        if self.count:
            self.last = int(np.asarray(arrays[self.dim][-1:])[0])

    @property
    def waiting(self) -> int:
        """Rows appended and not yet written."""
        return sum(len(labels) for labels in self._pending.get(self.dim, ()))

    def check(self, rows: Rows, sizes: Mapping[str, int]) -> list[str]:
        """Every way in which `rows` depart from the schema, the layout and the rows before them."""
        faults = []
        count = len(rows[self.dim])
        for name, array in rows.items():
            want = self.known[name]
            lengths = {self.dim: count, **{dim: sizes[dim] for dim in want.dims[1:]}}
            if array.dtype != np.dtype(want.dtype) or array.shape != tuple(lengths.values()):
                expected = ", ".join(f"{dim}={n}" for dim, n in lengths.items())
                faults.append(
                    f"{name}: shape {array.shape} {array.dtype}, expected ({expected}) {want.dtype}"
                )
        if self._names and set(rows) != set(self._names):
            missing = [name for name in self._names if name not in rows]
            extra = [name for name in rows if name not in self._names]
            faults += [f"{name}: missing, and the rows before have it" for name in missing]
            faults += [f"{name}: the rows before do not have it" for name in extra]
        return faults

    def check_order(self, labels: np.ndarray, branch: str) -> None:
        """SchemaError where the labels do not ascend from the last row on."""
        if labels.size == 0:
            return
        first, previous = int(labels[0]), self.last
        if previous is not None and first <= previous:
            raise SchemaError(
                f"{self.group}: {self.dim} {first} comes after {self.dim} {previous} on branch "
                f"{branch!r}; they must ascend. To go back to a checkpoint, roll the branch back "
                f"first: store.rollback({branch!r}, to_step=...)."
            )
        if (np.diff(labels) <= 0).any():
            at = int(np.argmax(np.diff(labels) <= 0))
            raise SchemaError(
                f"{self.group}: {self.dim} {labels[at + 1]} comes after {self.dim} {labels[at]} "
                f"within one append; they must ascend."
            )

    def push(self, rows: Rows) -> None:
        """Keep checked rows until the next `write`. The arrays are copied: the caller may reuse
        them.
        """
        if not len(rows[self.dim]):
            return
        self._names = self._names or tuple(name for name in self.known if name in rows)
        for name in self._names:
            self._pending.setdefault(name, []).append(np.array(rows[name]))
        self.last = int(rows[self.dim][-1])

    async def write(self, root: zarr.Group, sizes: dict[str, int]) -> None:
        """Write what waits; it counts as written only when `settle` follows, so a failed commit can
        be tried again. All variables at once: one after the other takes twice as long.
        """
        await asyncio.gather(*(self._write_one(root, name, sizes) for name in self._names))

    async def _write_one(self, root: zarr.Group, name: str, sizes: dict[str, int]) -> None:
        # A strand that holds rows has all its arrays: its first commit makes them together.
        if not self.count:
            group = root[self.group]
            assert isinstance(group, zarr.Group)
            create_array(group, name, self.known[name], sizes)
        array = await open_array(
            store=root.store, path=f"{self.group}/{name}", mode="r+", zarr_format=3
        )
        block = np.concatenate(self._pending[name])
        stop = self.count + len(block)
        await array.resize((stop, *array.shape[1:]))
        await array.setitem(slice(self.count, stop), block)

    def settle(self) -> None:
        """The rows of the last `write` are committed."""
        self.count += self.waiting
        self._pending.clear()
