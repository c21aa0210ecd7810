"""Pictures of the report, the dashboard and a notebook, for docs/screens.md.

    python docs/make_screens.py runs/demo

Needs   a finished run of the demo; playwright and a chromium on the path; pillow.
Yields  docs/screens/<name>.webp, each under 80 kB.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

SCREENS = Path(__file__).parent / "screens"
NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "02_the_final_week.ipynb"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run"]  # fmt: skip
DASHBOARD = {
    "dashboard-layers": "?page=layers",
    "dashboard-emergence": "?page=emergence",
    "dashboard-health": "?page=health",
}
MOST_BYTES = 80_000
# A picture for everybody names no folder of the machine that took it.
RENAME = """([path, name]) => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    walker.currentNode.nodeValue = walker.currentNode.nodeValue.replaceAll(path, name);
  }
}"""
SETTLED_MS = 8_000
"""Until everything on a page is drawn, on a slow machine."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run.absolute()
    SCREENS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as kept, sync_playwright() as playwright:
        found = next(path for name in ("chromium", "chrome") if (path := shutil.which(name)))
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        report = Path(kept) / "report.html"
        subprocess.run([*_workbench(), "report", str(run), "-o", str(report)], check=True)
        _shoot(page, report.as_uri(), "report", run)
        with _dashboard(run) as address:
            for name, query in DASHBOARD.items():
                _shoot(page, address + query, name, run)
        _shoot(page, _executed(run, Path(kept)).as_uri(), "notebook", run)
        browser.close()
    return 0


def _workbench() -> list[str]:
    return [sys.executable, "-m", "workbench.app.cli"]


@contextmanager
def _dashboard(run: Path) -> Iterator[str]:
    """Its address, while it is served."""
    command = [*_workbench(), "dashboard", str(run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def _executed(run: Path, into: Path) -> Path:
    """The notebook with its outputs, as a page."""
    command = [sys.executable, "-m", "nbconvert", "--to", "html", "--execute", str(NOTEBOOK)]
    renderer = {"PLOTLY_RENDERER": "plotly_mimetype+notebook", "WORKBENCH_RUN": str(run)}
    subprocess.run(
        [*command, "--output-dir", str(into)], check=True, env={**os.environ, **renderer}
    )
    return into / f"{NOTEBOOK.stem}.html"


def _shoot(page: Any, address: str, name: str, run: Path) -> None:
    page.goto(address)
    page.wait_for_timeout(SETTLED_MS)
    page.evaluate(RENAME, [str(run), "runs/demo"])
    with Image.open(io.BytesIO(page.screenshot())) as whole:
        for quality in (70, 50, 35, 20):
            out = io.BytesIO()
            whole.convert("RGB").save(out, "WEBP", quality=quality, method=6)
            if out.tell() <= MOST_BYTES:
                break
    (SCREENS / f"{name}.webp").write_bytes(out.getvalue())
    sys.stderr.write(f"{name}: {out.tell()} bytes\n")


if __name__ == "__main__":
    sys.exit(main())
