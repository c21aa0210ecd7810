"""Every checkpoint below a folder.

Needs   a folder.
Yields  `find`: Found, one a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from checkpoints_index.layouts.found import Found


def find(folder: str | Path) -> Iterator[Found]:
    """Every checkpoint at or below `folder`, whole or half-written, in the order of their paths."""
    yield from ()
