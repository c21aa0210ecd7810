"""The dashboard in a real browser, on a hostile run that another process is writing."""

from __future__ import annotations

import json
import time

import pytest
from axe_playwright_python.sync_playwright import Axe

from workbench.app.dashboard.view import PAGES

EVIL = "<script>alert(1)</script>\"'&<b>%{x}</b>"
STEPPED = ("overview", "layers", "compare", "emergence", "probes", "health")
"""Pages whose charts have steps on x."""

AXES = """[...document.querySelectorAll('.js-plotly-plot')].flatMap(p =>
    Object.keys(p._fullLayout).filter(k => /^xaxis[0-9]*$/.test(k)).map(k => p._fullLayout[k])
        .filter(a => p._fullLayout[a._name.replace('axis', '')] !== null))"""
DRAWN = """document.querySelectorAll('.panel').length > 0 &&
    ![...document.querySelectorAll('.missing')].some(p => p.innerText.startsWith('computing')) &&
    [...document.querySelectorAll('.plot')].every(p =>
        p.querySelector('svg.main-svg .trace, svg.main-svg .hm image'))"""


class Tab:
    """A page of the dashboard, and everything that went wrong in it."""

    def __init__(self, browser, url, width=1280):
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.context = browser.new_context(viewport={"width": width, "height": 900})
        self.page = self.context.new_page()
        self.page.on("console", lambda m: self.complaints.append(f"{m.type}: {m.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(f"page error: {error}"))
        self.page.on("dialog", lambda d: (self.complaints.append(d.message), d.dismiss()))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.url = url
        self.goto("")

    def goto(self, query):
        self.page.goto(self.url + query)
        self.until(DRAWN)

    def show(self, page):
        """Follows the link to a page of the dashboard."""
        link = self.page.locator("nav li").nth(PAGES.index(page)).locator("a")
        words = link.inner_text()
        link.click()
        current = "document.querySelector('nav [aria-current=page]').textContent"
        self.until(f"{current} === {json.dumps(words)} && {DRAWN}")

    def until(self, condition, seconds=20):
        """Waits for a condition in the page, looking at every frame that it draws."""
        # Not wait_for_function: what it evaluates later our Content-Security-Policy forbids.
        self.page.evaluate(
            f"""() => new Promise((done, fail) => {{
                const began = performance.now();
                const look = () => {{
                    let ok = false;
                    try {{ ok = ({condition}); }} catch (error) {{ ok = false; }}
                    if (ok) done();
                    else if (performance.now() - began > {1000 * seconds})
                        fail(new Error({json.dumps(condition)}));
                    else requestAnimationFrame(look);
                }};
                look();
            }})"""
        )

    def ranges(self):
        """Range of every x axis on the page that counts steps."""
        found = self.page.evaluate(
            f"""() => ({AXES}).filter(a => a.type === 'linear').map(a => a.range)"""
        )
        # A difference between arms is in accuracy or nats.
        return [(low, high) for low, high in found if high > 10]

    def close(self):
        self.context.close()


@pytest.fixture(scope="module")
def tab(browser, served):
    tab = Tab(browser, served.url)
    yield tab
    tab.close()


@pytest.fixture(autouse=True)
def nothing_is_complained_of(request):
    yield
    if "tab" in request.fixturenames:
        tab = request.getfixturevalue("tab")
        assert tab.complaints == []
        assert [r for r in tab.requests if not r.startswith((tab.url, "data:", "blob:"))] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_page_loads_and_asks_nobody_else(tab, page):
    tab.show(page)
    assert tab.page.locator(".panel").count() >= 1
    assert "code 500" not in tab.page.content()


@pytest.mark.parametrize("page", STEPPED)
def test_the_scrubber_moves_all_panels(tab, page):
    tab.goto(f"?page={page}")
    before = tab.ranges()
    assert before
    tab.page.fill("#start", "30")
    tab.page.keyboard.press("Enter")
    tab.until("location.search.includes('start=30')")
    tab.page.fill("#stop", "70")
    tab.page.keyboard.press("Enter")
    tab.until("location.search.includes('stop=70')")
    tab.until(f"{AXES}.filter(a => a.type === 'linear').every(a => a.range[1] < 75) && {DRAWN}")
    after = tab.ranges()
    assert len(after) == len(before)
    assert all(27 <= low < high <= 73 for low, high in after)


def test_the_slider_moves_by_keyboard_and_moves_the_numbers(tab):
    tab.goto("?page=overview&start=30&stop=70")
    thumb = tab.page.get_by_role("slider").first
    thumb.focus()
    for _ in range(20):  # quicker than answers come: none may undo a later press
        tab.page.keyboard.press("ArrowRight")
    tab.until("location.search.includes('start=50')")
    tab.until("document.getElementById('start').value === '50'")
    assert thumb.get_attribute("aria-valuenow") == "50"
    tab.page.get_by_role("slider").last.focus()
    tab.page.keyboard.press("End")
    tab.until("!location.search.includes('stop=')")
    tab.until("document.getElementById('stop').value === ''")
    tab.page.get_by_role("link", name="Whole run").click()
    tab.until("!location.search.includes('start=')")


def test_an_answer_that_comes_late_leaves_what_was_moved_meanwhile(tab):
    tab.goto("?page=layers&start=30&stop=70")
    held = []
    tab.page.route("**/_dash-update-component*", lambda route: held.append(route))
    thumb = tab.page.get_by_role("slider").first
    thumb.focus()
    with tab.page.expect_request(lambda request: "start=31" in (request.post_data or "")):
        tab.page.keyboard.press("ArrowRight")
    tab.page.fill("#layer", "1")
    tab.page.keyboard.press("Enter")
    thumb.focus()
    tab.page.keyboard.press("ArrowRight")
    for route in held:
        route.continue_()
    tab.page.unroute("**/_dash-update-component*")
    tab.until("document.getElementById('start').value === '32'")
    tab.until("location.search.includes('start=32') && location.search.includes('layer=1')")
    assert thumb.get_attribute("aria-valuenow") == "32"


def test_a_probe_is_chosen_by_its_link_which_brings_it_back(tab, browser):
    tab.goto("?page=probes")
    names = tab.page.locator("#panel-probe a")
    assert names.all_inner_texts() == ["balance", "load"]
    assert tab.page.locator("#title-found").inner_text() == "balance"
    names.nth(1).click()
    tab.until(f"document.getElementById('title-found').textContent === 'load' && {DRAWN}")
    assert "probe=load" in tab.page.url
    said = tab.page.locator("#panel-found figcaption").inner_text()
    other = Tab(browser, tab.url)
    try:
        other.goto(tab.page.evaluate("location.search"))
        assert other.page.locator("#panel-found figcaption").inner_text() == said
        assert other.page.locator("#panel-probe [aria-current]").inner_text() == "load"
    finally:
        other.close()


def test_what_is_typed_and_makes_no_range_is_put_right(tab):
    tab.goto("?start=30&stop=70")
    for name, typed, query in [
        ("start", "soon", "start=30&stop=70"), ("stop", "-5", "start=30&stop=70"),
        ("start", "80", "start=80"), ("stop", "50", "stop=50"), ("stop", "1e9", "stop=50"),
        ("start", " 4 0 ", "stop=50&start=40"), ("stop", "9,999,999", "start=40"),
        ("start", "", ""),
    ]:  # fmt: skip
        tab.page.fill(f"#{name}", typed)
        tab.page.keyboard.press("Enter")
        tab.until(f"location.search.replace('?', '') === {json.dumps(query)}")
        wanted = dict(pair.split("=") for pair in query.split("&") if pair)
        for field, empty in (("start", "0"), ("stop", "")):
            value = json.dumps(wanted.get(field, empty))
            tab.until(f"document.getElementById('{field}').value === {value}")


def test_a_pasted_link_restores_the_view(tab, browser):
    tab.goto("")
    tab.show("layers")
    tab.page.get_by_role("link", name="continue").click()
    tab.until("location.search.includes('arm=continue')")
    tab.page.get_by_role("link", name="tokens", exact=True).click()
    tab.until("location.search.includes('clock=tokens')")
    for name, value in {"layer": 1, "expert": 5, "start": 20, "stop": 90}.items():
        tab.page.fill(f"#{name}", str(value))
        tab.page.keyboard.press("Enter")
        tab.until(f"location.search.includes('{name}={value}')")
    tab.until(f"document.getElementById('title-expert-load').textContent.includes('5') && {DRAWN}")
    tab.until(f"{AXES}.every(a => a.range[1] < 95 * 64)")
    look = """() => ({
        titles: [...document.querySelectorAll('h2')].map(h => h.textContent),
        words: [...document.querySelectorAll('.words')].map(w => w.textContent),
        numbers: ['layer', 'expert', 'start', 'stop'].map(i => document.getElementById(i).value),
        chosen: [...document.querySelectorAll('[aria-current]')].map(a => a.textContent),
        drawn: [...document.querySelectorAll('.js-plotly-plot')].map(p => p._fullData.length)})"""
    other = Tab(browser, tab.url)
    other.goto(tab.page.evaluate("location.search"))
    assert other.page.evaluate(look) == tab.page.evaluate(look)
    assert other.complaints == []
    other.close()
    tab.page.go_back()
    tab.until("!location.search.includes('stop=90')")
    tab.until("document.getElementById('stop').value === ''")


def test_new_steps_appear_within_five_seconds(tab, writer):
    tab.goto("?page=overview")
    began = time.monotonic()
    for commit in (False, True):
        last = writer.steps(7)
        if commit:
            writer.commit()
        began = time.monotonic()
        tab.until(f"document.getElementById('pulse').textContent.includes('step {last:,}')")
        tab.until(
            "[...document.querySelectorAll('.js-plotly-plot')].every(p =>"
            f" Math.max(...p._fullData.flatMap(t => Array.from(t.x || []))) >= {last})"
        )
        assert time.monotonic() - began < 5
    assert tab.page.locator("#state").inner_text() == "writing"


def test_a_look_at_part_of_the_run_stays_where_it_is_while_steps_come(tab, writer):
    tab.goto("?page=overview&start=20&stop=60")
    before = tab.ranges()
    last = writer.steps(3)
    tab.until(f"document.getElementById('pulse').textContent.includes('step {last:,}')")
    assert tab.ranges() == before


def test_hostile_names_are_shown_letter_by_letter(tab):
    tab.goto("?page=emergence")
    assert EVIL in tab.page.inner_text("h1")
    assert EVIL[:20] in tab.page.title()
    texts = tab.page.eval_on_selector_all(
        ".plot text", "all => all.map(t => t.textContent.replaceAll('\\u00a0', ' '))"
    )
    assert any(EVIL[:12] in text for text in texts)  # a task
    assert any("yyyyyyyy" in text and len(text) < 60 for text in texts)  # a phase
    assert tab.page.locator(".plot a, .plot b:has-text('%{x}'), main script").count() == 0
    tab.show("compare")
    rows = tab.page.locator("details").nth(1)
    rows.locator("summary").click()
    assert f"code/{EVIL}" in rows.inner_text()


def test_an_injected_script_would_not_run(tab):
    tab.page.evaluate(
        """() => { const s = document.createElement('script');
                   s.textContent = 'window.injected = 1'; document.body.append(s); }"""
    )
    assert tab.page.evaluate("window.injected") is None
    assert any("Content Security Policy" in c for c in tab.complaints)
    tab.complaints.clear()


EXCUSED: dict[str, str] = {}
"""Violations that axe may find, each with the reason why it stays."""


@pytest.mark.parametrize("page", PAGES)
def test_axe_finds_no_serious_violation(tab, page):
    tab.goto(f"?page={page}&layer=1&expert=2")
    found = Axe().run(tab.page).response["violations"]
    serious = {
        v["id"]: [node["html"][:200] for node in v["nodes"]][:3]
        for v in found
        if v["impact"] in ("serious", "critical") and v["id"] not in EXCUSED
    }
    assert serious == {}


@pytest.mark.parametrize("page", ["layers", "checkpoints"])
def test_the_keyboard_alone_reaches_every_control(tab, page):
    tab.goto(f"?page={page}")
    tab.page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    # What can be clicked or typed into; modebar buttons only repeat what the numbers do.
    wanted = tab.page.evaluate(
        """() => [...document.querySelectorAll(
               'a[href], input, button, summary, [role=slider], .wide')]
            .filter(e => e.checkVisibility() && !e.disabled && !e.closest('.modebar'))
            .map((e, i) => e.dataset.reach = String(i))"""
    )
    reached, first = set(), None
    for _ in range(len(wanted) + 60):
        tab.page.keyboard.press("Tab")
        at = tab.page.evaluate(
            """() => [document.activeElement.dataset.reach ?? null,
                      document.activeElement.closest('.controls, nav, main, .skip')
                          ? getComputedStyle(document.activeElement).outlineStyle : '']"""
        )
        first = first or tab.page.evaluate("document.activeElement.textContent")
        reached.add(at[0])
        if set(wanted) <= reached:
            break
    missed = set(wanted) - reached
    assert [
        tab.page.evaluate(f"document.querySelector('[data-reach=\"{i}\"]').outerHTML.slice(0, 120)")
        for i in missed
    ] == []
    assert first == "Skip to the panels"


def test_enter_follows_links_and_unfolds_tables(tab):
    tab.goto("?page=overview")
    tab.page.locator("nav a", has_text="Health").focus()
    tab.page.keyboard.press("Enter")
    tab.until(f"document.title && location.search.includes('page=health') && {DRAWN}")
    fold = tab.page.locator("details").first
    fold.locator("summary").focus()
    tab.page.keyboard.press("Enter")
    assert fold.evaluate("details => details.open")


def test_at_1024_pixels_nothing_is_wider_than_the_window(browser, tab):
    narrow = Tab(browser, tab.url, width=1024)
    for page in PAGES:
        narrow.show(page)
        assert narrow.page.evaluate("document.documentElement.scrollWidth") <= 1024, page
    assert narrow.complaints == []
    narrow.close()


def test_a_killed_writer_is_shown_as_stalled_within_seconds(tab, writer):
    tab.goto("?page=health")
    writer.steps(1)
    tab.until("document.getElementById('state').textContent === 'writing'")
    writer.kill()
    began = time.monotonic()
    tab.until("document.getElementById('state').textContent === 'stalled'")
    assert time.monotonic() - began < 5
    tab.until("document.getElementById('panel-state').textContent.includes('killed or crashed')")
