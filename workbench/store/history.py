"""How the branches of a store came about: checkpoints, forks, and the way back to the beginning.

Needs   an Icechunk repository whose tags are those of names.py.
Yields  History: `marks`, `checkpoints`, `lineage`, `tags`.

Every commit carries as "after" the last mark (`last_mark`) of the snapshot that it follows. So the
marks form a chain, and walking it reads one snapshot a checkpoint (0.15 ms each on a local disk)
instead of one a commit. Commits of older stores have no such note and are walked one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import icechunk as ic

from workbench.store.names import CheckpointTag, ForkTag, read_tag

AFTER = "after"
"""Key in a commit's metadata: `History.last_mark` of the snapshot that it follows."""


class History:
    """What lies before the snapshots of `repository`."""

    def __init__(self, repository: ic.Repository) -> None:
        self.repository = repository

    def tags(self, kind: type) -> list[Any]:
        """All tags of one kind, such as CheckpointTag."""
        tags = (read_tag(name) for name in self.repository.list_tags())
        return [tag for tag in tags if isinstance(tag, kind)]

    def marks(self, snapshot: str) -> Iterator[str]:
        """Ids from `snapshot` back to the repository's own first one, newest first: every tagged
        checkpoint and the run's first commit are among them, most of the others are not.
        """
        seen: set[str] = set()
        id: str | None = snapshot
        while id and id not in seen:
            seen.add(id)
            info = self.repository.lookup_snapshot(id)
            yield id
            after = info.metadata.get(AFTER)
            # No note (an older store), or one that leads nowhere: step by step.
            id = after if self._is_mark(after, seen) else info.parent_id

    def _is_mark(self, id: object, seen: set[str]) -> bool:
        if not isinstance(id, str) or not id or id in seen:
            return False
        try:
            self.repository.lookup_snapshot(id)
        except ic.IcechunkError:
            return False
        return True

    def first(self, snapshot: str) -> str:
        """The run's first commit, which holds the layout and no rows."""
        return list(self.marks(snapshot))[-2]

    def last_mark(self, snapshot: str) -> str:
        """The newest checkpoint at or before `snapshot`, or the run's first commit."""
        tagged = {tag.snapshot for tag in self.tags(CheckpointTag)}
        before = ""
        for id in self.marks(snapshot):
            if id in tagged:
                return id
            if self.repository.lookup_snapshot(id).parent_id is None:
                break
            before = id
        return before or snapshot

    def checkpoints(self, snapshot: str) -> dict[int, str]:
        """Tagged checkpoints at or before `snapshot`: step -> snapshot id; where a step was tagged
        again, the newest. One snapshot may be that of several steps: nothing was recorded between.
        """
        tagged: dict[str, list[int]] = {}
        for tag in self.tags(CheckpointTag):
            tagged.setdefault(tag.snapshot, []).append(tag.step)
        found: dict[int, str] = {}
        for id in self.marks(snapshot):
            for step in tagged.get(id, ()):
                found.setdefault(step, id)
        return dict(sorted(found.items()))

    def lineage(self, branch: str) -> tuple[str, int] | None:
        """The parent of `branch` and the step at which it forked; None where it has none."""
        forks = {
            tag.snapshot: (tag.parent, tag.step)
            for tag in self.tags(ForkTag)
            if tag.branch == branch
        }
        if len(forks) < 2:
            return next(iter(forks.values()), None)
        # A fork that was cut short left a tag without a branch and was made again: the newest
        # counts.
        tip = self.repository.lookup_branch(branch)
        return next(forks[id] for id in self.marks(tip) if id in forks)
