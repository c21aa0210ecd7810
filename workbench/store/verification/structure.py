"""Whether a state of a store has the shape that the schema and its own layout give it.

Needs   a snapshot.
Yields  `structure_faults`: dims, dtypes, units, lengths, labels, checksums and chunks that depart.

Only descriptions are read here and the labels of fixed dims, no rows. Icechunk keeps descriptions
and lists of chunks without a checksum, so what they say is held against what else is known: the
schema, the layout, the first commit, and each other.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

import icechunk as ic
import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from workbench.store.damage import in_a_line, panics_as_errors
from workbench.store.layout import Layout
from workbench.store.schema import CLOCKS, COORDINATES, GROWING, SCHEMA, SITES, VERSION, Variable
from workbench.store.snapshot import Snapshot
from workbench.store.verification.fault import FROM_A_COPY, Fault

Coordinates = set[tuple[int, ...]]


def dims_of(array: zarr.Array[Any]) -> tuple[str, ...]:
    """Names of an array's dims; empty where it does not say."""
    return tuple(str(d) for d in getattr(array.metadata, "dimension_names", None) or ())


def all_arrays(root: zarr.Group) -> dict[str, zarr.Array[Any]]:
    """Every array below `root`, by path."""
    return {
        path: member
        for path, member in sorted(root.members(max_depth=None))
        if isinstance(member, zarr.Array)
    }


def structure_faults(
    repository: ic.Repository,
    snapshot: Snapshot,
    branch: str,
    arrays: Mapping[str, zarr.Array[Any]],
    first: Snapshot | None,
    before: Snapshot | None,
) -> Iterator[Fault]:
    """Every departure.

    Args:
        first: the state in which the branch began, where it can be read.
        before: the state before this one, likewise.
    """
    yield from _named_otherwise(snapshot, branch)
    if first is not None:
        yield from _note_faults(snapshot, first, branch)
    # A migration may change descriptions, in the one commit that raises the version.
    if before is not None and before.note.get("schema") == snapshot.note.get("schema"):
        yield from _changed_descriptions(branch, snapshot.root, arrays, before.root)
    for path, array in arrays.items():
        group, _, name = path.rpartition("/")
        for found, expected in _array_faults(snapshot, group, name, array):
            yield _schema_fault(branch, group, name, found, expected)
    for group in SCHEMA:
        own = {
            path.rpartition("/")[2]: array
            for path, array in arrays.items()
            if path.rpartition("/")[0] == group
        }
        yield from _strand_faults(branch, group, own)
    yield from chunk_list_faults(repository, snapshot, branch, arrays)


def _schema_fault(branch: str, group: str, name: str, found: str, expected: str) -> Fault:
    return Fault(
        kind="schema", branch=branch, group=group, variable=name, found=found, expected=expected,
        remedy=FROM_A_COPY,
    )  # fmt: skip


def _note_faults(snapshot: Snapshot, first: Snapshot, branch: str) -> Iterator[Fault]:
    now, then = snapshot.note, first.note
    kept = {name: value for name, value in dict(then["layout"]).items() if value}
    said = dict(now["layout"])
    pairs = [(f"layout, {name}", said.get(name), value) for name, value in kept.items()]
    attrs = dict(now.get("attrs", {}))
    pairs += [(name, attrs.get(name), v) for name, v in dict(then.get("attrs", {})).items()]
    for name, found, expected in pairs:
        if found != expected:
            words = (f"{name} = {json.dumps(value)[:120]}" for value in (found, expected))
            found_text, expected_text = words
            yield _schema_fault(
                branch, "", "", found_text, f"{expected_text}, as in the branch's first commit"
            )


def _named_otherwise(snapshot: Snapshot, branch: str) -> Iterator[Fault]:
    """Names in the note that nobody writes. Of what is empty the values say nothing; its name is
    known all the same.
    """
    said = snapshot.note
    if said.get("schema") != VERSION:
        return
    known = {"note": {"schema", "layout", "attrs"},
             "layout": {one.name for one in fields(Layout)} - {"tokens"}}  # fmt: skip
    for what, found in (("note", said), ("layout", said.get("layout", {}))):
        if set(found) != known[what]:
            yield _schema_fault(
                branch, "", "", f"a {what} of {', '.join(sorted(map(str, found)))[:120]}",
                f"{', '.join(sorted(known[what]))}, which version {VERSION} writes",
            )  # fmt: skip


