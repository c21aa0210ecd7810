"""The store of a run: everything that was recorded, on every branch, with its history.

Needs   a folder, usually <run>/store.
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
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import icechunk as ic
import zarr

from workbench.errors import RunExists, RunNotFound, UsageError
from workbench.store.durable import sync_tree
from workbench.store.layout import Layout
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
    from workbench.store.lock import FileLock
    from workbench.store.writer import StoreWriter

# Icechunk's logger warns at every commit that two committers on a local disk are unsafe; ours hold
# a lock.
ic.set_logs_filter("error")

LOCKS = "locks"
"""Folder of the lock files inside the store; Icechunk leaves names that it does not know alone."""


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

    def __init__(self, path: Path, repository: ic.Repository) -> None:
        # Absolute: a training program may change its working folder while it records.
        self.path = path.absolute()
        self.repository = repository

    @classmethod
    def create(
        cls, path: str | Path, layout: Layout, attrs: Mapping[str, Any] | None = None
    ) -> RunStore:
        """A new store at `path`, with an empty branch "main".

        It is made beside its place and renamed into it, so a folder of that name is always a whole
        store.

        Args:
            path: folder that must not exist yet.
            layout: sizes and labels of the fixed dims.
            attrs: plain data (JSON) about the run, kept in the root group.

        Raises:
            RunExists: something is at `path` already; it is left as it is.
        """
        from workbench.store.writer import write_labels

        path = Path(path)
        if path.exists():
            raise RunExists(
                f"{path} exists already; open it with RunStore.open, or choose another folder."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".partial-{path.name}-", dir=path.parent))
        try:
            repository = ic.Repository.create(_storage(partial), config=_config())
            repository.save_config()
            session = repository.writable_session(MAIN)
            root = zarr.create_group(session.store, zarr_format=3)
            write_labels(root, layout, attrs or {})
            session.commit("layout of the run")
            sync_tree(partial)
            partial.chmod(0o777 & ~_umask())
            os.rename(partial, path)
            sync_tree(path.parent)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError) and path.exists():
                raise RunExists(f"{path} was made by another process just now; open it.") from error
            raise
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> RunStore:
        """The store at `path`; RunNotFound where there is none."""
        path = Path(path)
        if not (path / "refs").is_dir():
            raise RunNotFound(
                f"no store at {path}; a store is the folder 'store' of a run that was recorded."
            )
        return cls(path, ic.Repository.open(_storage(path.absolute())))

    # Reading

    @property
    def branches(self) -> list[str]:
        """Names of the branches, main first."""
        return sorted(self.repository.list_branches(), key=lambda name: (name != MAIN, name))

    def tip(self, branch: str) -> str:
        """Id of the last snapshot of `branch`; RunNotFound that lists the branches where it is
        unknown.
        """
        if branch not in self.repository.list_branches():
            near = get_close_matches(str(branch), self.branches, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise RunNotFound(
                f"no branch {ascii(branch)[:80]} in {self.path}; it has "
                f"{', '.join(self.branches)}{hint}"
            )
        return self.repository.lookup_branch(branch)

    def read(self, branch: str = MAIN) -> Snapshot:
        """The branch as it is now; what is committed later needs another `read`."""
        return Snapshot(self.repository, self.tip(branch))

    def read_tag(self, tag: str) -> Snapshot:
        """The state under a tag, such as the one that `rollback` returned."""
        if tag not in self.repository.list_tags():
            raise RunNotFound(f"no tag {ascii(tag)[:120]} in {self.path}.")
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
        return next(forks[id] for id in self._history(branch) if id in forks)

    def checkpoints(self, branch: str) -> dict[int, str]:
        """Tagged checkpoints in the history of `branch`, its trunk included: step -> snapshot
        id.
        """
        tagged = {tag.snapshot: tag.step for tag in self._tags(CheckpointTag)}
        found: dict[int, str] = {}
        for id in self._history(branch):
            if id in tagged:
                found.setdefault(tagged[id], id)
        return dict(sorted(found.items()))

    def set_aside_checkpoints(self, branch: str) -> set[int]:
        """Steps of checkpoints that were tagged on `branch` and that a rollback took off it."""
        if not any(tag.branch == branch for tag in self._tags(AsideTag)):
            return set()
        tagged = {tag.step for tag in self._tags(CheckpointTag) if tag.branch == branch}
        return tagged - self.checkpoints(branch).keys()

    def _tags(self, kind: type) -> list[Any]:
        tags = (read_tag(name) for name in self.repository.list_tags())
        return [tag for tag in tags if isinstance(tag, kind)]

    def _history(self, branch: str) -> list[str]:
        return [snapshot.id for snapshot in self.repository.ancestry(branch=branch)]

    # Writing

    def branch_lock(self, branch: str) -> FileLock:
        """The lock of the one writer of `branch`."""
        from workbench.store.lock import FileLock

        return FileLock(self.path / LOCKS / f"{branch}.lock", f"branch {branch!r} of {self.path}")

    def commit_lock(self) -> FileLock:
        """The lock under which the repository is changed, commit by commit."""
        from workbench.store.lock import FileLock

        return FileLock(self.path / LOCKS / ".commit.lock", f"the store {self.path}")

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
                    f"branch {new_branch!r} exists already in {self.path}; open it, or choose "
                    f"another name."
                )
            # The tag comes first: a branch without it would have lost its parent.
            tag = str(ForkTag(new_branch, from_branch, at_step, snapshot))
            if tag not in self.repository.list_tags():
                self.repository.create_tag(tag, snapshot)
            sync_tree(self.path)
            self.repository.create_branch(new_branch, snapshot)
            sync_tree(self.path)
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
        with self.branch_lock(branch) as writer, self.commit_lock() as lock:
            writer.acquire()
            lock.acquire(wait=True)
            tip = self.tip(branch)
            if tip == target:
                return None
            tag = str(AsideTag(branch, to_step, tip))
            if tag not in self.repository.list_tags():
                self.repository.create_tag(tag, tip)
            sync_tree(self.path)
            self.repository.reset_branch(branch, target, from_snapshot_id=tip)
            sync_tree(self.path)
        return SetAside(tag, branch, self._steps_between(target, tip))

    def _checkpoint(self, branch: str, step: int) -> str:
        """Snapshot of the checkpoint at `step` in the history of `branch`."""
        self.tip(branch)
        known = self.checkpoints(branch)
        if step == 0 and 0 not in known:
            # Before the first step: the commit after the repository's own, which holds the layout.
            return self._history(branch)[-2]
        if step not in known:
            near = sorted(known, key=lambda s: (abs(s - step), s))[:5]
            have = f"near it: {', '.join(map(str, sorted(near)))}" if near else "it has none"
            raise RunNotFound(
                f"no checkpoint at step {step} on branch {branch!r} of {self.path}; {have}."
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


def _storage(path: Path) -> ic.Storage:
    return ic.local_filesystem_storage(str(path))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
