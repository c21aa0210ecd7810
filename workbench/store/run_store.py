"""The store of a run: everything that was recorded, on every branch, with its history.

Needs   a folder, usually <run>/store, or a prefix on object storage (location.py).
Yields  RunStore: make or open it, write a branch, read any branch, fork, roll back.

On disk it is an Icechunk repository (1.x) of Zarr v3 arrays: one branch an arm, a tag for every
checkpoint, fork and rollback (names.py). `icechunk` and `xarray` open it without this code:

    repo = icechunk.Repository.open(icechunk.local_filesystem_storage("runs/demo/store"))
    xarray.open_zarr(repo.readonly_session("main").store, group="router", consolidated=False)

Do not run Icechunk's expire or garbage collection by hand while a run writes: it destroys chunks
that are not committed yet.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import icechunk as ic
import zarr

from workbench.errors import RunExists, RunNotFound, StoreBusy, UsageError
from workbench.store.history import History
from workbench.store.journal import read_tail
from workbench.store.layout import Layout
from workbench.store.location import Location, Lock
from workbench.store.names import (
    MAIN,
    AsideTag,
    CheckpointTag,
    ForkTag,
    check_branch,
)
from workbench.store.snapshot import Snapshot

if TYPE_CHECKING:
    from workbench.store.writer import StoreWriter

# Icechunk's logger warns at every commit that two committers on a local disk are unsafe; ours hold
# a lock.
ic.set_logs_filter("error")


TRIES = 8
"""Commits that may land while a reader looks for the rows after one of them."""


@dataclass(frozen=True)
class SetAside:
    """What a rollback took off a branch. It stays readable under `tag`; nothing is deleted."""

    tag: str
    branch: str
    steps: tuple[int, int] | None
    """First and last training step that the branch no longer shows; None where it lost none."""


class RunStore:
    """A run's recorded arrays. `create` or `open` one; reading never waits for a writer, nor the
    reverse.

    Example:
        >>> import numpy as np, tempfile
        >>> store = RunStore.create(
        ...     tempfile.mkdtemp() + "/store", Layout(layers=(0,), experts=4, k=2)
        ... )
        >>> with store.writer("main") as w:
        ...     loss = np.array([3.5, 3.25], "float32")
        ...     w.append("train", {"step": np.array([1, 2]), "loss": loss})
        ...     snapshot = w.commit("two steps")
        >>> store.read("main").dataset("train").loss.values
        array([3.5 , 3.25], dtype=float32)
    """

    def __init__(self, location: Location, repository: ic.Repository) -> None:
        self.location = location
        self.repository = repository
        self.history = History(repository)

    @property
    def path(self) -> Path:
        """The store's folder, absolute; UsageError for a store on object storage."""
        return self.location.folder

    @classmethod
    def create(
        cls,
        where: str | os.PathLike[str] | Location,
        layout: Layout,
        attrs: Mapping[str, Any] | None = None,
        *,
        storage_options: Mapping[str, Any] | None = None,
    ) -> RunStore:
        """A new store at `where`, with an empty branch "main".

        Whoever opens the place finds a whole store or none, whenever this is cut short.

        Args:
            where: folder that must not exist yet, or an s3:// URL that holds no store.
            layout: sizes and labels of the fixed dims.
            attrs: plain data (JSON) about the run, kept in the root group.
            storage_options: see object_storage.py.

        Raises:
            RunExists: something is at `where` already; it is left as it is.
            UsageError: no store can have that name.
        """
        from workbench.store.labels import write_labels

        def fill(repository: ic.Repository) -> None:
            session = repository.writable_session(MAIN)
            root = zarr.create_group(session.store, zarr_format=3)
            write_labels(root, layout, attrs or {})
            session.commit("layout of the run")

        location = Location.of(where, storage_options)
        location.make(_config(), fill)
        return cls.open(location)

    @classmethod
    def open(
        cls,
        where: str | os.PathLike[str] | Location,
        *,
        storage_options: Mapping[str, Any] | None = None,
    ) -> RunStore:
        """The store at `where`; RunNotFound where there is none."""
        location = Location.of(where, storage_options)
        return cls(location, location.open())

    # Reading

    @property
    def branches(self) -> list[str]:
        """Names of the branches, main first. Icechunk branches that begin with "_" are no arms
        (they hold results of probes) and are not among them.
        """
        arms = (name for name in self.repository.list_branches() if not name.startswith("_"))
        return sorted(arms, key=lambda name: (name != MAIN, name))

    def tip(self, branch: str) -> str:
        """Id of the last snapshot of `branch`; RunNotFound that lists the branches where it is
        unknown.
        """
        arms = self.branches
        if branch not in arms:
            near = get_close_matches(str(branch)[:80], arms, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise RunNotFound(
                f"no branch {ascii(branch)[:80]} in {self.location}; it has {', '.join(arms)}{hint}"
            )
        return self.repository.lookup_branch(branch)

    def read(self, branch: str = MAIN) -> Snapshot:
        """The branch as it is now, to its last step: rows that are in the journal and not yet
        committed are the snapshot's tail. What comes later needs another `read`.
        """
        tip = self.tip(branch)
        for _ in range(TRIES):
            tail = read_tail(self.location.journal_folder, branch, tip)
            now = self.repository.lookup_branch(branch)
            # No journal may mean that a commit has just taken its rows in: then that is the tip.
            if tail or now == tip:
                return Snapshot(self.repository, tip, tail)
            tip = now
        return Snapshot(self.repository, tip)

    def identity(self, branch: str, until_step: int) -> str:
        """A word for what `branch` holds up to and including `until_step`: it changes when that
        does, and not when later steps come.

        Rows are never changed, only followed by others or set aside; so it is the id of the first
        checkpoint from there on, or of the last commit, with a digest of the rows that wait.
        """
        for step, id in self.checkpoints(branch).items():
            if step >= until_step:
                return id
        now = self.read(branch)
        return now.state

    def read_tag(self, tag: str) -> Snapshot:
        """The state under a tag, such as the one that `rollback` returned."""
        if tag not in self.repository.list_tags():
            raise RunNotFound(f"no tag {ascii(tag)[:120]} in {self.location}.")
        return Snapshot(self.repository, self.repository.lookup_tag(tag))

    def lineage(self, branch: str) -> tuple[str, int] | None:
        """The parent of a branch and the step at which it forked; None for a branch that began by
        itself.
        """
        return self.history.lineage(branch)

    def checkpoints(self, branch: str) -> dict[int, str]:
        """Tagged checkpoints in the history of `branch`, its trunk included: step -> snapshot
        id.
        """
        return self.history.checkpoints(self.tip(branch))

    def set_aside_checkpoints(self, branch: str) -> set[int]:
        """Steps of checkpoints that were tagged on `branch` and that a rollback took off it."""
        if not any(tag.branch == branch for tag in self.history.tags(AsideTag)):
            return set()
        tags = self.history.tags(CheckpointTag)
        tagged = {tag.step for tag in tags if tag.branch == branch}
        return tagged - self.checkpoints(branch).keys()

    def _history(self, branch: str) -> list[str]:
        return [snapshot.id for snapshot in self.repository.ancestry(branch=branch)]

    # Writing

    def branch_lock(self, branch: str) -> Lock:
        """The lock of the one writer of `branch`."""
        return self.location.branch_lock(branch)

    def commit_lock(self) -> Lock:
        """The lock under which the repository is changed, commit by commit."""
        return self.location.commit_lock()

    def writer(self, branch: str = MAIN) -> StoreWriter:
        """The one writer of `branch`, to be used as a context.

        Raises:
            StoreBusy: somebody else writes to this branch; host and process are named.
            RunNotFound: no such branch.
        """
        from workbench.store.writer import StoreWriter

        self.tip(check_branch(branch))
        return StoreWriter(self, branch)

    def fork(self, new_branch: str, from_branch: str = MAIN, *, at_step: int) -> str:
        """Begin `new_branch` at a checkpoint of `from_branch`; history is shared, nothing is
        copied.

        Args:
            at_step: step of a tagged checkpoint in the history of `from_branch`, or 0 for its
                beginning.

        Returns:
            Id of the snapshot that both share.

        Raises:
            UsageError: the name cannot be a branch.
            RunExists: there is a branch of that name.
            RunNotFound: no such parent, or no checkpoint at that step; those that are there are
                listed.
        """
        check_branch(new_branch)
        snapshot = self._checkpoint(from_branch, at_step)
        with self.commit_lock() as lock:
            lock.acquire(wait=True)
            if new_branch in self.repository.list_branches():
                raise RunExists(
                    f"branch {new_branch!r} exists already in {self.location}; open it, or choose "
                    f"another name."
                )
            # The tag comes first: a branch without it would have lost its parent.
            tag = str(ForkTag(new_branch, from_branch, at_step, snapshot))
            if tag not in self.repository.list_tags():
                self.repository.create_tag(tag, snapshot)
            self.location.sync()
            self.repository.create_branch(new_branch, snapshot)
            self.location.sync()
        return snapshot

    def rollback(self, branch: str, to_step: int) -> SetAside | None:
        """Move `branch` back to its checkpoint at `to_step`, or to its beginning (0).

        What came after stays readable under a tag.

        Returns:
            What was set aside, or None where the branch stands there already.

        Raises:
            StoreBusy: somebody writes to the branch.
            RunNotFound: no checkpoint at that step in its history.
            UsageError: the step lies before the branch's fork: that history is its parent's.
        """
        target = self._checkpoint(branch, to_step)
        parent = self.lineage(branch)
        if parent and to_step < parent[1]:
            raise UsageError(
                f"branch {branch!r} forked from {parent[0]!r} at step {parent[1]}; it cannot go "
                f"back to {to_step}: fork a new branch from {parent[0]!r} there."
            )
        # A writer takes in what the one before it left in its journal, so that it is set aside with
        # the rest, and removes journals of earlier commits: the branch may stand at one of those
        # again.
        with self.writer(branch) as writer, self.commit_lock() as lock:
            if writer.waiting:
                writer.commit("rows of the journal")
            lock.acquire(wait=True)
            tip = self.tip(branch)
            if tip == target:
                return None
            tag = str(AsideTag(branch, to_step, tip))
            if tag not in self.repository.list_tags():
                self.repository.create_tag(tag, tip)
            self.location.sync()
            self.move(branch, target, since=tip)
            self.location.sync()
        return SetAside(tag, branch, self._steps_between(target, tip))

    def move(self, branch: str, to: str, *, since: str) -> None:
        """Let `branch` stand at snapshot `to` if it still stands at `since`. Hold its lock.

        Raises:
            StoreBusy: it was moved by somebody else meanwhile; it is left there.
        """
        try:
            self.repository.reset_branch(branch, to, from_snapshot_id=since)
        except ic.IcechunkError as error:
            there = self.repository.lookup_branch(branch)
            # A request whose answer was lost on the way is sent again, and finds its own work.
            if there == to:
                return
            if there == since:
                raise
            raise StoreBusy(
                f"branch {branch!r} of {self.location} was moved to {there} by somebody else while "
                f"it was written from {since}; open a new writer and go on there."
            ) from error

    def _checkpoint(self, branch: str, step: int) -> str:
        """Snapshot of the checkpoint at `step` in the history of `branch`."""
        self.tip(branch)
        known = self.checkpoints(branch)
        if step == 0 and 0 not in known:
            # Before the first step: the commit after the repository's own, which holds the layout.
            return self.history.first(self.tip(branch))
        if step not in known:
            near = sorted(known, key=lambda s: (abs(s - step), s))[:5]
            have = f"near it: {', '.join(map(str, sorted(near)))}" if near else "it has none"
            raise RunNotFound(
                f"no checkpoint at step {step} on branch {branch!r} of {self.location}; {have}."
            )
        return known[step]

    def _steps_between(self, old: str, new: str) -> tuple[int, int] | None:
        """First and last training step that `new` has beyond `old`."""
        early, late = Snapshot(self.repository, old), Snapshot(self.repository, new)
        for group in ("train", "router"):
            steps = late.labels(group, "step")[len(early.labels(group, "step")) :]
            if len(steps):
                return int(steps[0]), int(steps[-1])
        return None


def _config() -> ic.RepositoryConfig:
    """Lists of chunks in pages of 200: a commit rewrites the last page, not the whole list, whose
    copies would outgrow the data after some hundred thousand steps.
    """
    pages = {ic.ManifestSplitCondition.AnyArray(): {ic.ManifestSplitDimCondition.Axis(0): 200}}
    config = ic.RepositoryConfig.default()
    config.manifest = ic.ManifestConfig(splitting=ic.ManifestSplittingConfig.from_dict(pages))
    return config
