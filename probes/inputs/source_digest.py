"""Source digest: what a function of a notebook does, in a few digits.

Needs   functions without a module that others could import.
Yields  `source_digest`: changes with their text, their defaults and what they close over; None
        where they hold something that no text tells from another: a model, an open file.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

from probes.inputs.lasting_name import lasting_name

PLAIN_AT_MOST = 1_000_000
"""Values of one array that are hashed."""


class _NoText(Exception):
    """Something that cannot be told from another of its kind."""


def source_digest(*functions: Callable[..., Any] | None) -> str | None:
    """Eight hexadecimal digits of the functions' text (of their code where there is no text), their
    defaults and what they close over. Not of the functions which they call by a global name.

    Example:
        >>> def scaled(by):
        ...     return lambda x: by * x
        >>> source_digest(scaled(2)) == source_digest(scaled(3))
        False
        >>> source_digest(scaled(object())) is None
        True
    """
    try:
        said = [_told(function, set()) for function in functions if function is not None]
    except (_NoText, RecursionError):
        return None
    return hashlib.sha256(repr(said).encode("utf-8", "replace")).hexdigest()[:8]


def _told(what: Any, above: set[int]) -> Any:
    """Plain data that differs where `what` does; objects in `above` are being told already."""
    if what is None or isinstance(what, bool | int | float | complex | str | bytes):
        return repr(what)
    if id(what) in above:
        return "itself"
    above = above | {id(what)}
    if isinstance(what, ModuleType):
        return what.__name__
    if isinstance(what, np.ndarray | np.generic) and what.dtype.kind in "biufcSUmM":
        if what.size > PLAIN_AT_MOST:
            raise _NoText
        bits = hashlib.sha256(np.ascontiguousarray(what).tobytes()).hexdigest()
        return str(what.dtype), what.shape, bits
    if isinstance(what, list | tuple):
        return type(what).__name__, [_told(one, above) for one in what]
    if isinstance(what, set | frozenset):
        return "set", sorted(repr(_told(one, above)) for one in what)
    if isinstance(what, dict):
        return "dict", [(_told(k, above), _told(v, above)) for k, v in what.items()]
    if isinstance(what, type | FunctionType) and (name := lasting_name(what)):
        return name
    if isinstance(what, FunctionType):
        return _of_function(what, above)
    raise _NoText


def _of_function(function: FunctionType, above: set[int]) -> Any:
    cells = [_inside(cell) for cell in function.__closure__ or ()]
    wrapped = getattr(function, "__wrapped__", None)
    held = (function.__defaults__, function.__kwdefaults__, cells, wrapped)
    return _text(function), [_told(one, above) for one in held]


def _inside(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return None


def _text(function: FunctionType) -> Any:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return repr(_code(function.__code__))


def _code(code: CodeType) -> tuple[Any, ...]:
    """What a function does, without where it stands."""
    constants = [
        _code(c) if isinstance(c, CodeType) else sorted(map(repr, c))
        if isinstance(c, frozenset) else repr(c)
        for c in code.co_consts
    ]  # fmt: skip
    return code.co_code, code.co_names, code.co_varnames, constants
