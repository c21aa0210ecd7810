"""Exports: what other programs read is what was recorded, whole or not there at all."""

from __future__ import annotations

import json
import sys
import tracemalloc

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

from workbench.app.export_command import export_command
from workbench.errors import RunExists, RunNotFound, UsageError
from workbench.store import export as exporting
from workbench.store.backend import find_store
from workbench.store.export import blocks, export
from workbench.store.layout import Layout, ProbeTokens, Task
from workbench.store.lazy_group import open_group
from workbench.store.run_store import RunStore

LAYOUT = Layout(
    layers=(0, 3), experts=4, k=2, domains=("prose", "code_text"),
    tasks=(Task("logic/chain", 0.25, 3), Task("code/add", 0.1, 2)),
    tokens=ProbeTokens((7, 8, 9), ("prose", "code_text", "prose")),
)  # fmt: skip


def write_steps(writer, first, last, rng):
    steps = np.arange(first, last + 1)
    n = len(steps)
    writer.append("router", {
        "step": steps, "tokens": steps, "assignments": rng.integers(0, 99, (n, 2, 4)),
        "entropy": rng.random((n, 2), dtype="float32"),
        "domain_assignments": rng.integers(0, 99, (n, 2, 2, 4)),
        "sample": steps[::10], "coactivation": rng.integers(0, 9, (len(steps[::10]), 2, 4, 4)),
    })  # fmt: skip
    loss = rng.random(n, dtype="float32")
    loss[3] = np.nan
    writer.append("train", {"step": steps, "loss": loss, "tokens_seen": steps * 100})
    writer.append("traces", {
        "step": steps, "expert_ids": rng.integers(0, 4, (n, 2, 2)).astype("int16"),
        "gates": rng.random((n, 2, 2), dtype="float32"),
    })  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that is still written to: 120 steps committed, 10 more in its journal; two
    checkpoints.
    """
    folder = tmp_path_factory.mktemp("runs") / "demo"
    rng = np.random.default_rng(0)
    store = RunStore.create(folder / "store", LAYOUT)
    with store.writer() as w:
        for last in (60, 120):
            write_steps(w, last - 59, last, rng)
            now = {"checkpoint": np.array([last]), "tokens_seen": np.array([last * 100])}
            w.append(
                "evaluations", now | {"correct": rng.integers(-1, 2, (1, 2, 3)).astype("int8")}
            )
            w.append("activations", now | {
                "expert_ids": rng.integers(0, 4, (1, 3, 2, 2)).astype("int16"),
                "router_probs": rng.random((1, 3, 2, 4), dtype="float32"),
            })  # fmt: skip
            w.commit("rows")
            w.tag_checkpoint(last)
        write_steps(w, 121, 130, rng)
        w.sync()
        yield folder


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks so small that every variable has several."""
    from workbench.store import parquet_tables, plain_files

    monkeypatch.setattr(plain_files, "BLOCK_BYTES", 700)
    monkeypatch.setattr(parquet_tables, "ROWS_AT_ONCE", 90)


def recorded(run, group):
    return open_group(find_store(run).read(), group)


GROUPS = ("router", "train", "evaluations", "activations", "traces")


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("demo.zarr", lambda path, group: xr.open_zarr(path, group=group, consolidated=False)),
        ("demo.nc", lambda path, group: xr.open_dataset(path, engine="h5netcdf", group=group)),
    ],
)
@pytest.mark.parametrize("small", [False, True])
def test_every_group_comes_back_as_it_was(run, tmp_path, name, read, small, request):
    if name.endswith(".nc"):
        pytest.importorskip("h5netcdf")
    if small:
        request.getfixturevalue("small_blocks")
    done = export(run, tmp_path / name)
    assert done.groups == GROUPS
    assert done.files == (tmp_path / name,)
    for group in GROUPS:
        ours = recorded(run, group)
        with read(tmp_path / name, group) as theirs:
            assert set(theirs.variables) == set(ours.variables)
            assert set(theirs.coords) == set(ours.coords)
            for variable in ours.variables:
                want, got = ours[variable], theirs[variable]
                assert got.dims == want.dims
                values = np.array(got.values.tolist(), str) if want.dtype.kind == "U" else got
                assert want.dtype.kind == "U" or got.dtype == want.dtype
                assert np.array_equal(values, want, equal_nan=want.dtype.kind == "f")
                assert {k: got.attrs[k] for k in want.attrs} == want.attrs
            noted = {name: theirs.attrs[name] for name in ("run", "branch", "snapshot", "k")}
            assert noted == {
                "run": "demo", "branch": "main", "k": 2,
                "snapshot": find_store(run).tip("main"),
            }  # fmt: skip


def test_a_zarr_export_needs_neither_icechunk_nor_an_open_store(run, tmp_path):
    export(run, tmp_path / "a.zarr", groups=["router"])
    assert not list((tmp_path / "a.zarr").rglob("refs"))
    tree = xr.open_datatree(tmp_path / "a.zarr", engine="zarr", consolidated=False)
    assert tree["router/assignments"].sizes["step"] == 130


