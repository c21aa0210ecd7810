"""What the tile starts: the dashboard of a run; until there is a run, a page that says so.

Needs   --port and --prefix.
Yields  a server on loopback. As soon as a run is there it becomes `workbench dashboard` in the same
        process, so that whoever watches over it notices nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from html import escape
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from workbench.app.lab.newest_run import VARIABLE, run_to_show

HOST = "127.0.0.1"

_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="color-scheme" content="light dark">
<meta http-equiv="refresh" content="{seconds}">
<title>Training dynamics</title>
<style>body{{font:16px/1.6 system-ui,sans-serif;max-width:40em;margin:4em auto;padding:0 1em}}
code{{background:rgba(128,128,128,.2);padding:.1em .3em;border-radius:3px}}</style></head>
<body><main>{said}</main></body></html>"""

_NONE = """<h1>No run yet</h1><p>Looked for runs in <code>{folder}</code> and found none. Make one,
and this page becomes its dashboard:</p>
<p><code>workbench demo</code> (a small training, minutes), or
<code>workbench train --into runs/mine</code>.</p>
<p>A run that lies elsewhere is named by the environment variable <code>{variable}</code> where
JupyterLab is started.</p>"""

_FOUND = "<h1>The dashboard is starting</h1><p>Its run is <code>{run}</code>.</p>"


def dashboard(run: Path, port: int, prefix: str) -> list[str]:
    """The command line that serves `run`'s dashboard behind a proxy that takes `prefix` off.

    Example:
        >>> dashboard(Path("runs/demo"), 8050, "/a/")[3:5]
        ['dashboard', 'runs/demo']
    """
    return [
        sys.executable, "-m", "workbench.app.cli", "dashboard", str(run), "--host", HOST,
        "--port", str(port), "--prefix", prefix,
    ]  # fmt: skip


def page(folder: Path, run: Path | None) -> bytes:
    """What is shown while there is no run, and once when there is; it asks again by itself.

    Example:
        >>> b"No run yet" in page(Path("runs"), None)
        True
    """
    if run is None:
        said = _NONE.format(folder=escape(str(folder)), variable=VARIABLE)
        return _PAGE.format(seconds=3, said=said).encode()
    return _PAGE.format(seconds=10, said=_FOUND.format(run=escape(str(run)))).encode()


def wait_for_a_run(port: int, folder: Path) -> Path:
    """Serves `page` until a run is there, and answers the one request that finds it."""
    found: list[Path] = []

    class Waiting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            run = run_to_show(folder)
            if run is not None:
                found.append(run)
            body = page(folder, run)
            self.send_response(503 if run is None else 200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: a request every three seconds is no news."""

    with HTTPServer((HOST, port), Waiting) as server:
        while not found:
            server.handle_request()
    return found[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until it is told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--prefix", required=True)
    asked = parser.parse_args(arguments)
    folder = Path("runs").absolute()
    run = run_to_show(folder) or wait_for_a_run(asked.port, folder)
    line = dashboard(run, asked.port, asked.prefix)
    os.execv(line[0], line)


if __name__ == "__main__":
    main()
