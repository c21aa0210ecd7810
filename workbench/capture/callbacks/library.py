"""A callback becomes one of the trainer's own class when it is made, not when its file is read.

Needs   the name of a trainer's module and of its callback class.
Yields  `with_base`.

So that a file of this folder can be read, documented and tested where the trainer is not installed,
and so that reading it loads no library that takes seconds to load.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

from workbench.errors import UsageError


def with_base(kind: type, module: str, base: str, install: str) -> type:
    """`kind`, with the class `base` of the trainer's `module` as a base.

    Args:
        kind: a class that defines some of the base's methods.
        install: what to type where the module is not installed.

    Raises:
        UsageError: the module cannot be loaded.

    Example:
        >>> class Quiet:
        ...     pass
        >>> with_base(Quiet, "logging", "Filter", "").__mro__[2].__name__
        'Filter'
    """
    try:
        wanted = getattr(import_module(module), base)
    except ImportError as error:
        name = module.partition(".")[0]
        why = "is not installed" if error.name == name else f"cannot be loaded ({error})"
        raise UsageError(
            f"{kind.__name__} needs {name}, which {why} in this environment; {install}."
        ) from error
    return kind if issubclass(kind, wanted) else _joined(kind, wanted)


@cache
def _joined(kind: type, base: type) -> type:
    # Ours first: its methods are the ones that are called; the base answers all other events.
    body = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
    }
    return type(kind.__name__, (kind, base), body)
