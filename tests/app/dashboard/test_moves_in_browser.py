"""What a reader moves counts: no late answer undoes it, and no control says what is not so."""

from __future__ import annotations

import contextlib
import json

ASKED = "**/_dash-update-component*"


@contextlib.contextmanager
def held(tab):
    """Answers wait until this is over."""
    waiting = []
    tab.page.route(ASKED, lambda route: waiting.append(route))
    try:
        yield
    finally:
        for route in waiting:
            route.continue_()
        tab.page.unroute(ASKED)


def thumb_at(tab, i):
    """The middle of a thumb of the slider, in pixels."""
    box = tab.page.get_by_role("slider").nth(i).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


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


def test_what_is_entered_before_the_first_answer_counts(tab):
    with held(tab):
        tab.page.goto(tab.url + "?page=layers&start=30")
        tab.page.fill("#start", "40")
        tab.page.keyboard.press("Enter")
    tab.until(f"location.search.includes('start=40') && {tab.DRAWN}")
    tab.until("document.querySelector('[role=slider]').getAttribute('aria-valuenow') === '40'")
    assert tab.page.input_value("#start") == "40"


def test_what_is_typed_and_not_entered_yet_stays(tab):
    tab.goto("?start=30&stop=70")
    with held(tab):
        tab.page.get_by_role("slider").first.focus()
        tab.page.keyboard.press("ArrowRight")
        tab.until("location.search.includes('start=31')")
        tab.page.click("#start")
        tab.page.keyboard.press("Control+a")
        tab.page.keyboard.type("45")
    # The answer has come once the slider's own end of the range is told to others.
    tab.until("document.querySelector('[role=slider]').getAttribute('aria-valuenow') === '31'")
    tab.page.wait_for_load_state("networkidle")
    assert tab.page.input_value("#start") == "45"
    tab.page.keyboard.press("Enter")
    tab.until("location.search.includes('start=45')")


def test_a_slider_that_is_held_stays_under_the_hand_while_the_run_grows(tab, writer):
    tab.goto("?page=layers")
    before = json.loads(tab.page.evaluate("JSON.stringify(location.search)"))
    x, y = thumb_at(tab, 0)
    width = thumb_at(tab, 1)[0] - x
    tab.page.mouse.move(x, y)
    tab.page.mouse.down()
    tab.page.mouse.move(x + width / 4, y, steps=4)
    last = writer.steps(5)
    tab.until(f"document.getElementById('pulse').textContent.includes('step {last:,}')")
    at = tab.page.get_by_role("slider").first.get_attribute("aria-valuenow")
    assert int(at) > 0
    tab.page.mouse.up()
    tab.until("location.search.includes('start=')")
    assert "stop=" not in tab.page.evaluate("location.search")
    assert before == "?page=layers"
    tab.until("document.getElementById('start').value !== '0'")


def test_a_move_that_leaves_the_view_as_it_is_is_taken_back(tab):
    tab.goto("?page=layers&layer=1&start=50")
    (left, y), (right, _) = thumb_at(tab, 0), thumb_at(tab, 1)
    tab.page.mouse.move(right, y)
    tab.page.mouse.down()
    tab.page.mouse.move(left, y, steps=6)
    tab.page.mouse.up()
    last = "document.querySelectorAll('[role=slider]')[1]"
    tab.until(f"{last}.getAttribute('aria-valuenow') === {last}.getAttribute('aria-valuemax')")
    for typed in ("", "99", "-1", "1.5"):
        tab.page.fill("#layer", typed)
        tab.page.keyboard.press("Enter")
        tab.page.locator("#start").focus()
        tab.until("document.getElementById('layer').value === '1'")
        assert "layer=1" in tab.page.url
