"""The report: one page, whole, that says what is missing and shows every name as text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

import workbench as wb
from workbench.app.report import render, write_report
from workbench.app.report.blocks import Missing, Numbers, Picture
from workbench.app.report.doubts import doubts
from workbench.app.report.ran import search
from workbench.app.report.story import sections, summary
from workbench.app.report.stretch import change_table, stretch_words
from workbench.app.study import Study
from workbench.errors import RunNotFound, UsageError

EVIL = "<script>alert(1)</script>\"'&<b>%{x}</b>"


class Page(HTMLParser):
    """The tags, ids and text of a page, as a browser would take them; scripts' texts left out."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._silent = 0
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._silent += tag in ("script", "style")

    def handle_endtag(self, tag):
        self._silent -= tag in ("script", "style")

    def handle_data(self, data):
        if not self._silent:
            self.text.append(data)

    def said(self) -> str:
        return " ".join(" ".join(self.text).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def study(two_arm_run):
    return Study(wb.open_run(two_arm_run), n_boot=200)


@pytest.fixture(scope="module")
def page(two_arm_run):
    return Page(render(Study(wb.open_run(two_arm_run), n_boot=50)))


def test_the_report_is_one_file_in_the_runs_folder_unless_said_otherwise(two_arm_run, tmp_path):
    assert write_report(two_arm_run) == two_arm_run / "report.html"
    elsewhere = write_report(two_arm_run, tmp_path / "deep" / "week.html")
    assert elsewhere.read_text().startswith("<!DOCTYPE html>")
    assert 4.5e6 < elsewhere.stat().st_size < 8e6
    assert [p.name for p in elsewhere.parent.iterdir()] == ["week.html"]


def test_a_report_that_cannot_be_made_leaves_the_old_one(planted_run, tmp_path):
    old = tmp_path / "report.html"
    old.write_text("old")
    with pytest.raises(RunNotFound):
        write_report(tmp_path / "nowhere", old)
    assert old.read_text() == "old"
    with pytest.raises(UsageError, match="give a file"):
        write_report(planted_run("in-the-way"), tmp_path)


def test_the_page_names_its_language_and_every_section_can_be_reached_by_its_link(page):
    assert ("html", {"lang": "en"}) in page.tags
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert links
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_nothing_in_the_page_points_outside(page):
    for _, attrs in page.tags:
        assert not {"src", "srcset", "action", "data"} & set(attrs)
        assert not any(
            str(value).startswith(("http", "//")) for name, value in attrs.items() if name == "href"
        )
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")


def test_every_figure_has_a_sentence_a_table_and_its_code(page):
    assert page.count("figure") == 8
    assert page.count("figcaption") == 8
    assert page.count("pre") == 8 + 1  # and run.json
    labels = [attrs["aria-label"] for tag, attrs in page.tags if attrs.get("role") == "figure"]
    assert len(labels) == 8
    assert all(label.endswith(".") for label in labels)


def test_the_final_stretch_names_its_clock_and_its_share(study):
    assert stretch_words(study) == (
        "The final stretch is what came after the fork: steps 81 to 100, on the tokens clock "
        "1,280 of 6,400 training tokens, 20 % of the run. The arms: continue and curriculum."
    )


def test_what_changed_is_read_off_both_sides_of_the_fork(study):
    rows = {row[0]: row[1:] for row in change_table(study).rows}
    before, under_continue, under_curriculum = rows["accuracy, mean of code tasks"]
    assert before == pytest.approx(0.1, abs=0.12)
    assert under_continue == pytest.approx(0.1, abs=0.12)
    assert under_curriculum > 0.9
    train = study.train["curriculum"]["loss"].sel(step=slice(99, 100))
    assert rows["training loss (nats/token)"][2] == pytest.approx(float(train.mean()))


def test_onsets_are_told_with_interval_and_verdict(study):
    table = next(
        block.table
        for section in sections(study)
        for block in section.blocks
        if isinstance(block, Numbers) and block.title == "When each capability came"
    )
    found = {(row[0], row[1]): row[2:] for row in table.rows}
    step, interval, verdict, _ = found["knowledge/capitals", "all"]
    low, high = map(int, interval.split(" to "))
    assert low <= 35 <= high
    assert verdict == "jump"
    assert found["logic/chain", "all"][0] == "not reached"
    assert found["code/add", "curriculum"][2] == "jump"
    assert int(step) == pytest.approx(35, abs=5)


def test_the_summary_says_which_task_only_one_arm_learned(study):
    assert any("Only under curriculum: code/add." in sentence for sentence in summary(study))


def test_doubts_name_seeds_items_comparisons_spacing_and_mixes(study):
    sections(study)
    told = {doubt.title: doubt.text for doubt in doubts(study)}
    assert "trained once each" in told["One seed"]
    assert "60 items" in told["Few items"]
    assert "±13 percentage points" in told["Few items"]
    assert told["Many comparisons"].startswith("3 differences")
    assert "10 steps apart before the final stretch" in told["Between checkpoints nothing is known"]
    assert "Losses of different text" in told
    assert "Samples were dropped" not in told


def test_dropped_samples_are_the_first_doubt(planted_run):
    about = {"capture": {"main": {"dropped": 7}, "odd": "text"}}
    run = wb.open_run(planted_run("dropping", arms=False, parts={"router", "train"}, about=about))
    first = doubts(Study(run))[0]
    assert first.title == "Samples were dropped"
    assert "7 of main" in first.text


@pytest.mark.parametrize(
    ("parts", "arms", "says"),
    [
        ({"train", "router", "activations"}, True, "emergence needs evaluations"),
        ({"train", "router", "evaluations"}, True, "saturation needs activations"),
        ({"train", "router", "evaluations", "activations"}, False, "This run has one line"),
        ({"train"}, False, "router-load needs a router record"),
        ({"router"}, False, "loss needs training curves"),
        ({"evaluations"}, False, "balance needs a router record"),
    ],
)
def test_a_section_without_its_record_says_what_is_missing(planted_run, parts, arms, says):
    run = wb.open_run(planted_run(f"{'-'.join(sorted(parts))}", arms=arms, parts=parts))
    study = Study(run, n_boot=20)
    chapters = sections(study)
    assert [c.id for c in chapters] == [
        "ran",
        "changed",
        "came",
        "why",
        "bought",
        "routing",
        "probes",
    ]
    missing = [b.text for c in chapters for b in c.blocks if isinstance(b, Missing)]
    assert any(text.startswith(says) for text in missing)


def test_a_page_has_the_figures_that_its_record_allows_and_no_others(planted_run):
    study = Study(wb.open_run(planted_run("sparse", arms=False, parts={"router", "train"})))
    shown = [b.id for c in sections(study) for b in c.blocks if isinstance(b, Picture)]
    assert shown == ["loss", "router-load-0", "balance"]
    assert Page(render(study)).count("figure") == len(shown)


def test_a_run_that_has_not_begun_gets_a_page_too(planted_run):
    run = wb.open_run(planted_run("empty", arms=False, parts=set()))
    assert "Nothing was trained yet" in Page(render(Study(run))).said()


@pytest.fixture(scope="module")
def hostile(planted_run):
    names = {"code/add": f"code/{EVIL}", "logic/chain": "logic/" + "x" * 10_000}
    about = {"name": EVIL + "y" * 10_000, "config": {"note": EVIL}, "phases": [
        {"name": EVIL, "start": 40, "stop": 100}
    ]}  # fmt: skip
    return planted_run("hostile", names=names, about=about)


def test_hostile_names_are_text_and_add_no_tag(hostile, page):
    html = render(Study(wb.open_run(hostile), n_boot=50))
    shown = Page(html)
    assert EVIL in shown.said()
    for tag in ("script", "b", "img", "iframe"):
        assert shown.count(tag) == page.count(tag)
    assert "alert(1)</script>" not in html
    assert len(max(shown.text, key=len)) < 25_000  # only run.json has the whole of a long name


def test_a_setting_is_found_however_deep_it_lies():
    assert search({"config": {"plan": {"seed": 4}}}, "seed") == 4
    assert search({"a": {"b": {"c": {"d": {"seed": 4}}}}}, "seed") is None
