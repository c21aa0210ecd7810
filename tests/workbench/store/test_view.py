"""What a dataset shows of its store: overviews and windows are of its own data, or are refused."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from workbench.errors import SchemaError
from workbench.store.backend import WorkbenchBackend
from workbench.store.layout import Layout
from workbench.store.run_store import RunStore
from workbench.store.view import View

STEPS = 100


def record(folder, first, tokens):
    """A run of 100 steps, with the tokens of a step told; the rows of its last 10 wait."""
    store = RunStore.create(folder / "store", Layout(layers=(0, 5), experts=4, k=2))
    steps = np.arange(first, first + STEPS)
    counts = np.random.default_rng(first * tokens).integers(1, 99, (STEPS, 2, 4))
    router = {
        "step": steps, "tokens": np.full(STEPS, tokens), "assignments": counts,
        "entropy": counts[:, :, 0].astype("float32"), "gate_mass": counts.astype("float32") / 3,
    }  # fmt: skip
    seen = np.arange(1, STEPS + 1)
    train = {"step": steps, "tokens_seen": seen * tokens, "utc": seen.astype(float)}
    with store.writer() as w:
        for rows in (slice(90), slice(90, None)):
            w.append("router", {name: values[rows] for name, values in router.items()})
            w.append("train", {name: values[rows] for name, values in train.items()})
            w.seal() if rows.start else w.commit("90")
        w.close()
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three runs: one, the steps after it, and the steps of the first with other values."""
    made = (tmp_path_factory.mktemp("run") for _ in range(3))
    firsts = ((1, 10), (STEPS + 1, 1000), (1, 30))
    return [record(folder, *first) for folder, first in zip(made, firsts, strict=True)]


def opened(folder, **asked):
    return xr.open_dataset(folder, engine=WorkbenchBackend, **asked)


@pytest.fixture
def one(folders):
    return opened(folders[0])


@pytest.fixture
def after(folders):
    return opened(folders[1])


@pytest.fixture
def twin(folders):
    return opened(folders[2])


def plotted(ds):
    """As after a first look: what the engine keeps in memory once it was read."""
    _ = ds.assignments.values, ds.tokens.values
    return ds


