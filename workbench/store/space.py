"""Space: what nothing can reach any more, counted, and removed where asked.

Needs   a store.
Yields  `survey`: what would go; `collect`: what went. Both as Space.

What goes   Objects that no branch and no tag leads to: what a kill left between chunks and commit,
            results that were dropped. Where asked, also what rollbacks set aside, with its tags.
What stays  Everything that can be read: every branch with its whole history, every checkpoint's
            state, results of probes. History is never shortened, so a last chunk that was filled
            further since stays as well, in the older states that show it: Icechunk can expire old
            snapshots, but then steps can no longer be forked or gone back to, and readers that hold
            one break.
Alone       Chunks that a writer has not committed yet are reachable from nowhere, so they would go.
            Therefore nothing is removed while a branch is written: all locks of the store are
            taken, the commit lock first (a fork waits for it, so no branch can appear), and whoever
            writes is named in the refusal.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import icechunk as ic

from workbench.errors import UsageError
from workbench.store.names import AsideTag, CheckpointTag, read_tag
from workbench.store.run_store import RunStore

HOUR = timedelta(hours=1)
"""Younger objects stay: another machine's clock may be ahead, and a program that knows nothing of
our locks may be about to commit them."""


@dataclass(frozen=True)
class Space:
    """What gc removed, or would."""

    applied: bool
    """False: nothing was touched."""
    bytes: int | None
    """Of all that goes; None where it cannot be told before (what was set aside on object
    storage)."""
    chunks: int
    manifests: int
    snapshots: int
    tags: tuple[str, ...] = ()
    """Tags of what rollbacks had set aside, and of the checkpoints in it."""

    @property
    def objects(self) -> int:
        """How many go, of all kinds."""
        return self.chunks + self.manifests + self.snapshots + len(self.tags)

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"tags": list(self.tags)}

    def __str__(self) -> str:
        size = "an unknown number of bytes" if self.bytes is None else f"{self.bytes:,} bytes"
        aside = f", {len(self.tags)} tags of what was set aside" if self.tags else ""
        parts = (
            f"{self.chunks:,} chunks, {self.manifests:,} manifests, {self.snapshots:,} snapshots"
        )
        return f"{'removed' if self.applied else 'would remove'} {size}: {parts}{aside}"


def survey(store: RunStore, *, older_than: timedelta = HOUR, set_aside: bool = False) -> Space:
    """What `collect` would remove now. Takes no lock and touches nothing.

    While somebody writes, chunks of the next commit that are older than `older_than` count too; to
    remove them is refused.
    """
    _check_age(older_than)
    tags = set_aside_tags(store) if set_aside else ()
    before = datetime.now(UTC) - older_than
    if not tags:
        return _space(store.repository.garbage_collect(before, dry_run=True), applied=False)
    try:
        folder = store.location.folder
    except UsageError:
        summary = store.repository.garbage_collect(before, dry_run=True)
        space = _space(summary, applied=False, tags=tags)
        return Space(**asdict(space) | {"bytes": None, "tags": tags})
    with tempfile.TemporaryDirectory(prefix="workbench-gc-") as scratch:
        view = _without(folder, Path(scratch), tags)
        return _space(view.garbage_collect(before, dry_run=True), applied=False, tags=tags)


def collect(
    store: RunStore,
    *,
    older_than: timedelta = HOUR,
    set_aside: bool = False,
    weights: Mapping[str, Collection[int]] | None = None,
) -> Space:
    """Remove what nothing can reach. Readers that are open go on reading.

    Args:
        older_than: objects younger than this stay.
        set_aside: also what rollbacks took off a branch; it cannot be read afterwards.
        weights: steps of the checkpoints whose weights are there, by branch. Those that were set
            aside are told from the others by the tags that `set_aside` removes.

    Raises:
        StoreBusy: a branch is being written; by whom is told.
        UsageError: weights belong to what was set aside.
    """
    _check_age(older_than)
    with contextlib.ExitStack() as held:
        turn = store.commit_lock()
        held.callback(turn.close)
        turn.acquire(wait=True)
        for branch in store.branches:
            lock = store.branch_lock(branch)
            held.callback(lock.close)
            lock.acquire()
        tags = set_aside_tags(store) if set_aside else ()
        if tags:
            _refuse_weights(store, weights or {})
        for tag in tags:
            store.repository.delete_tag(tag)
        store.location.sync()
        summary = store.repository.garbage_collect(datetime.now(UTC) - older_than)
        store.location.sync()
    return _space(summary, applied=True, tags=tags)


def set_aside_tags(store: RunStore) -> tuple[str, ...]:
    """Tags of what rollbacks set aside, checkpoints in it included: those whose snapshot is in the
    history of no branch.
    """
    tags = [tag for name in store.repository.list_tags() if (tag := read_tag(name)) is not None]
    if not any(isinstance(tag, AsideTag) for tag in tags):
        return ()
    repository = store.repository
    kept = {
        info.id
        for branch in repository.list_branches()
        for info in repository.ancestry(branch=branch)
    }
    return tuple(
        sorted(
            str(tag)
            for tag in tags
            if isinstance(tag, AsideTag | CheckpointTag) and tag.snapshot not in kept
        )
    )


def _refuse_weights(store: RunStore, weights: Mapping[str, Collection[int]]) -> None:
    for branch, steps in weights.items():
        if branch not in store.branches:
            continue
        left = sorted(store.set_aside_checkpoints(branch) & set(steps))
        if left:
            raise UsageError(
                f"weights of branch {branch!r} at step {', '.join(map(str, left[:5]))} belong to "
                f"what was set aside, and would look like the branch's own without it: prune "
                f"those checkpoints first, or leave out --set-aside."
            )


def _check_age(older_than: timedelta) -> None:
    if older_than < timedelta(0):
        raise UsageError(f"older_than={older_than}: expected a duration of 0 or more.")


def _without(folder: Path, scratch: Path, tags: Collection[str]) -> ic.Repository:
    """The store as it would be without these tags: a folder of links, with references of its own.
    Only looked at.
    """
    for entry in folder.iterdir():
        if entry.name not in ("refs", "locks", "journal"):
            (scratch / entry.name).symlink_to(entry)
    (scratch / "refs").mkdir()
    for ref in (folder / "refs").iterdir():
        if ref.name.removeprefix("tag.") not in tags:
            (scratch / "refs" / ref.name).symlink_to(ref)
    return ic.Repository.open(ic.local_filesystem_storage(str(scratch)))


def _space(summary: ic.GCSummary, *, applied: bool, tags: tuple[str, ...] = ()) -> Space:
    return Space(
        applied=applied,
        bytes=summary.bytes_deleted,
        chunks=summary.chunks_deleted,
        manifests=summary.manifests_deleted,
        snapshots=summary.snapshots_deleted,
        tags=tags,
    )
