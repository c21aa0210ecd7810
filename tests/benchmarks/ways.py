"""Ways to keep arrays that grow: raw files, plain Zarr, HDF5 with one writer and many readers, and
the workbench's store.

Needs   rows of named variables, the first dim growing; an empty folder.
Yields  Way: `write` appends rows, `close`; `layer` and `step` read them back. ROUTER and
        ACTIVATIONS say which ways take part, by name.

All hold the same variables. After every `every` rows what was written is on the disk (fsync, or the
store's own order), except in plain Zarr, which syncs nothing: its times are flattered.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr

from workbench.capture.writer import BackgroundWriter, Flush, Rows
from workbench.store.layout import Layout, ProbeTokens
from workbench.store.run_store import RunStore
from workbench.store.schema import Variable

Values = Mapping[str, np.ndarray]

LAYERS, EXPERTS, DOMAINS, K = 16, 64, 3, 8
COMMIT_EVERY = 50
SEAL_EVERY = 15
"""Steps that the recorder's thread finds together in its ring, five times a second."""
TOKENS, WIDTH = 4096, 1024
SITE = "blocks.8.hook_resid_post"
READ = "assignments"
"""The variable that is read back: (step, layer, expert)."""


class Way(ABC):
    """One way to keep rows; `every`: rows between two points from which nothing is lost."""

    def __init__(self, folder: Path, like: Values, every: int = COMMIT_EVERY) -> None:
        folder.mkdir(parents=True)
        self.folder, self.like, self.every = folder, like, every
        self.count = 0

    def write(self, rows: Values) -> None:
        """Append rows, one after the other as a training makes them."""
        for i in range(len(next(iter(rows.values())))):
            self._row({name: values[i : i + 1] for name, values in rows.items()})
            self.count += 1
            if self.count % self.every == 0:
                self._keep()

    @abstractmethod
    def _row(self, row: Values) -> None: ...

    def _keep(self) -> None:  # noqa: B027
        """Put what was written on the disk, where that takes anything."""

    @abstractmethod
    def close(self) -> None: ...

    def open(self) -> Any:
        """What a reader opens; given to `layer` and `step`."""
        raise NotImplementedError

    def layer(self, opened: Any, layer: int) -> np.ndarray:
        """One layer over all steps."""
        return np.asarray(opened[:, layer])

    def step(self, opened: Any, step: int) -> np.ndarray:
        """One step over all layers."""
        return np.asarray(opened[step])

    @property
    def bytes(self) -> int:
        """Allocated on disk."""
        return sum(
            (Path(root) / name).stat().st_blocks * 512
            for root, _, names in os.walk(self.folder)
            for name in names
        )


