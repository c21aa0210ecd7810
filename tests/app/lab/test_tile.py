"""JupyterLab as `workbench lab` starts it: its tile, no questions, and what the tile opens."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from workbench.app.cli import main
from workbench.app.lab import jupyter_lab, tile, tile_server
from workbench.testing import planted_run

ROOT = Path(__file__).parents[3]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run"]  # fmt: skip
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
ENTRY_POINTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def get(port, path="/", **headers):
    """Status and body, or None while nothing answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return None


def until(asked, seconds=60):
    """The first true answer; fails after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := asked():
            return answer
        time.sleep(0.1)
    raise AssertionError(f"nothing within {seconds} s")


@pytest.fixture
def spawn():
    started = []

    def start(*line, **options):
        started.append(subprocess.Popen(list(map(str, line)), **options))
        return started[-1]

    yield start
    for process in started:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def own_path(*before):
    return os.pathsep.join([*map(str, before), str(ROOT), os.environ.get("PYTHONPATH", "")])


def test_the_entry_point_names_what_is_there():
    home, name = ENTRY_POINTS["jupyter_serverproxy_servers"][tile.NAME].split(":")
    assert home == tile.__name__
    assert getattr(tile, name) is tile.training_dynamics


def test_jupyter_server_proxy_takes_the_tile_and_fills_in_port_and_address():
    config = pytest.importorskip("jupyter_server_proxy.config")
    process = config.ServerProcess(name=tile.NAME, **tile.training_dynamics())
    assert process.launcher_entry.title == "Training dynamics"
    assert Path(process.launcher_entry.icon_path).read_text().startswith("<svg")
    filled = [part.format(port=9, base_url="/user/me/") for part in process.command]
    assert filled[-4:] == ["--port", "9", "--prefix", "/user/me/training-dynamics/"]


def test_the_pages_settings_ask_no_question():
    settings = json.loads((jupyter_lab.SETTINGS / "labconfig" / "page_config.json").read_text())
    assert settings["buildCheck"] is False
    mine = jupyter_lab.environment({"JUPYTER_CONFIG_PATH": "/mine", "HOME": "/me"})
    paths = mine["JUPYTER_CONFIG_PATH"].split(os.pathsep)
    assert paths == [str(jupyter_lab.SETTINGS), "/mine"]


def test_without_jupyterlab_the_remedy_is_told(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(jupyter_lab, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leave:
        main(["lab"])
    assert leave.value.code == 2
    assert "training-dynamics-workbench[lab]" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_lab_says_what_it_copied_and_which_run_the_tile_opens(monkeypatch, capsys, tmp_path):
    pytest.importorskip("jupyterlab")
    pytest.importorskip("jupyter_server_proxy")
    lines = []
    monkeypatch.setattr(os, "execve", lambda program, line, env: lines.append((line, env)))
    monkeypatch.setattr(subprocess, "call", lambda line, env: lines.append((line, env)))
    monkeypatch.setenv("WORKBENCH_RUN", str(tmp_path / "elsewhere"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leave:
        main(["lab", "--no-browser", "--port", "8899", "--jupyter=--allow-root"])
    assert not leave.value.code
    said = capsys.readouterr().out
    assert "01_first_look.ipynb: copied" in said
    assert f"opens {tmp_path / 'elsewhere'}" in said
    ((line, env),) = lines[:1]
    assert f"--ServerApp.root_dir={tmp_path / 'runs' / 'notebooks'}" in line
    assert line[-1] == "--allow-root"
    assert str(jupyter_lab.SETTINGS) in env["JUPYTER_CONFIG_PATH"]


def test_until_there_is_a_run_the_tile_says_what_to_do_and_then_becomes_its_dashboard(
    spawn, tmp_path
):
    # In place of the dashboard: what it is started with, served by nobody.
    stand_in = tmp_path / "stand_in"
    stand_in.mkdir()
    (stand_in / "seen.py").write_text(
        "import sys, workbench.app.lab.tile_server as t\n"
        'note = \'import sys; open("seen.txt", "w").write(repr(sys.argv[1:]))\'\n'
        "t.dashboard = lambda *a: [sys.executable, '-c', note, *map(str, a)]\n"
        "t.main()\n"
    )
    port = free_port()
    env = {k: v for k, v in os.environ.items() if k != "WORKBENCH_RUN"}
    process = spawn(
        sys.executable, stand_in / "seen.py", "--port", port, "--prefix", "/x/",
        cwd=tmp_path, env=env | {"PYTHONPATH": own_path()},
    )  # fmt: skip
    status, page = until(lambda: get(port, "/x/"))
    assert status == 503
    assert "No run yet" in page
    assert str(tmp_path / "runs") in page
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "run.json").write_text("{}")
    status, page = get(port, "/x/")
    assert status == 200
    assert "dashboard is starting" in page
    assert process.wait(30) == 0
    seen = (tmp_path / "seen.txt").read_text()
    assert seen == repr([str(tmp_path / "runs" / "mine"), str(port), "/x/"])


def test_the_page_shows_a_hostile_folder_as_text():
    page = tile_server.page(Path("/<script>alert(1)</script>"), None).decode()
    assert "<script>" not in page


@pytest.mark.slow
def test_in_a_browser_jupyterlab_asks_nothing_and_its_tile_opens_the_dashboard(spawn, tmp_path):
    pytest.importorskip("jupyterlab")
    pytest.importorskip("dash")
    pytest.importorskip("waitress")
    pytest.importorskip("jupyter_server_proxy")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser found: none of {', '.join(BROWSERS)} is on the path")
    port, token = free_port(), "of-this-test"
    spawn(
        sys.executable, "-m", "workbench.app.cli", "lab", "--no-browser", "--port", port,
        "--jupyter=--allow-root", "--jupyter=--ServerApp.port_retries=0",
        cwd=tmp_path, env=clean_environment(tmp_path, token),
    )  # fmt: skip
    until(lambda: (get(port, "/api") or [0])[0] == 200, seconds=120)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        asked = []
        page.on("request", lambda r: asked.append(r.url))
        # The question whether to build comes with the answer to this request, were it made.
        page.goto(f"http://127.0.0.1:{port}/lab?token={token}")
        card = page.locator(".jp-LauncherCard", has_text="Training dynamics")
        card.first.wait_for(timeout=120_000)
        listed = page.locator(".jp-DirListing-itemText")
        listed.first.wait_for(timeout=60_000)
        assert "01_first_look.ipynb" in listed.all_inner_texts()
        page.wait_for_load_state("networkidle")
        assert not [url for url in asked if "/lab/api/build" in url]
        assert not [url for url in asked if "/lab/api/news" in url]
        assert page.locator(".jp-Dialog").count() == 0
        assert page.locator(".Toastify__toast").count() == 0
        shown = card.locator("img").first
        assert shown.evaluate("image => image.naturalWidth") > 0
        outside = [url for url in asked if not url.startswith(f"http://127.0.0.1:{port}/")]
        assert [url for url in outside if not url.startswith(("data:", "blob:"))] == []
        with page.expect_popup(timeout=60_000) as opened:
            card.first.click()
        opened.value.get_by_text("No run yet").wait_for(timeout=60_000)
        assert opened.value.url.endswith("/training-dynamics/")
        # The page asks again by itself, and finds the run.
        planted_run(tmp_path / "runs" / "mine")
        shown = opened.value.get_by_role("heading", name="planted")
        shown.wait_for(timeout=120_000)
        opened.value.locator(".js-plotly-plot").first.wait_for(timeout=60_000)
        browser.close()


def clean_environment(home, token):
    """Of somebody who never started Jupyter, with the entry points that pyproject has."""
    about = home / "installed" / "training_dynamics_workbench-0.1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: training-dynamics-workbench\nVersion: 0.1.0\n"
    )
    points = configparser.ConfigParser(delimiters="=")
    points.read_dict(ENTRY_POINTS)
    with (about / "entry_points.txt").open("w") as file:
        points.write(file)
    drop = ("WORKBENCH_RUN", "JUPYTER_CONFIG_PATH", "JUPYTER_CONFIG_DIR", "XDG_DATA_HOME")
    env = {key: value for key, value in os.environ.items() if key not in drop}
    return env | {
        "HOME": str(home), "JUPYTER_TOKEN": token, "PYTHONPATH": own_path(about.parent),
        "JUPYTER_PLATFORM_DIRS": "0", "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }  # fmt: skip
