"""The site is built without a warning, leads nowhere that is not there, and fetches nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from building import command_pages, measure_pages, reference_pages

import probes
import workbench as wb
from workbench import figures
from workbench.app.plots import questions

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def test_every_page_that_the_index_promises_is_there(site):
    wanted = ["index", "tutorials", "measures", "intervals", "overhead", "benchmarks", "changelog",
              "reliability", "comparison", "log", "contributing", "reference/python", "screens",
              "reference/command-line", "generated/gallery", "generated/reference/record",
              "how-to/record", "how-to/read", "how-to/ask", "genindex", "search"]  # fmt: skip
    assert [name for name in wanted if not site.has(name)] == []


def test_every_probe_has_a_page_with_its_formula_drawn(site):
    for name in measure_pages.ours():
        text = site.text(f"generated/measures/{name}")
        assert "<math" in text, name
        for part in ("Range", "Chance", "When it misleads", "Source"):
            assert part in text, (name, part)


def test_every_figure_has_a_page_and_a_card_in_the_gallery(site):
    gallery = site.text("generated/gallery")
    for name, _ in questions():
        assert site.has(f"generated/figures/{name}"), name
        assert f"figures/{name}.html" in gallery, name


def test_every_command_has_a_page_that_names_its_options(site):
    for full, command in command_pages.every_command():
        text = site.text(f"generated/commands/{command_pages.page_name(full)}")
        for option in command.params:
            longest = max(option.opts, key=len)
            assert not longest.startswith("--") or longest in text, (full, longest)


def test_every_public_name_stands_in_the_reference(site):
    text = site.text("reference/python")
    for package, shown in ((wb, "wb"), (probes, "probes"), (figures, "wb.figures")):
        names = [name for name in package.__all__ if not name.startswith("__")]
        missing = [f"{shown}.{name}" for name in names if f"{shown}.{name}<" not in text]
        assert not missing


def test_every_file_of_the_reference_describes_something(site):
    parts = reference_pages.files(ROOT / "docs")
    empty = [
        module
        for modules in parts.values()
        for module in modules
        if 'class="sig ' not in site.text(f"generated/reference/{module}")
    ]
    assert not empty


def test_every_notebook_is_a_tutorial(site):
    books = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert books
    assert all(site.has(f"generated/tutorials/{path.stem}") for path in books)


def test_no_link_within_the_site_is_broken(site):
    assert site.broken() == []


def test_no_page_fetches_anything_from_elsewhere(site):
    fetched = {
        f"{path.relative_to(site.home)}: {source}"
        for path, page in site.pages.items()
        for source in page.loaded
        if source.startswith(("http:", "https:", "//"))
    }
    assert not fetched
