"""Caption: what a figure says, in words and as a table, from the numbers that it draws.

Needs   the sentence, the table and the code of a figure; attrs of the arrays it was drawn from.
Yields  Caption, Table; `caption_of`, which reads them back from a figure, also from one that went
        through JSON.

The caption lives in `fig.layout.meta` as plain data, unescaped: each way out (plotly text, web
page, CSV) disarms names in its own manner.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import plotly.graph_objects as go

from workbench.errors import UsageError

_PROVENANCE = ("run", "branch", "snapshot", "window", "version")


@dataclass(frozen=True)
class Table:
    """The numbers of a figure for those who cannot see it, and for a spreadsheet."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    """Cells: text, whole numbers, or floats; None where there is no value."""

    def to_csv(self) -> str:
        """Comma-separated, with a header; a cell that a spreadsheet would run gets a quote first.

        Example:
            >>> Table(("task", "n"), (("=1+1", 3),)).to_csv()
            "task,n\\r\\n'=1+1,3\\r\\n"
        """
        out = io.StringIO()
        writer = csv.writer(out)
        for row in (self.columns, *self.rows):
            writer.writerow([_harmless(cell) for cell in row])
        return out.getvalue()


def _harmless(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in "=+-@\t\r" else cell


@dataclass(frozen=True, kw_only=True)
class Caption:
    """The words of one figure."""

    name: str
    """Name of the figure in `workbench plot`, for example "router-load"."""

    title: str
    """What is drawn, in a few words."""

    sentence: str
    """What the numbers say."""

    notes: tuple[str, ...] = ()
    """How to read it: averaging, bands, what is left out."""

    table: Table = Table((), ())
    code: str = ""
    """Python that makes the figure."""

    provenance: Mapping[str, str] = field(default_factory=dict)
    """run, branch, snapshot, window, version: those that are known."""

    @property
    def origin(self) -> str:
        """Provenance on one line, for the figure's foot."""
        return " · ".join(f"{k} {v}" for k, v in self.provenance.items())


def provenance_of(*sources: Any) -> dict[str, str]:
    """run, branch, snapshot, window and version, as the attrs of the drawn arrays tell them.

    Example:
        >>> import xarray as xr
        >>> provenance_of(xr.Dataset(attrs={"run": "demo", "k": 4}))
        {'run': 'demo'}
    """
    found: dict[str, list[str]] = {}
    for source in sources:
        for key in _PROVENANCE:
            if value := getattr(source, "attrs", {}).get(key):
                found.setdefault(key, [])
                if str(value) not in found[key]:
                    found[key].append(str(value))
    return {key: ", ".join(found[key]) for key in _PROVENANCE if key in found}


def attach(fig: go.Figure, caption: Caption) -> None:
    """Put the caption into the figure."""
    fig.layout.meta = {"caption": asdict(caption)}


def caption_of(fig: go.Figure) -> Caption:
    """The caption inside a figure of this package.

    Raises:
        UsageError: the figure carries none.
    """
    meta = fig.layout.meta
    if not (isinstance(meta, Mapping) and "caption" in meta):
        raise UsageError("this figure carries no caption; make it with workbench.figures.")
    told = dict(meta["caption"])
    table = told.pop("table")
    rows: Sequence[Sequence[Any]] = table["rows"]
    table = Table(tuple(table["columns"]), tuple(tuple(row) for row in rows))
    return Caption(**{**told, "notes": tuple(told["notes"]), "table": table})
