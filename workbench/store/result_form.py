"""The form in which a result lies in the store: what is read is what was kept.

Needs   a dataset: plain numbers, truth values, instants and text; attributes of plain data.
Yields  `to_form` before it is written, `from_form` after it was read, `encoding` of a variable.

xarray reads some attributes as orders to change values: `missing_value: -1` makes each -1 a NaN,
`units: days since 2000-01-01` makes numbers dates. Those attributes, numbers in attributes that are
not finite, and names of coordinates with blanks lie as JSON in one attribute of the group and are
put back on reading. So is the order of the variables, which a store forgets: the first is what a
figure shows unasked. A name that would be a path is refused: it would be written where nothing
looks for it. Instants come back in nanoseconds, numbers in the machine's byte order.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import xarray as xr
from zarr.codecs import BloscCodec, Crc32cCodec

from workbench.errors import SchemaError

ASIDE = "put_aside"
"""Attribute of the group: {"coords": [names], "text": [names of empty ones], "attrs": {variable, or
"" for the dataset: {attribute: value}}, "order": [variables]}."""
_ORDERS = frozenset(
    ("missing_value", "scale_factor", "add_offset", "dtype", "coordinates", "calendar", "bounds",
     "climatology", "grid_mapping")
)  # fmt: skip
_KINDS = "biufcUTOMm"


def to_form(ds: xr.Dataset, whose: str) -> xr.Dataset:
    """The dataset as it is written: text as objects, which is how xarray writes Zarr's strings of
    any length; encodings of where it was read from left behind; what would not survive put aside.

    Raises:
        SchemaError: a name, a variable or an attribute that cannot be kept; says what to do.
    """
    for name in (*ds.variables, *ds.dims):
        _check_name(name, whose)
    ds = ds.drop_encoding()
    aside: dict[str, Any] = {"coords": [], "attrs": {}, "text": []}
    for name, variable in ds.variables.items():
        _check_kind(str(name), variable, whose)
        stays, orders = _apart(variable.attrs, variable.dtype.kind, whose)
        if orders:
            aside["attrs"][name] = orders
        if variable.dtype.kind in "UT":
            whole = (variable.dims, variable.values.astype(object), stays)
            ds = ds.assign_coords({name: whole}) if name in ds.coords else ds.assign({name: whole})
        elif orders:
            ds.variables[name].attrs = stays
        if variable.dtype.kind in "OUT" and not variable.size:
            aside["text"].append(name)
    stays, orders = _apart(ds.attrs, "", whose)
    if orders:
        aside["attrs"][""] = orders
    if len(ds.data_vars) > 1:
        aside["order"] = list(ds.data_vars)
    aside["coords"] = [c for c in ds.coords if c not in ds.dims and str(c).split() != [c]]
    ds = ds.reset_coords(aside["coords"])
    ds.attrs = stays
    if any(aside.values()):
        ds.attrs[ASIDE] = _as_json(aside, whose)
    return ds


def from_form(ds: xr.Dataset) -> xr.Dataset:
    """What was kept, from what xarray read."""
    aside = json.loads(ds.attrs.pop(ASIDE, "{}"))
    ds = ds.set_coords(aside.get("coords", []))
    for name, orders in aside.get("attrs", {}).items():
        (ds[name] if name else ds).attrs.update(orders)
    text = {
        name: (v.dims, np.array(v.values.tolist(), dtype=str).reshape(v.shape), v.attrs)
        for name, v in ds.variables.items()
        if v.dtype.kind in "TO" or name in aside.get("text", [])
    }
    ds = ds.assign({n: v for n, v in text.items() if n in ds.data_vars}).assign_coords(
        {n: v for n, v in text.items() if n in ds.coords}
    )
    order = [name for name in aside.get("order", []) if name in ds.data_vars]
    order += [name for name in ds.data_vars if name not in order]
    if order == list(ds.data_vars):
        return ds
    return xr.Dataset({name: ds[name] for name in order}, coords=ds.coords, attrs=ds.attrs)


def encoding(variable: xr.Variable) -> dict[str, Any]:
    """Its codecs: compressed, with a checksum."""
    if variable.dtype.kind in "OTU":
        return {"compressors": (Crc32cCodec(),)}
    size = variable.dtype.itemsize
    blosc = BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=size)
    return {"compressors": (blosc, Crc32cCodec())}


def _check_name(name: object, whose: str) -> None:
    wrong = not isinstance(name, str) or not name or name in (".", "..", "zarr.json")
    if wrong or "/" in str(name) or "\\" in str(name) or not _encodes(str(name)):
        raise SchemaError(
            f"the result of {whose!r} has a variable or dim named {ascii(name)[:80]}, expected "
            f"text that is no path: neither '/' nor '\\' in it, not 'zarr.json'. Put such names "
            f"into a coordinate: one variable with a dim 'task', not one variable a task."
        )


def _check_kind(name: str, variable: xr.Variable, whose: str) -> None:
    kind = variable.dtype.kind
    plain = kind in _KINDS and (
        kind not in "OUT" or all(isinstance(v, str) and _encodes(v) for v in variable.values.flat)
    )
    if not plain:
        raise SchemaError(
            f"the result of {whose!r} cannot be stored: {name!r} is of {variable.dtype} and holds "
            f"other things than text. Return plain numbers and text, and attributes of plain data."
        )


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _apart(attrs: dict[Any, Any], kind: str, whose: str) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """What can lie as attributes, and what has to be put aside."""
    if odd := [name for name in attrs if not isinstance(name, str)]:
        raise SchemaError(
            f"the result of {whose!r} has an attribute named {ascii(odd[0])[:60]}, expected text."
        )
    orders = {
        name: value
        for name, value in attrs.items()
        if name in _ORDERS
        or name.startswith("_")
        or (name == "units" and (kind in "Mm" or "since" in str(value)))
        or not _finite(value)
    }
    return {name: value for name, value in attrs.items() if name not in orders}, orders


def _finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_finite, value))
    if isinstance(value, np.ndarray | np.generic):
        return _finite(value.tolist())
    return not isinstance(value, float) or math.isfinite(value)


def _as_json(aside: dict[str, Any], whose: str) -> str:
    try:
        return json.dumps(aside, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise SchemaError(
            f"the result of {whose!r} cannot be stored: {error}. Return plain numbers and text, "
            f"and attributes of plain data."
        ) from error


def _plain(value: object) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufU":
        return value.tolist()
    raise TypeError(f"an attribute is a {type(value).__name__}")
