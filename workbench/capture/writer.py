"""The background writer: takes samples out of the ring and commits them to the store.

Needs   a store and a branch; the ring that a tap fills.
Yields  BackgroundWriter: `put` never waits; `flush` waits until all is durable.

Training must not stop because of capture: a full ring drops samples and counts them; when the disk
fails, the first error is kept and told (a warning at the next step, and again at the end), and
everything later is counted as dropped.

The thread looks into the ring a few times a second and takes what has gathered, so that the
training thread neither wakes it at every step nor waits for its turn with the interpreter.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from workbench.capture.ring import Ring, Sample
from workbench.capture.rows import SeenTokens, router_rows, trace_rows, train_rows
from workbench.capture.tap import Tap
from workbench.store.run_store import RunStore
from workbench.store.schema import Variable
from workbench.store.writer import StoreWriter

LOOK_EVERY = 0.2
"""Seconds between two looks into the ring."""
COMMIT_EVERY = 50
"""Steps between two commits: a chunk of the store, so that no chunk is written twice."""


@dataclass(frozen=True)
class Rows:
    """Rows for one group of the store, each variable with the growing dim first."""

    group: str
    values: Mapping[str, np.ndarray]
    declared: Mapping[str, Variable] = field(default_factory=dict)
    """Variables that the schema cannot know, as `StoreWriter.append` takes them."""


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
        self._asked: queue.SimpleQueue[Rows | Flush | None] = queue.SimpleQueue()
        self._intake: Intake | None = None
        self._lost = 0
        self.error: BaseException | None = None
        self._told: set[str] = set()
        self._thread = threading.Thread(target=self._work, name=f"store-{branch}", daemon=True)
        self._thread.start()

    def listen(self, tap: Tap, seen: SeenTokens, *, with_domains: bool) -> None:
        """From here on takes what the tap pushes into its ring."""
        self._intake = Intake(tap, seen, with_domains, self._writer)

    @property
    def overflowed(self) -> int:
        """Tokens that should have been traced and found no room."""
        traces = self._intake.traces if self._intake else None
        return traces.overflowed if traces is not None else 0

    @property
    def dropped(self) -> int:
        """Samples that were not written: the ring was full, or writing had failed."""
        return self._lost + (self._intake.ring.dropped if self._intake else 0)

    def last(self, group: str) -> int | None:
        """Label of the group's last row, as the store had it when this writer began."""
        return self._writer.last(group)

    def put(self, rows: Rows) -> None:
        """Hands rows over; drops them, and counts that, where the disk has failed."""
        if self.error is not None:
            self._lost += 1
        else:
            self._asked.put(rows)

    def tell(self) -> None:
        """Warns once that writing has failed, or that counts do not add up. On the caller's thread:
        made an error, a warning must not kill the writer's.
        """
        failed = self.error and f"capture has stopped, training goes on: {self.error}"
        for kind, text in (("failed", failed), ("odd", self._intake and self._intake.odd)):
            if text and kind not in self._told:
                self._told.add(kind)
                warnings.warn(text, RuntimeWarning, stacklevel=4)

    def flush(self, tag: int | None = None) -> bool:
        """Waits until everything handed over is durable, and tagged; False where writing has
        failed.
        """
        if self.error is None and self._thread.is_alive():
            request = Flush(tag)
            self._asked.put(request)
            while not request.done.wait(1.0) and self._thread.is_alive():
                pass
        self.tell()
        return self.error is None

    def close(self) -> None:
        """Writes what waits, ends the thread and frees the branch."""
        try:
            if self._thread.is_alive():
                self.flush()
        finally:
            if self._thread.is_alive():
                self._asked.put(None)
                self._thread.join()
            self._writer.close()

    def _work(self) -> None:
        while True:
            asked, stop = self._gather()
            # What was asked for comes after every sample that was pushed before it.
            if self._intake is not None:
                self._do(partial(self._intake.drain, wait=bool(asked)), lost=0)
            for task in asked:
                self._do(partial(self._serve, task), lost=isinstance(task, Rows))
                if isinstance(task, Flush):
                    task.done.set()
            if stop:
                return

    def _gather(self) -> tuple[list[Rows | Flush], bool]:
        """All that is asked for by now, after waiting a moment; and whether to stop."""
        asked: list[Rows | Flush] = []
        try:
            task = self._asked.get(timeout=LOOK_EVERY)
            while task is not None:
                asked.append(task)
                task = self._asked.get_nowait()
            return asked, True
        except queue.Empty:
            return asked, False

    def _do(self, work: Callable[[], Any], *, lost: int) -> None:
        if self.error is not None:
            self._lost += lost + (self._intake.discard() if self._intake else 0)
            return
        try:
            work()
        except BaseException as error:  # whatever it is, training must not die of it
            self.error = error
            self._lost += lost + (self._intake.discard() if self._intake else 0)

    def _serve(self, task: Rows | Flush) -> None:
        if isinstance(task, Rows):
            values = dict(task.values)
            if task.group in ("evaluations", "activations") and self._intake is not None:
                steps = values["checkpoint"]
                values["tokens_seen"] = np.array([self._intake.seen.at(int(s)) for s in steps])
            self._writer.append(task.group, values, task.declared)
            return
        self._writer.commit("flush" if task.tag is None else f"checkpoint {task.tag}")
        if task.tag is not None:
            self._writer.tag_checkpoint(task.tag)


