"""`workbench plot`: the figure that was asked for, in the form that was asked for, or one line."""

from __future__ import annotations

import csv
import json

import plotly.io
import pytest

from workbench.app.cli import main
from workbench.app.plots import PLOTS, questions
from workbench.app.probe_plots import DRAWERS
from workbench.figures import caption_of


def run(capsys, *arguments):
    """Exit code, stdout and stderr of one command line."""
    code = 0
    try:
        main(["plot", *(str(a) for a in arguments)])
    except SystemExit as leave:
        code = leave.code or 0
    out, err = capsys.readouterr()
    return code, out, err


def drawn(capsys, tmp_path, *arguments):
    """The figure of one command line."""
    code, out, err = run(capsys, *arguments, "-o", tmp_path / "f.json")
    assert (code, out.strip()) == (0, str(tmp_path / "f.json")), err
    return plotly.io.read_json(tmp_path / "f.json")


def test_the_list_tells_the_question_of_every_figure_and_probe(capsys):
    code, out, _ = run(capsys, "--list")
    told = {line.split()[0]: line for line in out.splitlines() if line}
    assert code == 0
    assert {*PLOTS, *DRAWERS, "participation", "lesion"} <= set(told)
    assert all(question.endswith("?") for _, question in questions())
    assert "When do capabilities arrive?" in told["emergence"]


def test_the_table_carries_its_units(capsys, tmp_path, two_arm_run):
    code, _, _ = run(capsys, "loss", two_arm_run, "-o", tmp_path / "loss.csv")
    assert code == 0
    rows = list(csv.reader((tmp_path / "loss.csv").read_text().splitlines()))
    assert "first twentieth (nats/token)" in rows[0]
    assert [row[0] for row in rows[1:]] == ["continue", "curriculum"]


def test_one_arm_alone_and_its_last_stretch(capsys, tmp_path, two_arm_run):
    fig = drawn(capsys, tmp_path, "loss", two_arm_run, "--arm", "curriculum", "--last", "0.2")
    [row] = caption_of(fig).table.rows
    assert row[:2] == ("curriculum", 20)
    fig = drawn(capsys, tmp_path, "loss", two_arm_run, "--start", "40", "--stop", "70")
    assert {row[1] for row in caption_of(fig).table.rows} == {30}


def test_the_trunk_can_be_asked_for_too(capsys, tmp_path, two_arm_run):
    fig = drawn(capsys, tmp_path, "balance", two_arm_run, "--branch", "main")
    assert {row[0] for row in caption_of(fig).table.rows} == {"main"}


def test_one_layer_alone(capsys, tmp_path, two_arm_run):
    for name in ("balance", "router-load", "saturation", "divergence"):
        if name == "divergence":
            continue  # loads models, which a planted run has not
        fig = drawn(capsys, tmp_path, name, two_arm_run, "--layer", "1")
        table = caption_of(fig).table
        place = table.columns.index("layer")
        assert {row[place] for row in table.rows} == {1}
    fig = drawn(capsys, tmp_path, "churn", two_arm_run, "--layer", "1")
    assert "layer 1" in json.dumps(fig.to_plotly_json(), default=str)


@pytest.mark.parametrize(
    "options",
    [
        ["loss", "--start", "40", "--x", "tokens"],
        ["balance", "--last", "0.5", "--layer", "1", "--arm", "continue"],
        ["router-load", "--start", "40", "--layer", "0", "--x", "utc"],
        ["saturation", "--layer", "1", "--x", "tokens"],
        ["emergence", "--start", "20", "--arm", "curriculum"],
        ["churn", "--layer", "1", "--arm", "continue"],
        ["arms", "--arm", "curriculum"],
    ],
)
def test_the_code_of_a_figure_that_was_asked_in_a_special_way_makes_it_again(
    capsys, tmp_path, two_arm_run, options
):
    name, *rest = options
    caption = caption_of(drawn(capsys, tmp_path, name, two_arm_run, *rest))
    *lines, last = caption.code.splitlines()
    space: dict[str, object] = {}
    exec("\n".join([*lines, f"fig = {last}"]), space)
    again = caption_of(space["fig"])
    assert again.sentence == caption.sentence
    assert len(again.table.rows) == len(caption.table.rows)


def test_a_figure_is_written_over_the_one_before(capsys, tmp_path, two_arm_run):
    (tmp_path / "f.json").write_text("before")
    assert drawn(capsys, tmp_path, "loss", two_arm_run).data


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["loss", "{run}", "-o", "{tmp}/x.pdf"], 2, "expected a file .html, .png, .svg"),
        (["arms", "{run}", "--layer", "1"], 2, "arms has no --layer; it takes --arm"),
        (["balance", "{run}", "--task", "a"], 2, "balance has no --task"),
        (["lead-lag", "{run}", "--last", "0.1"], 2, "it takes none of these"),
        (["balance", "{run}", "--layer", "9"], 3, "no layer 9; there are 0 to 1"),
        (["loss", "{run}", "--arm", "curiculum"], 3, "did you mean 'curriculum'?"),
        (["loss", "{run}", "--last", "7 apples"], 2, "7 apples"),
        (["loss", "{run}", "--start", "5000"], 2, "5000"),
        (["../loss", "{run}"], 2, "no figure '../loss'"),
        (["arms", "{run}", "--arm", "continue"], 3, "compared with nothing"),
    ],
)
def test_a_mistake_is_one_line_and_no_file(
    capsys, tmp_path, two_arm_run, monkeypatch, arguments, code, message
):
    monkeypatch.chdir(tmp_path)
    found, _, err = run(capsys, *(a.format(tmp=tmp_path, run=two_arm_run) for a in arguments))
    assert (found, message in err) == (code, True), err
    assert err.startswith("workbench:")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_picture_without_a_browser_leaves_with_1_and_no_file(
    capsys, tmp_path, two_arm_run, monkeypatch
):
    pytest.importorskip("kaleido")
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "nowhere"))
    code, _, err = run(capsys, "loss", two_arm_run, "-o", tmp_path / "a" / "loss.png")
    assert (code, err.count("\n")) == (1, 1)
    assert "needs Chromium or Chrome" in err
    assert list(tmp_path.iterdir()) == []
