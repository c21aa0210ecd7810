"""`tiny_training`, the module beside this, importable by the tests of this folder; the record."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

# Tests are no packages: a module beside them is loaded by its path.
_spec = importlib.util.spec_from_file_location(
    "tiny_training", Path(__file__).with_name("tiny_training.py")
)
_module = importlib.util.module_from_spec(_spec)
sys.modules["tiny_training"] = _module
_spec.loader.exec_module(_module)


@pytest.fixture
def record(tmp_path):
    """The record that a test's training writes."""
    return _module.Record(tmp_path / "run")
