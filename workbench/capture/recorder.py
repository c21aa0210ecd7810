"""The recorder: hooks a model's routers and streams what they show into a run's store.

Needs   a model with routers, a folder.
Yields  Recorder: around every training step, at every checkpoint, and at the end.

    recorder = Recorder(model, "runs/mine")
    with recorder.step(step, tokens=n):
        ...
    recorder.checkpoint(path)

Between the hook and the step's end nothing leaves the model's device. Capture changes no number of
the training: it reads detached tensors and draws nothing at random. The counting is the tap's
(tap.py), the writing the background writer's (writer.py); this joins them to a run.
"""

from __future__ import annotations

import atexit
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from workbench.capture.adapters.find import find_routers
from workbench.capture.budget import Budget
from workbench.capture.opening import open_branch
from workbench.capture.probe_set import ProbeReader, ProbeSet
from workbench.capture.ranks import Ranks
from workbench.capture.rows import TRAIN_VALUES, SeenTokens
from workbench.capture.run_folder import RunFolder
from workbench.capture.tap import Tap
from workbench.capture.traces import Traces
from workbench.capture.writer import BackgroundWriter, Rows
from workbench.errors import UsageError, WorkbenchError
from workbench.store.layout import Task
from workbench.store.run_store import SetAside


class Recorder:
    """Records a model's routing into a run, step by step.

    Args:
        model: any torch model whose routers are known; hooked now, so make the recorder before the
            first forward and before compiling.
        path: the run's folder; begun where there is none.
        branch: the arm that is recorded.
        routers: how to read routers that are not known, such as a `Generic`.
        domains: names of the domains that labels name.
        tasks: what `evaluations` will hold.
        probe: fixed tokens whose routing is recorded at every checkpoint.
        sites: places in the model whose activations on the probe set are recorded too, by
            TransformerLens's name or the module's path, such as "blocks.1.hook_resid_post".
        interiors: layers whose experts' hidden rows on the probe set are recorded too.
        traces: the share of the training tokens whose routes are recorded one by one, such as
            1e-3, or a `Traces`; None for none. Of a distributed training's first rank.
        resume_at: go on from the checkpoint of this step; what the branch holds after it is set
            aside, not lost.
        coactivation_every: steps between two readings of which experts are chosen together.
        overhead: the share of a step that capture may cost, such as "1%" or 0.01; the recorder
            measures its own cost and reads fewer steps where it is above. None: every step,
            whatever it costs.
        group: the ranks whose tokens differ, in a distributed training; None for all. Every rank
            makes a recorder; the first one writes.
        about: further entries of run.json, where the run is begun here.
        store: where the record goes, such as "s3://bucket/runs/mine", where the run is begun here;
            None for the run's own folder. run.json remembers it.

    Raises:
        CaptureError: the model has no router that is known.
        RunExists: the run has steps on this branch already and `resume_at` was not given.
        StoreBusy: another process writes to this branch.
    """

    def __init__(
        self,
        model: nn.Module,
        path: str | Path,
        *,
        branch: str = "main",
        routers: Any = None,
        domains: Sequence[str] = (),
        tasks: Sequence[Task] = (),
        probe: ProbeSet | None = None,
        sites: Sequence[str] = (),
        interiors: Sequence[int] = (),
        traces: Traces | float | None = None,
        resume_at: int | None = None,
        coactivation_every: int = 25,
        overhead: str | float | None = None,
        group: Any = None,
        about: Mapping[str, Any] | None = None,
        store: str | None = None,
    ) -> None:
        self.folder = RunFolder(path)
        self.branch = branch
        self.model = model
        self.sites = find_routers(model, routers)
        if probe is None and (sites or interiors):
            raise UsageError("sites and interiors are read on a probe set: give probe= as well.")
        self._probe: ProbeReader | None = None
        if probe is not None:
            self._probe = ProbeReader(model, self.sites, probe, sites, interiors)
        if traces is not None and not isinstance(traces, Traces):
            traces = Traces(share=traces)
        self.domains = tuple(domains)
        self.ranks = Ranks(group)
        self._budget = None if overhead is None else Budget.parse(overhead)
        self.set_aside: SetAside | None = None
        """What the branch held after `resume_at`, kept aside."""
        self._writer: BackgroundWriter | None = None
        self._seen = SeenTokens()
        # First what may refuse the model, then what makes folders.
        self._tap = Tap(
            self.sites,
            domains=len(self.domains),
            device=next(model.parameters()).device,
            model=model,
            coactivation_every=coactivation_every,
            ranks=self.ranks,
            traces=traces,
        )
        if self.ranks.first:
            try:
                opened = open_branch(
                    self.folder, branch, self.sites, self.domains, tasks, probe,
                    resume_at=resume_at, ranks=self.ranks.count,
                    about={**(about or {}), **({"store": store} if store else {})},
                )  # fmt: skip
            except BaseException:
                self._tap.close()
                raise
            self.store, self._writer, self._seen, self.set_aside = opened
            self._writer.listen(self._tap, self._seen, with_domains=bool(self.domains))
        self._values: dict[str, float] = {}
        self._probed: int | None = None
        self.last_step = resume_at or 0
        """The step that was recorded last; 0 before the first."""
        self._closed = False
        self._told: set[str] = set()
        # A recorder that is forgotten still ends its thread and frees the branch.
        self._finalizer = weakref.finalize(self, _end, self._writer, self._tap)
        self._finalizer.atexit = False
        _before_executors_stop(self._finalizer)

    @contextmanager
    def step(
        self,
        step: int,
        tokens: int | None = None,
        *,
        domains: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Iterator[Recorder]:
        """Around one optimizer step; what the routers see in it becomes one sample.

        Any number of forwards may lie in it; recomputation for activation checkpointing and
        evaluation (modules in eval mode) do not count. A step that ends in an exception leaves no
        sample.

        Args:
            step: its number, above the last one's.
            tokens: training tokens of the step that this rank sees, without padding; the first step
                is checked against it. None: as many as the routers saw.
            domains: (rows,) or (rows, pos), int64: each token's domain, as an index into the
                recorder's `domains`. For several micro-batches call `labels` before each.
            keep: like `domains`, bool: False for padding. A two-dimensional `attention_mask` among
                the model's keyword arguments is taken by itself.

        Raises:
            CaptureError: the first step's counts are not tokens x k in every layer.
        """
        try:
            self.begin(step)
            if domains is not None or keep is not None:
                self.labels(domains=domains, keep=keep)
            yield self
        except BaseException:
            self.abandon()
            raise
        # Nothing ends where the step was abandoned, or the recorder closed, in the block.
        if self._tap.step is not None:
            self.end(tokens)

    def begin(self, step: int) -> None:
        """The first half of `step`, for trainers that call back at the begin and at the end."""
        if self._closed:
            raise UsageError("this recorder is closed: make another with resume_at.")
        if step < 1:
            raise UsageError(f"step {step}: steps count from 1, the first update.")
        if step <= self.last_step:
            raise UsageError(
                f"step {step} after step {self.last_step}: steps must grow; to go back, make a "
                f"recorder with resume_at."
            )
        self._tell()
        self._tap.begin(step)
        self._values = {}

    def labels(
        self,
        *,
        domains: Tensor | None = None,
        keep: Tensor | None = None,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> None:
        """Says what the tokens of the forwards that follow are, until the next call or the step's
        end: once a micro-batch.

        Args:
            domains, keep: as of `step`.
            documents: like `domains`, int64: ids of the documents.
            positions: like `domains`, int64: places in those documents.
        """
        self._tap.labels.set(domains=domains, keep=keep, documents=documents, positions=positions)

    def paused(self) -> AbstractContextManager[None]:
        """Around forwards that do not count although the model is in training mode."""
        return self._tap.paused()

    def abandon(self) -> None:
        """Drops the step under way, such as one that failed; fine where none is."""
        self._tap.abandon()

    def end(self, tokens: int | None = None) -> None:
        """The second half of `step`."""
        step = self._tap.step
        note = self._tap.end(tokens, **self._values)
        self.last_step = step or self.last_step
        if self._budget is not None:
            self._budget.follow(self._tap, note)

    def log(self, **values: float | Tensor) -> None:
        """Numbers of the step under way: loss (nats per token), lr, grad_norm. A tensor on a GPU is
        waited for.

        Raises:
            UsageError: another name, or no step under way.
        """
        for name in values:
            if name not in TRAIN_VALUES:
                raise UsageError(f"log({name}=...): the record takes {', '.join(TRAIN_VALUES)}.")
        if self._tap.step is None:
            raise UsageError(
                "log is called between steps: call it inside `with recorder.step(...)`, or between "
                "begin and end."
            )
        for name, value in values.items():
            self._values[name] = float(value.detach() if isinstance(value, Tensor) else value)

    def evaluations(self, step: int, correct: np.ndarray, logprob: np.ndarray) -> None:
        """Scores of a checkpoint, before `checkpoint` is called for it.

        Args:
            correct: (task, item) int8, in the order of the recorder's tasks.
            logprob: (task, item) float32, nats.
        """
        if self._writer is not None:
            rows = {"correct": correct[None], "logprob": logprob[None]}
            self._writer.put(Rows("evaluations", {"checkpoint": np.array([step])} | rows))

    def checkpoint(
        self, path: str | Path, *, step: int | None = None, whole: bool = True, **about: Any
    ) -> None:
        """Says that weights were saved at `path`: reads the probe set, makes all so far durable,
        tags it, and enters the checkpoint into the run's index.

        Args:
            path: where the weights are.
            step: of the checkpoint; None for the last recorded one.
            whole: False where they are still being written, by another thread: the record is tagged
                now, which later it could not be, and `enter` is to be called when the files are
                whole.
            about: further fields of the checkpoint's record, such as phase=, lr=, mixture=.

        In a distributed training call it on every rank, or on the first alone; with a probe set and
        a sharded model on every rank, because the model then runs on all.
        """
        if step is None and self._tap.step is not None:
            raise UsageError(
                f"checkpoint() in step {self._tap.step}, which has not ended: call it after the "
                f"step, or say which step's weights they are with step=."
            )
        step = self.last_step if step is None else step
        if self._probe is not None and self._probed != step:
            self._probed = step
            # The writer's thread fills in the tokens seen, once it has taken the samples before.
            for portion in self._probe.read(step, tokens_seen=0):
                if self._writer is not None:
                    self._writer.put(Rows(*portion))
        if self._writer is not None and self._writer.flush(tag=step) and whole:
            self.enter(path, step, **about)

    def enter(self, path: str | Path, step: int, **about: Any) -> None:
        """Enters a tagged checkpoint whose files are whole now into the run's index.

        Args:
            path, step, about: as of `checkpoint`.
        """
        if self._writer is None:
            return
        from checkpoints_index.errors import (
            CheckpointIncomplete,
            CheckpointNotFound,
            PickleRefused,
            RecordError,
        )
        from workbench.capture.checkpoint_entry import enter_checkpoint

        try:
            enter_checkpoint(
                self.folder.path, path, branch=self.branch, step=step,
                tokens_seen=self._seen.at(step), parent=self.store.lineage(self.branch),
                about=about, history=self.store.checkpoints(self.branch),
            )  # fmt: skip
        except (
            CheckpointIncomplete,
            CheckpointNotFound,
            PickleRefused,
            RecordError,
            OSError,
        ) as error:
            # Training must not stop because of capture; the record is tagged all the same.
            warnings.warn(
                f"the checkpoint of step {step} is not in the index: {error}",
                RuntimeWarning,
                stacklevel=3,
            )

    @property
    def dropped(self) -> int:
        """Samples that were not written, because the disk was too slow or failed."""
        return self._writer.dropped if self._writer is not None else 0

    def close(self) -> None:
        """Writes what waits, takes the hooks off and frees the branch; says so if anything was
        dropped. Closing twice is fine.
        """
        if self._closed:
            return
        self._closed = True
        self._tap.abandon()
        self._finalizer()
        self._tell()
        writer = self._writer
        if writer is not None and (writer.dropped or writer.error):
            why = writer.error or "the disk was too slow, or the ring too small for the steps."
            self._warn(f"capture dropped {writer.dropped} samples of branch {self.branch!r}: {why}")
            try:
                self.folder.update(capture={self.branch: {"dropped": writer.dropped}})
            except (OSError, WorkbenchError) as error:
                # The disk that was full for the samples is full for this as well.
                self._warn(f"run.json does not say what was dropped: {error}")

    def _tell(self) -> None:
        """Warns, once of each kind, of what went wrong."""
        if self._writer is not None:
            self._writer.tell()
        traces, told = self._tap.traces, self._tap.told
        if traces is not None and self.last_step and self._closed and not traces.seen:
            told.setdefault(
                "unseen",
                "traces were asked for, and no token ids passed the embedding in training mode: "
                "nothing was traced. Name the module that they pass: traces=Traces(embedding=...).",
            )
        if traces is not None and traces.seen and traces.mismatched:
            told.setdefault(
                "mismatched",
                f"{traces.mismatched} readings of routers do not belong to the token ids that "
                f"passed the embedding, or to their labels, and were not traced.",
            )
        if traces is not None and traces.overflowed:
            told.setdefault(
                "room",
                f"{traces.overflowed} tokens that should have been traced found no room: give "
                f"traces=Traces(tokens_per_step=...) for the tokens of a step on one rank.",
            )
        for kind in [kind for kind in told if kind not in self._told]:
            self._told.add(kind)
            self._warn(told[kind])

    def _warn(self, text: str) -> None:
        warnings.warn(text, RuntimeWarning, stacklevel=4)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _end(writer: BackgroundWriter | None, tap: Tap) -> None:
    tap.close()
    if writer is not None:
        writer.close()


def _before_executors_stop(function: Callable[[], Any]) -> None:
    """Calls `function` at the interpreter's end, while threads can still be started.

    Plain atexit is too late: by then the store can no longer hand work to its threads, and what
    waits would be lost by every program that ends without `close`.
    """
    register = getattr(threading, "_register_atexit", atexit.register)
    register(function)
