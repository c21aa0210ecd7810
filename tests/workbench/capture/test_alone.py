"""What a GPU machine without a store needs imports with torch and numpy alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
CODE = """
import sys
import workbench.capture.tap, workbench.capture.traces, workbench.capture.adapters.router_site
heavy = ("xarray", "zarr", "icechunk", "plotly", "transformer_lens", "transformers", "pandas")
print([name for name in heavy if name in sys.modules])
"""


def test_op_accumulators_ring_and_tap_import_with_torch_and_numpy_alone():
    said = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "[]"
