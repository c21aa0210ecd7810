"""workbench probe, workbench compare: what they print, what they keep, what they leave with."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import xarray as xr

import workbench as wb
from probes import registry, subject
from probes.registry import probe
from workbench.app import cli, probe_files
from workbench.app.probe_text import as_plain, as_text, quantities


@pytest.fixture(autouse=True)
def _own_probes_are_forgotten():
    registry.names()  # what is imported once is not marked again
    before = dict(registry._KNOWN)

    @probe("norms", question="How large are the routers?", reads="checkpoint")
    def norms(subject, scale=1.0):
        """Norm of each router."""
        values = [scale * w.norm().item() for w in subject.router_weights]
        return xr.Dataset({"norm": ("layer", values, {"units": "1"})})

    yield
    registry._KNOWN.clear()
    registry._KNOWN.update(before)


@pytest.fixture
def run_path(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "run")


@pytest.fixture
def ask(capsys):
    def run(*arguments):
        code = 0
        try:
            cli.main([str(a) for a in arguments])
        except SystemExit as left:
            code = left.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_a_probe_is_run_told_and_kept(ask, run_path, monkeypatch):
    code, out, _ = ask("probe", run_path, "norms", "--branch", "curriculum")
    assert code == 0
    assert out.startswith("norms: 10 checkpoints, 0 to 30 x 2 layer\n  norm ")
    monkeypatch.setattr(subject, "build_model", None)  # whoever loads a model now fails
    assert ask("probe", run_path, "norms", "--branch", "curriculum") == (0, out, "")


def test_json_holds_every_number(ask, run_path):
    code, out, _ = ask("probe", run_path, "norms", "--at-most", "2", "--json")
    assert code == 0
    found = json.loads(out)["norms"]
    assert found["coords"]["checkpoint"]["data"] == [0, 24]
    run = wb.open_run(run_path)
    kept = run.results.open(next(r for r in run.results.list("norms") if "each" in r.inputs))
    assert found["data_vars"]["norm"]["data"] == kept["norm"].values.tolist()


def test_fewer_checkpoints_leave_the_record_whole(ask, run_path):
    code, out, _ = ask("probe", run_path, "load", "norms", "--at-most", "3", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["norms"]["coords"]["checkpoint"]["data"] == [0, 12, 24]
    _, whole, _ = ask("probe", run_path, "load", "--json")
    assert found["load"]["coords"]["step"] == json.loads(whole)["load"]["coords"]["step"]
    code, out, _ = ask("probe", run_path, "load", "--at-most", "2", "--start", "8", "--json")
    assert code == 0
    assert json.loads(out)["load"]["coords"]["step"]["data"][0] == 9


def test_parameters_and_windows_are_passed_on(ask, run_path):
    _, once, _ = ask("probe", run_path, "norms", "--start", "8", "--stop", "20", "--json")
    _, twice, _ = ask(
        "probe", run_path, "norms", "--start", "8", "--stop", "20", "--json", "--set",
        "norms.scale=2",
    )  # fmt: skip
    one, two = (json.loads(text)["norms"] for text in (once, twice))
    assert one["coords"]["checkpoint"]["data"] == [12, 16, 20]
    once, twice = (np.array(found["data_vars"]["norm"]["data"]) for found in (one, two))
    np.testing.assert_allclose(twice, 2 * once)
    assert once.shape == (3, 2)


@pytest.mark.parametrize("end", [".csv", ".json", ".nc"])
def test_one_result_can_be_written_as_a_file(ask, run_path, tmp_path, end):
    out = tmp_path / "new" / f"norms{end}"
    code, said, _ = ask("probe", run_path, "norms", "-o", out)
    assert code == 0
    assert said.rstrip().endswith(str(out))
    if end == ".csv":
        rows = list(csv.DictReader(out.read_text().splitlines()))
        assert len(rows) == 7 * 2
        assert {row["variable"] for row in rows} == {"norm"}
        assert float(rows[0]["value"]) > 0
    elif end == ".nc":
        assert xr.open_dataset(out, engine="h5netcdf")["norm"].dims == ("checkpoint", "layer")
    else:
        assert json.loads(out.read_text())["dims"] == {"checkpoint": 7, "layer": 2}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nothing-like-it"], 3, "no probe 'nothing-like-it'"),
        (["norm"], 3, "did you mean 'norms'?"),
        (["norms", "--set", "norms.size=2"], 2, "it takes scale"),
        (["norms", "--set", "scale"], 2, "PROBE.NAME=VALUE"),
        (["norms", "balance", "-o", "x.csv"], 2, "expected one probe"),
        (["norms", "-o", "x.txt"], 2, ".csv, .json, .nc"),
        (["norms", "--branch", "elsewhere"], 3, "no branch 'elsewhere'"),
        (["weight-change", "--against", "later"], 2, "'final', 'first', 'previous', 'fork'"),
        (["weight-change", "--against", "²"], 2, "'final', 'first', 'previous', 'fork'"),
        (["weight-change", "--against", "9" * 5000], 2, "'final', 'first', 'previous', 'fork'"),
        (["norms", "-o", "/proc/nope/x.csv"], 2, "cannot be written there"),
        (["norms", "--client", "tcp://127.0.0.1:1"], 2, "no scheduler answers"),
    ],
)
def test_what_cannot_be_is_one_line_and_its_exit_code(ask, run_path, arguments, code, says):
    left, out, err = ask("probe", run_path, *arguments)
    assert (left, out) == (code, "")
    assert says in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("end", [".csv", ".json", ".nc"])
def test_where_no_file_can_be_nothing_is_computed_and_nothing_is_left(
    ask, run_path, tmp_path, monkeypatch, end
):
    monkeypatch.setattr(subject, "build_model", None)
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").write_text("kept")
    for place in (f"file/x{end}", f"{'x' * 300}{end}", "folder.csv"):
        code, _, err = ask("probe", run_path, "norms", "-o", tmp_path / place)
        assert (code, "cannot be written there" in err) == (2, True)
    assert {p.name for p in tmp_path.iterdir()} == {"folder.csv", "file", "run"}


def test_a_failed_probe_leaves_no_file_and_what_was_there_before(ask, run_path, tmp_path):
    @probe("fails", question="What if?", reads="checkpoint")
    def fails(subject):
        raise ValueError("on purpose")

    (tmp_path / "old.csv").write_text("old")
    for name in ("old.csv", "new.csv"):
        assert ask("probe", run_path, "fails", "-o", tmp_path / name)[0] == 1
    assert (tmp_path / "old.csv").read_text() == "old"
    assert {p.name for p in tmp_path.iterdir()} == {"old.csv", "run"}


def test_what_netcdf_cannot_hold_is_told_and_leaves_no_file(ask, run_path, tmp_path):
    @probe("odd", question="What if?", reads="record")
    def odd(source):
        return xr.Dataset({"x": 1.0}, attrs={"settings": {"a": None}})

    code, _, err = ask("probe", run_path, "odd", "-o", tmp_path / "odd.nc")
    assert (code, ".json holds everything" in err) == (1, True)
    assert {p.name for p in tmp_path.iterdir()} == {"run"}


def test_the_table_has_one_row_a_value_with_its_bounds_beside():
    ds = xr.Dataset(
        {
            "a": (("step", "expert"), [[1.0, 2.0], [3.0, float("nan")]], {"units": "nats"}),
            "a_low": (("expert", "step"), [[0.0, 2.0], [1.0, 3.0]]),
            "a_high": ("expert", [8.0, 9.0]),
            "value": ("variable", ["x,\n", "y"]),
            "total": ((), True),
        },
        coords={
            "step": [10, 20],
            "tokens": ("step", [100, 200]),
            "when": np.datetime64("2020", "D"),
        },
    )
    names, *rows = probe_files.long_rows(ds)
    assert names == [
        "variable", "step", "expert", "variable", "tokens", "when", "value", "low", "high", "unit"
    ]  # fmt: skip
    assert rows == [
        ["a", 10, 0, "", 100, "2020-01-01T00:00:00", 1.0, 0.0, 8.0, "nats"],
        ["a", 10, 1, "", 100, "2020-01-01T00:00:00", 2.0, 1.0, 9.0, "nats"],
        ["a", 20, 0, "", 200, "2020-01-01T00:00:00", 3.0, 2.0, 8.0, "nats"],
        ["a", 20, 1, "", 200, "2020-01-01T00:00:00", "", 3.0, 9.0, "nats"],
        ["value", "", "", 0, "", "2020-01-01T00:00:00", "x,\n", "", "", ""],
        ["value", "", "", 1, "", "2020-01-01T00:00:00", "y", "", "", ""],
        ["total", "", "", "", "", "2020-01-01T00:00:00", True, "", "", ""],
    ]


def test_compare_tells_each_arm_against_the_baseline(ask, two_arm_run):
    code, out, _ = ask("compare", two_arm_run)
    assert code == 0
    assert "curriculum less continue: better on 1" in out
    row = next(line for line in out.splitlines() if line.startswith("code "))
    assert row.rstrip().endswith("yes")
    code, out, _ = ask("compare", two_arm_run, "--json")
    assert json.loads(out)["curriculum"]["baseline"] == "continue"


def test_comparing_what_is_not_there_says_so(ask, two_arm_run, planted_run):
    assert ask("compare", two_arm_run, "--arm", "curiculum")[0] == 3
    code, _, err = ask("compare", planted_run("alone", arms=False))
    assert code == 3
    assert "two arms with evaluations" in err


def test_text_is_safe_for_any_dataset():
    evil = "a\x1b[31m\n<b>"
    ds = xr.Dataset(
        {
            evil: ("checkpoint", [1.0, float("nan")], {"units": evil}),
            "words": ("checkpoint", ["x", "y"]),
            "flag": ("checkpoint", [True, False]),
            "open": ("checkpoint", [0.0, float("inf")]),
            "x": ((), 2.0),
            "x_low": ((), 1.0),
            "x_high": ((), 3.0),
        },
        coords={"checkpoint": [0, 80]},
    )
    said = as_text(evil, ds)
    assert "\x1b" not in said
    assert "x                          2 (1 to 3)" in said
    assert "1 -> unknown" in said
    assert quantities(ds) == [evil, "flag", "open", "x"]
    plain = as_plain(ds)
    assert json.loads(json.dumps(plain))["data_vars"]["open"]["data"] == [0.0, None]


def test_an_empty_result_is_told_as_empty():
    assert as_text("none", xr.Dataset()) == "none: one value"
    empty = xr.Dataset({"x": ("checkpoint", [])}, coords={"checkpoint": []})
    assert "unknown" in as_text("none", empty)
