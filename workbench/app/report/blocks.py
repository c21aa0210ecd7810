"""What the chapters of the report are made of, in plain data: the template only sets it.

Needs   text, tables, figures.
Yields  Words, Facts, Numbers, Picture, Missing; Section, which holds them; `picture`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

from workbench import figures
from workbench.errors import RunNotFound
from workbench.figures.caption import Caption, Table


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Facts:
    """Names and values, a line each."""

    rows: list[tuple[str, str]]


@dataclass(frozen=True)
class Numbers:
    """A table with its heading."""

    title: str
    table: Table
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure with the words around it."""

    id: str
    figure: go.Figure
    open: bool = False
    """Whether its table is unfolded."""

    @property
    def caption(self) -> Caption:
        return figures.caption_of(self.figure)


@dataclass(frozen=True)
class Missing:
    """What a section would have shown, and why it cannot."""

    text: str


@dataclass
class Section:
    """A chapter of the page."""

    id: str
    title: str
    blocks: list[Any] = field(default_factory=list)


def picture(id: str, make: Callable[[], go.Figure], open: bool = False) -> Picture | Missing:
    """The figure, or what the record lacks for it."""
    try:
        return Picture(id, make(), open)
    except RunNotFound as error:
        return Missing(str(error))
