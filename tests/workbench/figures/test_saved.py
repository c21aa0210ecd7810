"""A figure becomes a file whole or not at all, and a picture asks nobody for anything."""

from __future__ import annotations

import csv
import json
import shutil
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import plotly.io
import pytest

from workbench import figures
from workbench.errors import DrawingFailed, UsageError
from workbench.figures import image
from workbench.figures.saved import FigureFile, save

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
drawn = pytest.mark.skipif(BROWSER is None, reason=f"no browser: none of {', '.join(NAMES)}")


@pytest.fixture
def fig(make_load):
    return figures.expert_load(make_load())


def left(folder):
    return sorted(path.name for path in folder.rglob("*"))


def test_each_suffix_holds_what_it_says(fig, tmp_path):
    assert save(fig, tmp_path / "a" / "load.html").read_text().startswith("<!DOCTYPE html>")
    again = plotly.io.read_json(save(fig, tmp_path / "load.JSON"))
    assert figures.caption_of(again) == figures.caption_of(fig)
    rows = list(csv.reader(save(fig, tmp_path / "load.csv").read_text().splitlines()))
    table = figures.caption_of(fig).table
    assert tuple(rows[0]) == table.columns
    assert len(rows) == len(table.rows) + 1
    assert left(tmp_path) == ["a", "load.JSON", "load.csv", "load.html"]


@drawn
def test_a_png_is_twice_as_wide_as_the_figure_and_an_svg_is_text(fig, tmp_path):
    png = save(fig, tmp_path / "load.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", png[16:24]) == (2200, 2 * fig.layout.height)
    svg = save(fig, tmp_path / "load.svg").read_text()
    assert svg.startswith("<svg")
    assert "optimizer step" in svg


@drawn
def test_a_picture_is_drawn_from_this_machine_alone(fig, monkeypatch):
    asked = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_CONNECT = do_GET

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        assert image.NOWHERE.startswith("http://127.0.0.1:")
        # Whatever the browser asks of any address comes by here: its own updates, and what the page
        # would fetch, MathJax from cdnjs or plotly.js from its makers.
        monkeypatch.setattr(image, "NOWHERE", f"http://127.0.0.1:{server.server_port}")
        assert image.to_image(fig, "svg").startswith(b"<svg")
        server.shutdown()
        thread.join()
    assert not [path for path in asked if "cdn" in path or "plot" in path or "mathjax" in path]


def test_without_a_browser_nothing_is_written_and_one_line_says_what_is_missing(
    fig, tmp_path, monkeypatch
):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "nowhere"))
    pytest.importorskip("kaleido")
    with pytest.raises(
        DrawingFailed, match="needs Chromium or Chrome and none was found"
    ) as failed:
        save(fig, tmp_path / "a" / "load.png")
    assert "\n" not in str(failed.value)
    assert left(tmp_path) == []


def test_without_kaleido_the_extra_is_named(fig, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(DrawingFailed, match=r"training-dynamics-workbench\[figures\]"):
        save(fig, tmp_path / "load.svg")
    assert left(tmp_path) == []


def test_a_browser_that_is_none_is_told_in_one_line_and_what_was_there_stays(
    fig, tmp_path, monkeypatch
):
    kaleido = pytest.importorskip("kaleido")

    def fail(*_, **__):
        raise RuntimeError("it\nbroke")

    monkeypatch.setattr(kaleido, "calc_fig_sync", fail)
    there = tmp_path / "load.png"
    there.write_bytes(b"before")
    with pytest.raises(DrawingFailed, match=r"did not draw the PNG \(RuntimeError: it broke\)"):
        save(fig, there)
    assert there.read_bytes() == b"before"
    assert left(tmp_path) == ["load.png"]


def test_a_disk_that_fails_in_the_middle_leaves_what_was_there(fig, tmp_path, monkeypatch):
    there = tmp_path / "load.json"
    there.write_text("before")
    monkeypatch.setattr(
        "pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(UsageError, match="No space left"):
        save(fig, there)
    monkeypatch.undo()
    assert there.read_text() == "before"
    assert left(tmp_path) == ["load.json"]


def test_a_file_that_is_there_is_replaced_also_behind_a_link(fig, tmp_path):
    (tmp_path / "real.json").write_text("before")
    (tmp_path / "link.json").symlink_to("real.json")
    save(fig, tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text())["data"]


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("load.pdf", "expected a file .html, .png, .svg, .json or .csv"),
        ("load", "expected a file .html"),
        ("folder.png", "it is a folder"),
        ("file/load.html", "is a file"),
        ("a\0b.html", "expected a file to write"),
    ],
)
def test_a_place_where_no_figure_can_be_is_refused_before_it_is_drawn(tmp_path, place, why):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=why) as refused:
        FigureFile(f"{tmp_path}/{place}")
    assert "\n" not in str(refused.value)


def test_a_figure_without_a_table_has_no_csv(tmp_path):
    from workbench.figures.caption import Caption
    from workbench.figures.figure import Figure, finish

    fig = finish(Figure(), Caption(name="n", title="t", sentence="s."), height=100)
    with pytest.raises(UsageError, match="no table"):
        save(fig, tmp_path / "n.csv")
    assert left(tmp_path) == []
