"""`make gpu-check`: everything that needs a GPU, in one command on a machine that has one.

Needs   Python 3.11 or newer with torch 2.11 or newer, Triton, numpy and pytest; no network, and
        nothing else of this project's requirements.
Yields  the tests of tests/gpu and of the Triton kernel, then the capture benchmark; two small JSON
        files in --into: what the tests said, and the benchmark's figures.

    python tests/gpu/check.py --into docs/measured [--quick] [--no-benchmark]

Exit codes: 0 all was checked; 1 a test or the benchmark failed; 2 something needed is missing;
3 there is no CUDA device: the tests were collected, and skipped for that reason.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("torch", "triton", "numpy", "pytest")
FAILED, MISSING, NO_DEVICE = 1, 2, 3


def tell(line: str) -> None:
    sys.stderr.write(f"gpu-check: {line}\n")


def run_tests(environment: dict[str, str], on_gpu: bool) -> tuple[int, dict[str, int]]:
    """pytest's exit code, and how many tests ended how."""
    # Without a GPU the kernel can at least be interpreted and compiled.
    without = [] if on_gpu else [ROOT / "tests/workbench/capture/test_route_stats_triton.py"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        here = ROOT / "tests" / "gpu"
        # Not tests/conftest.py: it stands on the whole workbench.
        done = subprocess.run(
            [
                sys.executable, "-m", "pytest", "-c", here / "gpu-check.ini", f"--rootdir={ROOT}",
                f"--confcutdir={here}", f"--junit-xml={report}", "-m", "not slow", here,
                *without,
            ],
            cwd=ROOT, env=environment, check=False,
        )  # fmt: skip
        said = ET.parse(report).getroot().find("testsuite") if report.exists() else None
    if said is None:
        return done.returncode or FAILED, {}
    counts = {k: int(said.get(k, "0")) for k in ("tests", "failures", "errors", "skipped")}
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    return done.returncode, {**counts, "passed": passed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "measured")
    parser.add_argument("--quick", action="store_true", help="fewer rounds of the benchmark")
    parser.add_argument("--no-benchmark", action="store_true")
    asked = parser.parse_args()
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        tell(
            f"{sys.executable} has no {', '.join(missing)}; expected {', '.join(NEEDED)}: run with "
            f"the Python that has them, make gpu-check PYTHON=python3."
        )
        return MISSING
    import torch
    import triton

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    tell(f"torch {torch.__version__}, triton {triton.__version__}, {device or 'no CUDA device'}")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    code, counts = run_tests(environment, device is not None)
    if device is None:
        tell(
            f"NOTHING WAS CHECKED ON A GPU: there is no CUDA device. {counts.get('skipped', 0)} "
            f"tests were skipped, {counts.get('passed', 0)} that need none passed."
        )
        return FAILED if code else NO_DEVICE
    asked.into.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    name = f"gpu-check-{device.replace(' ', '-').lower()}-{now:%Y-%m-%d-%H%M}.json"
    said = {
        "what": "gpu-check",
        "date": f"{now:%Y-%m-%d}",
        "machine": device,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "pytest_exit_code": code,
        **counts,
    }
    (asked.into / name).write_text(json.dumps(said, indent=1) + "\n")
    tell(f"wrote {asked.into / name}")
    if code:
        tell("tests failed; the benchmark is not run.")
        return FAILED
    if asked.no_benchmark:
        return 0
    command = [sys.executable, ROOT / "tests/benchmarks/gpu_capture.py", "--into", asked.into]
    command += ["--rounds", "4"] if asked.quick else []
    return (
        FAILED if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode else 0
    )


if __name__ == "__main__":
    sys.exit(main())
