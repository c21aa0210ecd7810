"""The GPU benchmark rehearses on a CPU, and its table is drawn from whatever files there are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*arguments):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def table(folder):
    return run(ROOT / "tests/benchmarks/gpu_table.py", folder)


def test_without_files_the_table_says_that_nobody_ran_it(tmp_path):
    assert table(tmp_path / "nowhere").startswith("Not run yet")


def test_a_rehearsal_times_every_contender_and_never_enters_the_table(tmp_path):
    path = run(
        ROOT / "tests/benchmarks/gpu_capture.py",
        "--device", "cpu", "--rounds", 2, "--steps", 2, "--into", tmp_path, "--date", "2026-01-31",
    ).strip()  # fmt: skip
    said = json.loads(Path(path).read_text())
    assert said["date"] == "2026-01-31"
    assert {"bare", "capture", "capture with traces", "hook with .item()", "hook writing JSON"} <= {
        *said["contenders"]
    }
    assert all(of["wall_ms"]["median"] > 0 for of in said["contenders"].values())
    # Two rounds of two steps; the step with which a tap begins is left out.
    assert said["host"]["capture"]["steps"] == 4
    assert table(tmp_path).startswith("Not run yet")

    said["device"] = "cuda"
    Path(path).write_text(json.dumps(said))
    drawn = table(tmp_path)
    assert "| capture with traces |" in drawn
    assert "2026-01-31" in drawn