def _changed_descriptions(
    branch: str, root: zarr.Group, arrays: Mapping[str, zarr.Array[Any]], before: zarr.Group
) -> Iterator[Fault]:
    """Arrays and groups that are described otherwise than one commit earlier, or not at all. Every
    snapshot holds all descriptions, so what is damaged in one is whole in the other.
    """
    for path in all_arrays(before).keys() - arrays.keys():
        group, _, name = path.rpartition("/")
        yield _schema_fault(branch, group, name, "no such array", "one, as one commit earlier")
    for path, array in arrays.items():
        then = before.get(path)
        if isinstance(then, zarr.Array):
            now_says, then_said = (
                {k: v for k, v in a.metadata.to_dict().items() if k != "shape"}
                for a in (array, then)
            )
            for key in sorted(now_says.keys() | then_said.keys()):
                a, b = (repr(said.get(key)) for said in (now_says, then_said))
                if a != b:
                    group, _, name = path.rpartition("/")
                    found, expected = (f"{key} {_around(x, y)}" for x, y in ((a, b), (b, a)))
                    yield _schema_fault(
                        branch, group, name, found, f"{expected}, as one commit earlier"
                    )
    for name, group_now in root.groups():
        then = before.get(name)
        if name in SCHEMA and isinstance(then, zarr.Group):
            a, b = repr(dict(group_now.attrs)), repr(dict(then.attrs))
            if a != b:
                yield _schema_fault(
                    branch, name, "", _around(a, b), f"{_around(b, a)}, as one commit earlier"
                )


def _around(text: str, other: str) -> str:
    """Where `text` departs from `other`."""
    at = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), 0)
    return text[max(0, at - 20) : at + 30]


def _known(group: str, name: str) -> Variable | None:
    return SCHEMA.get(group, {}).get(name) or COORDINATES.get(group, {}).get(name)


def _array_faults(
    snapshot: Snapshot, group: str, name: str, array: zarr.Array[Any]
) -> Iterator[tuple[str, str]]:
    """Pairs of what was found and what was expected."""
    dims, dtype = dims_of(array), "str" if array.dtype.kind in "TO" else str(array.dtype)
    want, sizes = _known(group, name), snapshot.layout.sizes
    if want is None and group in SCHEMA and (group != SITES or dims[:2] != ("checkpoint", "token")):
        yield f"dims {dims}", f"a variable of {group!r}, which knows none of that name"
        return
    if want is not None:
        if dims != want.dims:
            yield f"dims {dims}", f"{want.dims}"
        if dtype != want.dtype:
            yield f"dtype {dtype}", want.dtype
        if array.attrs.get("units") != want.units:
            yield f"units {array.attrs.get('units')!r}", repr(want.units)
    if group in SCHEMA:
        for dim, length in zip(dims, array.shape, strict=False):
            if sizes.get(dim) and dim not in GROWING[group] and length != sizes[dim]:
                yield f"length {length} of {dim}", f"{sizes[dim]}, as the layout says"
        fill = array.fill_value
        is_float = array.dtype.kind == "f"
        if array.dtype.kind in "if" and not (np.isnan(fill) if is_float else fill == -1):
            yield f"fill value {fill}", "NaN" if is_float else "-1"
    codecs = getattr(array.metadata, "codecs", ())
    if not any(isinstance(codec, Crc32cCodec) for codec in codecs):
        yield "chunks without a checksum", "CRC-32C as the last codec"
    if group in SCHEMA and dims and dims[0] not in GROWING[group]:
        yield from _label_faults(snapshot, group, name, array)


def _label_faults(
    snapshot: Snapshot, group: str, name: str, array: zarr.Array[Any]
) -> Iterator[tuple[str, str]]:
    from workbench.store.labels import label_values

    if name in ("token_id", "domain") and group == "activations":
        return  # the layout's probe tokens are read from these very arrays
    try:
        with panics_as_errors():
            found = np.asarray(array[:])
            wanted = label_values(snapshot.layout, group, name)
    except Exception:
        return  # told with the chunk that cannot be read
    if wanted is not None and found.tolist() != wanted.tolist():
        place = next(
            (i for i, (a, b) in enumerate(zip(found.tolist(), wanted.tolist(), strict=False))
             if a != b), min(len(found), len(wanted)),
        )  # fmt: skip
        yield (
            f"label {place} is {found.tolist()[place : place + 1]}",
            f"{wanted.tolist()[place : place + 1]}, as the layout says",
        )


