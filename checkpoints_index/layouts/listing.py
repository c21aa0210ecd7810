"""What lies in one folder of the tree that is searched; links are looked at, never followed out.

Needs   a folder, and the root of the search.
Yields  Listing: files and folders by name; `strays`: links that leave the root.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Listing:
    """One folder's names, as the layouts are recognised by."""

    path: Path
    files: frozenset[str]
    """Files, and links to files that stay inside the root."""
    folders: frozenset[str]
    """Folders; links to folders are left out, so that loops end and nothing is found twice."""
    root: Path
    """Where the search began, links resolved."""
    strays: tuple[str, ...] = ()
    """Links right in this folder that lead out of the root, or nowhere."""

    def has(self, *ends: str) -> list[str]:
        """Files whose names end so, in order."""
        return sorted(name for name in self.files if name.endswith(ends))

    @cached_property
    def stray(self) -> str:
        """The first link at or below this folder that leaves the root, by its name; "" for none."""
        for here, folders, files in os.walk(self.path):
            for name in sorted(folders + files):
                link = Path(here, name)
                if link.is_symlink() and not _stays(link, self.root):
                    return str(link.relative_to(self.path))
        return ""

    def inside(self, name: str) -> Listing:
        """The listing of a folder in this one."""
        return listed(self.path / name, self.root)


def listed(path: Path, root: Path) -> Listing:
    """What lies in `path`; nothing where it cannot be read."""
    files, folders, strays = set(), set(), set()
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.add(entry.name)
                elif entry.is_symlink() and not _stays(path / entry.name, root):
                    strays.add(entry.name)
                elif entry.is_file():
                    files.add(entry.name)
    except OSError:
        # Unreadable, gone meanwhile, or deeper than the system's paths go.
        pass
    return Listing(path, frozenset(files), frozenset(folders), root, tuple(sorted(strays)))


def _stays(link: Path, root: Path) -> bool:
    """Whether a link leads to something inside the root, or inside its own repository of the Hub's
    cache, which keeps its files as links from snapshots/ to blobs/.
    """
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):
        return False
    if target.is_relative_to(root):
        return True
    home = hub_home(link.parent)
    return home is not None and target.is_relative_to(home.resolve() / "blobs")


def hub_home(folder: Path) -> Path | None:
    """models--owner--name of the Hub's cache, where `folder` is a snapshot in it."""
    for snapshots in (folder.parent, folder.parent.parent):
        if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):
            return snapshots.parent
    return None
