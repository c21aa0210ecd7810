"""Where bytes lie: on this machine, or behind a URL of fsspec.

Needs   a path, or a URL such as s3://bucket/run/step-1000; fsspec is imported for URLs only.
Yields  Place: names, sizes and ranges of bytes. Nothing is copied whole.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from checkpoints_index.errors import CheckpointIncomplete, CheckpointNotFound, RecordError
from checkpoints_index.url import URL, without_password


def shown(name: object) -> str:
    """A name from outside as a message may print it: no control signs, 80 characters at most."""
    text = ascii(name)
    return text if len(text) <= 80 else text[:77] + "..."


def printable(text: str) -> str:
    """Text from outside on one line: line breaks, control signs and broken letters written out.

    Example:
        >>> printable("a" + chr(10) + "b")
        'a\\\\nb'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class Place(ABC):
    """A file or folder that can be read in ranges. `str()` of it is what messages say."""

    eager = True
    """Whether looking at every file's header costs little; false where a file comes whole."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its last part."""

    @abstractmethod
    def is_file(self) -> bool:
        """Whether a file is there."""

    @abstractmethod
    def is_folder(self) -> bool:
        """Whether a folder is there."""

    @abstractmethod
    def names(self) -> list[str]:
        """What lies directly in the folder, by name."""

    @abstractmethod
    def size(self) -> int:
        """Bytes of the file."""

    @abstractmethod
    def ranges(self, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes [begin, end) of the file, for every range that is wanted."""

    @abstractmethod
    def _child(self, name: str) -> Place: ...

    def child(self, name: object) -> Place:
        """What is called `name` in this folder. A manifest may not point elsewhere.

        Raises:
            RecordError: not the plain name of a file.
        """
        if (
            not isinstance(name, str)
            or not 0 < len(name) <= 255
            or name in (".", "..")
            or any(c in "/\\" or ord(c) < 32 for c in name)
        ):
            raise RecordError(f"{self}: names {shown(name)}, expected a file of that folder.")
        return self._child(name)

    def read(self, begin: int, end: int) -> bytes:
        """The bytes [begin, end) of the file; CheckpointIncomplete where it is shorter."""
        return self.ranges([(begin, end)])[0]

    def whole(self) -> bytes:
        """All bytes of a small file."""
        return self.read(0, self.size())

    def _cut_short(self, wanted: int, found: int) -> NoReturn:
        raise CheckpointIncomplete(
            f"{self}: {found} bytes where {wanted} should lie; the file is cut short. Copy it "
            f"again, or use another checkpoint."
        )


class LocalPlace(Place):
    """A path of this machine."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return printable(str(self.path))

    @property
    def name(self) -> str:
        return self.path.name

    def is_file(self) -> bool:
        return _is(self.path.is_file)

    def is_folder(self) -> bool:
        return _is(self.path.is_dir)

    def names(self) -> list[str]:
        return sorted(os.listdir(self.path))

    def size(self) -> int:
        return self.path.stat().st_size

    def _child(self, name: str) -> LocalPlace:
        return LocalPlace(self.path / name)

    def ranges(self, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
        found = []
        with self.path.open("rb") as file:
            for begin, end in wanted:
                file.seek(begin)
                raw = file.read(end - begin)
                if len(raw) != end - begin:
                    self._cut_short(end - begin, len(raw))
                found.append(raw)
        return found


def _is(asked: Callable[[], bool]) -> bool:
    """The answer of a path; False where the system could not have such a path at all."""
    try:
        return asked()
    except ValueError:
        return False
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


class RemotePlace(Place):
    """A URL that fsspec can open; read by ranges, never copied."""

    def __init__(self, url: str, file_system: Any = None, **storage_options: Any) -> None:
        self.url = url.rstrip("/")
        self.options = storage_options
        if file_system is None:
            with self._told():
                from fsspec.core import url_to_fs

                file_system, path = url_to_fs(self.url, **storage_options)
            self.path = path.rstrip("/")
        else:
            self.path = ""
        self.file_system = file_system
        self._info: dict[str, Any] | None = None

    def __str__(self) -> str:
        return printable(without_password(self.url))

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Whatever a file system of others raises, said as one error with the URL."""
        try:
            yield
        except FileNotFoundError:
            raise CheckpointNotFound(f"nothing at {self}.") from None
        except ImportError as error:
            raise CheckpointNotFound(
                f"{self}: {error}; install the package that reads such URLs."
            ) from None
        except (OSError, ValueError) as error:
            reason = without_password(" ".join(str(error).split()))[:200]
            raise CheckpointNotFound(
                f"{self} cannot be read ({type(error).__name__}: {reason}); check the address "
                f"and the credentials."
            ) from None

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    def _about(self) -> dict[str, Any]:
        if self._info is None:
            try:
                with self._told():
                    self._info = dict(self.file_system.info(self.path))
            except CheckpointNotFound as error:
                if not str(error).startswith("nothing at"):
                    raise
                self._info = {}
        return self._info

    def is_file(self) -> bool:
        return self._about().get("type") == "file"

    def is_folder(self) -> bool:
        return self._about().get("type") == "directory"

    def names(self) -> list[str]:
        with self._told():
            listed = self.file_system.ls(self.path, detail=False)
        return sorted({p.rstrip("/").rsplit("/", 1)[-1] for p in listed} - {""})

    def size(self) -> int:
        size = self._about().get("size")
        if size is None:
            raise CheckpointNotFound(f"no file {self} of a size that is known.")
        return int(size)

    def _child(self, name: str) -> RemotePlace:
        there = RemotePlace(f"{self.url}/{name}", self.file_system)
        there.path = f"{self.path}/{name}"
        return there

    def ranges(self, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
        # Some file systems refuse, others read everything for, an empty range.
        real = [(begin, end) for begin, end in wanted if end > begin]
        with self._told():
            read = self.file_system.cat_ranges(
                [self.path] * len(real), [b for b, _ in real], [e for _, e in real]
            )
            failed = next((raw for raw in read if isinstance(raw, Exception)), None)
            if failed is not None:
                raise failed
        for (begin, end), raw in zip(real, read, strict=True):
            if len(raw) != end - begin:
                self._cut_short(end - begin, len(raw))
        left = iter(read)
        return [bytes(next(left)) if end > begin else b"" for begin, end in wanted]


def place_of(where: str | Path | Place, **storage_options: Any) -> Place:
    """The place that a path, a URL or a `hf://owner/name@revision` means.

    Example:
        >>> type(place_of("runs/first")).__name__, type(place_of("memory://runs/first")).__name__
        ('LocalPlace', 'RemotePlace')
    """
    if isinstance(where, Place):
        return where
    text = str(where)
    if isinstance(where, str) and text.startswith("hf://"):
        from checkpoints_index.formats.hub import HubPlace

        return HubPlace.parse(text, **storage_options)
    if isinstance(where, str) and URL.match(text):
        return RemotePlace(text, **storage_options)
    if text.startswith("file://"):
        return LocalPlace(text.removeprefix("file://"))
    return LocalPlace(where)
