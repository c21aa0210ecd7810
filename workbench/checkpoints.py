"""The saved weights of a branch, oldest first, its trunk's included.

Needs   a run's index (and its store, for what was measured at the checkpoints).
Yields  Checkpoints, a sequence of Checkpoint; torch is imported when weights are loaded.
        `needed_by_store`: the checkpoints that a store can go on from, or forks were made at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

import xarray as xr

from checkpoints_index.audit import unlike_its_digest, weight_files
from checkpoints_index.errors import CheckpointIncomplete, CheckpointNotFound
from checkpoints_index.formats import Weights, open_weights, size_bytes
from checkpoints_index.record import CheckpointRecord
from workbench.checkpoints_html import checkpoint_card, checkpoints_card

if TYPE_CHECKING:
    import torch

    from workbench.run import Run
    from workbench.store.run_store import RunStore


CLOCKS = 2.0
"""Seconds by which the clocks of a file system and of its writer may differ."""


def _touched(file: Path) -> float:
    """When its bytes or what is said of it last changed, seconds since 1970; a time that was set
    back (rsync, tar, touch) leaves the second. 0 where there is none.
    """
    if not file.is_file():
        return 0.0
    about = file.stat()
    return max(about.st_mtime, about.st_ctime)


@dataclass(frozen=True)
class Checkpoint:
    """Weights saved at one step."""

    record: CheckpointRecord
    """Everything the index knows about it."""

    run_path: Path

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.record.step

    @property
    def tokens_seen(self) -> int:
        """Training tokens learned from."""
        return self.record.tokens_seen

    @property
    def branch(self) -> str:
        """The branch that it was saved on: the trunk's, before a fork."""
        return self.record.branch

    @property
    def path(self) -> Path:
        """Where it lies; RecordError where that is a URL."""
        return self.record.path(self.run_path)

    @property
    def location(self) -> str | Path:
        """Where it lies: a path, or a URL."""
        return self.record.uri if self.record.is_remote else self.path

    def check_unaltered(self) -> None:
        """CheckpointIncomplete where its files were written over after it was recorded.

        Files of weights that were not touched since the record are believed. Others (a copy of the
        run, or other weights in its place) are read whole and held against their digests, and
        against the fingerprint where some have no digest; where there is neither, their sizes
        alone are looked at. What lies at a URL is believed.
        """
        record = self.record
        if record.is_remote:
            return
        files, digests = weight_files(self.path), record.digests or {}
        files |= {name: self.path / name for name in digests if name not in files}
        if not any(_touched(file) > record.utc + CLOCKS for file in files.values()):
            return
        wrong = unlike_its_digest(self.path, digests)
        if not wrong and not files.keys() <= digests.keys():
            wrong = self._unlike_its_record()
        if wrong:
            raise CheckpointIncomplete(
                f"{wrong} It was written over after it was recorded: record it anew "
                f"(recorder.checkpoint), or use another checkpoint."
            )

    def _unlike_its_record(self) -> str:
        """What differs of the fingerprint, or of the size where there is none."""
        record = self.record
        if record.fingerprint is not None:
            found = self.weights.fingerprint()
            if found == record.fingerprint:
                return ""
            return (
                f"{self.path}: weights with fingerprint {found[:12]}, expected "
                f"{record.fingerprint[:12]}."
            )
        size = size_bytes(self.path)
        if size == record.size_bytes:
            return ""
        return f"{self.path}: {size} bytes, expected {record.size_bytes}."

    @property
    def weights(self) -> Weights:
        """Its tensors by name, each read when it is asked for."""
        if not self.record.complete:
            why = self.record.pruned or "the index marks it as unfinished or written over"
            raise CheckpointIncomplete(f"{self.location}: {why}; use another checkpoint.")
        return open_weights(self.location)

    def load(
        self, names: Sequence[str] | str | None = None, device: str = "cpu"
    ) -> dict[str, torch.Tensor]:
        """Tensors by name; only their bytes are read.

        Args:
            names: which; a name that ends with "." stands for all below it ("blocks.0."). None:
                all.
            device: where to.

        Raises:
            CheckpointNotFound: it lies there no longer, or has no tensor of that name.
            CheckpointIncomplete: it is half-written or altered.
        """
        return self.weights.load(names, device)

    def __repr__(self) -> str:
        return (
            f"Checkpoint(step={self.step}, tokens_seen={self.tokens_seen}, branch={self.branch!r}, "
            f"path={str(self.location)!r})"
        )

    def _repr_html_(self) -> str:
        return checkpoint_card(self)