def _strand_faults(branch: str, group: str, own: Mapping[str, zarr.Array[Any]]) -> Iterator[Fault]:
    for dim in GROWING[group]:
        along = {name: array for name, array in own.items() if dims_of(array)[:1] == (dim,)}
        clock = CLOCKS[dim]
        if not along:
            continue
        if clock is not None and clock not in along:
            found = f"{', '.join(sorted(along))} without labels"
            yield _schema_fault(branch, group, clock, found, f"labels along {dim}")
        lengths = {name: array.shape[0] for name, array in along.items()}
        usual = lengths.get(clock or "", max(lengths.values()))
        for name, length in lengths.items():
            if length != usual:
                found = f"{length} rows along {dim}"
                yield _schema_fault(branch, group, name, found, f"{usual}, as its group has")


def chunk_list_faults(
    repository: ic.Repository,
    snapshot: Snapshot,
    branch: str,
    arrays: Mapping[str, zarr.Array[Any]],
) -> Iterator[Fault]:
    """Lists of chunks that name chunks beyond an array, or that are shorter than they say, or have
    a hole where the schema has none.
    """
    listed = chunks_of(snapshot, list(arrays))
    refs = _references(repository, snapshot.id)
    for path, array in arrays.items():
        group, _, name = path.rpartition("/")
        there = listed[path]
        if isinstance(there, BaseException):
            yield Fault(
                kind="missing", branch=branch, group=group, variable=name,
                found=in_a_line(there), expected="a list of its chunks", remedy=FROM_A_COPY,
            )  # fmt: skip
            continue
        grid = [-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True)]
        beyond = [c for c in there if any(i >= n for i, n in zip(c, grid, strict=True))]
        said = refs.get(path)
        found = ""
        if beyond:
            found, expected = f"chunk {min(beyond)}", f"chunks of a grid of {tuple(grid)}"
        elif said is not None and said != len(there):
            found, expected = f"{len(there)} chunks in the list", f"{said}, as its snapshot says"
        elif (hole := _hole(group, name, array, there)) is not None:
            found = f"no chunk {hole} between others"
            expected = "a chunk for every row that was recorded"
        if found:
            yield Fault(
                kind="missing", branch=branch, group=group, variable=name, found=found,
                expected=expected, remedy=FROM_A_COPY,
            )  # fmt: skip


def _hole(
    group: str, name: str, array: zarr.Array[Any], there: Coordinates
) -> tuple[int, ...] | None:
    """A chunk that is not there although one before it is. Chunks that hold nothing but the fill
    value are not written, so only integers are held to this: their -1 is never recorded.
    """
    if _known(group, name) is None or array.dtype.kind != "i" or group in ("traces", "evaluations"):
        return None
    first = min((c[0] for c in there), default=None)
    if first is None:
        return None
    grid = [range(-(-n // c)) for n, c in zip(array.shape, array.chunks, strict=True)]
    grid[0] = range(first, grid[0].stop)
    want = np.stack(np.meshgrid(*grid, indexing="ij"), -1).reshape(-1, array.ndim)
    if len(want) == len(there):
        return None
    return next(tuple(c) for c in want.tolist() if tuple(c) not in there)


def chunks_of(snapshot: Snapshot, paths: list[str]) -> dict[str, Coordinates | BaseException]:
    """The chunks that are listed of each array, or what was raised instead."""

    async def listed(path: str) -> Coordinates:
        session = snapshot._session
        return {tuple(c) async for c in session.chunk_coordinates(f"/{path}", batch_size=10_000)}

    async def gathered() -> list[Any]:
        return await asyncio.gather(*(listed(path) for path in paths), return_exceptions=True)

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(asyncio.run, gathered()).result()
    return dict(zip(paths, found, strict=True))


def _references(repository: ic.Repository, id: str) -> dict[str, int]:
    """How many chunks the snapshot says that each array's lists hold; empty where it cannot be
    asked. Lists that several arrays share are left out.
    """
    try:
        with panics_as_errors():
            said = json.loads(repository.inspect_snapshot(id, pretty=False))
            held = {m["id"]: int(m["num_chunk_refs"]) for m in said["manifests"]}
            nodes = {
                node["path"].lstrip("/"): [ref["id"] for ref in node.get("manifest_refs", ())]
                for node in said["nodes"]
            }
    except Exception:
        return {}
    users: dict[str, int] = {}
    for ids in nodes.values():
        for id in ids:
            users[id] = users.get(id, 0) + 1
    return {
        path: sum(held.get(id, 0) for id in ids)
        for path, ids in nodes.items()
        if all(users[id] == 1 for id in ids)
    }
