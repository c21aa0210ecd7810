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
    "checkpoints" all checkpoints at once, the Exam and the device: for what mixes them. It loads
                  them itself, and its result has the dims that it likes.

It returns an xr.Dataset whose variables carry `units`, `long_name`, `chance_level` where there is
one and `interval` (what the interval means, or why there is none); bounds are called <name>_low
and <name>_high. Nothing else is needed for the command line, storage and the report.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Literal, TypeVar, get_args

import xarray as xr

from probes.inputs.source_digest import source_digest
from workbench.errors import RunNotFound, UsageError

Reads = Literal["record", "checkpoint", "pair", "checkpoints"]
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
    source: str = ""
    """Digest of its text as it was marked, where it has no module that others could import: a cell
    of a notebook is edited without its version being raised."""
    lasting: bool = True
    """Whether that digest tells it from every other: not where it closes over a model."""

    @property
    def module(self) -> str:
        """Where its function is defined."""
        return str(getattr(self.function, "__module__", None) or "__main__")

    @property
    def key_version(self) -> str:
        """What its results are kept under: the version; of others' probes also the package, of a
        notebook's function also its text, its defaults and what it closes over (not the text of
        functions which it calls).
        """
        package = self.module.partition(".")[0]
        mark = self.source or ("" if package == "probes" else package)
        return f"{self.version}+{mark}" if mark else str(self.version)


_KNOWN: dict[str, Probe] = {}
_FOUND = {"ours": False, "others": False}
BROKEN: dict[str, str] = {}
"""Entry points whose module could not be imported, or whose probe's name was taken, and why."""


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
    notebook that is run twice does; what a notebook or a script calls by the name of an installed
    probe goes before it. Two installed modules cannot share a name: the first stays.

    Args:
        name: 1 to 64 of a-z, 0-9 and '-'.
        question: what it answers, in a line.
        reads: "record", "checkpoint" or "pair"; see the head of this file.
        needs: groups of the record, or sites of the one pass.
        version: raised whenever the numbers change.
        finish: applied to the results of all checkpoints together.

    Raises:
        UsageError: a name or `reads` that cannot be, or a name that another module has taken.

    Example:
        >>> @probe("router-norm", question="How large are the routers?", reads="checkpoint")
        ... def router_norm(subject):
        ...     "Frobenius norm of each layer's router."
        ...     norms = [w.norm().item() for w in subject.router_weights]
        ...     return xr.Dataset({"norm": ("layer", norms, {"units": "1"})})
        >>> find("router-norm").reads
        'checkpoint'
    """
    from workbench.store.result_key import check_name

    check_name(name)
    if reads not in get_args(Reads):
        raise UsageError(f"reads={reads!r}: expected one of {', '.join(get_args(Reads))}.")

    def mark(function: Function) -> Function:
        digest = source_digest(function, finish) if _is_homeless(function) else ""
        _enter(
            Probe(
                name=name, question=question, reads=reads, function=function, needs=tuple(needs),
                version=version, finish=finish, params=_keywords(function, reads),
                source="no-text" if digest is None else digest, lasting=digest is not None,
            )
        )  # fmt: skip
        return function

    return mark


def _enter(new: Probe) -> None:
    known = _KNOWN.get(new.name)
    if known is not None and not new.source and known.module != new.module:
        if known.source:
            return  # what the user wrote stays, whichever was there first
        raise UsageError(
            f"two modules have a probe {new.name!r}: {known.module} and {new.module}. The first "
            f"stays; rename the other, for example {new.module.partition('.')[0]}-{new.name}."
        )
    _KNOWN[new.name] = new


def _is_homeless(function: Callable[..., Any]) -> bool:
    """Whether it is of a notebook, a script or a prompt: no module that others could import."""
    name = getattr(function, "__module__", None) or "__main__"
    home = sys.modules.get(name)
    return name in ("__main__", "builtins") or getattr(home, "__spec__", None) is None


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
    given = {"pair": 2, "checkpoints": 3}.get(reads, 1)
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
                _forget_the_half_imported()


def _forget_the_half_imported() -> None:
    """Probes that a module marked before its import failed."""
    for name, known in list(_KNOWN.items()):
        if not known.source and known.module not in sys.modules:
            del _KNOWN[name]
