"""The registry: every probe that can be asked for by name, ours and those of others.

Needs   functions marked with `@probe`: in this package, in a notebook, in an installed package that
        names its module under the entry point group `workbench.probes`.
Yields  Probe; `find(name)`; `names()`.

A probe is one function. What it reads decides what it is given:

    "record"      a Run or Window (anything that `probes.source.group_of` takes): the samples
    "checkpoint"  a Subject (probes/subject.py): one checkpoint, loaded once for all probes, after
                  one pass over the fixed tokens. The result has no dim `checkpoint`; the results
                  of all checkpoints are put together along it.
    "pair"        a Subject and the Subject of a reference checkpoint: likewise.

It returns an xr.Dataset whose variables carry `units`, `long_name`, `chance_level` where there is
one and `interval` (what the interval means, or why there is none); bounds are called <name>_low
and <name>_high. Nothing else is needed for the command line, storage and the report.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Literal, TypeVar

import xarray as xr

from workbench.errors import RunNotFound, UsageError

Reads = Literal["record", "checkpoint", "pair"]
GROUP = "workbench.probes"
"""Entry point group under which other packages name theirs."""
Function = TypeVar("Function", bound=Callable[..., xr.Dataset])


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One probe: a function and what it needs."""

    name: str
    """1 to 64 of a-z, 0-9 and '-'."""
    question: str
    """What it answers, in a line."""
    reads: Reads
    function: Callable[..., xr.Dataset]
    needs: tuple[str, ...] = ()
    """Of a record probe: groups ("router", "activations", ...). Of the others: sites of the one
    pass (subject.py lists them)."""
    version: int = 1
    """Raised whenever the numbers change: what older code computed is then computed anew."""
    finish: Callable[[xr.Dataset], xr.Dataset] | None = None
    """Applied to the results of all checkpoints together, such as a basis fitted to all of them."""
    params: tuple[str, ...] = field(default=())
    """Names of the keyword arguments that it takes."""


_KNOWN: dict[str, Probe] = {}
_FOUND = {"ours": False, "others": False}
BROKEN: dict[str, str] = {}
"""Entry points whose module could not be imported, and why."""


def probe(
    name: str,
    *,
    question: str,
    reads: Reads,
    needs: Sequence[str] = (),
    version: int = 1,
    finish: Callable[[xr.Dataset], xr.Dataset] | None = None,
) -> Callable[[Function], Function]:
    """Marks a function as a probe and returns it unchanged. Marking again replaces, as a cell of a
    notebook that is run twice does.

    Args:
        name: 1 to 64 of a-z, 0-9 and '-'.
        question: what it answers, in a line.
        reads: "record", "checkpoint" or "pair"; see the head of this file.
        needs: groups of the record, or sites of the one pass.
        version: raised whenever the numbers change.
        finish: applied to the results of all checkpoints together.

    Raises:
        UsageError: a name or `reads` that cannot be.

    Example:
        >>> @probe("router-norm", question="How large are the routers?", reads="checkpoint")
        ... def router_norm(subject):
        ...     norms = [w.norm().item() for w in subject.router_weights]
        ...     return xr.Dataset({"norm": ("layer", norms, {"units": "1"})})
        >>> find("router-norm").reads
        'checkpoint'
    """
    from workbench.store.result_key import check_name

    check_name(name)
    if reads not in ("record", "checkpoint", "pair"):
        raise UsageError(f"reads={reads!r}: expected 'record', 'checkpoint' or 'pair'.")

    def mark(function: Function) -> Function:
        _KNOWN[name] = Probe(
            name=name, question=question, reads=reads, function=function, needs=tuple(needs),
            version=version, finish=finish, params=_keywords(function, reads),
        )  # fmt: skip
        return function

    return mark


def names() -> list[str]:
    """Every probe that is known, ours and others', by name."""
    _discover()
    return sorted(_KNOWN)


def find(name: str) -> Probe:
    """The probe of that name.

    Raises:
        RunNotFound: no such probe; the message names the nearest.
    """
    if name not in _KNOWN:
        _discover()
    if name not in _KNOWN:
        near = difflib.get_close_matches(name, _KNOWN, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        broken = "".join(f" {who} could not be imported: {why}." for who, why in BROKEN.items())
        raise RunNotFound(f"no probe {name!r}; the probes are {', '.join(names())}{hint}{broken}")
    return _KNOWN[name]


def _keywords(function: Callable[..., Any], reads: Reads) -> tuple[str, ...]:
    import inspect

    given = 2 if reads == "pair" else 1
    parameters = list(inspect.signature(function).parameters.values())
    return tuple(p.name for p in parameters[given:] if p.kind != p.VAR_KEYWORD)


def _discover() -> None:
    """Imports every file that lies directly in this package, then what other packages name."""
    import probes

    if not _FOUND["ours"]:
        _FOUND["ours"] = True
        for module in pkgutil.iter_modules(probes.__path__):
            importlib.import_module(f"probes.{module.name}")
    if not _FOUND["others"]:
        _FOUND["others"] = True
        for entry in entry_points(group=GROUP):
            try:
                entry.load()
            except Exception as error:  # somebody else's package must not take ours down
                BROKEN[entry.name] = f"{type(error).__name__}: {error}"
