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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import icechunk as ic
import zarr

from workbench.errors import RunExists, RunNotFound, UsageError
from workbench.store.journal import read_tail
from workbench.store.layout import Layout
from workbench.store.location import Location, Lock
from workbench.store.names import (
    MAIN,
    AsideTag,
    CheckpointTag,
    ForkTag,
    check_branch,
    read_tag,
)
from workbench.store.snapshot import Snapshot

if TYPE_CHECKING:
    from workbench.store.writer import StoreWriter

# Icechunk's logger warns at every commit that two committers on a local disk are unsafe; ours hold
# a lock.
ic.set_logs_filter("error")


AFTER = "after"
"""Key in a commit's metadata: `RunStore.last_mark` of the snapshot that it follows."""

FIRST = "1CECHNKREP0F1RSTCMT0"
"""Id that Icechunk 1.x gives the empty snapshot with which every repository begins."""


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
        from workbench.store.writer import write_labels

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

    def read_tag(self, tag: str) -> Snapshot:
        """The state under a tag, such as the one that `rollback` returned."""
        if tag not in self.repository.list_tags():
            raise RunNotFound(f"no tag {ascii(tag)[:120]} in {self.location}.")
        return Snapshot(self.repository, self.repository.lookup_tag(tag))

    def lineage(self, branch: str) -> tuple[str, int] | None:
        """The parent of a branch and the step at which it forked; None for a branch that began by
        itself.
        """
        forks = {
            tag.snapshot: (tag.parent, tag.step)
            for tag in self._tags(ForkTag)
            if tag.branch == branch
        }
        if len(forks) < 2:
            return next(iter(forks.values()), None)
        # A fork that was cut short left a tag without a branch and was made again: the newest
        # counts.
        return next(forks[id] for id in self._marks(self.tip(branch)) if id in forks)

    def checkpoints(self, branch: str) -> dict[int, str]:
        """Tagged checkpoints in the history of `branch`, its trunk included: step -> snapshot
        id.
        """
        tagged = {tag.snapshot: tag.step for tag in self._tags(CheckpointTag)}
        found: dict[int, str] = {}
        for id in self._marks(self.tip(branch)):
            if id in tagged:
                found.setdefault(tagged[id], id)
        return dict(sorted(found.items()))

    def last_mark(self, snapshot: str) -> str:
        """The newest snapshot at or before `snapshot` that is a checkpoint, or the first commit
        where none is.

        Every commit carries this of the snapshot that it follows, as "after" in its metadata: the
        marks form a chain that is walked without the commits between them, which is what `fork`,
        `rollback` and `checkpoints` do.
        """
        tagged = {tag.snapshot for tag in self._tags(CheckpointTag)}
        id = snapshot
        for id in self._marks(snapshot):
            if id in tagged or self.repository.lookup_snapshot(id).parent_id == FIRST:
                break
        return id

    def set_aside_checkpoints(self, branch: str) -> set[int]:
        """Steps of checkpoints that were tagged on `branch` and that a rollback took off it."""
        if not any(tag.branch == branch for tag in self._tags(AsideTag)):
            return set()
        tagged = {tag.step for tag in self._tags(CheckpointTag) if tag.branch == branch}
        return tagged - self.checkpoints(branch).keys()

    def _tags(self, kind: type) -> list[Any]:
        tags = (read_tag(name) for name in self.repository.list_tags())
        return [tag for tag in tags if isinstance(tag, kind)]

    def _marks(self, snapshot: str) -> Iterator[str]:
        """Ids from `snapshot` back to the repository's own first one, newest first: every tagged
        checkpoint and the first commit are among them, most of the others are not.
        """
        seen: set[str] = set()
        id: str | None = snapshot
        while id and id not in seen:
            seen.add(id)
            info = self.repository.lookup_snapshot(id)
            yield id
            after = info.metadata.get(AFTER)
            # No mark (a store of an older version), or one that leads nowhere: step by step.
            id = after if self._is_mark(after, seen) else info.parent_id

    def _is_mark(self, id: object, seen: set[str]) -> bool:
        if not isinstance(id, str) or not id or id in seen:
            return False
        try:
            self.repository.lookup_snapshot(id)
        except ic.IcechunkError:
            return False
        return True

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
        if self.read(branch).tail:
            # What a writer that is gone left in its journal is set aside with the rest, not lost.
            with self.writer(branch) as last:
                last.commit("rows of the journal")
        with self.branch_lock(branch) as writer, self.commit_lock() as lock:
            writer.acquire()
            lock.acquire(wait=True)
            tip = self.tip(branch)
            if tip == target:
                return None
            tag = str(AsideTag(branch, to_step, tip))
            if tag not in self.repository.list_tags():
                self.repository.create_tag(tag, tip)
            self.location.sync()
            self.repository.reset_branch(branch, target, from_snapshot_id=tip)
            self.location.sync()
        return SetAside(tag, branch, self._steps_between(target, tip))

    def _checkpoint(self, branch: str, step: int) -> str:
        """Snapshot of the checkpoint at `step` in the history of `branch`."""
        self.tip(branch)
        known = self.checkpoints(branch)
        if step == 0 and 0 not in known:
            # Before the first step: the commit after the repository's own, which holds the layout.
            return list(self._marks(self.tip(branch)))[-2]
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
