"""Later: what takes longer than a page may, computed beside the pages that wait for it.

Needs   a name, what the result depends on, and how it is computed.
Yields  Later: `get`, the result or Computing; it never waits.

One thread computes one thing at a time, so a live page costs a training on the same machine a core
at most. A result is kept until what it depends on changes, and shown until the next one is there.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from time import monotonic
from typing import Any, TypeVar

from workbench.errors import RunNotFound, WorkbenchError

MOST = 48
"""Results that are kept: those that were asked for last."""

AGAIN_S = 30.0
"""Seconds after which what failed for a reason that may pass is tried again."""

T = TypeVar("T")


class Computing(RunNotFound):
    """It is being computed, and will be there at a later look."""


class Later:
    """Results that are computed in the background.

    Example:
        >>> later = Later()
        >>> try:
        ...     later.get("sum", 3, lambda: 1 + 2)
        ... except Computing:
        ...     _ = later.wait()
        >>> later.get("sum", 3, lambda: 1 + 2)
        3
    """

    def __init__(self) -> None:
        self.done = 0
        """How many results have come: it changes when a page has something new to show."""
        self._kept: OrderedDict[str, tuple[Hashable, Any, Exception | None]] = OrderedDict()
        self._failed: dict[str, float] = {}
        self._thread: threading.Thread | None = None
        # Not whether the thread lives: it does for a moment after its result was told.
        self._busy = False
        self._lock = threading.Lock()

    def get(self, name: str, depends_on: Hashable, compute: Callable[[], T]) -> T:
        """The result, perhaps of an earlier state while that of this one is computed.

        Args:
            compute: runs in another thread: it may share nothing with a page that does not bear it.

        Raises:
            Computing: there is none yet.
            Exception: what `compute` raised for this state.
        """
        with self._lock:
            kept = self._kept.get(name)
            if kept is not None:
                self._kept.move_to_end(name)
            is_new = kept is None or kept[0] != depends_on
            again = monotonic() - self._failed.get(name, monotonic()) > AGAIN_S
            if (is_new or again) and not self._busy:
                self._busy = True
                self._thread = threading.Thread(
                    target=self._run, args=(name, depends_on, compute), name=name, daemon=True
                )
                self._thread.start()
        if kept is None or (is_new and kept[2] is not None):
            raise Computing("computing; this page shows it as soon as it is there.")
        if kept[2] is not None:
            raise kept[2]
        return kept[1]

    def wait(self, seconds: float | None = None) -> bool:
        """Until nothing is being computed; whether that came within the time."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)
        return thread is None or not thread.is_alive()

    def _run(self, name: str, depends_on: Hashable, compute: Callable[[], Any]) -> None:
        try:
            found, error = compute(), None
        except Exception as raised:
            found, error = None, raised
        with self._lock:
            self._kept[name] = (depends_on, found, error)
            self._failed.pop(name, None)
            if error is not None and not isinstance(error, WorkbenchError):
                self._failed[name] = monotonic()
            while len(self._kept) > MOST:
                self._failed.pop(self._kept.popitem(last=False)[0], None)
            self.done += 1
            self._busy = False
