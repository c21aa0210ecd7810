"""The background writer: takes samples out of the ring and commits them to the store.

Needs   a store and a branch; the ring that a tap fills.
Yields  BackgroundWriter: `put` never waits; `flush` waits until all is durable.

Training must not stop because of capture: a full ring drops samples and counts them. While the disk
fails, samples are kept in memory as far as BACKLOG_BYTES go, and writing is tried again at every
chunk, at every checkpoint and at the end. What cannot be written because of what it is (scores of a
wrong shape, a second probe reading of one checkpoint) is left out, and the rest goes on. All of it
is told in warnings on the training's thread: made an error there, a warning must not kill this one.

The thread looks into the ring a few times a second and takes what has gathered, so that the
training thread neither wakes it at every step nor waits for its turn with the interpreter. What it
has taken goes into the store's journal at once, and into its chunks when they are full.
"""

from __future__ import annotations

import queue
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from workbench.capture.ring import Ring, Sample
from workbench.capture.rows import SeenTokens, router_rows, trace_rows, train_rows
from workbench.capture.tap import Tap
from workbench.errors import SchemaError, UsageError
from workbench.store.run_store import RunStore
from workbench.store.schema import Variable
from workbench.store.writer import StoreWriter

LOOK_EVERY = 0.2
"""Seconds between two looks into the ring."""
COMMIT_EVERY = 50
"""Steps between two commits: a chunk of the store, so that no chunk is written twice."""
COMMIT_SECONDS = 120
"""Seconds after which waiting samples are committed all the same, where steps are slow."""
SYNC_EVERY = 1.0
"""Seconds after which samples that wait for their commit are on the disk all the same, in the
journal. A kill of the process costs what came since the last look, a power cut what came since the
last sync."""
BACKLOG_BYTES = 256 << 20
"""Samples that are kept while the disk fails."""


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
    durable: bool = False
    """Whether everything before it is committed, and tagged where it was to be."""


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
        self.error: BaseException | None = None
        """Why the last attempt to write failed; None: it did not."""
        self._synced = time.monotonic()
        self._owed: int | None = None
        self._told: set[str] = set()
        self._to_tell: dict[str, str] = {}
        self._thread = threading.Thread(target=self._work, name=f"store-{branch}", daemon=True)
        self._thread.start()

    def listen(self, tap: Tap, seen: SeenTokens, *, with_domains: bool) -> None:
        """From here on takes what the tap pushes into its ring."""
        self._intake = Intake(tap, seen, with_domains, self._writer)

    @property
    def dropped(self) -> int:
        """Samples that are not in the store: the ring was full, or writing fails."""
        if self._intake is None:
            return 0
        lost = self._writer.waiting_in("train") if self.error is not None else 0
        return lost + self._intake.lost + self._intake.ring.dropped

    def last(self, group: str) -> int | None:
        """Label of the group's last row, as the store had it when this writer began."""
        return self._writer.last(group)

    def put(self, rows: Rows) -> None:
        """Hands rows over, to be written after the samples so far."""
        self._asked.put(rows)

    def tell(self) -> None:
        """Warns, once of each kind, of what went wrong since."""
        if self.error is not None:
            text = f"{self.error}; training goes on, samples are kept and writing is tried again."
            self._to_tell.setdefault("failed", f"capture cannot write: {text}")
        for kind in [kind for kind in list(self._to_tell) if kind not in self._told]:
            self._told.add(kind)
            warnings.warn(self._to_tell[kind], RuntimeWarning, stacklevel=4)

    def flush(self, tag: int | None = None) -> bool:
        """Waits until everything handed over is durable, and tagged; False where writing has
        failed.
        """
        request = None
        if self._thread.is_alive():
            request = Flush(tag)
            self._asked.put(request)
            while not request.done.wait(1.0) and self._thread.is_alive():
                pass
        self.tell()
        return request is not None and request.durable

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
            if self._owed is not None:
                self._attempt(partial(self._mark, self._owed))
            if self._intake is not None:
                self._attempt(partial(self._intake.drain, self._commit, wait=bool(asked) or stop))
            for task in asked:
                served = self._attempt(partial(self._serve, task))
                if isinstance(task, Flush):
                    task.durable = served
                    task.done.set()
            self._attempt(self._keep)
            if stop:
                # Whoever closes may have been interrupted before the flush.
                self._attempt(partial(self._commit, "last samples"))
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

    def _attempt(self, work: Callable[[], Any]) -> bool:
        """Does it; False where it failed or was refused, which `tell` says then."""
        done = False
        try:
            work()
            done = True
        except (SchemaError, UsageError) as refused:
            self._to_tell.setdefault("refused", f"capture left something out: {refused}")
        except BaseException as error:  # whatever it is, training must not die of it
            self.error = error
        if self._intake is not None and self._intake.odd is not None:
            self._to_tell.setdefault("odd", self._intake.odd)
        return done

    def _commit(self, message: str) -> None:
        self._writer.commit(message)
        self.error = None

    def _keep(self) -> None:
        """Puts what waits for a commit into the journal; it is a commit's errors that count."""
        self._writer.seal()
        if time.monotonic() - self._synced > SYNC_EVERY:
            self._writer.sync()
            self._synced = time.monotonic()

    def _serve(self, task: Rows | Flush) -> None:
        if isinstance(task, Rows):
            values = dict(task.values)
            if task.group in ("evaluations", "activations") and self._intake is not None:
                steps = values["checkpoint"]
                values["tokens_seen"] = np.array([self._intake.seen.at(int(s)) for s in steps])
            self._writer.append(task.group, values, task.declared)
            return
        if task.tag is None:
            self._commit("flush")
        else:
            self._mark(task.tag)

    def _mark(self, step: int) -> None:
        """Commits, and marks the checkpoint of `step`. Where the disk fails the mark is owed, until
        rows of a later step make it impossible.
        """
        last = self._writer.last("train")
        late = step == self._owed and last is not None and last > step
        self._owed = None if late else step
        if late:
            self._to_tell[f"owed {step}"] = (
                f"the checkpoint of step {step} could not be marked in the record while the disk "
                f"failed: training cannot be resumed there with its record (resume_at={step})."
            )
            return
        try:
            self._commit(f"checkpoint {step}")
            self._writer.tag_checkpoint(step)
        except (SchemaError, UsageError):
            self._owed = None
            raise
        self._owed = None


