"""What a long run costs to look at: first paint, and a refresh while it is being written.

    python tests/benchmarks/dashboard.py --steps 100000 --layers 24 --experts 16

Needs   chromium, playwright, dash, waitress.
Yields  seconds to the first paint of charts, seconds and bytes of a refresh with news and of one
        without, and seconds until the server answers; medians of several.

The run is made up: loads that wander, in chunks of 50 steps as a recorder commits them at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from workbench.store.layout import Layout
from workbench.store.run_store import RunStore
from workbench.store.writer import StoreWriter

ROOT = Path(__file__).parents[2]
TOKENS, K, PIECE = 4096, 4, 2500
MARKS = ("#panel-loss .js-line", "#panel-load .hm image", "#panel-balance .js-line")
"""What is there once each chart of the overview is drawn."""
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu"]


class Wandering:
    """Rows of a run whose loads wander."""

    def __init__(self, layers: int, experts: int) -> None:
        self.rng = np.random.default_rng(0)
        self.logits = self.rng.normal(0, 0.3, (layers, experts))

    def append(self, writer: StoreWriter, after: int, n: int) -> None:
        step = np.arange(after + 1, after + n + 1)
        layers, experts = self.logits.shape
        self.logits = 0.98 * self.logits + self.rng.normal(0, 0.05, self.logits.shape)
        p = np.exp(self.logits)
        p /= p.sum(1, keepdims=True)
        counts = self.rng.multinomial(TOKENS * K, np.broadcast_to(p, (n, layers, experts)))
        flat = self.rng.normal(1, 0.01, (3, n, layers)).astype("float32")
        names = ("entropy", "margin", "near_tie")
        writer.append(
            "router",
            {"step": step, "tokens": np.full(n, TOKENS), "assignments": counts.astype("int64"),
             **dict(zip(names, flat, strict=True))},
        )  # fmt: skip
        loss = 2 + 6 * np.exp(-step / 8000) + self.rng.normal(0, 0.05, n)
        now = time.time() - 1.5 * np.arange(n)[::-1]
        writer.append(
            "train",
            {"step": step, "loss": loss.astype("float32"), "lr": np.full(n, 3e-4, "float32"),
             "tokens_seen": step * TOKENS, "utc": now,
             "capture_seconds": np.full(n, 0.004, "float32")},
        )  # fmt: skip


def make(path: Path, steps: int, layers: int, experts: int) -> None:
    """The run, in large commits for speed and the last thousand steps in usual ones."""
    layout = Layout(layers=tuple(range(layers)), experts=experts, k=K)
    store = RunStore.create(path / "store", layout)
    made = Wandering(layers, experts)
    with store.writer("main") as writer:
        at = 0
        while at < steps:
            n = min(PIECE if at < steps - 1000 - PIECE else 50, steps - at)
            made.append(writer, at, n)
            at += n
            writer.commit(f"step {at}")


def measure(path: Path, layers: int, experts: int, repeats: int) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    began = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, "-m", "workbench.app.cli", "dashboard", str(path), "--port", "0"],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    found: dict[str, Any] = {"server answers after s": round(time.perf_counter() - began, 2)}
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
            paints = [paint(browser, url) for _ in range(repeats)]
            found["first paint s"] = round(statistics.median(paints), 2)
            found["first paint s, quickest"] = min(paints)
            found |= refreshes(browser, url, path, layers, experts, repeats)
            browser.close()
    finally:
        server.terminate()
        server.wait()
    return found


def work(path: Path, layers: int, experts: int, repeats: int) -> dict[str, Any]:
    """What the server computes for a refresh with news, in CPU time: beside wall time on a busy
    machine, what an idle one would take.
    """
    from workbench.app.dashboard.frame import _panels
    from workbench.app.dashboard.live_run import LiveRun
    from workbench.app.dashboard.panel import look
    from workbench.app.dashboard.view import View

    live, made, took = LiveRun(path), Wandering(layers, experts), []
    with RunStore.open(path / "store").writer("main") as writer:
        for _ in range(repeats + 1):
            made.append(writer, writer.last("train") or 0, 7)
            writer.seal()
            began = time.process_time()
            moment = live.moment(View())
            for panel in _panels(moment):
                look(panel, "")
            moment.pulse(moment.health)
            took.append(1000 * (time.process_time() - began))
    return {"refresh with news, CPU ms of the server": round(statistics.median(took[1:]))}


def paint(browser: Any, url: str) -> float:
    """Seconds from the address to all charts of the overview, in a browser that has cached none."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    began = time.perf_counter()
    page.goto(url)
    for mark in MARKS:
        page.wait_for_selector(mark, state="attached")
    took = time.perf_counter() - began
    context.close()
    return round(took, 2)


def refreshes(
    browser: Any, url: str, path: Path, layers: int, experts: int, repeats: int
) -> dict[str, Any]:
    """Every refresh of the overview while steps come, as the browser times it."""
    page = browser.new_page()
    answers: list[dict[str, float]] = []

    def finished(request: Any) -> None:
        if "_dash-update-component" not in request.url or "tick" not in (request.post_data or ""):
            return
        timing, sizes = request.timing, request.sizes()
        answers.append(
            {"ms": timing["responseEnd"] - timing["requestStart"],
             "sent": sizes["responseBodySize"], "plain": len(request.response().body())}
        )  # fmt: skip

    page.on("requestfinished", finished)
    page.goto(url)
    page.wait_for_selector(MARKS[-1], state="attached")
    made = Wandering(layers, experts)
    store = RunStore.open(path / "store")
    with store.writer("main") as writer:
        at = writer.last("train") or 0
        while sum(a["plain"] > 5000 for a in answers) < repeats:
            made.append(writer, at, 7)
            at += 7
            writer.seal()
            if at % 50 < 7:
                writer.commit(f"step {at}")
            page.wait_for_timeout(700)
    page.wait_for_timeout(5000)
    page.close()
    news = [a for a in answers if a["plain"] > 5000]
    none = [a for a in answers if a["plain"] <= 5000]
    median = lambda all, key: round(statistics.median(a[key] for a in all)) if all else None  # noqa: E731
    return {
        "refresh with news ms": median(news, "ms"),
        "refresh with news, quickest ms": round(min(a["ms"] for a in news)),
        "refresh with news bytes, compressed": median(news, "sent"),
        "refresh with news bytes": median(news, "plain"),
        "refresh with news bytes, largest": max(a["plain"] for a in news),
        "refresh without news ms": median(none, "ms"),
        "refresh without news bytes": median(none, "plain"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--run", type=Path, help="Made there, or used again; by default a new one.")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = asked.run or Path(folder) / "run"
        if not (path / "store").exists():
            make(path, asked.steps, asked.layers, asked.experts)
        sizes = (asked.layers, asked.experts, asked.repeats)
        found = measure(path, *sizes) | work(path, *sizes)
    print(json.dumps({"steps": asked.steps, **found}, indent=1))


if __name__ == "__main__":
    main()
