"""One consistent state of a store, as labelled arrays.

Needs   an Icechunk repository and a snapshot of it.
Yields  Snapshot: groups as lazy datasets with units, meanings and text labels.

A snapshot never changes: what a writer commits meanwhile is seen by opening a newer one. That of a
branch which is being written has a tail: rows that are in the journal and not yet committed.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

import icechunk as ic
import numpy as np
import xarray as xr
import zarr

from workbench.errors import SchemaError
from workbench.store.damage import damage_told
from workbench.store.journal import Tail
from workbench.store.layout import Layout, ProbeTokens
from workbench.store.lazy_group import open_group
from workbench.store.schema import CLOCKS, GROWING, SCHEMA, VERSION

ROOT = "workbench"
"""Attribute of the root group under which layout and versions are kept."""


def tail_digest(tail: Tail) -> str:
    """16 hexadecimal digits that tell rows which wait from all others; "" where none wait.

    As many rows may follow one commit twice, with other values: a run that was killed and resumed
    at its last checkpoint.

    Example:
        >>> one, other = ({"train": {"step": {"loss": np.array([x])}}} for x in (1.0, 2.0))
        >>> tail_digest(one) == tail_digest(other), tail_digest({})
        (False, '')
    """
    seen = hashlib.blake2b(digest_size=8)
    arrays = [
        (group, dim, name, values)
        for group, dims in tail.items()
        for dim, rows in dims.items()
        for name, values in rows.items()
    ]
    for *place, values in sorted(arrays, key=lambda array: array[:3]):
        seen.update(repr((place, values.dtype.str, values.shape)).encode())
        seen.update(values.tobytes())
    return seen.hexdigest() if arrays else ""


class Snapshot:
    """A store as it was at one commit.

    Args:
        repository: the Icechunk repository.
        id: the snapshot's id.
        tail: rows after the committed ones, as `journal.read_tail` gives them.
    """

    def __init__(self, repository: ic.Repository, id: str, tail: Tail | None = None) -> None:
        self.id = id
        self.tail: Tail = tail or {}
        with damage_told(f"snapshot {id}"):
            self._session = repository.readonly_session(snapshot_id=id)
            self.root = zarr.open_group(self._session.store, mode="r", zarr_format=3)
        found = int(self.note.get("schema", 0))
        if not 1 <= found <= VERSION:
            raise SchemaError(
                f"the store was written with schema version {found}, this installation reads 1 to "
                f"{VERSION}; install the version of the workbench that wrote it, or a newer one."
            )

    @cached_property
    def state(self) -> str:
        """What tells this state from every other: the snapshot's id and, where rows wait, their
        digest.
        """
        return f"{self.id}-{digest}" if (digest := tail_digest(self.tail)) else self.id

    @cached_property
    def note(self) -> dict[str, Any]:
        """What the workbench wrote about the store: schema version, layout, attributes of the
        run.
        """
        return dict(self.root.attrs.get(ROOT, {}))  # type: ignore[arg-type]

    @property
    def attrs(self) -> dict[str, Any]:
        """The attributes given when the store was made."""
        return dict(self.note.get("attrs", {}))

    @cached_property
    def layout(self) -> Layout:
        """Sizes and labels of the fixed dims."""
        tokens = None
        if "activations/token_id" in self.root:
            ids, domains = self.root["activations/token_id"], self.root["activations/domain"]
            assert isinstance(ids, zarr.Array)
            assert isinstance(domains, zarr.Array)
            tokens = ProbeTokens(
                tuple(int(i) for i in np.asarray(ids[:])),
                tuple(str(d) for d in np.asarray(domains[:])),
            )
        return Layout.from_json(self.note["layout"], tokens)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Groups that hold rows, in the order of the schema."""
        held = []
        for name in SCHEMA:
            group = self.root.get(name)
            clocks = [clock for dim in GROWING[name] if (clock := CLOCKS[dim])]
            stored = isinstance(group, zarr.Group) and any(clock in group for clock in clocks)
            if stored or name in self.tail:
                held.append(name)
        return tuple(held)

    def labels(self, group: str, dim: str) -> np.ndarray:
        """The labels of a growing dim, such as the recorded steps; empty where there are none."""
        with damage_told(f"{group}/{dim}"):
            array = self.root.get(f"{group}/{dim}")
            stored = (
                np.asarray(array[:]) if isinstance(array, zarr.Array) else np.empty(0, np.int64)
            )
        return np.concatenate([stored, self.tail.get(group, {}).get(dim, {}).get(dim, stored[:0])])

    def end(self, group: str, dim: str) -> tuple[int, int | None]:
        """How many labels a growing dim has, and the last one; read without the others."""
        with damage_told(f"{group}/{dim}"):
            array = self.root.get(f"{group}/{dim}")
            stored = array.shape[0] if isinstance(array, zarr.Array) else 0
            tail = self.tail.get(group, {}).get(dim, {}).get(dim, np.empty(0, np.int64))
            if len(tail):
                return stored + len(tail), int(tail[-1])
            return stored, int(np.asarray(array[-1:])[0]) if stored else None  # type: ignore[index]

    def dataset(self, group: str) -> xr.Dataset:
        """`group` as a lazy dataset, its tail included; RunNotFound where nothing was recorded in
        it, StoreDamaged, here or when values are read, where its bytes are not what was written.

        Text labels are numpy strings (on disk: Zarr's variable-length string, see arrays.py);
        variables are read when they are used, and only the chunks asked for.
        """
        with damage_told(f"{group} of snapshot {self.id}"):
            return open_group(self, group)
