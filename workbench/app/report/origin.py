"""Origin: which run this is about, what made it, and which weights it left.

Needs   an open run; run.json may hold anything.
Yields  `origin`, name and value; `checkpoint_table`, a row a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.figures.caption import Table
from workbench.figures.wording import listed, plain
from workbench.run import Run


def origin(run: Run) -> list[tuple[str, str]]:
    """Name and value of what is known of where the numbers come from."""
    attrs = run.attrs
    made = attrs.get("provenance")
    made = made if isinstance(made, Mapping) else {}
    rows = [
        ("Run", run.name),
        ("Folder", str(run.path)),
        ("Begun", attrs.get("created_utc")),
        ("Branches", listed(run.branches, most=20)),
        ("Snapshots", _snapshots(run)),
        ("Command", _command(made.get("command"))),
        ("Code", _code(made.get("git"))),
        ("Python", made.get("python")),
        ("Machine", made.get("platform")),
        ("Packages", _packages(made.get("packages"))),
    ]
    return [(name, plain(value, 400)) for name, value in rows if value]


def _snapshots(run: Run) -> str:
    """The store's commits that were read, by branch."""
    if run.store is None:
        return ""
    return ", ".join(f"{branch} {run.store.tip(branch)}" for branch in run.store.branches)


def _command(words: Any) -> str:
    return " ".join(map(str, words)) if isinstance(words, list) else str(words or "")


def _code(git: Any) -> str:
    if not isinstance(git, Mapping):
        return ""
    changed = ", with changes that were not committed" if git.get("changed") else ""
    return f"commit {git.get('commit')}{changed}"


def _packages(packages: Any) -> str:
    if not isinstance(packages, Mapping):
        return ""
    return ", ".join(f"{name} {version}" for name, version in packages.items())


def checkpoint_table(run: Run) -> Table:
    """A row a checkpoint on the way to this branch's end, its trunk's included."""
    rows = [
        (c.step, c.tokens_seen, c.branch, c.record.phase, c.record.uri) for c in run.checkpoints
    ]
    return Table(("step", "tokens", "saved on", "phase", "where"), tuple(rows))
