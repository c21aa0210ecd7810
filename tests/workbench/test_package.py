"""The package itself: quick to import, and not to be confused with other people's names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import workbench as wb

HOME = Path(wb.__file__).parent.parent


def run(code, folder, *, first=""):
    """Run `code` in `folder`, which is first on the path, as it is for a script that lies there."""
    path = os.pathsep.join(filter(None, [first, str(HOME)]))
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


def test_importing_the_package_imports_nothing_heavy(tmp_path):
    code = (
        "import sys, workbench as wb\n"
        "heavy = {'numpy', 'torch', 'xarray', 'zarr', 'icechunk', 'plotly'} & set(sys.modules)\n"
        "print(sorted(heavy), wb.__version__)"
    )
    assert run(code, tmp_path).stdout == f"[] {wb.__version__}\n"


def test_public_names_are_there_when_asked_for():
    assert callable(wb.open_run)
    assert wb.figures.__name__ == "workbench.figures"
    assert wb.testing.__name__ == "workbench.testing"
    assert wb.Recorder.__module__ == "workbench.capture.recorder"
    assert set(wb.__all__) <= set(dir(wb))
    with pytest.raises(AttributeError, match=r"no attribute 'open'; it offers .*'open_run'"):
        _ = wb.open


@pytest.mark.parametrize("name", ["model", "probes", "checkpoints_index"])
@pytest.mark.parametrize("kind", ["file", "package"])
def test_a_foreign_package_of_one_of_our_names_is_refused_by_name(tmp_path, name, kind):
    foreign = tmp_path / (f"{name}.py" if kind == "file" else f"{name}/__init__.py")
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("colour = 'red'\n")
    done = run("import workbench", tmp_path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: 'import {name}' finds {foreign}, not the workbench's own")
    assert str(HOME / name) in last


def test_a_folder_of_weights_called_model_shadows_nothing(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_text("")
    done = run("import workbench; from model.config import NANO; print('ours')", tmp_path)
    assert done.stdout == "ours\n", done.stderr


def test_a_module_that_was_put_in_by_hand_is_refused_too(tmp_path):
    code = (
        "import sys, types; m = types.ModuleType('model'); m.__spec__ = None\n"
        "sys.modules['model'] = m\n"
        "import workbench"
    )
    last = run(code, tmp_path).stderr.splitlines()[-1]
    assert "a module 'model' that is not the workbench's was imported already" in last