PARTS = {
    "the whole": lambda ds: ds,
    "a stretch": lambda ds: ds.isel(step=slice(80, 97)),
    "a stretch of a stretch": lambda ds: ds.isel(step=slice(5, 90)).sel(step=slice(20, 40)),
    "one step": lambda ds: ds.isel(step=[7]),
    "one layer": lambda ds: ds.isel(layer=[1]),
    "experts in another order": lambda ds: ds.isel(expert=[3, 1]),
    "experts, reversed with their labels": lambda ds: ds.isel(expert=slice(None, None, -1)),
    "loaded": lambda ds: ds.load(),
    "loaded, then cut": lambda ds: ds.load().isel(step=slice(3, 60), expert=[2, 0]),
    "looked at, then cut": lambda ds: plotted(ds).isel(step=slice(3, 60), layer=[1]),
    "loaded and turned": lambda ds: ds.load().transpose("expert", "layer", "step", ...),
    "copied": lambda ds: ds.isel(step=slice(3, 60)).copy(deep=True),
    "computed, and the same": lambda ds: (ds * 1).assign_attrs(ds.attrs),
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_the_overview_of_a_part_is_of_its_own_values(one, part):
    ds = part(one)
    seen = ds.moe.overview(points=2, variables=["assignments"])
    mean = (seen.assignments * seen["rows"]).sum("bin") / seen["rows"].sum()
    assert seen["rows"].sum() == ds.sizes["step"]
    xr.testing.assert_allclose(mean, ds.assignments.mean("step").transpose(*mean.dims), rtol=1e-5)


CHANGES = {
    "replaced": lambda ds: ds.assign(assignments=ds.assignments * 0),
    "replaced under its encoding": lambda ds: ds.assign(
        assignments=ds.assignments.copy(data=np.zeros(ds.assignments.shape, int))
    ),
    "written to": lambda ds: written_to(ds.load()),
    "multiplied": lambda ds: ds * 2,
    "one value of many": lambda ds: ds.where(ds.assignments != ds.assignments[50, 1, 2], 0)
    .astype(int).assign_attrs(ds.attrs).pipe(lambda new: with_origin(new, ds)),
    "other layers' labels": lambda ds: ds.assign_coords(layer=ds.layer + 1),
    "experts' labels reversed": lambda ds: ds.assign_coords(expert=ds.expert.values[::-1]),
    "experts' labels reversed, loaded": lambda ds: ds.load().assign_coords(
        expert=ds.expert.values[::-1]
    ),
    "other steps' labels": lambda ds: ds.isel(step=slice(50)).assign_coords(
        step=ds.step.values[50:]
    ),
    "no labels": lambda ds: ds.isel(layer=[1]).drop_vars("layer"),
    "backwards": lambda ds: ds.isel(step=slice(None, None, -1)),
    "every tenth": lambda ds: ds.isel(step=slice(None, None, 10)),
    "turned before it is read": lambda ds: ds.transpose("layer", "expert", "step", ...),
    "a step twice": lambda ds: ds.isel(step=[3, 3, 4]),
    "another name": lambda ds: ds.rename(gate_mass="assignments", assignments="gate_mass"),
}  # fmt: skip


def written_to(ds):
    ds.assignments[40] = 0
    return ds


def with_origin(new, ds):
    new.encoding = dict(ds.encoding)
    return new


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_was_changed_has_no_overview(one, change):
    changed = change(one)
    assert changed.encoding
    with pytest.raises(SchemaError, match="compute on this dataset itself") as caught:
        changed.moe.overview(points=2)
    assert "\n" not in str(caught.value)


def test_what_was_put_together_has_no_overview(one, after, twin):
    joined = xr.concat([one, after], "step")
    mixed = xr.concat([one.isel(step=slice(50)), twin.isel(step=slice(50, None))], "step")
    lent = one.assign(assignments=twin.assignments)
    for ds in (joined, mixed, lent):
        with pytest.raises(SchemaError):
            ds.moe.overview(points=2)
    assert lent.moe.overview(points=2, variables=["tokens"]).tokens.mean() == 10


def test_of_a_dask_array_the_whole_is_recognised_and_a_part_is_refused(folders):
    pytest.importorskip("dask")
    ds = opened(folders[0], chunks={})
    plain = opened(folders[0]).moe.overview(points=4)
    xr.testing.assert_identical(ds.moe.overview(points=4), plain)
    part = opened(folders[0]).isel(step=slice(20, 80)).chunk({"step": 7})
    assert part.moe.overview(points=4)["rows"].sum() == 60
    for changed in (
        ds.isel(step=slice(10)), ds.assign_coords(expert=[3, 2, 1, 0]), ds * 2,
        ds.assign(assignments=ds.assignments.copy(data=ds.assignments.data * 0)),
    ):  # fmt: skip
        with pytest.raises(SchemaError):
            with_origin(changed, ds).moe.overview(points=4)


def test_windows_are_by_the_clock_of_the_run_as_long_as_the_rows_are_its(one, folders):
    rows = one.isel(step=slice(50, None))
    for ds in (rows, rows.isel(step=slice(None, None, 3)), plotted(rows), rows.copy().load()):
        assert ds.moe.window(last=0.2).step.min() == ds.step[ds.step > 80].min()
        assert ds.moe.window(last="5s").step.max() == ds.step.max()
    if pytest.importorskip("dask"):
        cut = opened(folders[0], chunks={}).isel(step=slice(50, 95))
        assert cut.moe.window(last=0.2).step.values.tolist() == list(range(81, 96))


def test_rows_of_several_runs_have_no_clock_but_that_of_their_coordinates(one, after, twin):
    joined = xr.concat([one, after], "step")
    mixed = xr.concat([one.isel(step=slice(50)), twin.isel(step=slice(50, None))], "step")
    for ds in (joined, mixed, one * 2):
        with pytest.raises(SchemaError, match=r"tokens_seen or utc, by step, or ask by start="):
            ds.moe.window(last=0.2)
        assert ds.moe.window(start=10, stop=20).step.values.tolist() == list(range(11, 21))
    seen = np.concatenate([np.arange(1, 101) * 10, 1000 + np.arange(1, 101) * 1000])
    clocked = joined.assign_coords(tokens_seen=("step", seen))
    assert clocked.moe.window(last=0.2).step.values.tolist() == list(range(180, 201))


def test_steps_that_do_not_ascend_have_no_windows(one):
    for ds in (one.isel(step=slice(None, None, -1)), one.drop_vars("step")):
        for asked in ({"last": 0.2}, {"start": 3}):
            with pytest.raises(SchemaError, match="labels of 'step'"):
                ds.moe.window(**asked)


def test_nothing_is_read_to_recognise_what_is_not_read_yet(one, monkeypatch):
    part = one.isel(step=slice(10, 95), layer=[1])
    view = View(part)
    assert len(view.origin.snapshot.tail["router"]["step"]["step"]) == 10
    _ = view._stored
    monkeypatch.setattr("workbench.store.lazy_group.StoredArray._read", None)
    view.check(["assignments", "tokens", "entropy", "gate_mass"])
    assert view.is_of_origin()
