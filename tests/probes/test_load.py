"""Expert load: shares of the assignments, pooled in tokens, from any source."""

from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import probes
import workbench as wb
from workbench.errors import SchemaError, UsageError
from workbench.store.layout import Layout
from workbench.store.run_store import RunStore
from workbench.testing import DeadExpert, router_record

COUNTS = hnp.arrays(np.int64, (3, 2, 5), elements=st.integers(0, 10_000))


def record(counts: np.ndarray, tokens: np.ndarray | None = None) -> xr.Dataset:
    """A router record of just these counts (step, layer, expert)."""
    steps = np.arange(1, len(counts) + 1)
    ds = xr.Dataset(
        {"assignments": (("step", "layer", "expert"), counts)},
        coords={"step": steps, "layer": np.arange(counts.shape[1])},
    )
    return ds if tokens is None else ds.assign(tokens=("step", tokens))


@given(COUNTS)
def test_loads_sum_to_one_wherever_a_token_was_routed(counts):
    load = probes.expert_load(record(counts))
    routed = counts.sum(axis=-1) > 0
    np.testing.assert_allclose(load.sum("expert").values[routed], 1)
    assert load.isnull().all("expert").values[~routed].all()


def test_an_expert_that_dies_at_step_20_has_no_load_afterwards():
    load = probes.expert_load(router_record(steps=40, dead=[DeadExpert(expert=3, step=20)]))
    assert load.sel(layer=0, expert=3, step=slice(20, None)).max() == 0
    assert load.sel(layer=0, expert=3, step=slice(None, 19)).min() > 0


def test_pooling_by_tokens_weighs_every_assignment_once():
    counts = np.array([[[1, 3]], [[10, 2]], [[5, 5]], [[0, 4]]])
    tokens = counts.sum(axis=(1, 2))
    load = probes.expert_load(record(counts, tokens), window=16)
    assert load["step"].values.tolist() == [2, 4][: load.sizes["step"]]
    np.testing.assert_allclose(load.sel(step=2, layer=0), [11 / 16, 5 / 16])


def test_a_pool_larger_than_a_block_is_still_read_whole(monkeypatch):
    router = router_record(steps=12, tokens=64)
    whole = probes.expert_load(router, window=256)
    monkeypatch.setattr("probes.inputs.pool.BLOCK_VALUES", 1)
    xr.testing.assert_identical(probes.expert_load(router, window=256), whole)
    assert whole["step"].values.tolist() == [4, 8, 12]


def test_a_last_pool_that_does_not_fill_is_left_out():
    counts = np.full((5, 1, 2), 4)
    load = probes.expert_load(record(counts, np.full(5, 8)), window=16)
    assert load["step"].values.tolist() == [2, 4]


def test_a_dataset_and_whatever_carries_one_give_the_same_load():
    router = router_record(steps=5)
    tree = xr.DataTree.from_dict({"router": router})
    want = probes.expert_load(router)
    for source in (SimpleNamespace(router=router), tree):
        xr.testing.assert_identical(probes.expert_load(source), want)


def test_a_load_says_its_unit_chance_level_and_tokens():
    load = probes.expert_load(router_record(steps=5, experts=8, tokens=512))
    assert load.attrs["units"] == "1"
    assert load.attrs["chance_level"] == 1 / 8
    assert load.attrs["n"] == 5 * 512
    assert load.attrs["interval"].startswith("none: exact")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: probes.expert_load(3), UsageError, "found a int without 'router'"),
        (lambda: probes.expert_load(xr.Dataset()), SchemaError, "lacks assignments"),
        (lambda: probes.expert_load(router_record(steps=3), window=0), UsageError, "window=0"),
        (
            lambda: probes.expert_load(router_record(steps=3, tokens=512), window=10**6),
            UsageError,
            "the record holds 1,536 tokens",
        ),
        (
            lambda: probes.expert_load(record(np.ones((2, 1, 2), int)), window=5),
            UsageError,
            "needs `tokens`",
        ),
    ],
)
def test_a_source_that_cannot_answer_is_refused_with_the_remedy(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_chunked_record_gives_a_lazy_load():
    pytest.importorskip("dask")
    load = probes.expert_load(router_record(steps=8).chunk(step=2))
    assert load.chunks is not None
    xr.testing.assert_allclose(load.compute(), probes.expert_load(router_record(steps=8)))


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """3,000 steps of known counts, and the counts."""
    folder = tmp_path_factory.mktemp("long")
    counts = np.random.default_rng(1).integers(0, 50, (3000, 2, 4))
    counts[:, :, 0] += 1
    steps = np.arange(1, 3001)
    router = {"step": steps, "tokens": counts[:, 0].sum(-1), "assignments": counts}
    with RunStore.create(folder / "store", Layout(layers=(0, 1), experts=4, k=1)).writer() as w:
        w.append("router", router)
    return wb.open_run(folder), counts


def test_the_load_of_an_overview_is_the_load_of_the_steps_in_each_bin(long_run):
    run, counts = long_run
    load = probes.expert_load(run, points=100)
    assert 25 <= load.sizes["step"] <= 200
    assert load["rows"].sum() == 3000
    for i in range(load.sizes["step"]):
        inside = counts[int(load["first_step"][i]) - 1 : int(load["step"][i])].sum(0)
        np.testing.assert_allclose(
            load[i].values, inside / inside.sum(-1, keepdims=True), rtol=1e-5
        )  # means are kept as float32
    assert load.attrs["n"] == counts[:, 0].sum()


def test_a_window_has_an_overview_of_its_own_steps(long_run):
    run, _ = long_run
    load = probes.expert_load(run.window(start=500, stop=2500), points=10)
    assert (int(load["first_step"][0]), int(load["step"][-1])) == (501, 2500)


def test_points_are_refused_where_there_is_no_overview():
    with pytest.raises(UsageError, match="give a Run or a Window"):
        probes.expert_load(router_record(steps=20), points=5)