class Intake:
    """What the writer's thread does with the samples of a ring."""

    def __init__(self, tap: Tap, seen: SeenTokens, with_domains: bool, writer: StoreWriter) -> None:
        self.ring: Ring = tap.ring
        self.seen = seen
        self._layout = tap.layout
        self._with_domains = with_domains
        self._writer = writer
        self._sites = tap.sites
        self._ranks = tap.ranks.count
        self.traces = tap.traces
        self._held = 0
        self.odd: str | None = None
        """What does not add up in the first step where something does not."""

    def drain(self, *, wait: bool) -> None:
        """Appends all samples that have arrived, committing at every full chunk.

        Args:
            wait: for copies that are under way.
        """
        samples: list[Sample] = []
        while (sample := self.ring.take(wait=wait)) is not None:
            samples.append(sample)
            self._held += 1
            if sample.note.step % COMMIT_EVERY == 0:
                self._append(samples)
                self._writer.commit(f"step {sample.note.step}")
                samples = []
        if samples:
            self._append(samples)

    def _append(self, samples: Sequence[Sample]) -> None:
        if self.odd is None:
            self.odd = next(filter(None, map(self._oddity, samples)), None)
        seen = [self.seen.add(self._layout, sample) for sample in samples]
        rows = router_rows(self._layout, samples, with_domains=self._with_domains)
        if rows:
            self._writer.append("router", rows)
        self._writer.append("train", train_rows(samples, seen))
        if self.traces is not None:
            traced = trace_rows(self.traces, samples)
            if traced:
                self._writer.append("traces", traced)
        self._held -= len(samples)

    def _oddity(self, sample: Sample) -> str | None:
        """Why a captured step's assignments are not tokens x k in every router; None: they are."""
        note = sample.note
        if not note.captured:
            return None
        parts = self._layout.parts(sample.table)
        seen_L, found_L = parts.tallies_L2[:, 0], parts.counts_LDE.sum((1, 2))
        expected = seen_L[0] if note.tokens is None else note.tokens * self._ranks
        for site, seen, found in zip(self._sites, seen_L, found_L, strict=True):
            wanted = seen * site.experts_per_token
            if seen != expected or not seen or (found != wanted and not site.drops):
                return (
                    f"step {note.step}: router {site.name} counted {found} assignments of {seen} "
                    f"tokens where {expected} were expected; the record holds what was counted. "
                    f"Modules in evaluation mode are not counted: call model.train()."
                )
        return None

    def discard(self) -> int:
        """Empties the ring after a failure; returns how many samples are lost by it."""
        lost, self._held = self._held, 0
        while self.ring.take(wait=True) is not None:
            lost += 1
        return lost
