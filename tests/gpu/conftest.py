"""What the tests of this folder stand on: torch, numpy and pytest alone, and a CUDA device.

With WORKBENCH_REHEARSE=1 they run on a CPU as far as they can: that shows that the tests are sound,
and nothing about a GPU.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Deterministic products, for those who compare bits; read when CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

REHEARSE = os.environ.get("WORKBENCH_REHEARSE") == "1"
NO_CUDA = "needs a CUDA device; this machine has none"


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and not (REHEARSE and "device" in item.fixturenames):
            item.add_marker(pytest.mark.skip(reason=NO_CUDA))


@pytest.fixture
def device() -> torch.device:
    """Where a test runs that could run anywhere; those that need CUDA itself take `cuda`."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def cuda() -> torch.device:
    """The CUDA device."""
    return torch.device("cuda")
