"""The gallery's pictures are small, belong to figures that exist, and say what they show."""

from __future__ import annotations

import json
import re
from pathlib import Path

from building.figure_pages import THEMES, theme_of
from PIL import Image

from workbench.app.plots import questions

DOCS = Path(__file__).parents[2] / "docs"
PICTURES = sorted((DOCS / "gallery").glob("*.webp"))
TOLD = json.loads((DOCS / "gallery" / "gallery.json").read_text(encoding="utf-8"))["figures"]
NAMES = [name for name, _ in questions()]


def test_pictures_are_small_enough_for_a_repository():
    assert PICTURES
    assert [p.name for p in PICTURES if p.stat().st_size >= 20_000] == []
    assert sum(p.stat().st_size for p in PICTURES) < 600_000


def test_every_picture_is_of_a_figure_that_exists_and_has_words():
    assert {p.stem for p in PICTURES} == set(TOLD)
    assert set(TOLD) <= set(NAMES)
    assert all(entry["sentence"] and entry["title"] for entry in TOLD.values())


def test_a_picture_is_wide_enough_to_be_read():
    for picture in PICTURES:
        with Image.open(picture) as opened:
            width, height = opened.size
        assert width >= 400, picture.name
        assert height >= 100, picture.name


def test_no_words_of_a_picture_name_the_machine_that_drew_it():
    assert "/tmp" not in json.dumps(TOLD)
    assert all("open_run('runs/demo'" in entry["code"] for entry in TOLD.values() if entry["code"])


def test_every_figure_has_its_place_in_the_gallery():
    assert {theme_of(name, DOCS) for name in NAMES} <= set(THEMES)


def test_every_screen_is_shown_with_words_and_is_small():
    page = (DOCS / "screens.md").read_text(encoding="utf-8")
    screens = sorted((DOCS / "screens").glob("*"))
    assert screens
    for screen in screens:
        assert screen.stat().st_size < 100_000
        assert re.search(rf"!\[[^\]]{{20,}}\]\(screens/{screen.name}\)", page), screen.name