class Intake:
    """What the writer's thread does with the samples of a ring."""

    def __init__(self, tap: Tap, seen: SeenTokens, with_domains: bool, writer: StoreWriter) -> None:
        self.ring: Ring = tap.ring
        self.seen = seen
        self.traces = tap.traces
        self.lost = 0
        """Samples for which there was no room while the disk failed."""
        self.odd: str | None = None
        """What does not add up in the first step where something does not."""
        self._layout = tap.layout
        self._with_domains = with_domains
        self._writer = writer
        self._sites = tap.sites
        self._ranks = tap.ranks.count
        self._backlog = max(BACKLOG_BYTES // (8 * tap.layout.cells), 2 * COMMIT_EVERY)
        self._chunk: int | None = None
        self._committed = time.monotonic()

    def drain(self, commit: Callable[[str], None], *, wait: bool) -> None:
        """Appends all samples that have arrived, committing at every full chunk, and when the last
        commit is long ago.

        Args:
            commit: makes durable what was appended; takes a message.
            wait: for copies that are under way.
        """
        samples: list[Sample] = []
        while (sample := self.ring.take(wait=wait)) is not None:
            samples.append(sample)
            step = sample.note.step
            full = step % COMMIT_EVERY == 0 or (
                self._chunk is not None and step // COMMIT_EVERY > self._chunk
            )
            self._chunk = step // COMMIT_EVERY
            if full:
                self._append(samples)
                samples = []
                self._commit(commit, f"step {step}")
        if samples:
            self._append(samples)
        late = time.monotonic() - self._committed > COMMIT_SECONDS
        if late and self._writer.waiting_in("train"):
            self._commit(commit, "waited long enough")

    def _commit(self, commit: Callable[[str], None], message: str) -> None:
        self._committed = time.monotonic()
        commit(message)

    def _append(self, samples: Sequence[Sample]) -> None:
        if self.odd is None:
            self.odd = next(filter(None, map(self._oddity, samples)), None)
        seen = [self.seen.add(self._layout, sample) for sample in samples]
        if self._writer.waiting_in("train") >= self._backlog:
            self.lost += len(samples)
            return
        rows = router_rows(self._layout, samples, with_domains=self._with_domains)
        if rows:
            self._writer.append("router", rows)
        self._writer.append("train", train_rows(samples, seen))
        traced = trace_rows(self.traces, samples) if self.traces is not None else {}
        if traced:
            self._writer.append("traces", traced)

    def _oddity(self, sample: Sample) -> str | None:
        """Why a captured step's assignments are not tokens x k in every router; None: they are."""
        note = sample.note
        if not note.captured:
            return None
        parts = self._layout.parts(sample.table)
        seen_L, found_L = parts.tallies_L2[:, 0], parts.counts_LDE.sum((1, 2))
        # What other ranks were told of their tokens is not known here.
        said = note.tokens if self._ranks == 1 else None
        expected = seen_L[0] if said is None else said
        for site, seen, found in zip(self._sites, seen_L, found_L, strict=True):
            wanted = seen * site.experts_per_token
            if seen != expected or not seen or (found != wanted and not site.drops):
                return (
                    f"step {note.step}: router {site.name} counted {found} assignments of {seen} "
                    f"tokens where {expected} were expected; the record holds what was counted. "
                    f"Where no token was counted, no forward ran in the step, or the model was in "
                    f"evaluation mode: call model.train()."
                )
        return None
