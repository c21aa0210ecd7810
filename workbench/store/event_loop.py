"""One event loop of our own, on a thread that lasts.

Needs   a coroutine.
Yields  `run`: its result, whatever loop or thread the caller runs in (Jupyter has a loop already).

A loop for every commit costs a fifth of a commit: its executor starts its threads anew each time.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import wait
from typing import Any

_guard = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_owner: int | None = None
"""Process whose thread runs the loop: a forked child has the loop and not the thread."""


def _running() -> asyncio.AbstractEventLoop:
    global _loop, _owner
    with _guard:
        if _loop is None or _owner != os.getpid():
            _loop, _owner = asyncio.new_event_loop(), os.getpid()
            threading.Thread(target=_loop.run_forever, name="store-loop", daemon=True).start()
        return _loop


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run `work` to its end and return what it returns. Do not call it from within such work.

    An interruption (Ctrl-C) is raised only when the work has ended: nothing goes on behind the
    caller's back.

    Example:
        >>> async def one() -> int:
        ...     return 1
        >>> run(one())
        1
    """
    future = asyncio.run_coroutine_threadsafe(work, _running())
    try:
        return future.result()
    except BaseException:
        wait([future])
        raise