class Raw(Way):
    """One file, row after row, fsync."""

    def __init__(self, folder: Path, like: Values, every: int = COMMIT_EVERY) -> None:
        super().__init__(folder, like, every)
        self._file = (folder / "rows").open("wb", buffering=0)

    def _row(self, row: Values) -> None:
        for values in row.values():
            view = memoryview(np.ascontiguousarray(values)).cast("B")
            while view:
                view = view[self._file.write(view) :]

    def _keep(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._keep()
        self._file.close()

    def open(self) -> Any:
        row = np.dtype([(name, v.dtype, v.shape[1:]) for name, v in self.like.items()])
        return np.memmap(self.folder / "rows", row, "r")[READ]


class PlainZarr(Way):
    """Arrays of a Zarr group, resized and set; nothing is synced.

    Args:
        chunk: rows in a chunk.
        whole: append only whole chunks, from memory; else every row as it comes.
    """

    def __init__(self, folder: Path, like: Values, chunk: int, whole: bool = False) -> None:
        super().__init__(folder, like, chunk if whole else COMMIT_EVERY)
        group = zarr.open_group(folder / "z", mode="w", zarr_format=3)
        self._arrays = {
            name: group.create_array(
                name, shape=(0, *v.shape[1:]), chunks=(chunk, *v.shape[1:]), dtype=v.dtype
            )
            for name, v in like.items()
        }
        self._waiting: list[Values] = []
        self._whole = whole

    def _row(self, row: Values) -> None:
        if self._whole:
            self._waiting.append({name: values.copy() for name, values in row.items()})
        else:
            self._append(row)

    def _append(self, rows: Values) -> None:
        for name, values in rows.items():
            self._arrays[name].append(values)

    def _keep(self) -> None:
        if self._waiting:
            held, self._waiting = self._waiting, []
            self._append({name: np.concatenate([row[name] for row in held]) for name in held[0]})

    def close(self) -> None:
        self._keep()

    def open(self) -> Any:
        return zarr.open_group(self.folder / "z", mode="r", zarr_format=3)[READ]


class Swmr(Way):
    """HDF5 in single-writer, multiple-reader mode: every row flushed for the readers; fsync."""

    def __init__(self, folder: Path, like: Values, chunk: int, every: int = COMMIT_EVERY) -> None:
        super().__init__(folder, like, every)
        self._file = h5py.File(folder / "rows.h5", "w", libver="latest")
        self._arrays = {
            name: self._file.create_dataset(
                name, (0, *v.shape[1:]), v.dtype,
                maxshape=(None, *v.shape[1:]), chunks=(chunk, *v.shape[1:]),
            )
            for name, v in like.items()
        }  # fmt: skip
        self._file.swmr_mode = True

    def _row(self, row: Values) -> None:
        for name, values in row.items():
            array = self._arrays[name]
            array.resize(self.count + 1, axis=0)
            array[self.count] = values[0]
            array.flush()

    def _keep(self) -> None:
        self._file.flush()
        fd = os.open(self.folder / "rows.h5", os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)

    def close(self) -> None:
        self._keep()
        self._file.close()

    def open(self) -> Any:
        return h5py.File(self.folder / "rows.h5", "r", swmr=True)[READ]


class Ours(Way):
    """The workbench's store: each row appended, journalled and committed as the recorder does.

    Args:
        group: "router" or "activations".
        every: rows between two commits.
    """

    def __init__(self, folder: Path, like: Values, group: str, every: int = COMMIT_EVERY) -> None:
        super().__init__(folder, like, every)
        self._group = group
        RunStore.create(folder / "store", layout(), {})
        self._writer = RunStore.open(folder / "store").writer("main")

    def _row(self, row: Values) -> None:
        self._writer.append(self._group, *store_rows(self._group, self.count + 1, row))
        if (self.count + 1) % SEAL_EVERY == 0:
            self._writer.seal()

    def _keep(self) -> None:
        self._writer.commit(f"{self.count}")

    def close(self) -> None:
        self._writer.commit("last")
        self._writer.close()

    def open(self) -> Any:
        return RunStore.open(self.folder / "store").read("main").dataset(self._group)[READ]


class OursBehind(Way):
    """The same store, fed by its background writer: `write` only hands over."""

    def __init__(self, folder: Path, like: Values, group: str, every: int = COMMIT_EVERY) -> None:
        super().__init__(folder, like, every)
        self._group = group
        RunStore.create(folder / "store", layout(), {})
        self._writer = BackgroundWriter(RunStore.open(folder / "store"), "main", {})

    def _row(self, row: Values) -> None:
        values, *declared = store_rows(self._group, self.count + 1, row)
        copied = {name: np.array(v) for name, v in values.items()}
        self._writer.put(Rows(self._group, copied, *declared))

    def _keep(self) -> None:
        self._writer._asked.put(Flush())

    def close(self) -> None:
        self._writer.close()


def layout() -> Layout:
    """Of the store of either record."""
    tokens = ProbeTokens(tuple(range(TOKENS)), ("prose",) * TOKENS)
    domains = tuple(f"domain {i}" for i in range(DOMAINS))
    return Layout(layers=tuple(range(LAYERS)), experts=EXPERTS, k=K, domains=domains, tokens=tokens)


def store_rows(group: str, label: int, row: Values) -> tuple[Any, ...]:
    """A row as the store takes it."""
    if group == "router":
        return ({"step": np.array([label]), **row},)
    site = Variable(
        ("checkpoint", "token", "width"), "float32", "1", "Residual stream.", "bfloat16"
    )
    labels = {"checkpoint": np.array([label]), "tokens_seen": np.array([label])}
    return {**labels, **row}, {SITE: site}


def router_rows(first: int, count: int) -> dict[str, np.ndarray]:
    """Rows that look like a training: loads that drift, tokens drawn from them; six numbers for
    every expert of every layer, of which three are counts by domain.
    """
    chance = np.random.default_rng(first)
    base = np.random.default_rng(0).dirichlet(np.ones(EXPERTS) * 4, size=LAYERS)
    when = np.arange(first, first + count)[:, None, None] / 5000
    load = base * (1 + 0.3 * np.sin(6 * when + 50 * base))
    load /= load.sum(-1, keepdims=True)
    share = chance.dirichlet(np.ones(DOMAINS) * 5, size=(count, LAYERS, EXPERTS))
    domains = chance.poisson(load[..., None] * share * 65536).astype(np.int64).transpose(0, 1, 3, 2)
    counts = domains.sum(2)
    noise = chance.standard_normal((2, *counts.shape))
    return {
        READ: counts,
        "gate_mass": (counts * (0.125 + 0.004 * noise[0])).astype(np.float32),
        "prob_mass": (load * 8192 * (1 + 0.01 * noise[1])).astype(np.float32),
        "domain_assignments": np.ascontiguousarray(domains),
    }


def activation_rows(seed: int, count: int = 1) -> dict[str, np.ndarray]:
    """Captures of 16 MiB: bfloat16 values, held as float32."""
    values = np.random.default_rng(seed).standard_normal((count, TOKENS, WIDTH), np.float32)
    return {SITE: (values.view(np.uint32) & 0xFFFF0000).view(np.float32)}


RAW, OURS = "raw file", "store"
BEHIND = "store, background writer"

ROUTER: dict[str, Callable[[Path, Values], Way]] = {
    RAW: Raw,
    OURS: partial(Ours, group="router"),
    "zarr, chunk of 1": partial(PlainZarr, chunk=1),
    "zarr, chunk of 100": partial(PlainZarr, chunk=100),
    "zarr, chunk of 100, written whole": partial(PlainZarr, chunk=100, whole=True),
    "HDF5 SWMR": partial(Swmr, chunk=50),
    BEHIND: partial(OursBehind, group="router"),
}
ACTIVATIONS: dict[str, Callable[[Path, Values], Way]] = {
    RAW: partial(Raw, every=1),
    OURS: partial(Ours, group="activations", every=1),
    "zarr, chunk of 1": partial(PlainZarr, chunk=1),
    "HDF5 SWMR": partial(Swmr, chunk=1, every=1),
    BEHIND: partial(OursBehind, group="activations", every=1),
}
