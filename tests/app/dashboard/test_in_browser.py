"""The dashboard in a real browser, on a hostile run that another process is writing."""

from __future__ import annotations

import time

import pytest
from axe_playwright_python.sync_playwright import Axe

from workbench.app.dashboard.view import PAGES

EVIL = "<script>alert(1)</script>\"'&<b>%{x}</b>"
STEPPED = ("overview", "layers", "compare", "emergence", "probes", "health")
"""Pages whose charts have steps on x."""


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
    tab.until(
        f"{tab.AXES}.filter(a => a.type === 'linear').every(a => a.range[1] < 75) && {tab.DRAWN}"
    )
    after = tab.ranges()
    assert len(after) == len(before)
    assert all(27 <= low < high <= 73 for low, high in after)


def test_a_probe_is_chosen_by_its_link_which_brings_it_back(tab, open_tab):
    tab.goto("?page=probes")
    names = tab.page.locator("#panel-probe a")
    assert names.all_inner_texts() == ["balance", "load"]
    assert tab.page.locator("#title-found").inner_text() == "balance"
    names.nth(1).click()
    tab.until(f"document.getElementById('title-found').textContent === 'load' && {tab.DRAWN}")
    assert "probe=load" in tab.page.url
    said = tab.page.locator("#panel-found figcaption").inner_text()
    other = open_tab(tab.url)
    try:
        other.goto(tab.page.evaluate("location.search"))
        assert other.page.locator("#panel-found figcaption").inner_text() == said
        assert other.page.locator("#panel-probe [aria-current]").inner_text() == "load"
    finally:
        other.close()


def test_a_pasted_link_restores_the_view(tab, open_tab):
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
    tab.until(
        f"document.getElementById('title-expert-load').textContent.includes('5') && {tab.DRAWN}"
    )
    tab.until(f"{tab.AXES}.every(a => a.range[1] < 95 * 64)")
    look = """() => ({
        titles: [...document.querySelectorAll('h2')].map(h => h.textContent),
        words: [...document.querySelectorAll('.words')].map(w => w.textContent),
        numbers: ['layer', 'expert', 'start', 'stop'].map(i => document.getElementById(i).value),
        chosen: [...document.querySelectorAll('[aria-current]')].map(a => a.textContent),
        drawn: [...document.querySelectorAll('.js-plotly-plot')].map(p => p._fullData.length)})"""
    other = open_tab(tab.url)
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
    # The address says so before the page does.
    current = "document.querySelector('nav [aria-current=page]').textContent"
    tab.until(f"location.search.includes('page=health') && {current} === 'Health' && {tab.DRAWN}")
    tab.page.locator("details").first.locator("summary").focus()
    tab.page.keyboard.press("Enter")
    tab.until("document.querySelector('details').open")


def test_at_1024_pixels_nothing_is_wider_than_the_window(open_tab, tab):
    narrow = open_tab(tab.url, width=1024)
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
