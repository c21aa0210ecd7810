"""What a file of probes/ says in its head, in parts.

Needs   a module's docstring.
Yields  Header: title, needs, yields, misleads, sources, and what else it says.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass

from building.prose import paragraphs


@dataclass(frozen=True)
class Header:
    """The head of one file."""

    title: str
    needs: str
    yields: str
    misleads: str
    """When it misleads; empty where the head does not say."""
    sources: str
    rest: str
    """All other paragraphs."""


def header_of(module: str) -> Header:
    """The head of a module, by its name."""
    told = {"title": "", "needs": "", "yields": "", "misleads": "", "sources": ""}
    rest = []
    for lines in paragraphs(importlib.import_module(module).__doc__ or ""):
        text = "\n".join(lines)
        if not told["title"]:
            told["title"] = " ".join(lines)
        elif lines[0].startswith("Needs"):
            told["needs"], _, told["yields"] = text.removeprefix("Needs").partition("\nYields")
        elif re.match(r"Sources?:", text):
            told["sources"] = re.sub(r"^Sources?:\s*", "", text)
        elif "misleads" in text.lower() and not told["misleads"]:
            told["misleads"] = text
        else:
            rest.append(text)
    for part in ("needs", "yields"):
        told[part] = " ".join(told[part].split())
    return Header(**told, rest="\n\n".join(rest))
