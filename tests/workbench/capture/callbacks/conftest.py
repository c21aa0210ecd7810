"""The modules beside this, `tiny_training` and `stand_ins`, for the tests of this folder."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


def _beside(name):
    # Tests are no packages: a module beside them is loaded by its path.
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


tiny_training = _beside("tiny_training")
_beside("stand_ins")


@pytest.fixture
def record(tmp_path):
    """The record that a test's training writes."""
    return tiny_training.Record(tmp_path / "run")
