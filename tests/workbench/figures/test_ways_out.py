"""Every way out of a figure: no upload, no request, hostile names as text, words inside."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import plotly.graph_objects as go
import plotly.io as pio
import pytest

from workbench import figures
from workbench.errors import UsageError
from workbench.figures import caption_of, expert_load, show_config, to_html
from workbench.figures.figure import bare
from workbench.figures.page import to_fragment

EVIL = "<script>alert(1)</script><b>%{x}</b>&\"'"


def test_no_way_out_offers_to_share(make_load, monkeypatch):
    fig = expert_load(make_load())
    shown = {}
    monkeypatch.setattr(pio, "show", lambda fig, *a, **k: shown.update(k))
    fig.show()
    assert shown["config"]["showSendToCloud"] is False
    fig.show(config={"showSendToCloud": True, "scrollZoom": True})
    assert shown["config"]["showSendToCloud"] is False
    assert shown["config"]["scrollZoom"] is True
    assert '"showSendToCloud": false' in fig.to_html(include_plotlyjs=False)
    assert '"showSendToCloud": false' in to_html(fig)


def test_a_notebook_gets_the_figure_with_the_safe_configuration(make_load, monkeypatch):
    monkeypatch.setattr(pio.renderers, "default", "plotly_mimetype+notebook")
    bundle = expert_load(make_load())._repr_mimebundle_()
    assert bundle["application/vnd.plotly.v1+json"]["config"]["showSendToCloud"] is False
    assert '"showSendToCloud": false' in bundle["text/html"]


def test_a_notebook_that_shows_no_plotly_still_has_the_words_and_the_numbers(
    make_load, monkeypatch
):
    monkeypatch.setattr(pio.renderers, "default", "plotly_mimetype")
    load = make_load().assign_attrs(branch=EVIL)
    bundle = expert_load(load)._repr_mimebundle_()
    assert set(bundle) == {"application/vnd.plotly.v1+json", "text/html"}
    assert "2 layers of 4 experts." in bundle["text/html"]
    assert "busiest expert" in bundle["text/html"]
    assert "<script" not in bundle["text/html"]


def test_what_is_displayed_is_that_bundle(make_load, monkeypatch):
    shown = []
    monkeypatch.setattr(pio.renderers, "default", "plotly_mimetype")
    monkeypatch.setattr("IPython.display.display", lambda *a, **k: shown.append((*a, k)))
    expert_load(make_load())._ipython_display_()
    [(bundle, how)] = shown
    assert set(bundle) == {"application/vnd.plotly.v1+json", "text/html"}
    assert how == {"raw": True}


def test_the_figure_stays_safe_when_it_is_changed_or_pickled(make_load):
    fig = expert_load(make_load()).update_layout(width=500)
    again = pickle.loads(pickle.dumps(fig))
    assert type(again) is type(fig)
    assert caption_of(again) == caption_of(fig)


def test_the_words_survive_the_way_through_json(make_load):
    fig = expert_load(make_load())
    again = pio.from_json(fig.to_json())
    assert caption_of(again) == caption_of(fig)
    assert caption_of(fig).provenance == {"run": "demo", "branch": "main"}


def test_a_figure_of_somebody_else_carries_no_caption():
    with pytest.raises(UsageError, match=r"make it with workbench\.figures"):
        caption_of(go.Figure())


def test_the_title_holds_sentence_and_origin_and_a_page_takes_them_off(make_load):
    fig = expert_load(make_load())
    assert fig.layout.title.subtitle.text.startswith("2 layers of 4 experts.")
    assert any(a.text == "run demo · branch main" for a in fig.layout.annotations)
    inner = bare(fig)
    assert inner.layout.title.text is None
    assert inner.layout.height < fig.layout.height - 50
    assert not any(a.name == "origin" for a in inner.layout.annotations)


def test_hostile_names_reach_no_text_that_plotly_would_interpret(make_load, make_skill):
    load = make_load()
    load.attrs = {"run": EVIL, "branch": EVIL}
    curves = {f"code/{EVIL}": [0.1, 0.9], "y" * 10_000: [0.1, 0.2]}
    drawn = [
        expert_load(load, marks=[figures.Mark(5, EVIL)]),
        figures.emergence({EVIL: make_skill(curves), EVIL + "2": make_skill(curves)}),
    ]
    for fig in drawn:
        told = json.loads(str(fig.to_json()))
        told["layout"].pop("meta")
        texts = json.dumps(told, ensure_ascii=False)
        assert "<script" not in texts
        assert "%{x}</b>" not in texts
        assert "&lt;script&gt;alert(1)" in texts
        assert "y" * 200 not in texts


def test_a_fragment_cannot_be_ended_by_what_it_holds(make_load):
    load = make_load()
    load.attrs["branch"] = "</script><script>alert(1)</script>"
    html = to_fragment(expert_load(load), "load")
    assert html.count("</script>") == 1
    assert html.endswith("</script>")


def test_the_page_of_one_figure_refers_to_nothing_outside(make_load):
    page = to_html(expert_load(make_load()))
    head, _, rest = page.partition("<script")
    assert "http" not in head.replace("http-equiv", "")
    assert "default-src &#x27;none&#x27;" in head
    assert rest.count("src=") == rest.split("<script>", 1)[1].count("src=")
    assert 'lang="en"' in head


def test_the_configuration_is_a_copy():
    show_config()["showSendToCloud"] = True
    assert show_config()["showSendToCloud"] is False


def test_figures_are_loaded_when_they_are_used():
    code = "import sys, workbench.figures as f; assert 'plotly' not in sys.modules; f.balance"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_is_no_figure_is_answered_with_those_there_are():
    with pytest.raises(AttributeError, match="it has expert_load, balance"):
        figures.violin  # noqa: B018
