"""Live record: a stretch of a branch in few numbers, which follows the writer and reads only what
is new.

Needs   a store that may be being written; which variables, and how many points are wanted.
Yields  LiveRecord: `refresh` reads what was committed since and the rows that wait in the journal;
        `bins` is all so far, as `Run.overview` would give it.

Committed rows never change, so each is read once: the first look takes the store's overviews,
which cost the same for any length of run, and later looks take the rows behind the last one. Rows
that wait in the journal are read anew at every look: they are fewer than a chunk, and may be set
aside by a rollback. After a rollback, and after more than MOST new rows, the first look is taken
again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
import zarr

from workbench.app.dashboard.growing_bins import GrowingBins
from workbench.errors import RunNotFound
from workbench.store.overview import overview
from workbench.store.pooling import pool_rows
from workbench.store.run_store import RunStore
from workbench.store.schema import SCHEMA
from workbench.store.snapshot import Snapshot

MOST = 4096
"""New rows beyond which overviews are read again, rather than the rows themselves."""


class LiveRecord:
    """One group of a branch, "router" or "train", between two steps.

    Args:
        store: opened for reading.
        branch: the arm.
        group: "router" or "train".
        variables: which; those that were not recorded are left out.
        points: bins wanted; there are up to twice as many.
        start, stop: steps s with start < s <= stop; stop=None follows the writer.
    """

    def __init__(
        self, store: RunStore, branch: str, group: str, variables: Sequence[str], *,
        points: int, start: int = 0, stop: int | None = None,
    ) -> None:  # fmt: skip
        self.store = store
        self.branch = branch
        self.group = group
        self.variables = tuple(variables)
        self.points = points
        self.start = start
        self.stop = stop
        self.rows_read = 0
        """Rows that were read one by one, those of the journal left out."""
        self.looks = 0
        """How often overviews were read."""
        self._bins: GrowingBins | None = None
        self._with_tail: GrowingBins | None = None
        self._snapshot: Snapshot | None = None

    def refresh(self, now: Snapshot) -> None:
        """Take in what `now`, a newer state of the branch, has beyond what was read."""
        if now is self._snapshot:
            return
        if self._snapshot is None or self._bins is None or not self._follows(now):
            self._look(now)
        elif now.id != self._snapshot.id:
            self._read_on(now)
        self._snapshot = now
        self._with_tail = self._bins
        tail = _tail_rows(now, self.group, self._names(now), self._after(), self.stop)
        if tail is not None:
            if self._bins is None:
                self._with_tail = GrowingBins(tail, points=self.points)
            else:
                self._with_tail = self._bins.copy()
                self._with_tail.add(tail)

    @property
    def bins(self) -> xr.Dataset:
        """Everything so far: x, x_min and x_max over `bin`, with first_step, last_step and rows.

        Raises:
            RunNotFound: nothing of the kind is recorded in these steps.
        """
        if self._with_tail is None or not len(self._with_tail):
            raise RunNotFound(f"no {self.group} record of branch {self.branch!r} in these steps.")
        assert self._snapshot is not None
        about = {"branch": self.branch, "k": self._snapshot.layout.k}
        return self._with_tail.dataset.assign_attrs(about)

    def overview(
        self, group: str = "router", *, points: int = 0, variables: Sequence[str] | None = None
    ) -> xr.Dataset:
        """`bins`, for probes that take a run's overview; however many points are asked for."""
        names = set(variables or self.variables)
        drop = [
            n for n in map(str, self.bins.data_vars)
            if n.removesuffix("_min").removesuffix("_max") not in names
        ]  # fmt: skip
        return self.bins.drop_vars(drop)

    def _follows(self, now: Snapshot) -> bool:
        """Whether `now` goes on from what was read: nothing was set aside since."""
        assert self._snapshot is not None
        if now.id == self._snapshot.id:
            return True
        history = self.store.repository.ancestry(snapshot_id=now.id)
        for _, info in zip(range(MOST), history, strict=False):
            if info.id == self._snapshot.id:
                return True
        return False

    def _after(self) -> int:
        """The last step that was read of the committed ones."""
        last = self._bins.last_step if self._bins is not None else None
        return self.start if last is None else last

    def _names(self, now: Snapshot) -> list[str]:
        group = now.root.get(self.group)
        known = set(group.array_keys()) if isinstance(group, zarr.Group) else set()
        known |= set(now.tail.get(self.group, {}).get("step", {}))
        return [name for name in self.variables if name in known]

    def _look(self, now: Snapshot) -> None:
        committed = Snapshot(self.store.repository, now.id)
        self._bins = None
        names = self._names(committed)
        _, last = committed.end(self.group, "step")
        if not names or last is None or last <= self.start:
            return
        # Four times as many: overviews come in widths of 8, and may have a quarter of the points.
        seen = overview(
            committed, self.group, points=4 * self.points, start=self.start or None,
            stop=self.stop, variables=names,
        )  # fmt: skip
        if not seen.sizes["bin"]:
            return
        self.looks += 1
        self._bins = GrowingBins(seen, points=self.points)

    def _read_on(self, now: Snapshot) -> None:
        assert self._bins is not None
        committed = Snapshot(self.store.repository, now.id)
        _, last = committed.end(self.group, "step")
        ends = last if self.stop is None else min(self.stop, last or 0)
        if last is None or ends is None or ends <= self._after():
            return
        new = overview(
            committed, self.group, points=MOST, start=self._after(), stop=self.stop,
            variables=self._names(committed),
        )  # fmt: skip
        if new.attrs["rows_a_bin"] > 1 or set(new.data_vars) != set(self._bins.dataset.data_vars):
            self._look(now)
            return
        self.rows_read += new.sizes["bin"]
        self._bins.add(new)


def _tail_rows(
    now: Snapshot, group: str, names: Sequence[str], after: int, stop: int | None
) -> xr.Dataset | None:
    """The rows that wait, one a bin, as an overview would give them; None where none do."""
    held = now.tail.get(group, {}).get("step", {})
    steps = held.get("step")
    if steps is None or not len(steps):
        return None
    there = (steps > after) & (steps <= (stop if stop is not None else steps[-1]))
    if not there.any():
        return None
    found: dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, str]]] = {}
    for name in names:
        if name in held:
            variable, rows = SCHEMA[group][name], pool_rows(held[name][there])
            dims, note = ("bin", *variable.dims[1:]), variable.attributes
            parts = {"": rows.mean, "_min": rows.least, "_max": rows.greatest}
            found |= {name + end: (dims, part, note) for end, part in parts.items()}
    ends = {"first_step": steps[there], "last_step": steps[there]}
    ends["rows"] = np.ones(int(there.sum()), np.int64)
    labels = {"layer": np.asarray(now.layout.layers), "expert": np.arange(now.layout.experts)}
    used = {dim for dims, _, _ in found.values() for dim in dims}
    coords = {n: ("bin", v) for n, v in ends.items()}
    coords |= {n: (n, v) for n, v in labels.items() if n in used}
    return xr.Dataset(found, coords=coords, attrs={"group": group, "rows_a_bin": 1})
