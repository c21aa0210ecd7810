"""Damage: stored bytes that cannot be read, told in one line instead of whatever broke first.

Needs   a block that reads.
Yields  `damage_told`, around it: StoreDamaged with what was read and what went wrong;
        `panics_as_errors`, `in_a_line`, for those who tell it in their own way.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import icechunk as ic

from workbench.errors import StoreDamaged, WorkbenchError


class NativeFault(RuntimeError):
    """Native code gave up on bytes that make no sense."""


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """Icechunk's Rust code panics on some damaged files, which Python sees as an exception that
    `except Exception` lets pass, like a keyboard interrupt. Here it becomes a NativeFault.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise NativeFault(str(error)) from None


def in_a_line(error: BaseException) -> str:
    """What an error says, in a line: Icechunk's come with the whole way that they took."""
    text = str(error).partition("context:")[0].replace("|", " ")
    return f"{type(error).__name__}: {' '.join(text.split())[:240]}"


READING = (ic.IcechunkError, NativeFault, json.JSONDecodeError, KeyError, RuntimeError, ValueError)
"""What reading damaged bytes raises, from Icechunk, Zarr and its codecs."""


REMEDY = "`workbench verify RUN` says what and where; take that from a copy."


@contextlib.contextmanager
def damage_told(what: str, remedy: str = REMEDY) -> Iterator[None]:
    """Turns whatever reading damaged bytes raises into StoreDamaged, which names `what`.

    Example:
        >>> with damage_told("the entropy"):
        ...     raise ValueError("Stored and computed checksum do not match.")
        Traceback (most recent call last):
        ...
        workbench.errors.StoreDamaged: the entropy cannot be read (ValueError: Stored and ...
    """
    try:
        with panics_as_errors():
            yield
    except WorkbenchError:
        raise
    except READING as error:
        raise StoreDamaged(
            f"{what} cannot be read ({in_a_line(error)}). Where the disk or the network is sound, "
            f"the store is damaged: {remedy}"
        ) from error
