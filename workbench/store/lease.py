"""A lock on object storage: an object that says who holds it and that its holder keeps renewing.

Needs   a bucket that honours If-Match and If-None-Match (S3 does); the package obstore.
Yields  Lease; StoreBusy that names host and process.

The object is only ever written on the condition that it is still what was read, so of two that
want it one gets it. The holder renews it every 10 s. A lease that was not renewed for 60 s may be
taken, and one whose holder was a process of this machine that is gone, at once (after a kill there
is nothing to wait for). How old it is, is the difference of two times of the server: no host's
clock has a say. A holder that could not renew for 40 s gives it up by itself.

A lease can be lost while its holder thinks (a suspended machine, a network that was away), so it
does not protect the record alone: every commit moves its branch on the condition that the branch is
where the writer left it. The lease is what refuses the second writer by name, before work is lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
import weakref
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PreconditionError

from workbench.errors import StoreBusy
from workbench.store.lock import holder_note, read_holder

if TYPE_CHECKING:
    from obstore.store import S3Store

STALE_AFTER_S = 60.0
"""A lease that was not renewed for so long is anybody's."""

NOTE_BYTES = 4096
"""Longer than any note; what is longer is not read."""

_held: weakref.WeakSet[Lease] = weakref.WeakSet()


def _forget_in_child() -> None:
    for lease in list(_held):
        lease._forget()


os.register_at_fork(after_in_child=_forget_in_child)


@dataclass(frozen=True)
class _Found:
    """The lease object as it was read."""

    note: dict[str, Any]
    text: bytes
    e_tag: str
    written: datetime


