"""Names inside a store: branches, and the tags that mark checkpoints, forks and what a rollback set
aside.

Needs   names as people type them.
Yields  checked branch names; tag names and the facts read back from them.

A tag is the only note that Icechunk keeps outside a snapshot, and it costs 35 bytes, so lineage is
written as tags. Icechunk
never lets a tag name be used twice, not even after deletion, and after a rollback a step is reached
again: so every tag name ends with the snapshot that it marks. A dot separates the fields; no branch
name holds one.
"""

from __future__ import annotations

from dataclasses import dataclass

from checkpoints_index.record import BRANCH_NAME
from workbench.errors import UsageError

MAIN = "main"
"""The branch that a run starts with."""


def check_branch(name: str) -> str:
    """`name` if it can be a branch, or a UsageError: 1 to 64 of a-z 0-9 _ -, a letter or digit
    first.

    The rule keeps a branch usable as a folder, a part of a tag and a word of a command line.

    Example:
        >>> check_branch("curriculum-2")
        'curriculum-2'
    """
    if not isinstance(name, str) or not BRANCH_NAME.fullmatch(name):
        shown = ascii(name)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise UsageError(
            f"branch {shown}: a branch name is 1 to 64 of a-z, 0-9, '_' and '-', "
            f"beginning with a letter or digit; for example 'curriculum'."
        )
    return name


@dataclass(frozen=True)
class CheckpointTag:
    """A branch stood at `snapshot` when the weights of `step` were saved."""

    branch: str
    step: int
    snapshot: str

    def __str__(self) -> str:
        return f"at.{self.branch}.{self.step:012d}.{self.snapshot}"


@dataclass(frozen=True)
class ForkTag:
    """`branch` began at `snapshot`, which is `step` of `parent`."""

    branch: str
    parent: str
    step: int
    snapshot: str

    def __str__(self) -> str:
        return f"fork.{self.branch}.{self.parent}.{self.step:012d}.{self.snapshot}"


@dataclass(frozen=True)
class AsideTag:
    """`branch` ended at `snapshot` when it was rolled back to `step`."""

    branch: str
    step: int
    snapshot: str

    def __str__(self) -> str:
        return f"aside.{self.branch}.{self.step:012d}.{self.snapshot}"


def read_tag(name: str) -> CheckpointTag | ForkTag | AsideTag | None:
    """What a tag says, or None for a tag that somebody else made.

    Example:
        >>> read_tag("at.main.000000000400.8CS5FCHSCM3JVS2PHSN0").step
        400
    """
    match name.split("."):
        case ["at", branch, step, snapshot] if step.isdecimal():
            return CheckpointTag(branch, int(step), snapshot)
        case ["fork", branch, parent, step, snapshot] if step.isdecimal():
            return ForkTag(branch, parent, int(step), snapshot)
        case ["aside", branch, step, snapshot] if step.isdecimal():
            return AsideTag(branch, int(step), snapshot)
    return None
