"""The report in a real browser: it draws, keeps to itself, and runs no script but its own."""

from __future__ import annotations

import shutil

import pytest

import workbench as wb
from workbench import figures
from workbench.app.plots import draw
from workbench.app.report import render
from workbench.app.study import Study

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run"]  # fmt: skip
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
EVIL = "<script>alert(1)</script>\"'&<b>%{x}</b>"


@pytest.fixture(scope="module")
def browser():
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser found: none of {', '.join(NAMES)} is on the path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


class Opened:
    """A page opened from a file, and everything that went wrong while it loaded."""

    def __init__(self, browser, path, **options):
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page(viewport={"width": 1200, "height": 900}, **options)
        self.page.on("console", lambda m: self.complaints.append(f"{m.type}: {m.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(f"page error: {error}"))
        self.page.on("dialog", lambda d: (self.complaints.append(d.message), d.dismiss()))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-drawn=all]", timeout=60_000)


@pytest.fixture(scope="module")
def hostile(browser, planted_run, tmp_path_factory):
    """The report of a run whose every name is hostile, opened."""
    names = {"code/add": f"code/{EVIL}", "logic/chain": "logic/" + "x" * 10_000}
    about = {"name": EVIL, "phases": [{"name": "warm-up", "start": 1, "stop": 39},
                                      {"name": EVIL, "start": 40, "stop": 100}]}  # fmt: skip
    path = tmp_path_factory.mktemp("pages") / "report.html"
    run = wb.open_run(planted_run("hostile-seen", names=names, about=about))
    path.write_text(render(Study(run, n_boot=50)), encoding="utf-8")
    opened = Opened(browser, path)
    yield opened
    opened.page.close()


def test_the_report_opens_without_complaint_and_asks_for_nothing_but_itself(hostile):
    assert hostile.complaints == []
    assert len(hostile.requests) == 1
    assert hostile.requests[0].startswith("file:")


def test_every_figure_drew(hostile):
    drawn = hostile.page.eval_on_selector_all(
        ".plot",
        """places => places.map(p => ({id: p.id,
            marks: p.querySelectorAll('svg.main-svg .trace, svg.main-svg .hm image').length,
            wide: p.getBoundingClientRect().width, done: p.dataset.drawn}))""",
    )
    assert [d["id"] for d in drawn] == [
        "loss", "emergence", "lead-lag", "arms-0", "router-load-0", "router-load-1", "balance",
        "saturation",
    ]  # fmt: skip
    assert all(d["done"] == "yes" and d["marks"] > 0 and d["wide"] > 600 for d in drawn)


def test_no_button_shares_a_chart_and_no_logo_leads_away(hostile):
    buttons = hostile.page.eval_on_selector_all(
        ".modebar-btn", "all => all.map(b => b.dataset.title || '')"
    )
    assert buttons
    assert not [b for b in buttons if "share" in b.lower() or "cloud" in b.lower()]
    assert hostile.page.locator(".plotlyjsicon, .modebar a[href]").count() == 0


def test_hostile_names_are_shown_letter_by_letter(hostile):
    assert EVIL in hostile.page.inner_text("h1")
    labels = hostile.page.eval_on_selector_all(
        ".plot text", "all => all.map(t => t.textContent.replaceAll('\\u00a0', ' '))"
    )
    assert any(label.startswith(EVIL[:20]) for label in labels)  # a task, in the forest
    assert any(label.startswith(f"code / {EVIL[:16]}") for label in labels)  # its panel
    assert any(EVIL[:20] in label for label in labels)
    assert hostile.page.locator(".plot a, main b, main script:not(.plot-data)").count() == 0


def test_hover_text_shows_a_hostile_name_as_text(hostile):
    place = hostile.page.locator(".plot[id^='arms']")
    place.scroll_into_view_if_needed()
    place.locator(".point, .scatterpts path, path.point").last.hover(force=True)
    hover = place.locator(".hoverlayer .hovertext").first.text_content()
    assert "<script>alert(1)</script>" in hover.replace("\u00a0", " ")


def test_an_injected_script_would_not_run(hostile):
    hostile.page.evaluate(
        """() => { const s = document.createElement('script');
                   s.textContent = 'window.injected = 1'; document.body.append(s); }"""
    )
    assert hostile.page.evaluate("window.injected") is None
    assert any("Content Security Policy" in c for c in hostile.complaints)
    hostile.complaints.clear()


def test_the_keyboard_alone_reaches_the_tables_and_the_code(hostile):
    page = hostile.page
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.textContent.trim().slice(0, 40)"))
    assert "Skip to the report" in reached
    assert "The numbers as a table" in reached
    unfold = page.locator("figure:has(#loss) details").first
    unfold.locator("summary").press("Enter")
    assert unfold.evaluate("details => details.open")


def test_axe_finds_no_serious_violation_on_the_report(hostile):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing")
    found = axe.Axe().run(hostile.page).response["violations"]
    grave = [v["id"] for v in found if v["impact"] in ("serious", "critical")]
    assert grave == []


def test_a_single_figure_is_a_page_with_the_same_manners(browser, two_arm_run, tmp_path):
    path = tmp_path / "load.html"
    figure = draw("router-load", wb.open_run(two_arm_run))
    path.write_text(figures.to_html(figure), encoding="utf-8")
    opened = Opened(browser, path)
    assert opened.complaints == []
    assert len(opened.requests) == 1
    assert opened.page.locator(".plot .hm image").count() >= 2
    buttons = opened.page.eval_on_selector_all(".modebar-btn", "all => all.map(b => b.outerHTML)")
    assert buttons
    assert not any("share" in button.lower() for button in buttons)
    opened.page.close()


def test_on_paper_nothing_is_cut_off(hostile):
    page = hostile.page
    page.set_viewport_size({"width": 688, "height": 900})  # A4 less its margins
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function("document.querySelector('.plot svg').clientWidth === 680")
    assert page.evaluate("document.documentElement.scrollWidth") <= 688
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
