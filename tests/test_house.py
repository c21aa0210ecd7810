"""The house: imports go down the floors, the README's tree is true, every docstring's line runs."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("model", "checkpoints_index", "workbench", "probes")
FLOOR = {"model": 0, "checkpoints_index": 0, "workbench": 1, "probes": 2, "workbench.app": 3}
SOURCES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module):
    homes = [home for home in FLOOR if f"{module}.".startswith(f"{home}.")]
    return FLOOR[max(homes, key=len)] if homes else None


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def test_imports_go_down_the_floors_only():
    climbs = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in SOURCES
        for line, name in imports_of(path)
        if (there := floor_of(name)) is not None
        and (here := floor_of(module_of(path))) is not None
        and (
            there > here
            or {module_of(path).split(".")[0], name.split(".")[0]} == {"model", "checkpoints_index"}
        )
    ]
    assert not climbs, "\n".join(climbs)


def test_the_readme_names_every_file_and_no_other():
    readme = (ROOT / "README.md").read_text()
    tree = readme.split("<!-- tree -->")[1]
    named = set(re.findall(r"^\s*([\w./-]+\.py)\b", tree, re.M))
    there = {p.name for p in SOURCES if p.name != "__init__.py"}
    assert {Path(n).name for n in named} == there


def test_no_file_is_called_for_what_it_is_not():
    refused = {"utils", "util", "common", "helpers", "helper", "misc"}
    assert not [p for p in SOURCES if p.stem in refused]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_says_what_it_is_and_its_examples_run(path):
    module = importlib.import_module(module_of(path))
    if path.read_text().strip():
        assert module.__doc__, f"{path}: no header"
    with warnings.catch_warnings():
        # Third parties' deprecations are not what an example shows.
        warnings.simplefilter("ignore", DeprecationWarning)
        result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
