"""Server: the dashboard of a run on a port of this machine.

Needs   a run's folder; the packages dash and waitress (extra [dashboard]).
Yields  `serve`, which answers until it is interrupted; `application`, the WSGI application.

On a loopback address anybody who is on this machine may look, and nobody else. On any other a token
is asked for; without one given, one is made and printed once, in the address to open.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import UsageError

if TYPE_CHECKING:
    from workbench.app.dashboard.guard import Guard
    from workbench.app.dashboard.live_run import LiveRun

THREADS = 8
MOST_BODY = 1_000_000
"""Bytes of a request: what a browser asks takes a few thousand."""
LAST_READ_S = 3.0
"""Seconds that a read which is under way is given when the server ends."""
INTERRUPTED = 130
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,200}")
_PREFIX = re.compile(r"/([A-Za-z0-9_.~@%:-]+/)*")


def serve(
    run: str | Path, *, host: str = "127.0.0.1", port: int = 8050, token: str | None = None,
    prefix: str = "/", say: Callable[[str], object] = lambda text: None,
) -> None:  # fmt: skip
    """Answers until it is interrupted.

    Args:
        run: the run's folder.
        host: address to listen on.
        port: 0 for any that is free.
        token: what a browser must show; by default none on loopback, and one that is made and said
            elsewhere.
        prefix: path that a proxy puts before every path, such as "/user/ada/dashboard/".
        say: is told the address, once.

    Raises:
        KeyboardInterrupt: when it was interrupted.
        UsageError: the packages are missing, the port is taken, the token is too short.
        RunNotFound: no run there.
    """
    require_packages()
    from waitress.server import create_server  # type: ignore[import-untyped]

    from workbench.app.dashboard.guard import is_loopback
    from workbench.app.dashboard.live_run import LiveRun

    # It warns whenever a browser asks for more files at once than there are threads.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    token = check_token(token) if token else "" if is_loopback(host) else secrets.token_urlsafe(24)
    live = LiveRun(run)
    listening = _listen(host, port)
    port = listening.getsockname()[1]
    try:
        guarded = application(live, host=host, port=port, token=token, prefix=prefix)
        server: Any = create_server(
            guarded, sockets=[listening], threads=THREADS, ident=None,
            max_request_body_size=MOST_BODY,
        )  # fmt: skip
    except BaseException:
        listening.close()
        raise
    shown = f"[{host}]" if ":" in host else host
    asked = f"?token={token}" if token else ""
    try:
        say(f"http://{shown}:{port}/{asked}")
        server.run()
    finally:
        server.close()
        _end(live)
    # An interruption it takes for itself, and returns.
    raise KeyboardInterrupt


def _end(live: LiveRun) -> None:
    """Lets what reads the store finish, and nothing begin: the store's own threads abort the
    process if Python ends under them. What takes longer is cut off, as nothing is being written.
    """
    quiet = live.lock.acquire(timeout=LAST_READ_S) and live.later.wait(LAST_READ_S)
    if not quiet:
        sys.stdout.flush()
        os._exit(INTERRUPTED)


def _listen(host: str, port: int) -> socket.socket:
    if not host:
        raise UsageError("--host is empty: 127.0.0.1 is this machine alone, 0.0.0.0 all addresses.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(
            f"port {port} of {host} cannot be listened on ({error.strerror or error}): choose "
            f"another with --port, or --port 0 for any that is free."
        ) from error


def application(
    live: LiveRun, *, host: str = "127.0.0.1", port: int = 0, token: str = "", prefix: str = "/"
) -> Guard:
    """The dashboard of an open run as a WSGI application."""
    import plotly.io as pio

    from workbench.app.dashboard.frame import make_app, warm
    from workbench.app.dashboard.guard import Guard

    # Every figure here has a template of its own, and plotly's would first be checked for each.
    pio.templates.default = None
    if not _PREFIX.fullmatch(prefix):
        raise UsageError(f"--prefix {prefix!r}: expected a path such as /user/ada/dashboard/.")
    app = make_app(live, prefix)
    threading.Thread(target=warm, args=(live,), name="warm", daemon=True).start()
    return Guard(
        app.server, host=host, token=token, scripts=app.csp_hashes(),
        cookie=f"workbench_dashboard_{port}",
    )  # fmt: skip


def check_token(token: str) -> str:
    """The token, if it can be one.

    Example:
        >>> check_token("a" * 16) == "a" * 16
        True
    """
    if not _TOKEN.fullmatch(token):
        raise UsageError(
            "--token: expected 16 to 200 letters, digits, - and _; leave it out to have one made."
        )
    return token


def require_packages() -> None:
    """UsageError with the remedy where dash or waitress is not installed."""
    missing = [name for name in ("dash", "waitress") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"the dashboard needs {' and '.join(missing)}: "
            f"pip install 'training-dynamics-workbench[dashboard]'."
        )
