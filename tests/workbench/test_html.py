"""What a run, a window and checkpoints look like in a notebook: true, small, and only text."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

import workbench as wb
from checkpoints_index.index import CheckpointIndex
from checkpoints_index.record import CheckpointRecord
from workbench.store.layout import Layout, ProbeTokens, Task
from workbench.store.run_store import RunStore
from workbench.store.schema import Variable

EVIL = "<script>document.title='taken'</script>\"'&<img src=x onerror=alert(1)>"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run"]  # fmt: skip
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def record_of(path, name, branch, step, **more):
    given = {"phase": "stable", "uri": f"checkpoints/{branch}/{step}"} | more
    return CheckpointRecord(
        run=name[:4000], branch=branch, step=step, tokens_seen=step * 64, utc=1.75e9 + step,
        format="native", size_bytes=3_000_000, **given,
    )  # fmt: skip


def make_run(path, name="planted", phase="warm-up", task="code/add", domain="prose", **more):
    """Forty steps with a checkpoint every ten; at step 20 an arm forks and goes on to step 30."""
    path.mkdir(parents=True)
    phases = [{"name": phase, "start": 1, "stop": 20}]
    about = {"name": name, "phases": phases, "format_version": 1}
    (path / "run.json").write_text(json.dumps(about))
    layout = Layout(
        layers=(0, 1), experts=4, k=2, domains=(domain, "code"), tasks=(Task(task, 0.25, 3),)
    )
    store, index = RunStore.create(path / "store", layout), CheckpointIndex(path)
    for branch, first, last in (("main", 1, 40), ("curriculum", 21, 30)):
        if branch != "main":
            store.fork(branch, at_step=20)
        with store.writer(branch) as writer:
            for stop in range(first + 9, last + 1, 10):
                steps = np.arange(stop - 9, stop + 1)
                writer.append("router", {
                    "step": steps, "tokens": np.full(10, 64),
                    "assignments": np.full((10, 2, 4), 32),
                })  # fmt: skip
                writer.append("train", {
                    "step": steps, "loss": (3 / steps).astype("float32"),
                    "tokens_seen": steps * 64, "utc": 1.75e9 + steps,
                })  # fmt: skip
                writer.commit("rows")
                writer.tag_checkpoint(stop)
                parent = ("main", 20) if branch != "main" else None
                index.add(record_of(path, name, branch, stop, parent=parent, **more))
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("html") / "run")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return make_run(
        tmp_path_factory.mktemp("html") / "hostile", name=EVIL + "x" * 10_000, phase=EVIL,
        task=f"code/{EVIL[:60]}", domain=EVIL[:60], uri="checkpoints/" + EVIL.replace("/", "|"),
    )  # fmt: skip


class Seen(HTMLParser):
    """The tags of a piece of HTML, whether they close, and its text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.words, self.attributes = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag not in ("rect", "path", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not (self.open and self.open[-1] == "style"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def cards_of(run):
    week = run.window(last=0.5)
    each = [run, week, run.checkpoints, run.checkpoints[1:2], run.checkpoints[-1]]
    return [thing._repr_html_() for thing in each]


def test_a_runs_card_tells_clocks_branches_with_forks_groups_and_checkpoints(path):
    text = Seen(wb.open_run(path, "curriculum")._repr_html_()).text
    for said in (
        "Run planted", "branch curriculum", "steps 1 to 30", "1,920 tokens",
        "curriculum (from main at step 20)", "warm-up 1–20", "3, steps 10 to 30",
        "router 30 step × 2 layer × 4 expert", "Training tokens that passed the routers",
    ):  # fmt: skip
        assert said in text


def test_the_picture_draws_each_branch_from_its_fork_to_its_end(path):
    html = wb.open_run(path, "curriculum")._repr_html_()
    (drawn,) = re.findall(r"<svg.*?</svg>", html)
    assert re.findall(r">(step \d+)<", drawn) == ["step 40", "step 30"]
    assert "curriculum from main at step 20 to step 30" in drawn
    assert drawn.count("<circle") == 4 + 1
    starts = [float(x) for x in re.findall(r'd="M([\d.]+) ', drawn)]
    axis = 720 - 170 - 110
    # main; main's part of the arm's history; the arm, half-way along.
    assert starts == [170, 170, 170 + axis / 2]
    assert f"H{170 + axis * 3 / 4}" in drawn


def test_a_windows_card_tells_its_steps_its_share_and_shades_them(path):
    week = wb.open_run(path).window(last=0.25)
    html = week._repr_html_()
    text = Seen(html).text
    assert "steps 31 to 40, asked on the tokens clock" in text
    assert "640 tokens, 25.0% of the branch" in text
    assert "router 10 step" in text
    assert html.count("<rect") == 1
    assert "<rect" not in wb.open_run(path)._repr_html_()


def test_the_card_of_checkpoints_has_a_line_for_each(path):
    text = Seen(wb.open_run(path, "curriculum").checkpoints._repr_html_()).text
    assert text.startswith("3 checkpoints of run planted")
    assert "main (2), curriculum (1)" in text
    assert "8.58 MiB in all" in text
    assert "20 1,280 2025-06-15" in text


def test_a_checkpoints_card_tells_where_it_is_and_what_it_continues(path):
    text = Seen(wb.open_run(path, "curriculum").checkpoints[-1]._repr_html_()).text
    assert "branch curriculum, step 30" in text
    assert "continues main, step 20" in text
    assert "checkpoints/curriculum/30" in text


def test_weights_that_are_gone_are_said_to_be_gone(path):
    run = wb.open_run(path)
    gone = record_of(path, "planted", "main", 50, complete=False, pruned="kept every <tenth>")
    card = type(run.checkpoints[0])(gone, path)._repr_html_()
    assert "weights deleted: kept every &lt;tenth&gt;" in card


def test_a_run_of_nothing_yet_says_so(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    run = wb.open_run(tmp_path)
    assert "nothing yet" in Seen(run._repr_html_()).text
    assert "0 checkpoints" in Seen(run.checkpoints._repr_html_()).text


def test_the_password_of_a_url_is_not_shown(path):
    record = record_of(path, "planted", "main", 60, uri="sftp://me:secret@host/run/60")
    card = type(wb.open_run(path).checkpoints[0])(record, path)._repr_html_()
    assert "secret" not in card
    assert "sftp://me:***@host" in card


def test_hostile_names_are_text_in_every_card_and_short(hostile):
    for branch in ("main", "curriculum"):
        for html in cards_of(wb.open_run(hostile, branch)):
            seen = Seen(html)
            assert not {"script", "img", "b-", "iframe", "a"} & set(seen.tags)
            assert not [name for name in seen.attributes if name.startswith("on")]
            assert "<script>document.title=" in seen.text
            assert not seen.open
            assert len(html) < 30_000


def test_a_run_whose_name_holds_a_slash_has_a_tree_and_a_text(hostile):
    run = wb.open_run(hostile)
    assert run.tree.attrs["run"] == run.name
    assert "/script" in repr(run)


def test_cards_are_small_and_ask_nobody_for_anything(path):
    for html in cards_of(wb.open_run(path)):
        assert not re.search(r"https?:|url\(|@import|<script|src=", html)
        assert len(html) < 20_000


def test_hundreds_of_sites_branches_and_checkpoints_are_told_in_short(tmp_path):
    path = tmp_path / "wide"
    path.mkdir()
    sites = {
        f"blocks.{i}.hook_{'long_' * 20}": Variable(
            ("checkpoint", "token"), "float32", "1", "a site"
        )
        for i in range(200)
    }
    tokens = ProbeTokens((1, 2, 3, 4), ("prose",) * 4)
    layout = Layout(layers=(0,), experts=2, k=1, domains=("prose",), tokens=tokens)
    store, index = RunStore.create(path / "store", layout), CheckpointIndex(path)
    with store.writer() as writer:
        writer.append("activations", {
            "checkpoint": np.array([1]), "tokens_seen": np.array([64]),
            **{name: np.zeros((1, 4), "float32") for name in sites},
        }, sites)  # fmt: skip
        writer.commit("rows")
        writer.tag_checkpoint(1)
    for number in range(30):
        store.fork(f"arm-{number}", at_step=1)
    for step in range(1, 300):
        index.add(record_of(path, "wide", "main", step))
    run = wb.open_run(path)
    html = run._repr_html_()
    assert "and 160 more" in html
    assert "and 19 more branches" in html
    assert len(html) < 60_000
    saved = Seen(run.checkpoints._repr_html_())
    assert saved.tags.count("tr") == 1 + 20 + 1 + 20


def test_cards_need_neither_torch_nor_plotly(path):
    code = (
        f"import sys, workbench as wb; run = wb.open_run({str(path)!r}); run._repr_html_();"
        "run.checkpoints._repr_html_(); run.window(last=.5)._repr_html_();"
        "sys.exit(', '.join({'torch', 'plotly'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_cards_read_on_a_light_and_a_dark_page_and_run_nothing(
    scheme, hostile, path, tmp_path
):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next((place for name in NAMES if (place := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser found: none of {', '.join(NAMES)} is on the path")
    ink, paper = ("#222", "#fff") if scheme == "light" else ("#ddd", "#111")
    cards = cards_of(wb.open_run(hostile)) + cards_of(wb.open_run(path))
    page_file = tmp_path / "cards.html"
    page_file.write_text(
        f"<!doctype html><title>cards</title><body style='color:{ink};background:{paper}'>"
        + "".join(cards).replace("<details>", "<details open>"),
        encoding="utf-8",
    )
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        page = browser.new_page(viewport={"width": 800, "height": 600})
        asked, complaints = [], []
        page.on("request", lambda r: asked.append(r.url))
        page.on("console", lambda m: complaints.append(m.text))
        page.on("dialog", lambda d: (complaints.append(d.message), d.dismiss()))
        page.goto(page_file.as_uri())
        assert page.title() == "cards"
        assert asked == [page_file.as_uri()]
        assert complaints == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 800
        colors = page.evaluate(
            "[...document.querySelectorAll('.wb-card dd, .wb-card td')]"
            ".map(e => getComputedStyle(e).color)"
        )
        own = page.evaluate("getComputedStyle(document.body).color")
        assert set(colors) == {own}
        browser.close()
