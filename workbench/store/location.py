"""Where a store is: a folder on this machine or a prefix on object storage.

Needs   a path, or a URL such as s3://bucket/runs/demo/store.
Yields  Location: the bytes' home as Icechunk wants it, the locks that guard it, and what makes a
        write there durable.

Everything that differs between a disk and an object store is said here and in object_storage.py;
the rest of the store does not know where it lies.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import icechunk as ic

from workbench.errors import RunExists, RunNotFound, UsageError
from workbench.store.damage import damage_told
from workbench.store.durable import sync_tree
from workbench.store.lock import FileLock
from workbench.store.names import check_branch

LOCKS = "locks"
"""Folder of the locks inside the store; Icechunk leaves names that it does not know alone."""

COMMIT_LOCK = ".commit"
"""Its lock's name begins with a dot, so no branch has the same."""


def opening() -> ic.RepositoryConfig:
    """How a repository is opened, beside what it says of itself: Icechunk would keep millions of
    chunk references and every snapshot, and a training that writes for weeks is where they would be
    kept.
    """
    caching = ic.CachingConfig(num_chunk_refs=10_000, num_snapshot_nodes=2_000)
    return ic.RepositoryConfig(caching=caching)


class Lock(Protocol):
    """What guards a branch or the whole store; as a context it is closed at the end.

    `check` raises StoreBusy where the lock was lost meanwhile: the moment before a commit is the
    time to ask.
    """

    @property
    def held(self) -> bool: ...

    def acquire(self, *, wait: bool = False) -> None: ...

    def check(self) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Lock: ...

    def __exit__(self, *exc: object) -> None: ...


class Location(ABC):
    """The place of one store. `str` of it is what a user would type to open it again."""

    @staticmethod
    def of(
        where: str | os.PathLike[str] | Location,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Location:
        """The location that `where` names; nothing is read or made.

        Args:
            where: a folder, an s3:// URL, or a location.
            storage_options: for object storage, what the environment does not say already (see
                object_storage.py).

        Raises:
            UsageError: no store can be there: a name that no file system takes, a URL of another
                kind, options for a folder.

        Example:
            >>> str(Location.of("s3://bucket/runs/demo/store/"))
            's3://bucket/runs/demo/store'
        """
        if isinstance(where, Location):
            return where
        text = os.fspath(where)
        if isinstance(where, str) and "://" in where[:40]:
            from workbench.store.object_storage import ObjectStorage

            return ObjectStorage(where, storage_options)
        if text.startswith("s3:/"):
            raise UsageError(f"{shown(text)}: a URL is given as text, s3://bucket/prefix.")
        if storage_options:
            raise UsageError(
                f"storage_options were given for the folder {shown(text)}; they are for s3:// only."
            )
        return LocalFolder(check_path(text))

    @abstractmethod
    def storage(self) -> ic.Storage:
        """The place as Icechunk opens it."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether a whole store is there."""

    @abstractmethod
    def make(self, config: ic.RepositoryConfig, fill: Callable[[ic.Repository], None]) -> None:
        """Make a repository there and `fill` it; who opens the place finds all of it or nothing.

        Raises:
            RunExists: something is there already; it is left as it is.
        """

    @abstractmethod
    def sync(self) -> None:
        """When it returns, everything written there survives a power cut."""

    @abstractmethod
    def branch_lock(self, branch: str) -> Lock:
        """The lock of the one writer of `branch`."""

    @abstractmethod
    def commit_lock(self) -> Lock:
        """The lock under which the repository is changed, commit by commit."""

    @property
    @abstractmethod
    def journal_folder(self) -> Path:
        """Folder, on this machine, of the rows that wait for their commit; made by who writes."""

    @property
    def folder(self) -> Path:
        """The store's own folder; UsageError where it is no folder."""
        raise UsageError(f"{self} is not a folder; use store.location or str(store.location).")

    def open(self) -> ic.Repository:
        """The repository there; RunNotFound where there is none."""
        found = self._find()
        if found is None:
            raise RunNotFound(
                f"no store at {self}; a store is the folder 'store' of a run that was recorded."
            )
        return found

    @abstractmethod
    def _find(self) -> ic.Repository | None:
        """The repository there, if it is whole."""


class LocalFolder(Location):
    """A store in a folder of this machine's file systems, network ones included (lock.py)."""

    def __init__(self, path: str | Path) -> None:
        # Absolute: a training program may change its working folder while it records.
        self._folder = Path(path).absolute()

    def __str__(self) -> str:
        return str(self._folder)

    @property
    def folder(self) -> Path:
        return self._folder

    def storage(self) -> ic.Storage:
        return ic.local_filesystem_storage(str(self._folder))

    def exists(self) -> bool:
        return (self._folder / "refs").is_dir()

    def _find(self) -> ic.Repository | None:
        with damage_told(f"the store {self}", "restore its refs and config.yaml from a copy."):
            return ic.Repository.open(self.storage(), opening()) if self.exists() else None

    def make(self, config: ic.RepositoryConfig, fill: Callable[[ic.Repository], None]) -> None:
        """It is made beside its place and renamed into it, so a folder of that name is always a
        whole store.
        """
        path = self._folder
        if os.path.lexists(path):
            raise RunExists(
                f"{path} exists already; open it with RunStore.open, or choose another folder."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-store-", dir=path.parent))
        try:
            repository = ic.Repository.create(LocalFolder(partial).storage(), config=config)
            repository.save_config()
            fill(repository)
            sync_tree(partial)
            partial.chmod(0o777 & ~_umask())
            os.rename(partial, path)
            sync_tree(path.parent)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError) and path.exists():
                raise RunExists(f"{path} was made by another process just now; open it.") from error
            raise

    def sync(self) -> None:
        sync_tree(self._folder)

    def branch_lock(self, branch: str) -> FileLock:
        name = check_branch(branch)
        return FileLock(self._folder / LOCKS / f"{name}.lock", f"branch {name!r} of {self}")

    def commit_lock(self) -> FileLock:
        return FileLock(self._folder / LOCKS / f"{COMMIT_LOCK}.lock", f"the store {self}")

    @property
    def journal_folder(self) -> Path:
        return self._folder / "journal"


def check_path(text: str) -> str:
    """`text` if a folder can be called that, or one UsageError.

    `..` and absolute paths are a user's good right here: it is their folder. Names that come from
    elsewhere (branches, tags, prefixes in a bucket) are held to narrower rules.
    """
    if not text.strip():
        raise UsageError("a store needs a folder or an s3:// URL; the name is empty.")
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise UsageError(f"{shown(text)}: a store's folder has no control characters in its name.")
    try:
        longest = max(len(os.fsencode(part)) for part in text.split("/"))
        total = len(os.fsencode(text))
    except UnicodeEncodeError:
        raise UsageError(f"{shown(text)}: this is not text that can name a folder.") from None
    if longest > 255 or total > 4000:
        raise UsageError(
            f"{shown(text)}: {total} bytes, {longest} in one part; a folder's path has at most "
            f"4000, and 255 in each part."
        )
    return text


def shown(text: str) -> str:
    """`text` as an error may quote it: printable, at most 80 characters."""
    safe = ascii(text)
    return safe if len(safe) <= 80 else safe[:77] + "..."


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
