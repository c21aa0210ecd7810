"""The background writer: takes samples off the training thread and commits them to the store.

Needs   a store and a branch.
Yields  BackgroundWriter: `put` never waits; `flush` waits until all is durable.

Training must not stop because of capture: when the queue is full a sample is dropped and counted;
when the disk fails, the first error is kept and told (a warning at the next step, and again at the
end), and everything later is counted as dropped.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench.store.run_store import RunStore

QUEUE_SAMPLES = 512
"""Samples that may wait; at the demo's size about 5 MB."""
COMMIT_EVERY = 50
"""Steps between two commits: a chunk of the store, so that no chunk is written twice."""


@dataclass(frozen=True)
class Rows:
    """Rows for one group of the store, each variable with the growing dim first."""

    group: str
    values: Mapping[str, np.ndarray]


@dataclass
class Flush:
    """A request to commit everything before it; `tag` marks the commit as a checkpoint."""

    tag: int | None = None
    done: threading.Event = field(default_factory=threading.Event)


class BackgroundWriter:
    """A thread that owns the branch's one StoreWriter.

    Args:
        store: of the run.
        branch: written until `close`; a second writer is refused by the store.
        layout: what to fill in of the store's layout, such as tasks= and tokens=.
    """

    def __init__(self, store: RunStore, branch: str, layout: Mapping[str, Any]) -> None:
        # Opened here, so that a busy branch is refused to the caller and not in the thread.
        self._writer = store.writer(branch)
        try:
            self._writer.fill_layout(**layout)
        except BaseException:
            self._writer.close()
            raise
        self._queue: queue.Queue[Rows | Flush | None] = queue.Queue(QUEUE_SAMPLES)
        self.dropped = 0
        """Samples that were not written: the queue was full, or writing had failed."""
        self.error: BaseException | None = None
        self._told = False
        self._thread = threading.Thread(target=self._work, name=f"store-{branch}", daemon=True)
        self._thread.start()

    def last(self, group: str) -> int | None:
        """Label of the group's last row, as the store had it when this writer began."""
        return self._writer.last(group)

    def put(self, rows: Rows) -> None:
        """Hands rows over; drops them, and counts that, where the queue is full or the disk has
        failed.
        """
        if self.error is not None:
            self.dropped += 1
            self._tell()
            return
        try:
            self._queue.put_nowait(rows)
        except queue.Full:
            self.dropped += 1

    def _tell(self) -> None:
        """Warns once, on the caller's thread: made an error, it must not kill the writer's."""
        if self.error is not None and not self._told:
            self._told = True
            warnings.warn(
                f"capture has stopped, training goes on: {self.error}", RuntimeWarning, stacklevel=4
            )

    def flush(self, tag: int | None = None) -> bool:
        """Waits until everything handed over is durable, and tagged; False where writing has
        failed.
        """
        if self.error is None and self._thread.is_alive():
            request = Flush(tag)
            self._queue.put(request)
            while not request.done.wait(1.0) and self._thread.is_alive():
                pass
        self._tell()
        return self.error is None

    def close(self) -> None:
        """Writes what waits, ends the thread and frees the branch."""
        try:
            if self._thread.is_alive():
                self.flush()
        finally:
            if self._thread.is_alive():
                self._queue.put(None)
                self._thread.join()
            self._writer.close()

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            try:
                if self.error is None:
                    self._do(task)
                elif isinstance(task, Rows):
                    self.dropped += 1
            except BaseException as error:  # whatever it is, training must not die of it
                self.error = error
                self.dropped += isinstance(task, Rows)
            finally:
                if isinstance(task, Flush):
                    task.done.set()

    def _do(self, task: Rows | Flush) -> None:
        if isinstance(task, Rows):
            self._writer.append(task.group, task.values)
            if task.group == "train" and self._writer.last("train") % COMMIT_EVERY == 0:  # type: ignore[operator]
                self._writer.commit(f"step {self._writer.last('train')}")
            return
        self._writer.commit("flush" if task.tag is None else f"checkpoint {task.tag}")
        if task.tag is not None:
            self._writer.tag_checkpoint(task.tag)
