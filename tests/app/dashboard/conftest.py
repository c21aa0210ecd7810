"""A hostile run that is being written by a process of its own, a dashboard on it, and a browser."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import workbench as wb
from probes.examine import examine
from workbench.app.dashboard.view import PAGES

ROOT = Path(__file__).parents[3]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run"]  # fmt: skip
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
EVIL = "<script>alert(1)</script>\"'&<b>%{x}</b>"
PLANNED = 100_000
"""Last step that the run's phases plan: far beyond what is written."""


class Writer:
    """Another process that writes to a branch, step by step, as it is told."""

    def __init__(self, run: Path, branch: str) -> None:
        script = Path(__file__).parent / "live_writer.py"
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(run), branch],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=ENVIRONMENT,
        )  # fmt: skip
        self.at = self._heard()

    def _heard(self) -> int:
        line = self.process.stdout.readline()
        assert line.startswith("at "), f"the writer said {line!r}"
        return int(line.split()[1])

    def _tell(self, deed: str) -> None:
        self.process.stdin.write(f"{deed}\n")
        self.process.stdin.flush()
        self.at = self._heard()

    def steps(self, n: int) -> int:
        """Write so many steps, to be read at once; the last one."""
        self._tell(f"steps {n}")
        return self.at

    def commit(self) -> None:
        self._tell("commit")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Let it end as a training does."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


class Server:
    """`workbench dashboard` of a run, as a user begins it."""

    def __init__(self, run: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workbench.app.cli", "dashboard", str(run), "--port", "0",
             *options],
            stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
        )  # fmt: skip
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http://"), f"the dashboard said {self.url!r}"

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.process.stdout.close()


class Tab:
    """A page of the dashboard, and everything that went wrong in it."""

    AXES = """[...document.querySelectorAll('.js-plotly-plot')].flatMap(p =>
    Object.keys(p._fullLayout).filter(k => /^xaxis[0-9]*$/.test(k)).map(k => p._fullLayout[k])
        .filter(a => p._fullLayout[a._name.replace('axis', '')] !== null))"""
    DRAWN = """document.querySelectorAll('.panel').length > 0 &&
    ![...document.querySelectorAll('.missing')].some(p => p.innerText.startsWith('computing')) &&
    [...document.querySelectorAll('.plot')].every(p =>
        p.querySelector('svg.main-svg .trace, svg.main-svg .hm image'))"""

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
        self.until(self.DRAWN)

    def show(self, page):
        """Follows the link to a page of the dashboard."""
        link = self.page.locator("nav li").nth(PAGES.index(page)).locator("a")
        words = link.inner_text()
        link.click()
        current = "document.querySelector('nav [aria-current=page]').textContent"
        self.until(f"{current} === {json.dumps(words)} && {self.DRAWN}")

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
            f"""() => ({self.AXES}).filter(a => a.type === 'linear').map(a => a.range)"""
        )
        # A difference between arms is in accuracy or nats.
        return [(low, high) for low, high in found if high > 10]

    def close(self):
        self.context.close()


@pytest.fixture(scope="module")
def hostile_run(planted_run):
    """A run whose every name is hostile, and which plans far more steps than it has."""
    names = {"code/add": f"code/{EVIL}", "logic/chain": "logic/" + "x" * 10_000}
    phases = [{"name": EVIL, "start": 1, "stop": 39},
              {"name": "y" * 10_000, "start": 40, "stop": PLANNED}]  # fmt: skip
    path = planted_run("hostile-live", names=names, about={"name": EVIL, "phases": phases})
    examine(wb.open_run(path, "curriculum"), "balance", "load")
    return path


@pytest.fixture(scope="module")
def begin_writer():
    """Begins writers: `begin_writer(run, branch)`; all are ended afterwards."""
    begun = []

    def begin(run: Path, branch: str) -> Writer:
        begun.append(Writer(run, branch))
        return begun[-1]

    yield begin
    for writer in begun:
        writer.end()


@pytest.fixture(scope="module")
def serve():
    """Serves runs: `serve(run)`; all servers are closed afterwards."""
    serving = []

    def begin(run: Path, *options: str) -> Server:
        serving.append(Server(run, *options))
        return serving[-1]

    yield begin
    for server in serving:
        server.close()


@pytest.fixture(scope="module")
def writer(hostile_run, begin_writer):
    return begin_writer(hostile_run, "curriculum")


@pytest.fixture(scope="module")
def served(hostile_run, writer, serve):
    return serve(hostile_run)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser found: none of {', '.join(NAMES)} is on the path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def open_tab(browser):
    """Opens pages of a browser: `open_tab(url, width=)`; all are closed afterwards."""
    opened = []

    def begin(url: str, width: int = 1280) -> Tab:
        opened.append(Tab(browser, url, width))
        return opened[-1]

    yield begin
    for tab in opened:
        tab.close()


@pytest.fixture(scope="module")
def tab(open_tab, served):
    return open_tab(served.url)


@pytest.fixture(autouse=True)
def nothing_is_complained_of(request):
    yield
    if "tab" in request.fixturenames:
        tab = request.getfixturevalue("tab")
        assert tab.complaints == []
        assert [r for r in tab.requests if not r.startswith((tab.url, "data:", "blob:"))] == []
