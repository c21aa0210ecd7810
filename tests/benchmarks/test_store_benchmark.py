"""The store's benchmarks run, and every way that takes part reads back what it wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("h5py")

ROOT = Path(__file__).parents[2]


def run(*arguments):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_way_reads_back_what_it_wrote(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "benchmarks"))
    import ways

    rows = ways.router_rows(1, 3)
    total = rows["domain_assignments"].sum(2)
    assert np.array_equal(total, rows["assignments"])
    for number, (name, make) in enumerate(ways.ROUTER.items()):
        way = make(tmp_path / str(number), rows)
        way.write(rows)
        way.close()
        if name == ways.BEHIND:
            continue
        opened = way.open()
        assert np.array_equal(way.layer(opened, 5), rows["assignments"][:, 5]), name
        assert np.array_equal(way.step(opened, 1), rows["assignments"][1]), name


@pytest.mark.slow
def test_the_benchmark_runs_and_writes_its_figures(tmp_path):
    table = run(
        ROOT / "tests/benchmarks/store.py",
        "--quick", "--rounds", 2, "--into", tmp_path, "--date", "2026-01-31",
    )  # fmt: skip
    said = json.loads((tmp_path / "store.json").read_text())
    assert said["date"] == "2026-01-31"
    assert said["router"]["raw file"]["times_raw"]["median"] == 1
    assert said["long"][0]["steps"] == 10_000
    assert "HDF5 SWMR" in table


@pytest.mark.slow
def test_the_orders_of_a_durable_commit_are_compared(tmp_path):
    run(ROOT / "tests/benchmarks/durable.py", "--commits", 2, "--into", tmp_path)
    said = json.loads((tmp_path / "store-durable.json").read_text())
    assert said["idle disk"].keys() == said["beside a big file"].keys()
