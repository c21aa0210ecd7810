"""The package: its names are the probes, and importing it costs nothing."""

import importlib
import subprocess
import sys

import pytest

import probes


def test_importing_the_package_loads_no_array_library():
    code = "import sys, probes; print(sorted({'numpy', 'xarray', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", probes.__all__)
def test_every_public_name_is_callable_and_documented(name):
    assert callable(getattr(probes, name))
    assert getattr(probes, name).__doc__
    assert name in dir(probes)


def test_importing_a_probes_file_does_not_hide_the_probe_of_that_name():
    code = "import probes.balance, probes; print(callable(probes.balance))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
    assert importlib.import_module("probes.balance").balance is probes.balance


def test_an_unknown_probe_lists_the_known_ones():
    with pytest.raises(AttributeError, match="no 'entropy'; it has expert_load"):
        probes.entropy  # noqa: B018
