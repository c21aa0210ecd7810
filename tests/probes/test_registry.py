"""The registry: whose probe a name means, and when what is kept is another function's."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import EntryPoint

import pytest

from probes import registry
from probes.registry import BROKEN, find, names
from workbench.errors import RunNotFound, UsageError

MARK = """
import xarray as xr
from probes.registry import probe

@probe("{name}", question="What?", reads="record")
def measure(source):
    return xr.Dataset({{"x": {value}}})
"""


@pytest.fixture(autouse=True)
def _as_it_was():
    names()
    known, broken, found = dict(registry._KNOWN), dict(BROKEN), dict(registry._FOUND)
    modules = set(sys.modules)
    yield
    for now, before in ((registry._KNOWN, known), (BROKEN, broken), (registry._FOUND, found)):
        now.clear()
        now.update(before)
    for name in set(sys.modules) - modules:
        if name.startswith("theirs_"):
            del sys.modules[name]


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Packages with these texts, found as installed ones are."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(**texts):
        for module, text in texts.items():
            (tmp_path / f"{module}.py").write_text(text)
        importlib.invalidate_caches()
        entries = [EntryPoint(module, module, registry.GROUP) for module in texts]
        monkeypatch.setattr(registry, "entry_points", lambda group: entries)
        registry._FOUND["others"] = False
        return names()

    return install


def run_cell(text):
    """As a cell of a notebook whose text cannot be had."""
    space = {"__name__": "__main__"}
    exec(text, space)
    return space


def test_of_two_packages_with_one_name_the_first_stays_and_the_other_is_told(install):
    install(
        theirs_a=MARK.format(name="clash", value=1),
        theirs_b=MARK.format(name="half", value=2) + MARK.format(name="clash", value=2),
        theirs_c=MARK.format(name="alone", value=3),
    )
    assert find("clash").module == "theirs_a"
    assert find("alone").module == "theirs_c"
    assert list(BROKEN) == ["theirs_b"]
    assert "theirs_a and theirs_b" in BROKEN["theirs_b"]
    assert "half" not in names()
    with pytest.raises(RunNotFound, match="theirs_a and theirs_b"):
        find("half")


def test_a_package_cannot_replace_a_probe_of_ours(install):
    ours = find("capability")
    install(theirs_d=MARK.format(name="capability", value=1))
    assert find("capability") is ours
    assert "theirs_d" in BROKEN["theirs_d"]


def test_a_module_that_is_imported_again_replaces_its_own(install):
    install(theirs_e=MARK.format(name="again", value=1))
    first = find("again")
    importlib.reload(sys.modules["theirs_e"])
    assert find("again").function is not first.function


def test_a_notebooks_function_goes_before_an_installed_one_whichever_came_first(install):
    run_cell(MARK.format(name="early", value=1))
    install(theirs_f=MARK.format(name="early", value=2) + MARK.format(name="late", value=2))
    run_cell(MARK.format(name="late", value=1))
    for name in ("early", "late"):
        assert find(name).function(None)["x"] == 1
    assert BROKEN == {}


def test_an_edited_cell_has_another_key_and_the_same_cell_the_same():
    keys = []
    for value in ("1", "2", "1", "sum({1, 2})", "sum(i for i in (1, 2))", "sum(i for i in (1, 3))"):
        run_cell(MARK.format(name="cell", value=value))
        keys.append(find("cell").key_version)
    assert keys[0] == keys[2]
    assert len(set(keys)) == 5
    assert all(key.startswith("1+") for key in keys)


def test_an_edited_script_has_another_key_by_its_text(tmp_path):
    script = tmp_path / "script.py"
    keys = []
    for value in (1, 22, 1):
        script.write_text(MARK.format(name="script", value=value))
        exec(compile(script.read_text(), str(script), "exec"), {"__name__": "__main__"})
        keys.append(find("script").key_version)
    assert keys[0] == keys[2] != keys[1]


def test_the_finish_of_a_cell_is_part_of_its_key():
    text = MARK.replace('reads="record"', 'reads="record", finish=lambda ds: ds + {finish}')
    keys = set()
    for finish in (1, 2):
        run_cell(text.format(name="finished", value=1, finish=finish))
        keys.add(find("finished").key_version)
    assert len(keys) == 2


def test_ours_are_kept_by_version_alone_and_others_by_their_package_too(install):
    assert find("capability").key_version == str(find("capability").version)
    install(theirs_g=MARK.format(name="kept", value=1))
    before = find("kept").key_version
    assert before == "1+theirs_g"
    install(theirs_g="", theirs_h=MARK.format(name="kept-too", value=1))
    assert find("kept-too").key_version != before


def test_a_name_taken_is_refused_where_it_is_imported_by_hand(install, tmp_path):
    install(theirs_i=MARK.format(name="taken", value=1))
    (tmp_path / "theirs_j.py").write_text(MARK.format(name="taken", value=1))
    with pytest.raises(UsageError, match="theirs_i and theirs_j"):
        importlib.import_module("theirs_j")


FACTORY = """
import numpy as np
import xarray as xr
from probes.registry import probe

def make(value, default):
    def inner():
        return value

    @probe("made", question="?", reads="checkpoint")
    def made(subject, default=default):
        return xr.Dataset({"x": inner()})

for value, default in WORLDS:
    make(value, default)
"""


@pytest.mark.parametrize(
    ("one", "other"), [((1, 0), (2, 0)), ((1, 0), (1, 3)), (([1, {"a": 2}], 0), ([1, {"a": 3}], 0))]
)
def test_probes_of_one_text_are_told_apart_by_what_they_hold(one, other):
    digests = []
    for world in (one, other, one):
        run_cell(FACTORY.replace("WORLDS", repr([world])))
        assert find("made").lasting
        digests.append(find("made").key_version)
    assert digests[0] != digests[1]
    assert digests[0] == digests[2]


def test_a_probe_that_holds_a_model_is_not_taken_for_another():
    run_cell(FACTORY.replace("WORLDS", "[(object(), 0)]"))
    assert not find("made").lasting