@pytest.mark.parametrize("small", [False, True])
def test_parquet_tables_hold_one_row_a_cell(run, tmp_path, small, request):
    pq = pytest.importorskip("pyarrow.parquet")
    if small:
        request.getfixturevalue("small_blocks")
    done = export(run, tmp_path / "demo.parquet")
    names = {file.name for file in done.files}
    assert {"router.step.layer.expert.parquet", "train.step.parquet"} <= names
    for group in GROUPS:
        ds = recorded(run, group)
        for variable, array in ds.data_vars.items():
            dims = list(array.dims)
            table = pq.read_table(tmp_path / "demo.parquet" / f"{'.'.join([group, *dims])}.parquet")
            assert np.array_equal(
                table[variable].to_numpy(), array.values.ravel(), equal_nan=array.dtype.kind == "f"
            )
            whole = xr.broadcast(*(ds[d] for d in dims))
            for dim, labels in zip(dims, whole, strict=True):
                ordered = labels.transpose(*dims).values.ravel()
                assert table[dim].to_pylist() == ordered.tolist()
            assert table.schema.field(variable).metadata[b"units"].decode() == array.attrs["units"]
            assert table.schema.metadata[b"branch"] == b"main"


def test_pandas_reads_a_table_with_its_labels(run, tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    export(run, tmp_path / "demo", format="parquet", groups=["evaluations", "router"])
    scores = pd.read_parquet(tmp_path / "demo" / "evaluations.checkpoint.task.item.parquet")
    assert set(scores.columns) >= {"checkpoint", "task", "item", "tokens_seen", "family", "correct"}
    one = scores[(scores.task == "code/add") & (scores.checkpoint == 120) & (scores.item == 1)]
    want = recorded(run, "evaluations").correct.sel(task="code/add", checkpoint=120)[1]
    assert one.correct.tolist() == [int(want)]
    assert one.family.tolist() == ["code"]
    counts = pd.read_parquet(tmp_path / "demo" / "router.step.layer.expert.parquet")
    sums = counts.groupby(["layer", "expert"]).assignments.sum()
    assert sums.tolist() == recorded(run, "router").assignments.sum("step").values.ravel().tolist()


def test_what_exists_is_left_as_it_is(run, tmp_path):
    (tmp_path / "a.nc").write_text("mine")
    with pytest.raises(RunExists, match="exists already"):
        export(run, tmp_path / "a.nc")
    (tmp_path / "b.zarr").mkdir()
    with pytest.raises(RunExists):
        export(run, tmp_path / "b.zarr")
    (tmp_path / "c.zarr").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunExists):
        export(run, tmp_path / "c.zarr")
    assert (tmp_path / "a.nc").read_text() == "mine"


def test_an_export_that_fails_leaves_nothing(run, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(exporting, "sync_tree", fail)
    with pytest.raises(OSError, match="no space"):
        export(run, tmp_path / "a.zarr")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_said_in_one_line(run, tmp_path):
    for asked, error, said in (
        ({"to": "demo.csv"}, UsageError, "zarr, netcdf, parquet"),
        ({"to": "demo.zarr", "format": "csv"}, UsageError, "format 'csv'"),
        ({"to": "demo.zarr", "branch": "mian"}, RunNotFound, "did you mean 'main'"),
        ({"to": "demo.zarr", "groups": ["trian"]}, RunNotFound, "did you mean 'train'"),
    ):
        with pytest.raises(error) as caught:
            export(run, **asked | {"to": tmp_path / asked["to"]})
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("package", "name"), [("h5netcdf", "a.nc"), ("pyarrow", "a.parquet")])
def test_a_missing_package_is_named_with_its_remedy(run, tmp_path, monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "workbench.store.parquet_tables", raising=False)
    with pytest.raises(UsageError, match=r"pip install 'training-dynamics-workbench\[export\]'"):
        export(run, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_blocks_cover_an_array_once_and_in_order():
    rng = np.random.default_rng(0)
    for _ in range(200):
        shape = tuple(int(n) for n in rng.integers(1, 30, rng.integers(1, 4)))
        chunks = tuple(int(rng.integers(1, n + 1)) for n in shape)
        at_most = int(rng.integers(1, 4000))
        seen = np.zeros(shape, int)
        for part in blocks(shape, chunks, 8, at_most):
            seen[part] += 1
            size = seen[part].size * 8
            assert size <= at_most or part[0].stop - part[0].start <= chunks[0]
        assert (seen == 1).all()
    assert list(blocks((), (), 8, 100)) == [()]


def test_memory_does_not_grow_with_the_run(tmp_path, monkeypatch):
    from workbench.store import plain_files

    monkeypatch.setattr(plain_files, "BLOCK_BYTES", 200_000)
    peaks = []
    for steps in (500, 4000):
        folder = tmp_path / f"run{steps}"
        store = RunStore.create(folder / "store", Layout(layers=(0,), experts=128, k=2))
        with store.writer() as w:
            for first in range(0, steps, 500):
                counts = np.ones((500, 1, 128), "int64")
                w.append("router", {"step": np.arange(first, first + 500), "assignments": counts})
                w.commit("rows")
        tracemalloc.start()
        export(folder, tmp_path / f"{steps}.zarr")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 3,500 more steps are 3.6 MB of counts.
    assert peaks[1] - peaks[0] < 1_000_000


def test_the_command_says_what_it_wrote(run, tmp_path):
    runner = CliRunner()
    done = runner.invoke(export_command, [str(run), "--to", str(tmp_path / "a.zarr")])
    assert done.exit_code == 0, done.output
    assert "exported router, train, evaluations, activations, traces of demo" in done.output
    asked = [
        str(run),
        "--to",
        str(tmp_path / "b"),
        "--format",
        "zarr",
        "--group",
        "train",
        "--json",
    ]
    note = json.loads(runner.invoke(export_command, asked).output)
    assert (note["groups"], note["branch"], note["format"]) == (["train"], "main", "zarr")
    assert note["bytes"] > 0
    assert runner.invoke(export_command, [str(run), "--to", "x", "--format", "csv"]).exit_code == 2
