"""A run, or a window of it, as a card in a notebook: clocks, branches with forks, groups, sites.

Needs   an open run; reads its clock and labels, as its text does.
Yields  `run_card`, `window_card`.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import xarray as xr

from workbench.branch_picture import branch_picture
from workbench.html_card import card, rows, safe, section, table
from workbench.run_text import branches_line, checkpoints_line, clocks_line, phases_line, place_of

if TYPE_CHECKING:
    from workbench.run import Run
    from workbench.window import Window

MOST_VARIABLES = 40
_LINE = 400
"""Characters of one line that was put together from names."""


def run_card(run: Run) -> str:
    """What `run` is and holds.

    Args:
        run: an open run, recorded or not.

    Returns:
        HTML, every name in it escaped.
    """
    facts = {
        "clocks": safe(clocks_line(run), _LINE),
        "phases": safe(phases_line(run), _LINE),
        "branches": safe(branches_line(run), _LINE),
        "checkpoints": safe(checkpoints_line(run), _LINE),
        "record": "" if run.tree.children else "nothing yet",
    }
    groups = [group_section(name, getattr(run, name)) for name in run.tree.children]
    title = f"<b>Run</b> {safe(run.name)}"
    note = f"branch {safe(run.branch)} · {safe(place_of(run), _LINE)}"
    return card(title, note, rows(facts), branch_picture(run), *groups)


def window_card(window: Window) -> str:
    """Which steps `window` holds, where they lie in the run, and what was recorded of them.

    Args:
        window: of an open run.

    Returns:
        HTML, every name in it escaped.
    """
    run, clock = window.run, window.run.clock
    saved = window.checkpoints
    facts = {
        "steps": f"{window.start + 1:,} to {window.stop:,}, asked on the {window.clock} clock",
        "share": _share(window) if clock.tokens is not None else "",
        "checkpoints": f"{len(saved)}, steps {saved[0].step:,} to {saved[-1].step:,}"
        if saved
        else "none",
    }
    names = [name for name in run.tree.children if hasattr(window, name)]
    groups = [group_section(name, getattr(window, name)) for name in names]
    title = f"<b>Window</b> of run {safe(run.name)}"
    picture = branch_picture(run, (window.start, window.stop))
    return card(title, f"branch {safe(run.branch)}", rows(facts), picture, *groups)


def _share(window: Window) -> str:
    """Its part of the branch's training tokens."""
    clock = window.run.clock
    assert clock.tokens is not None
    seen = {
        step: int(clock.tokens[clock.step <= step].max(initial=0))
        for step in (window.start, window.stop)
    }
    total = int(clock.tokens[-1]) if len(clock) else 0
    count = seen[window.stop] - seen[window.start]
    return f"{count:,} tokens, {count / total:.1%} of the branch" if total else ""


def group_section(name: str, group: xr.Dataset) -> str:
    """A recorded group: its dims, and a click away its variables with dims, unit and meaning.

    Example:
        >>> group_section("train", xr.Dataset({"loss": ("step", [2.0])})).count("loss")
        1
    """
    sizes = " × ".join(f"{size:,} {safe(dim)}" for dim, size in group.sizes.items())
    names = sorted(map(str, group.data_vars))
    lines = [
        [
            f"<code>{safe(n)}</code>",
            safe(", ".join(map(str, group[n].dims)), _LINE),
            escape(str(group[n].dtype)),
            safe(group[n].attrs.get("units", "")),
            safe(group[n].attrs.get("long_name", ""), _LINE),
        ]
        for n in names[:MOST_VARIABLES]
    ]
    more = len(names) - MOST_VARIABLES
    rest = f'<div class="wb-soft">and {more} more</div>' if more > 0 else ""
    head = f'<b>{safe(name)}</b> {sizes} <span class="wb-soft">· {len(names)} variables</span>'
    return section(head, table(["name", "dims", "dtype", "unit", "meaning"], lines) + rest)
