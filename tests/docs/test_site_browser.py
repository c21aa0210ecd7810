"""The site in a real browser: nothing is asked of others, nothing complains, formulas are drawn."""

from __future__ import annotations

import shutil

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.slow

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run"]  # fmt: skip
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PAGES = (
    "index",
    "generated/gallery",
    "generated/measures/balance",
    "reference/python",
    "generated/reference/workbench.run",
    "generated/tutorials/01_first_look",
    "overhead",
)


@pytest.fixture(scope="module")
def page():
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser found: none of {', '.join(NAMES)} is on the path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser.new_page(viewport={"width": 1200, "height": 900})
        browser.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_without_complaint_or_outside_request(site, page, name):
    told: list[str] = []
    page.on("console", lambda m: told.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on(
        "request", lambda r: None if r.url.startswith(("file:", "data:")) else told.append(r.url)
    )
    page.goto((site.home / f"{name}.html").as_uri())
    assert told == []
    assert page.evaluate("[...document.images].every(i => i.loading === 'lazy' || i.naturalWidth)")


def test_no_page_is_wider_than_its_window_but_what_scrolls_in_itself(site, page):
    for name in PAGES:
        page.goto((site.home / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), name


def test_a_formula_takes_the_room_of_a_formula(site, page):
    page.goto((site.home / "generated/measures/balance.html").as_uri())
    heights = page.eval_on_selector_all("div.formula math", "all => all.map(m => m.clientHeight)")
    assert len(heights) == 4
    assert min(heights) > 20
