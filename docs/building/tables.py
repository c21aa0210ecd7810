"""Tables of text, in reStructuredText and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from building.prose import inline


def rst_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A list-table: cells may be of any length."""
    out = [".. list-table::", "    :header-rows: 1", ""]
    for row in (columns, *rows):
        for i, cell in enumerate(row):
            text = inline(str(cell)).replace("\n", " ").strip()
            out.append(f"    {'*' if i == 0 else ' '} - {text}".rstrip())
    return [*out, ""]


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of one-line cells; a bar within a cell stays a bar."""
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells) + "\n"
