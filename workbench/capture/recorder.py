"""The recorder: hooks a model's routers and streams what they show into a run's store.

Needs   a model with routers, a folder.
Yields  Recorder: around every training step, at every checkpoint, and at the end.

    recorder = Recorder(model, "runs/mine")
    with recorder.step(step, tokens=n):
        ...
    recorder.checkpoint(path)

Between the hook and the step's end nothing leaves the model's device. Capture changes no number of
the training: it reads detached tensors and draws nothing at random.
"""

from __future__ import annotations

import atexit
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.capture.accumulators import Accumulators, as_variables
from workbench.capture.adapters.router_site import RouterSite, find_routers
from workbench.capture.probe_set import ProbeSet, route
from workbench.capture.route_stats import ACTIVE, COACTIVATION, route_stats
from workbench.capture.run_folder import RunFolder
from workbench.capture.writer import BackgroundWriter, Rows
from workbench.errors import CaptureError, RunExists, UsageError
from workbench.store.layout import Layout, ProbeTokens, Task
from workbench.store.run_store import RunStore

TRAIN_VALUES = ("loss", "lr", "grad_norm")
"""What `log` takes."""


class Recorder:
    """Records a model's routing into a run, step by step.

    Args:
        model: any torch model whose routers are known; hooked now, so make the recorder before the
            first forward and before compiling.
        path: the run's folder; begun where there is none.
        branch: the arm that is recorded.
        domains: names of the domains that `step` labels rows with.
        tasks: what `evaluations` will hold.
        probe: fixed tokens whose routing is recorded at every checkpoint.
        resume_at: go on from the checkpoint of this step; what the branch holds after it is set
            aside, not lost.
        coactivation_every: steps between two readings of which experts are chosen together.
        about: further entries of run.json, where the run is begun here.

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
        domains: Sequence[str] = (),
        tasks: Sequence[Task] = (),
        probe: ProbeSet | None = None,
        resume_at: int | None = None,
        coactivation_every: int = 25,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = RunFolder(path)
        self.branch = branch
        self.model = model
        self.probe = probe
        self.sites: list[RouterSite] = find_routers(model)
        self.coactivation_every = coactivation_every
        experts, k = self.sites[0].num_experts, self.sites[0].experts_per_token
        layout = Layout(
            layers=tuple(range(len(self.sites))), experts=experts, k=k, domains=tuple(domains)
        )
        self.k = k
        self.domains = tuple(domains)
        if not self.folder.exists:
            self.folder.create(**dict(about or {}))
        self.store = self._open_store(layout)
        self.set_aside = None
        if resume_at is not None:
            self.set_aside = self.store.rollback(branch, resume_at)
        self._writer = BackgroundWriter(self.store, branch, _rest_of_layout(tasks, probe))
        try:
            self._check_fresh(resume_at)
            self._device = next(model.parameters()).device
            self._accumulators = Accumulators.zeros(
                len(self.sites), experts, len(domains), self._device
            )
            self._switches = torch.zeros(2, dtype=torch.int64)
            self._now = _Labels(torch.empty(0, dtype=torch.int64, device=self._device))
            self._hooks = [
                site.module.register_forward_hook(self._hook(place, site))
                for place, site in enumerate(self.sites)
            ]
        except BaseException:
            self._writer.close()
            raise
        self._values: dict[str, float] = {}
        self._tokens_seen = self._last_tokens_seen(resume_at)
        self._checked = False
        self._last_step = resume_at or 0
        self._closed = False
        # A recorder that is forgotten still ends its thread and frees the branch.
        self._finalizer = weakref.finalize(self, _end, self._writer, self._hooks)
        self._finalizer.atexit = False
        _before_executors_stop(self._finalizer)

    def _open_store(self, layout: Layout) -> RunStore:
        if not self.folder.store.exists():
            return RunStore.create(self.folder.store, layout, {"run": self.folder.path.name})
        store = RunStore.open(self.folder.store)
        there = store.read(self.branch).layout
        asked, held = ((x.layers, x.experts, x.k, x.domains) for x in (layout, there))
        if asked != held:
            raise UsageError(
                f"the store of {self.folder.path} was made for (layers, experts, k, domains) = "
                f"{held}; this model and these domains are {asked}: record into another folder."
            )
        return store

    def _check_fresh(self, resume_at: int | None) -> None:
        last = self._writer.last("router")
        if resume_at is None and last is not None:
            raise RunExists(
                f"{self.folder.path} has steps up to {last} on branch {self.branch!r}: give "
                f"resume_at=<step of a checkpoint> to go on, another branch, or another folder."
            )

    def _last_tokens_seen(self, resume_at: int | None) -> int:
        if not resume_at:
            return 0
        train = self.store.read(self.branch).dataset("train")
        return int(train["tokens_seen"][-1]) if train.sizes.get("step") else 0

    def _hook(self, place: int, site: RouterSite) -> Any:
        # The hook must not hold the recorder: one that is forgotten could never be collected.
        accumulators = [t[place] for t in self._accumulators.tensors()]
        now, switches = self._now, self._switches

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            route_stats(*site.read(output), now.domains, now.keep, switches, *accumulators)

        return hook

    @contextmanager
    def step(
        self,
        step: int,
        tokens: int,
        *,
        domains: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Iterator[Recorder]:
        """Around one optimizer step; what the routers see in it becomes one sample.

        A step that ends in an exception leaves no sample.

        Args:
            step: its number, above the last one's.
            tokens: training tokens of the step; the first step is checked against it.
            domains: (rows,) or (rows, pos), int64: each token's domain, as an index into the
                recorder's `domains`.
            keep: like `domains`, bool: False for padding.

        Raises:
            CaptureError: the first step's counts are not tokens x k in every layer.
        """
        self._begin(step, domains, keep)
        try:
            yield self
        except BaseException:
            self._accumulators.clear()
            raise
        finally:
            self._switches.zero_()
        self._end(step, tokens)

    def _begin(self, step: int, domains: Tensor | None, keep: Tensor | None) -> None:
        if self._closed:
            raise UsageError("this recorder is closed: make another with resume_at.")
        if step < 1:
            raise UsageError(f"step {step}: steps count from 1, the first update.")
        if step <= self._last_step:
            raise UsageError(
                f"step {step} after step {self._last_step}: steps must grow; to go back, make a "
                f"recorder with resume_at."
            )
        if domains is not None and not self.domains:
            raise UsageError(
                "step(domains=...): this recorder has no domains; name them when it is made: "
                "Recorder(model, path, domains=[...])."
            )
        if domains is not None and not domains.is_cuda and domains.numel():
            low, high = int(domains.min()), int(domains.max())
            if low < 0 or high >= len(self.domains):
                raise UsageError(
                    f"step(domains=...): labels from {low} to {high}, expected 0 to "
                    f"{len(self.domains) - 1}, the places in the recorder's domains."
                )
        self._now.domains = self._now.none if domains is None else domains.to(self._device)
        self._now.keep = self._now.none if keep is None else keep.to(self._device)
        self._values = {}
        self._switches[ACTIVE] = 1
        self._switches[COACTIVATION] = int(step % self.coactivation_every == 0)

    def _end(self, step: int, tokens: int) -> None:
        counts, masses, sums, pairs = self._accumulators.take()
        if not self._checked:
            self._check_counts(counts, tokens)
            self._checked = True
        router = as_variables(counts, masses, sums, with_domains=bool(self.domains))
        rows = {"step": np.array([step])} | {n: np.asarray(v)[None] for n, v in router.items()}
        if step % self.coactivation_every == 0:
            rows |= {"sample": np.array([step]), "coactivation": pairs[None]}
        self._writer.put(Rows("router", rows))
        self._tokens_seen += tokens
        self._last_step = step
        train: dict[str, np.ndarray] = {
            "step": np.array([step]),
            "tokens_seen": np.array([self._tokens_seen]),
            "utc": np.array([time.time()]),
        }
        for name in TRAIN_VALUES:
            train[name] = np.array([self._values.get(name, np.nan)], dtype=np.float32)
        self._writer.put(Rows("train", train))

    def _check_counts(self, counts_LDE: np.ndarray, tokens: int) -> None:
        for site, found in zip(self.sites, counts_LDE.sum((1, 2)), strict=True):
            if found != tokens * self.k:
                raise CaptureError(
                    f"router {site.name}: counted {found} assignments in the first step, "
                    f"expected tokens x k = {tokens} x {self.k} = {tokens * self.k}. Either "
                    f"tokens={tokens} is not what the model saw (padding? another rank's share?), "
                    f"or the recorder was made after the first compiled forward."
                )

    def log(self, **values: float) -> None:
        """Numbers of the step under way: loss (nats per token), lr, grad_norm.

        Raises:
            UsageError: another name.
        """
        for name in values:
            if name not in TRAIN_VALUES:
                raise UsageError(f"log({name}=...): the record takes {', '.join(TRAIN_VALUES)}.")
        self._values |= {name: float(value) for name, value in values.items()}

    def evaluations(self, step: int, correct: np.ndarray, logprob: np.ndarray) -> None:
        """Scores of a checkpoint, before `checkpoint` is called for it.

        Args:
            correct: (task, item) int8, in the order of the recorder's tasks.
            logprob: (task, item) float32, nats.
        """
        rows = {"correct": correct, "logprob": logprob}
        self._put_checkpoint("evaluations", step, rows)

    def _put_checkpoint(self, group: str, step: int, values: Mapping[str, np.ndarray]) -> None:
        labels = {
            "checkpoint": np.array([step]), "tokens_seen": np.array([self._tokens_seen])
        }  # fmt: skip
        self._writer.put(Rows(group, labels | {n: v[None] for n, v in values.items()}))

    def checkpoint(self, path: str | Path, *, step: int | None = None, **about: Any) -> None:
        """Says that weights were saved at `path`: reads the probe set, makes all so far durable,
        tags it, and enters the checkpoint into the run's index.

        Args:
            path: where the weights are.
            step: of the checkpoint; None for the last recorded one.
            about: further fields of the checkpoint's record, such as phase=, lr=, mixture=.
        """
        step = self._last_step if step is None else step
        if self.probe is not None:
            self._put_checkpoint("activations", step, route(self.model, self.sites, self.probe))
        if self._writer.flush(tag=step):
            self._index(Path(path), step, about)

    def _index(self, path: Path, step: int, about: Mapping[str, Any]) -> None:
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
                tokens_seen=self._tokens_seen, parent=self.store.lineage(self.branch), about=about,
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
        return self._writer.dropped

    def close(self) -> None:
        """Writes what waits and frees the branch; says so if anything was dropped. Closing twice is
        fine.
        """
        if self._closed:
            return
        self._closed = True
        self._finalizer()
        if self.dropped or self._writer.error:
            self.folder.update(capture={self.branch: {"dropped": self.dropped}})
            warnings.warn(
                f"capture dropped {self.dropped} samples of branch {self.branch!r}"
                + (f": {self._writer.error}" if self._writer.error else ": the disk was too slow."),
                RuntimeWarning,
                stacklevel=2,
            )

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Labels:
    """Domain and padding labels of the step under way; empty tensors where there are none."""

    def __init__(self, none: Tensor) -> None:
        self.none = self.domains = self.keep = none


def _end(writer: BackgroundWriter, hooks: Sequence[Any]) -> None:
    for hook in hooks:
        hook.remove()
    writer.close()


def _before_executors_stop(function: Callable[[], Any]) -> None:
    """Calls `function` at the interpreter's end, while threads can still be started.

    Plain atexit is too late: by then the store can no longer hand work to its threads, and what
    waits would be lost by every program that ends without `close`.
    """
    register = getattr(threading, "_register_atexit", atexit.register)
    register(function)


def _rest_of_layout(tasks: Sequence[Task], probe: ProbeSet | None) -> dict[str, Any]:
    """What the store's layout may leave empty until it is known."""
    rest: dict[str, Any] = {}
    if tasks:
        rest["tasks"] = tuple(tasks)
    if probe is not None:
        per_row = probe.tokens.shape[1]
        rest["tokens"] = ProbeTokens(
            tuple(int(t) for t in probe.tokens.flatten()),
            tuple(d for d in probe.domains for _ in range(per_row)),
        )
    return rest
