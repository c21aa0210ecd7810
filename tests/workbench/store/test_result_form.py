"""What is kept comes back as it was, whatever it is called and whatever its attributes say."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from workbench.errors import SchemaError
from workbench.store.results import Results

ORDERS = (
    "missing_value", "_FillValue", "scale_factor", "add_offset", "_Unsigned", "dtype", "units",
    "coordinates", "calendar", "bounds", "grid_mapping", "_ARRAY_DIMENSIONS", "long_name",
)  # fmt: skip
SAID = st.sampled_from(
    [-1, 1, 2.5, float("nan"), "bool", "true", "a", "days since 2000-01-01", "steps since start",
     "seconds", [1, 2], None, {"a": [1, float("inf")]}]
)  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4)
NAMES = st.one_of(
    st.sampled_from(["zarr", "c", "a b", "a.b", "__x", "%2F", "put_aside", "*", "x\ny"]),
    TEXT.filter(lambda n: n not in ("", ".", "..") and not {"/", "\\"} & set(n)),
)
KINDS = ["?", "i1", "i8", "u1", "u8", "f2", "f4", "f8", "c8", "M8[ns]", "m8[ns]", "text"]


@st.composite
def datasets(draw):
    """Variables of every kind over a few dims, some of them coordinates."""
    sizes = dict(
        zip(("m", "n"), draw(st.tuples(st.integers(0, 2), st.integers(1, 3))), strict=True)
    )
    attrs = st.dictionaries(st.sampled_from(ORDERS), SAID, max_size=3)
    found = {}
    for name in draw(st.lists(NAMES, max_size=4, unique=True)):
        dims = draw(st.sampled_from([(), ("n",), ("m", "n")]))
        if name in sizes:
            dims = (name,)
        shape = tuple(sizes[d] for d in dims)
        kind = draw(st.sampled_from(KINDS))
        if kind == "text":
            values = np.empty(shape, dtype=object)
            for place in np.ndindex(shape):
                values[place] = draw(TEXT)
            values = values.astype(str)
        else:
            stamps = {"elements": st.integers(-(10**17), 10**18)} if kind[0] in "Mm" else {}
            raw = draw(hnp.arrays("i8" if stamps else kind, shape, **stamps))
            values = raw.astype(kind)
        found[name] = (dims, values, draw(attrs))
    beside = [n for n in found if n in sizes or draw(st.booleans())]
    return xr.Dataset(
        {n: v for n, v in found.items() if n not in beside},
        coords={n: found[n] for n in beside},
        attrs=draw(attrs),
    )


@settings(
    max_examples=25, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(ds=datasets())
def test_any_result_comes_back_identical_then_later_and_after_others_are_dropped(small_store, ds):
    results = Results(small_store)
    results.drop()
    before = ds.copy(deep=True)
    first = results.fetch("any", 1, {}, lambda: ds)
    results.fetch("other", 1, {}, lambda: xr.Dataset({"x": 1}))
    later = results.get("any", 1, {}).load()
    results.drop("other")
    anew = results.get("any", 1, {})
    for kept in (first, later, anew):
        _same(kept, before)
    assert ds.identical(before)


def _same(kept, ds):
    ours = ("probe", "version", "params", "inputs", "provenance")
    kept = kept.load().assign_attrs()
    kept.attrs = {name: value for name, value in kept.attrs.items() if name not in ours}
    assert set(kept.coords) == set(ds.coords)
    assert repr(_plain_attrs(kept)) == repr(_plain_attrs(ds))
    xr.testing.assert_equal(kept, ds)
    for name, v in ds.variables.items():
        assert kept[name].dtype.kind == v.dtype.kind
        if v.dtype.kind != "U":  # as wide as its longest text
            assert kept[name].dtype == v.dtype


def _plain_attrs(ds):
    every = {name: v.attrs for name, v in ds.variables.items()} | {None: ds.attrs}
    return sorted((str(n), sorted(a.items(), key=lambda i: i[0])) for n, a in every.items())


@pytest.mark.parametrize(
    "attrs",
    [{"missing_value": -1}, {"_FillValue": -1}, {"scale_factor": 2.0}, {"add_offset": 1},
     {"dtype": "bool"}, {"units": "days since 2000-01-01"}, {"coordinates": "count"},
     {"gap": float("nan")}],
)  # fmt: skip
def test_no_attribute_changes_the_values_it_stands_beside(small_store, attrs):
    ds = xr.Dataset({"count": ("n", [-1, 0, 2], attrs)})
    _same(Results(small_store).fetch("count", 1, {}, lambda: ds), ds)


@pytest.mark.parametrize("name", ["code/index", "zarr.json", "..", "a\\b", "", "/", 3])
@pytest.mark.parametrize("place", ["variable", "coordinate", "dim"])
def test_a_name_that_is_a_path_is_refused_and_leaves_nothing(small_store, name, place):
    ds = {
        "variable": lambda: xr.Dataset({name: ("n", [1, 2])}),
        "coordinate": lambda: xr.Dataset({"x": ("n", [1, 2])}, coords={name: ("n", [1, 2])}),
        "dim": lambda: xr.Dataset({"x": ((name,), [1, 2])}),
    }[place]()
    results = Results(small_store)
    with pytest.raises(SchemaError, match="Put such names into a coordinate"):
        results.fetch("named", 1, {}, lambda: ds)
    assert results.list() == []


@pytest.mark.parametrize("values", [[b"a"], [None, "a"], [1, "a"]])
def test_what_is_neither_number_nor_text_is_refused(small_store, values):
    ds = xr.Dataset({"x": ("n", np.array(values, dtype=None if values == [b"a"] else object))})
    with pytest.raises(SchemaError, match="cannot be stored"):
        Results(small_store).fetch("odd", 1, {}, lambda: ds)