class Checkpoints(Sequence[Checkpoint]):
    """Checkpoints by step; index and slice it like a list, or ask `at(step)`.

    What was measured along the way comes with them, at these checkpoints only: `evaluations` and
    `activations` are the run's, so probes take `run.checkpoints` or a slice of it.
    """

    def __init__(self, run: Run, items: Sequence[Checkpoint], *, part: bool = False) -> None:
        self._run = run
        self._items = tuple(items)
        self._part = part

    @property
    def run(self) -> Run:
        """The run that they are of."""
        return self._run

    @overload
    def __getitem__(self, index: int) -> Checkpoint: ...
    @overload
    def __getitem__(self, index: slice) -> Checkpoints: ...
    def __getitem__(self, index: int | slice) -> Checkpoint | Checkpoints:
        if isinstance(index, slice):
            return Checkpoints(self._run, self._items[index], part=True)
        if not -len(self) <= index < len(self):
            raise IndexError(
                f"checkpoint {index} of {len(self)} on branch {self._run.branch!r}; "
                f"ask by step with .at(step)."
            )
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def chosen(self, places: Iterable[int]) -> Checkpoints:
        """Those at these places, in this order of training."""
        return Checkpoints(self._run, [self._items[i] for i in sorted(set(places))], part=True)

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of `step`; CheckpointNotFound that tells the steps near it."""
        for checkpoint in self._items:
            if checkpoint.step == step:
                return checkpoint
        near = sorted(sorted(self.steps, key=lambda s: abs(s - step))[:5])
        have = f"near it: {', '.join(map(str, near))}" if near else "there are none"
        raise CheckpointNotFound(
            f"no checkpoint at step {step} on branch {self._run.branch!r} of {self._run.path}; "
            f"{have}."
        )

    @property
    def steps(self) -> list[int]:
        """Their steps, ascending."""
        return [checkpoint.step for checkpoint in self._items]

    @property
    def evaluations(self) -> xr.Dataset:
        """Scores (checkpoint, task, item): the branch's, or those at a slice's checkpoints."""
        return self._own(self._run.evaluations)

    @property
    def activations(self) -> xr.Dataset:
        """The fixed probe set's routing (checkpoint, token, ...), likewise."""
        return self._own(self._run.activations)

    def _own(self, measured: xr.Dataset) -> xr.Dataset:
        if not self._part:
            return measured
        return measured.isel(checkpoint=measured.checkpoint.isin(self.steps).values)

    def __repr__(self) -> str:
        if not self._items:
            return f"no checkpoints on branch {self._run.branch!r} of {self._run.path}"
        lines = [
            f"  step {c.step:>9,}   {c.tokens_seen:>15,} tokens   {c.branch}" for c in self._items
        ]
        if len(lines) > 8:
            lines[4:-4] = ["  ..."]
        head = f"{len(self)} checkpoints of branch {self._run.branch!r}, {self._run.path}"
        return "\n".join([head, *lines])

    def _repr_html_(self) -> str:
        return checkpoints_card(self)


def needed_by_store(
    store: RunStore,
    records: Iterable[CheckpointRecord],
    is_whole: Callable[[tuple[str, int]], bool] | None = None,
) -> dict[tuple[str, int], str]:
    """The checkpoints without which the record of `store` could not be gone on with, and why.

    These are, by (branch, step): where arms forked; the newest whole checkpoint in the history of
    every branch, which after a rollback is not the newest of the index; where a rollback went.

    Args:
        records: of the same run.
        is_whole: whether the checkpoint of a branch and step can really be gone on from; None
            believes the records.
    """
    from workbench.store.names import AsideTag, read_tag

    whole = {(r.branch, r.step) for r in records if r.complete}
    forks = {branch: store.lineage(branch) for branch in store.branches}

    def saved_on(branch: str, step: int) -> tuple[str, int]:
        # Before its fork, a branch's history was saved by its trunk.
        while (fork := forks.get(branch)) is not None and step <= fork[1]:
            branch = fork[0]
        return branch, step

    needed: dict[tuple[str, int], str] = {}
    for name in store.repository.list_tags():
        tag = read_tag(name)
        if isinstance(tag, AsideTag):
            needed[saved_on(tag.branch, tag.step)] = f"{tag.branch!r} was rolled back to here"
    for branch in store.branches:
        places = [saved_on(branch, step) for step in store.checkpoints(branch)]
        there = (place for place in reversed(places) if place in whole)
        newest = next((place for place in there if is_whole is None or is_whole(place)), None)
        if newest is not None:
            needed[newest] = f"the store's {branch!r} goes on from here"
    for branch, fork in forks.items():
        if fork is not None:
            needed[saved_on(*fork)] = f"the store's {branch!r} forked here"
    return needed
