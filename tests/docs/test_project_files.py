"""What lies at the root for those who cite, report and contribute is well-formed and true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import workbench

ROOT = Path(__file__).parents[2]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[0-9]*.yml"))


def test_the_citation_names_the_version_that_is_here():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == workbench.__version__
    assert cited["cff-version"] == "1.2.0"
    assert {"title", "message", "authors", "license", "abstract"} <= set(cited)


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_has_what_the_site_that_shows_it_asks_for(form):
    told = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert told["name"]
    assert told["description"]
    names = [field["id"] for field in told["body"]]
    assert len(set(names)) == len(names)
    for field in told["body"]:
        assert field["type"] in {"input", "textarea", "dropdown", "checkboxes", "markdown"}
        assert field["attributes"]["label"]
    assert any(field.get("validations", {}).get("required") for field in told["body"])


def test_every_file_that_contributors_are_sent_to_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:docs|tests|workbench|probes|\.ci)/[\w/.*-]+)`", text)
    assert named
    assert [path for path in named if not list(ROOT.glob(path.rstrip("/")))] == []


def test_every_target_that_contributors_are_told_to_make_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make ([\w-]+)`", text):
        assert re.search(rf"^{target}:", makefile, re.M), target
