"""What recording costs, brought together from docs/measured.

Needs   capture-*.json (steps bare and with capture), store.json (writing and reading).
Yields  tables in Markdown, for docs/overhead.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from building.tables import markdown_table


def tables(docs: Path) -> dict[str, str]:
    """ "step": what a step costs; "write" and "read": what the store does."""
    store = _read(docs, "store.json")
    return {
        "step": _steps(docs),
        "write": _writing(store["router"]),
    }


def _read(docs: Path, name: str) -> dict[str, Any]:
    held: dict[str, Any] = json.loads((docs / "measured" / name).read_text(encoding="utf-8"))
    return held


def _steps(docs: Path) -> str:
    """Every contender of every series beside the bare step of its own."""
    rows = []
    for name in sorted(p.name for p in (docs / "measured").glob("capture-*.json")):
        held = _read(docs, name)
        where = f"{held.get('machine', 'machine not said')}, {held['date']}"
        for series, contenders in held["results"].items():
            bare, *others = contenders  # the bare step of a series comes first
            for contender in others:
                found = contenders[contender]
                low, high = found["over_bare_95"]
                thread = found.get("training_thread_ms")
                rows.append([
                    series, contender, f"{contenders[bare]['milliseconds']['median']:.1f}",
                    f"{found['milliseconds']['median']:.1f}",
                    f"{found['over_bare_percent']['median']:+.1f} ({low:+.1f} to {high:+.1f})",
                    f"{thread['median']:.2f}" if thread else "", where,
                ])  # fmt: skip
    columns = ["series", "contender", "bare step, ms", "step, ms", "over bare, % (95 %)",
               "of it measured in capture, ms", "machine"]  # fmt: skip
    return markdown_table(columns, rows)


def _writing(found: dict[str, Any]) -> str:
    rows = [
        [name, f"{held['milliseconds_a_row']['median']:.2f}", f"{held['times_raw']['median']:.1f}",
         f"{held['bytes_a_row'] / 1000:.1f}"]
        for name, held in found.items() if isinstance(held, dict) and "bytes_a_row" in held
    ]  # fmt: skip
    return markdown_table(["writing with", "ms a step", "times a raw file", "kB a step"], rows)
