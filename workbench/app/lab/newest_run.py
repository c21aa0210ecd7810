"""Which run to show where nobody named one.

Needs   the environment variable WORKBENCH_RUN, or a folder of runs.
Yields  `run_to_show`: that run, or the one that was written last; None where there is none.
"""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "WORKBENCH_RUN"
"""Names the run to show, before every other."""

MOST = 1000
"""Entries of a folder that are looked at."""

_RECORDED = ("run.json", "store/refs/branch.*/*", "store/journal/*", "index/*/")
"""What a recorder writes: every commit moves a branch, which is a file below store/refs."""


def run_to_show(folder: Path | str = "runs") -> Path | None:
    """The run that WORKBENCH_RUN names, else the one below `folder` that was written last.

    Args:
        folder: of runs; relative to the working folder.

    Returns:
        Its absolute path. What WORKBENCH_RUN names is not looked at: whoever opens it says what is
        wrong with it.

    Example:
        >>> run_to_show("/no/such/folder") is None or VARIABLE in os.environ
        True
    """
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).absolute()
    try:
        entries = sorted(Path(folder).iterdir())[:MOST]
    except OSError:
        return None
    written = {entry: _last_written(entry) for entry in entries}
    runs = {entry: when for entry, when in written.items() if when}
    return max(runs, key=lambda run: runs[run]).absolute() if runs else None


def _last_written(folder: Path) -> float:
    """When a run was last recorded to, seconds since 1970; 0 where `folder` is no run.

    What readers write (kept results, the catalogue) does not count: to look at an old run would
    make it the newest.
    """
    times = [0.0]
    for pattern in _RECORDED:
        try:
            found = sorted(folder.glob(pattern))[:MOST]
            times += [p.stat().st_mtime for p in found if p.parent.name != "branch._results"]
        except OSError:
            continue
    return max(times)
