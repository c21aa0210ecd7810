"""What is wrong with a store, where, and what to do about it.

Needs   nothing.
Yields  Fault, one thing that is wrong; Report, all of them and what was looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

FROM_A_COPY = "restore the store from a copy, or go back: store.rollback to a checkpoint before it"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is wrong.

    Example:
        >>> print(Fault(kind="values", branch="main", group="router", variable="near_tie",
        ...     place="step 7", found="1.5", expected="a share, 0 to 1"))
        values: main, router/near_tie, step 7: found 1.5, expected a share, 0 to 1
    """

    kind: str
    """chunk, missing, schema, counts, values, order, overview, branch, tag, journal, record,
    checkpoint or result."""
    found: str
    expected: str
    remedy: str = ""
    branch: str = ""
    group: str = ""
    variable: str = ""
    place: str = ""
    """Rows, steps, chunk: as near as it is known."""
    times: int = 1
    """How many rows show it; `place` is of the first."""
    files: tuple[str, ...] = ()
    """Files that it can lie in, relative to the run or the store, where they are known."""

    @property
    def where(self) -> str:
        """Branch, variable, place and files, in words."""
        name = "/".join(part for part in (self.group, self.variable) if part)
        parts = [self.branch, name, self.place]
        if self.times > 1:
            parts.append(f"and {self.times - 1} more like it")
        if self.files:
            parts.append("in " + ", ".join(self.files))
        return ", ".join(part for part in parts if part)

    def __str__(self) -> str:
        remedy = f"; {self.remedy}" if self.remedy else ""
        where = f" {self.where}:" if self.where else ""
        return f"{self.kind}:{where} found {self.found}, expected {self.expected}{remedy}"

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"files": list(self.files)}


@dataclass
class Report:
    """What was checked, and what was found."""

    faults: list[Fault] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)
    """How many of each: branches, tags, chunks, rows, ..."""

    def add(self, faults: Iterable[Fault]) -> None:
        """Takes faults in."""
        self.faults.extend(faults)

    def count(self, what: str, number: int = 1) -> None:
        """So many more of these were looked at."""
        self.checked[what] = self.checked.get(what, 0) + number

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "sound": self.sound,
            "checked": dict(self.checked),
            "faults": [fault.as_json() for fault in self.faults],
        }

    def __str__(self) -> str:
        looked = ", ".join(f"{n:,} {what}" for what, n in self.checked.items())
        lines = [str(fault) for fault in self.faults]
        end = "no fault" if self.sound else f"{len(lines)} fault{'s' * (len(lines) > 1)}"
        return "\n".join([*lines, f"checked {looked or 'nothing'}: {end}"])
