"""ds.moe: what the record says about loads, clocks and experts, asked of the dataset."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import xarray as xr

from checkpoints_index.errors import ClockError
from workbench import moe_accessor  # noqa: F401
from workbench.errors import RunNotFound, SchemaError
from workbench.run import open_run
from workbench.store.backend import WorkbenchBackend
from workbench.store.layout import Layout
from workbench.store.run_store import RunStore
from workbench.testing import DeadExpert, router_record

STEPS = 3000


@pytest.fixture(scope="module")
def planted():
    return router_record(steps=40, experts=8, k=2, dead=[DeadExpert(expert=3, step=21)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of 3,000 steps of 64 tokens each, one second a step."""
    folder = tmp_path_factory.mktemp("run")
    store = RunStore.create(folder / "store", Layout(layers=(0, 5), experts=4, k=2))
    counts = np.random.default_rng(0).multinomial(128, [0.1, 0.2, 0.3, 0.4], (STEPS, 2))
    steps = np.arange(1, STEPS + 1)
    with store.writer() as w:
        w.append("router", {
            "step": steps, "tokens": np.full(STEPS, 64), "assignments": counts,
            "sample": steps[::100], "coactivation": np.zeros((30, 2, 4, 4), "int64"),
        })  # fmt: skip
        w.append("train", {"step": steps, "tokens_seen": steps * 64, "utc": steps * 1.0})
    return folder


def opened(folder, **asked):
    return xr.open_dataset(folder, engine=WorkbenchBackend, **asked)


def test_a_fair_router_has_a_load_of_one_and_a_dead_expert_none(planted):
    load = planted.moe.load
    assert load.dims == ("step", "layer", "expert")
    assert np.allclose(load.mean("expert"), 1)
    assert (load.sel(layer=0, expert=3, step=slice(21, None)) == 0).all()
    assert abs(float(load.sel(layer=1).mean("step").max()) - 1) < 0.1
    assert load.attrs["units"] == "1"
    assert "fair share" in load.attrs["long_name"]


def test_domain_loads_are_fair_within_each_domain():
    ds = router_record(steps=40, experts=8, domains=("prose", "code"), specialised={"code": 2})
    load = ds.moe.domain_load
    assert load.dims == ("step", "layer", "domain", "expert")
    assert np.allclose(load.mean("expert"), 1)
    assert load.sel(domain="code", expert=2).min() > 2 > load.sel(domain="prose", expert=2).max()
    with pytest.raises(SchemaError, match="does not tell domains apart"):
        _ = ds.drop_vars("domain_assignments").moe.domain_load


def test_what_was_not_recorded_is_no_load():
    counts = np.array([[[4, 4]], [[-1, -1]], [[0, 0]]])
    load = xr.Dataset({"assignments": (("step", "layer", "expert"), counts)}).moe.load
    assert load[0].values.tolist() == [[1, 1]]
    assert np.isnan(load[1:]).all()


def test_sizes_are_those_of_the_model(planted, folder):
    assert (planted.moe.k, planted.moe.num_experts, planted.moe.layers) == (2, 8, (0, 1))
    assert opened(folder).moe.layers == (0, 5)
    assert opened(folder).moe.k == 2
    shown = opened(folder)
    del shown.attrs["k"]
    assert shown.moe.k == 2
    with pytest.raises(SchemaError, match=r"ds\.attrs\['k'\]"):
        _ = shown.drop_vars("tokens").moe.k


def test_datasets_that_are_no_router_record_say_so(folder):
    train = opened(folder, group="train")
    with pytest.raises(SchemaError, match="tokens_seen, utc") as caught:
        _ = train.moe
    assert "run.router" in str(caught.value)
    with pytest.raises(SchemaError, match="no variables"):
        _ = xr.Dataset().moe


def test_windows_are_those_of_the_run(folder):
    ds, run = opened(folder), open_run(folder)
    for asked in ({"last": 0.2}, {"last": "5m"}, {"last_tokens": 640}, {"start": 17, "stop": 250}):
        ours, theirs = ds.moe.window(**asked), run.window(**asked).router
        assert np.array_equal(ours.step, theirs.step), asked
        assert np.array_equal(ours["sample"], theirs["sample"])
    assert ds.moe.window(last=0.2).sizes["step"] == STEPS // 5
    with pytest.raises(ClockError):
        ds.moe.window()


def test_a_record_without_a_store_has_the_clocks_that_its_steps_tell(planted):
    assert planted.moe.window(last=0.25).step.values.tolist() == list(range(31, 41))
    with pytest.raises(ClockError, match="utc clock"):
        planted.moe.window(last="7d")
    late = planted.isel(step=slice(5, None)).drop_vars("tokens_seen", errors="ignore")
    with pytest.raises(ClockError, match="tokens clock"):
        late.moe.window(last=0.5)


def test_an_overview_is_of_the_datasets_own_steps_layers_and_variables(folder):
    whole = opened(folder)
    seen = whole.moe.overview(points=50)
    assert int(seen["rows"].sum()) == STEPS
    assert set(seen.data_vars) >= {"assignments", "assignments_min", "tokens"}
    assert "coactivation" not in seen
    part = whole.moe.window(start=100, stop=900).sel(layer=[5], expert=[1, 2])
    seen = part.moe.overview(points=10, variables=["assignments"])
    assert seen.assignments.dims == ("bin", "layer", "expert")
    assert (seen.layer.values.tolist(), seen.expert.values.tolist()) == ([5], [1, 2])
    assert (seen.first_step[0], seen.last_step[-1]) == (101, 900)
    mean = (seen.assignments * seen["rows"]).sum("bin") / 800
    assert np.allclose(mean, part.assignments.mean("step"), rtol=1e-5)
    with pytest.raises(RunNotFound, match="did you mean 'assignments'"):
        whole.moe.overview(variables=["assignment"])


def test_a_dataset_knows_its_store_also_from_a_run_and_after_a_journey(folder):
    assert open_run(folder).router.moe.overview(points=20).sizes["bin"] >= 5
    packed = pickle.loads(pickle.dumps(opened(folder)))
    assert packed.copy(deep=True).moe.overview(points=20).sizes["bin"] >= 5


def test_a_dataset_that_was_computed_has_no_overview(planted):
    with pytest.raises(SchemaError, match=r"overview of run\.router"):
        planted.moe.overview()


def test_one_expert_has_its_counts_and_its_load(folder):
    ds = opened(folder)
    one = ds.moe.expert(layer=5, expert=3)
    assert one.assignments.dims == ("step",)
    assert (int(one.layer), int(one.expert)) == (5, 3)
    assert np.allclose(one.relative_load, ds.moe.load.sel(layer=5, expert=3))
    assert abs(float(one.relative_load.mean()) - 1.6) < 0.05
    assert one.coactivation.dims == ("sample", "expert2")
    with pytest.raises(RunNotFound, match="no layer 1 in this record; it has 0, 5"):
        ds.moe.expert(layer=1, expert=0)
    with pytest.raises(RunNotFound, match="no expert 4"):
        ds.moe.expert(layer=0, expert=4)