class Lease:
    """An exclusive, renewed lease on the object `key`.

    Args:
        bucket: the place of the locks.
        key: name of the lease object; made where it is missing, and left there afterwards.
        what: what is being locked, as the refusal should call it.
        stale_after_s: seconds without renewal after which it may be taken; the holder renews at a
            sixth of that and gives up at two thirds. The same for all who use one store.
    """

    def __init__(
        self, bucket: S3Store, key: str, what: str, stale_after_s: float = STALE_AFTER_S
    ) -> None:
        self.key = key
        self.what = what
        self._bucket = bucket
        self._stale_after_s = stale_after_s
        self._forget()

    def _forget(self) -> None:
        """Hold nothing, tell nobody: how a lease begins, and what is left in a forked child."""
        self._token = ""
        self._e_tag = ""
        self._renewed = 0.0
        self._why_lost = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        _held.discard(self)

    @property
    def held(self) -> bool:
        """Whether it was taken and not closed since; `check` tells whether it was lost."""
        return bool(self._token)

    def _lost(self) -> str:
        silent = _now() - self._renewed
        if not self._why_lost and silent > self._stale_after_s * 2 / 3:
            self._why_lost = f"it could not be renewed for {silent:.0f} s"
        return self._why_lost

    def check(self) -> None:
        """StoreBusy where the lease is not held any more."""
        if not self._token:
            raise StoreBusy(f"the lease of {self.what} was closed; open it again.")
        if why := self._lost():
            raise StoreBusy(
                f"the lease of {self.what} was lost: {why}. What was committed is safe, what was "
                f"not is not in the record; open a new writer and go on where the branch ends."
            )

    def acquire(self, *, wait: bool = False) -> None:
        """Take the lease; where another holds it, wait, or raise StoreBusy at once.

        Raises:
            StoreBusy: another holds it.
            ConnectionError: the lease object cannot be read or written.
        """
        try:
            self._acquire(wait)
        except BaseError as error:
            raise ConnectionError(
                f"the lease of {self.what} cannot be reached: {one_line(error)}. Check the "
                f"network, and that these credentials may read and write objects there."
            ) from error

    def _acquire(self, wait: bool) -> None:
        token, pause, looked = uuid.uuid4().hex, 0.02, -1e9
        while True:
            found = self._read()
            # The server's clock costs a request; while waiting it is read now and then.
            may_ask = _now() - looked > self._stale_after_s / 10
            looked = _now() if may_ask else looked
            if self._is_free(found, may_ask):
                began = _now()
                if e_tag := self._put(self._note(token), found.e_tag if found else None, token):
                    self._hold(token, e_tag, began)
                    return
                continue
            if not wait:
                raise StoreBusy(
                    f"{self.what} is being written by {read_holder(found.text if found else b'')}; "
                    f"one writer at a time. Wait until it is done or end it, then try again: a "
                    f"lease that is not renewed for {self._stale_after_s:.0f} s can be taken."
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 0.5)

    def _hold(self, token: str, e_tag: str, began: float) -> None:
        self._forget()
        self._token, self._e_tag, self._renewed = token, e_tag, began
        self._thread = threading.Thread(
            target=self._keep, args=(self._stop,), name=f"lease {self.key}", daemon=True
        )
        self._thread.start()
        _held.add(self)

    def _is_free(self, found: _Found | None, ask_clock: bool) -> bool:
        if found is None or found.note.get("free") is True or _is_gone(found.note):
            return True
        if not ask_clock:
            return False
        return (self._server_time() - found.written).total_seconds() > self._stale_after_s

    def _server_time(self) -> datetime:
        """The server's clock, which is the time at which it says an object was written."""
        obstore.put(self._bucket, ".clock", b"", mode="overwrite")
        return obstore.head(self._bucket, ".clock")["last_modified"]

    def _read(self) -> _Found | None:
        try:
            got = obstore.get(self._bucket, self.key)
        except (NotFoundError, FileNotFoundError):
            return None
        text = bytes(got.bytes()) if got.meta["size"] <= NOTE_BYTES else b""
        try:
            note = json.loads(text)
        except (ValueError, RecursionError):
            note = None
        return _Found(
            note if isinstance(note, dict) else {},
            text,
            str(got.meta["e_tag"]),
            got.meta["last_modified"],
        )

    def _put(self, note: dict[str, Any], over: str | None, token: str) -> str:
        """Write the note where the object is still `over` (None: is not there); its e-tag, or ""
        where somebody else was first.
        """
        text = json.dumps(note).encode()
        while True:
            mode: Any = {"e_tag": over} if over else "create"
            try:
                return str(obstore.put(self._bucket, self.key, text, mode=mode)["e_tag"])
            except (PreconditionError, AlreadyExistsError, NotFoundError, FileNotFoundError):
                # A request whose answer got lost is sent again, and then our own note is in the
                # way: that is nobody else.
                there = self._read()
                if there is None or there.note.get("token") != token:
                    return ""
                over = there.e_tag

    def _note(self, token: str) -> dict[str, Any]:
        # An e-tag is a digest of the content, so no two notes may be the same.
        return {**holder_note(), **_process(), "token": token, "renewal": uuid.uuid4().hex}

    def _keep(self, stop: threading.Event) -> None:
        """Renew until stopped or lost; on a thread of its own."""
        since, token, e_tag = holder_note()["since_utc"], self._token, self._e_tag
        every = self._stale_after_s / 6
        while not stop.wait(every) and not self._lost():
            began = _now()
            try:
                e_tag = self._put({**self._note(token), "since_utc": since}, e_tag, token)
            except (BaseError, OSError):
                # The network is away: `_lost` decides when that is too long.
                continue
            if not e_tag:
                self._why_lost = f"it was taken by {self._who()}"
                return
            self._e_tag, self._renewed = e_tag, began

    def _who(self) -> str:
        there = None
        with contextlib.suppress(BaseError, OSError):
            there = self._read()
        return read_holder(there.text if there else b"")

    def close(self) -> None:
        """Give the lease back; nothing happens where it is not held."""
        token, thread = self._token, self._thread
        if not token:
            return
        self._stop.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        if not self._lost():
            free = {**self._note(token), "free": True}
            # Unreachable just now: it goes stale by itself.
            with contextlib.suppress(BaseError, OSError):
                self._put(free, self._e_tag, token)
        self._forget()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def one_line(error: Exception) -> str:
    """What a library of many lines said, in one that fits into a sentence."""
    words = " ".join(str(error).split())
    return (words if len(words) <= 200 else words[:197] + "...").rstrip(".")


def _now() -> float:
    """Seconds on a clock that nobody sets and that, on Linux, counts while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _process() -> dict[str, Any]:
    """This process, so that another of the same machine can see that it is gone."""
    return {"machine": _machine(), "started": _stat(os.getpid())[1]}


def _machine() -> str:
    """This boot of this kernel and this space of process ids; "" where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _stat(pid: int) -> tuple[str, str]:
    """State of the process and when it began, in ticks since the boot; empty where not told."""
    try:
        # After the name, which may hold anything, blanks and brackets too.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return "", ""


def _is_gone(note: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that lives no more; where that cannot be
    told, it lives.
    """
    machine, pid, started = note.get("machine"), note.get("pid"), note.get("started")
    if not machine or machine != _machine() or not started or type(pid) is not int or pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    # Another process may have got the number since. /proc may hide those of other users.
    state, begun = _stat(pid)
    return bool(state) and (state in "ZX" or begun != started)
