"""The rows of a state, read and held against each other.

Needs   the arrays of a snapshot, and where the rows begin that no other state has shown.
Yields  `verify_rows`: every chunk of every growing array of the schema is read on the way; what the
        rules (rules.py) find goes into the report, a fault a rule with the first place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import zarr

from workbench.store.damage import panics_as_errors
from workbench.store.schema import CLOCKS, GROWING, SCHEMA
from workbench.store.snapshot import Snapshot
from workbench.store.verification import rules
from workbench.store.verification.chunk_reader import PIECE_BYTES, ChunkReader, row_bytes
from workbench.store.verification.fault import Fault
from workbench.store.verification.structure import dims_of

Arrays = dict[str, zarr.Array[Any]]

BY_ROWS = ("router", "train", "traces", "evaluations")
"""Groups whose variables are held against each other, so their rows are read together."""


def first_row(array: zarr.Array[Any], rows: int) -> int:
    """First row of the chunk that holds row `rows`; 0 where the array does not grow."""
    dims = dims_of(array)
    if not array.ndim or not dims or dims[0] not in {*CLOCKS, "bin"}:
        return 0
    return rows // array.chunks[0] * array.chunks[0]


def grows(path: str, array: zarr.Array[Any]) -> bool:
    """Whether `array` is of a group of the schema, along a dim that rows are appended to."""
    return dims_of(array)[:1] in [(dim,) for dim in GROWING.get(path.rpartition("/")[0], ())]


class RowCheck:
    """Reads the rows of the groups BY_ROWS and holds them against each other."""

    def __init__(
        self,
        reader: ChunkReader,
        snapshot: Snapshot,
        arrays: Arrays,
        since: dict[str, int],
        departed: set[str],
    ) -> None:
        self.reader = reader
        self.layout = snapshot.layout
        self.arrays = arrays
        self.since = since
        self.departed = departed
        """Arrays that are not what the schema says: read, and held against nothing."""
        # Stores that do not say whether their routers drop may hold either.
        self.drops = snapshot.attrs.get("drops") is not False
        self._found: dict[tuple[str, str, str], Fault] = {}
        self._routed: list[tuple[np.ndarray, np.ndarray]] = []

    def verify(self) -> None:
        for group in SCHEMA:
            for dim in GROWING[group]:
                along = {
                    path.rpartition("/")[2]: array
                    for path, array in self.arrays.items()
                    if path.rpartition("/")[0] == group and dims_of(array)[:1] == (dim,)
                }
                if not along:
                    continue
                if group in BY_ROWS:
                    self._by_rows(group, dim, along)
                else:
                    self._by_columns(group, dim, along)
        self.reader.report.add(self._found.values())

    def _by_rows(self, group: str, dim: str, along: Arrays) -> None:
        rows = min(array.shape[0] for array in along.values())
        widest = max(along.values(), key=row_bytes)
        held = sum(row_bytes(array) for array in along.values())
        step = max(1, PIECE_BYTES // held)
        step = max(widest.chunks[0], step // widest.chunks[0] * widest.chunks[0])
        starts = [first_row(a, self.since.get(f"{group}/{name}", 0)) for name, a in along.items()]
        previous: dict[str, np.ndarray] = {}
        first = max(starts)
        if first and (clock := CLOCKS[dim]) in along:
            named = [n for n in (clock, "tokens_seen") if n in along]
            before = {n: self.reader.rows(along[n], first - 1, first) for n in named}
            previous = {n: v for n, v in before.items() if v is not None}
        for at in range(first, rows, step):
            stop = min(at + step, rows)
            block = {}
            for name, array in along.items():
                values = self.reader.rows(array, at, stop)
                if values is not None and f"{group}/{name}" not in self.departed:
                    block[name] = values
            self.reader.report.count(f"{group} rows along {dim}", stop - at)
            self._hold(group, dim, at, block, previous)
            previous = {name: v[-1:] for name, v in block.items() if v.ndim == 1}
        for array in along.values():
            for _ in self.reader.scan(array, rows) if array.shape[0] > rows else ():
                pass

    def _hold(
        self, group: str, dim: str, at: int, block: rules.Block, previous: rules.Block
    ) -> None:
        clock = CLOCKS[dim]
        labels = block.get(clock) if clock else None
        findings: list[rules.Finding] = []
        if labels is not None and clock is not None:
            before = int(previous[clock][0]) if clock in previous else None
            findings += rules.ascending(clock, labels, int(clock == dim), before)
        findings += self._of(group, dim, block, previous)
        for f in findings:
            place = f"row {at + f.row}"
            if labels is not None:
                place = f"{dim if dim == clock else 'step'} {labels[f.row]} ({place})"
            self._keep(group, f, f"{place}, {f.place}" if f.place else place)

    def _keep(self, group: str, f: rules.Finding, place: str) -> None:
        key = (group, f.variable, f.rule)
        times = f.times + (self._found[key].times if key in self._found else 0)
        first = self._found.get(key)
        self._found[key] = Fault(
            kind="values", branch=self.reader.branch, group=group, variable=f.variable,
            place=first.place if first else place, times=times,
            found=first.found if first else f.found, expected=f.rule,
            remedy="the numbers contradict each other although their chunks are whole: record "
            "them again from the checkpoint before, or leave them out",
        )  # fmt: skip

    def _of(
        self, group: str, dim: str, block: rules.Block, previous: rules.Block
    ) -> Iterator[rules.Finding]:
        if group == "router" and dim == "step":
            yield from rules.of_router(block, self.layout, drops=self.drops)
            if "step" in block and "tokens" in block:
                known = rules.given(block["tokens"])
                self._routed.append((block["step"][known], block["tokens"][known]))
        elif group == "router":
            rows = self._rows_of(block["sample"]) if "sample" in block else None
            if rows is not None:
                yield from rules.of_samples(block, rows)
        elif group == "train" and "step" in block:
            whole = {"step", "tokens_seen"} <= previous.keys()
            yield from rules.of_train(block, self._tokens(), previous if whole else None)
        elif group == "traces":
            yield from rules.of_traces(block, self.layout)
        elif group == "evaluations":
            items = np.array([task.items for task in self.layout.tasks])
            yield from rules.of_evaluations(block, items if len(items) else None)

    def _tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps whose routers were read, and their tokens: 16 bytes a step."""
        if len(self._routed) != 1:
            none = np.empty(0, np.int64)
            parts = self._routed or [(none, none)]
            steps, tokens = (np.concatenate(columns) for columns in zip(*parts, strict=True))
            self._routed = [(steps, tokens)]
        return self._routed[0]

    def _rows_of(self, samples: np.ndarray) -> dict[str, np.ndarray] | None:
        """Tokens, assignments and entropy of the sampled steps; None where a step is not there."""
        try:
            with panics_as_errors():
                steps = np.asarray(self.arrays["router/step"][:])
                at = np.searchsorted(steps, samples)
                if (at >= len(steps)).any() or (steps[at] != samples).any():
                    return {}
                names = [n for n in ("tokens", "assignments", "entropy") if f"router/{n}" in
                         self.arrays and f"router/{n}" not in self.departed]  # fmt: skip
                return {
                    name: np.asarray(self.arrays[f"router/{name}"].oindex[at.tolist()])
                    for name in names
                }
        except Exception:
            return None  # told where those rows are read

    def _by_columns(self, group: str, dim: str, along: Arrays) -> None:
        """Wide rows: variable by variable, in pieces."""
        for name, array in along.items():
            since = self.since.get(f"{group}/{name}", 0)
            if f"{group}/{name}" in self.departed:
                for _ in self.reader.scan(array, since):
                    pass
                continue
            previous: int | None = None
            for at, values in self.reader.scan(array, since):
                findings: list[rules.Finding] = []
                if name == CLOCKS[dim]:
                    findings += rules.ascending(name, values, 1, previous)
                    previous = int(values[-1])
                elif name == "offsets":
                    findings += rules.of_offsets(values, self._rows_before(array, at))
                elif group == "activations":
                    findings += rules.of_activations({name: values}, self.layout)
                elif dim == "row":
                    findings += rules.of_interior_rows({name: values}, self.layout)
                for f in findings:
                    self._keep(group, f, f"row {at + f.row}")

    @staticmethod
    def _rows_before(offsets: zarr.Array[Any], at: int) -> int:
        return int(np.asarray(offsets[at - 1, -1, -1])) if at else 0
