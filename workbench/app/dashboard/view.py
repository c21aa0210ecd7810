"""The view: everything that decides what the dashboard shows, as one line of an address.

Needs   the query of a URL, which anybody may have written.
Yields  View, frozen; `from_query` and `query`, each the other's inverse.

What is left out of the query has its default, so that a short link stays short. What a query says
that is no view (a page that is not there, a layer "x") is read as the default and never an error: a
link may be older than the run, or be of another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_args
from urllib.parse import parse_qsl, urlencode

from workbench.errors import UsageError
from workbench.figures.clock import ClockName

PAGES = (
    "overview", "layers", "tokens", "compare", "emergence", "probes", "checkpoints", "health",
)  # fmt: skip
"""In the order of the page's navigation; the first is what no page named means."""

_CLOCKS = get_args(ClockName)
_WHOLE = re.compile(r"[0-9]{1,18}")
_LONGEST = 4096


@dataclass(frozen=True, kw_only=True)
class View:
    """One view of a run.

    Example:
        >>> View(page="layers", layer=3, start=500).query
        '?page=layers&layer=3&start=500'
        >>> View.from_query("?page=layers&layer=3&start=500") == View(
        ...     page="layers", layer=3, start=500)
        True
    """

    page: str = PAGES[0]
    """One of PAGES."""
    arm: str = ""
    """Branch that is shown; "" for the run's own choice."""
    layer: int = 0
    """Position of the layer in the run's list of layers, from 0."""
    expert: int = 0
    """Expert of a layer, from 0."""
    start: int = 0
    """The step before the first that is shown."""
    stop: int | None = None
    """Last step that is shown; None follows the run's end."""
    clock: ClockName = "step"
    """Of every x axis: step, tokens or utc."""
    probe: str = ""
    """The probe whose kept result is shown; "" for the first that there is."""

    def __post_init__(self) -> None:
        low = [n for n in ("layer", "expert", "start") if getattr(self, n) < 0]
        if self.page not in PAGES or self.clock not in _CLOCKS or low:
            raise UsageError(
                f"{self}: expected a page of {', '.join(PAGES)}, a clock of {', '.join(_CLOCKS)}, "
                f"and no number below 0."
            )
        if self.stop is not None and self.stop <= self.start:
            raise UsageError(f"steps {self.start} to {self.stop}: the last comes after the start.")

    @property
    def query(self) -> str:
        """The view as the query of a URL, "?" included; "" where all is default."""
        said = [(f.name, getattr(self, f.name)) for f in fields(self)]
        said = [(n, v) for n, v in said if v is not None and v != getattr(_DEFAULT, n)]
        return f"?{urlencode(said)}" if said else ""

    @classmethod
    def from_query(cls, query: str | None) -> View:
        """The view that a URL's query says; what it says amiss is left at its default."""
        try:
            pairs = parse_qsl((query or "")[:_LONGEST].removeprefix("?"), max_num_fields=64)
        except ValueError:
            pairs = []
        said = dict(pairs)
        found: dict[str, Any] = {
            n: int(said[n])
            for n in ("layer", "expert", "start", "stop")
            if _WHOLE.fullmatch(said.get(n, ""))
        }
        if found.get("stop", 1 << 62) <= found.get("start", 0):
            found.pop("stop", None)
        if said.get("page") in PAGES:
            found["page"] = said["page"]
        if said.get("clock") in _CLOCKS:
            found["clock"] = said["clock"]
        return cls(arm=said.get("arm", ""), probe=said.get("probe", ""), **found)

    def within(self, *, arms: Sequence[str], layers: int, experts: int, last_step: int) -> View:
        """The nearest view that a run of these arms and sizes has.

        Example:
            >>> View(arm="gone", layer=9, stop=70).within(
            ...     arms=["main"], layers=2, experts=4, last_step=50).query
            '?arm=main&layer=1'
        """
        stop = None if self.stop is None or self.stop >= last_step else self.stop
        start = self.start if self.start < (last_step if stop is None else stop) else 0
        return replace(
            self,
            arm=self.arm if self.arm in arms else next(iter(arms), ""),
            layer=min(self.layer, max(layers - 1, 0)),
            expert=min(self.expert, max(experts - 1, 0)),
            start=start,
            stop=stop,
        )


_DEFAULT = View()
