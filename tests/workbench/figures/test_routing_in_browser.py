"""The figures of routing in a real browser: they draw, keep to themselves, show names as text."""

from __future__ import annotations

import html
import shutil
from itertools import pairwise

import numpy as np
import pytest
import xarray as xr
from plotly.offline import get_plotlyjs

from workbench.figures import (
    churn,
    coactivation,
    domains,
    flow,
    load_spread,
    sankey,
    vocabulary,
)
from workbench.figures.page import DRAW, policy, to_fragment

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run"]  # fmt: skip
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
EVIL = "<script>alert(1)</script>\"'&<b>%{x}</b>"
LAYERS, EXPERTS = 3, 6


@pytest.fixture(scope="module")
def browser():
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser found: none of {', '.join(NAMES)} is on the path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


def drawings():
    rng = np.random.default_rng(0)
    about = {"run": EVIL, "branch": "x" * 10_000, "n": 1000, "k": 2}
    load = rng.uniform(0.5, 2, (20, LAYERS, EXPERTS))
    load[10:, 1, 2] = 0
    load /= load.sum(-1, keepdims=True)
    step = xr.DataArray(load, dims=("step", "layer", "expert"), attrs=about)
    pair = rng.uniform(0.2, 3, (LAYERS, EXPERTS, EXPERTS))
    pair = (pair + pair.transpose(0, 2, 1)) / 2
    dims = ("layer", "expert", "expert2")
    lift = xr.Dataset(
        {"lift": (dims, pair), "lift_low": (dims, pair / 1.4), "lift_high": (dims, pair * 1.4),
         "chance": (dims, np.ones_like(pair))}, attrs=about,
    )  # fmt: skip
    share = rng.uniform(0, 0.5, (LAYERS, 3, EXPERTS))
    of = xr.Dataset(
        {"share": (("layer", "domain", "expert"), share), "load": (("layer", "expert"),
                                                                   share.mean(axis=1))},
        coords={"domain": [EVIL, "y" * 10_000, "code/add"]}, attrs=about,
    )  # fmt: skip
    words = xr.Dataset(
        {"share": (("layer", "token_id", "expert"), share), "count": ("token_id", [9.0, 8, 7])},
        coords={"token_id": [1, 2, 3]}, attrs=about,
    )  # fmt: skip
    ways = xr.Dataset({"transition": (dims, pair / pair.sum(-1, keepdims=True))}, attrs=about)
    kappa = xr.Dataset(
        {"kappa": (("checkpoint", "layer"), rng.uniform(0, 1, (4, LAYERS)))},
        coords={"checkpoint": [1, 2, 3, 4]}, attrs=about,
    )  # fmt: skip
    texts = {1: EVIL, 2: "z" * 10_000, 3: "\n"}
    return {
        "spread": load_spread(step),
        "coactivation": coactivation(lift),
        "domains": domains(of),
        "one-expert": vocabulary(words, layer=0, expert=1, tokens=texts),
        "vocabulary": vocabulary(words, tokens=texts),
        "flow": flow(ways),
        "sankey": sankey(ways),
        "churn": churn({EVIL: kappa, "code": kappa + 0.01}),
    }


class Opened:
    """A page with all figures, opened from a file, and everything that went wrong meanwhile."""

    def __init__(self, browser, path):
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page(viewport={"width": 1200, "height": 900})
        self.page.on("console", lambda m: self.complaints.append(f"{m.type}: {m.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(f"page error: {error}"))
        self.page.on("dialog", lambda d: (self.complaints.append(d.message), d.dismiss()))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-drawn=all]", timeout=60_000)

    def boxes(self, name, what="text"):
        """Text, left, right and top of every text of one figure."""
        return self.page.eval_on_selector_all(
            f"#{name} {what}",
            "found => found.filter(t => t.textContent.trim()).map(t => {const b = "
            "t.getBoundingClientRect(); return [t.textContent, b.left, b.right, b.top]})",
        )


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    """All figures on one page under our own policy, as a report has them."""
    plotly = get_plotlyjs()
    figures = "".join(to_fragment(fig, name) for name, fig in drawings().items())
    path = tmp_path_factory.mktemp("pages") / "figures.html"
    path.write_text(
        f"""<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>figures</title>
        <meta http-equiv="Content-Security-Policy" content="{html.escape(policy(plotly, DRAW))}">
        </head><body>{figures}<script>{plotly}</script><script>{DRAW}</script></body></html>""",
        encoding="utf-8",
    )
    one = Opened(browser, path)
    yield one
    one.page.close()


EVERY = ["spread", "coactivation", "domains", "one-expert", "vocabulary", "flow", "sankey", "churn"]


def test_they_draw_without_complaint_and_ask_nobody(opened):
    assert opened.complaints == []
    assert len(opened.requests) == 1


@pytest.mark.parametrize("name", ["domains", "one-expert", "vocabulary", "churn"])
def test_a_hostile_name_is_seen_letter_by_letter(opened, name):
    shown = [text for text, *_ in opened.boxes(name) if "script" in text]
    assert shown
    assert all("<script>" in text for text in shown)
    assert opened.page.locator(f"#{name} b, #{name} script").count() == 0


@pytest.mark.parametrize("name", EVERY)
def test_no_text_of_the_drawing_leaves_the_page(opened, name):
    width = opened.page.evaluate("document.documentElement.clientWidth")
    boxes = opened.boxes(name)
    assert boxes
    assert [text for text, left, right, _ in boxes if left < 0 or right > width] == []


@pytest.mark.parametrize("name", ["spread", "coactivation", "domains", "flow", "churn"])
def test_the_numbers_of_an_axis_do_not_run_into_each_other(opened, name):
    rows: dict[int, list[tuple[float, float]]] = {}
    for _, left, right, top in opened.boxes(name, ".xtick text"):
        rows.setdefault(round(top), []).append((left, right))
    for row in rows.values():
        row.sort()
        assert all(a[1] <= b[0] + 1 for a, b in pairwise(row))


def hover(opened, name, across, down):
    """What a pointer is told at that share of the first panel's width and height."""
    opened.page.locator(f"#{name}").scroll_into_view_if_needed()
    area = opened.page.locator(f"#{name} .nsewdrag").first.bounding_box()
    opened.page.mouse.move(area["x"] + area["width"] * across, area["y"] + area["height"] * down)
    found = opened.page.wait_for_selector(f"#{name} .hoverlayer .hovertext", timeout=10_000)
    return found.text_content()


def test_a_pointer_over_a_pair_is_told_who_how_much_and_how_sure(opened):
    said = hover(opened, "coactivation", 0.1, 0.3)
    for part in ("layer ", "experts ", "× chance [", "(95 %)", "n = 1,000 tokens"):
        assert part in said


def test_a_pointer_over_a_layer_is_told_its_quantiles(opened):
    said = hover(opened, "spread", 0.5, 0.5)
    for part in ("layer 0", "step ", "median expert: ", "middle half: ", "n = 6 experts"):
        assert part in said


def test_a_pointer_over_a_domain_is_told_its_whole_name_as_text(opened):
    said = hover(opened, "domains", 0.1, 0.8)
    assert "expert 0" in said
    assert "its share of all text" in said
