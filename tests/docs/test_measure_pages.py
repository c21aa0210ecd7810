"""Every measure says its formula, range, chance level, when it misleads and whose idea it is."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from building import measure_pages
from building.figure_pages import THEMES
from building.headers import header_of
from docutils.utils.math.latex2mathml import tex2mathml

from probes.registry import find

DOCS = Path(__file__).parents[2] / "docs"
MEASURES = measure_pages.measures(DOCS)


def test_no_measure_is_described_that_is_not_there_and_none_is_left_out():
    assert set(MEASURES) == set(measure_pages.ours())


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_a_measure_says_all_that_its_readers_need(name):
    entry = MEASURES[name]
    assert entry["theme"] in set(THEMES) - {"run"}
    assert all(entry[part].strip() for part in ("where", "range", "chance"))
    assert entry["formula"]
    header = header_of(find(name).module)
    assert "misleads" in header.misleads
    source = measure_pages.source_of(header, entry)
    assert any(sign.isdigit() for sign in source) or "house" in source


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_a_formula_is_drawn_without_a_script(name):
    for line in MEASURES[name]["formula"]:
        text = tex2mathml(line, as_block=True)
        drawn = ElementTree.fromstring(text.replace("&ApplyFunction;", "").replace("&nbsp;", " "))
        assert drawn.tag.endswith("math")
        assert "\\" not in "".join(drawn.itertext())


def test_every_theme_of_the_measures_is_introduced():
    page = (DOCS / "measures.md").read_text(encoding="utf-8")
    themes = {entry["theme"] for entry in MEASURES.values()}
    assert [t for t in themes if f"tables/measures-{t}.md" not in page] == []
