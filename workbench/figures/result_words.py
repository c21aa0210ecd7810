"""Any variable of any dataset in words and as a table.

Needs   a View (result_view.py).
Yields  `result_sentence`, `result_notes`, `result_table`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.figures.caption import Table
from workbench.figures.result_view import View
from workbench.figures.wording import listed, many, plain

LONGEST = 2000
"""Rows of a table at most."""


def result_sentence(view: View) -> str:
    """Where it went, or where it is; and the label at which it is greatest."""
    there = np.isfinite(view.values_LS)
    if not there.any():
        return f"{_title(view)} has no value that could be drawn."
    if view.words:
        return _words_sentence(view)
    if view.clock is None:
        return _level_sentence(view)
    samples = np.flatnonzero(there.any(0))
    first, last = samples[0], samples[-1]
    steps = view.clock.steps
    what = _title(view)
    if len(view.keys) == 1:
        when = f"From step {steps[first]:,.0f} to {steps[last]:,.0f} "
        if first == last:
            said = f"At step {steps[last]:,.0f} {what} is {_at(view, 0, last)}."
            return said + _over_chance(view, last)
        went = f"goes from {_at(view, 0, first)} to {_at(view, 0, last)}"
        return f"{when}{what} {went}.{_over_chance(view, last)}"
    over = f"the median of {what} over {_labels(view)}"
    middle = [view.say(float(np.nanmedian(view.values_LS[:, s]))) for s in (first, last)]
    tail = f"{_extremes(view, last)}{_over_chance(view, last)}"
    if first == last:
        return f"At step {steps[last]:,.0f} {over} is {middle[1]}{_unit(view)}.{tail}"
    when = f"From step {steps[first]:,.0f} to {steps[last]:,.0f} "
    return f"{when}{over} goes from {middle[0]} to {middle[1]}{_unit(view)}.{tail}"


def result_notes(view: View, drawn: str, others: Sequence[str]) -> tuple[str, ...]:
    """How to read it, and what else the dataset holds."""
    notes = [drawn, view.short.note if view.short else ""]
    if view.interval:
        notes.append(f"Interval: {view.interval}.")
    elif view.band_LS is not None:
        notes.append("Intervals are the bounds that the data carries.")
    levels = np.unique(view.chance_L[np.isfinite(view.chance_L)])
    if len(levels) == 1:
        notes.append(f"Chance level (dotted): {view.say(float(levels[0]))}{_unit(view)}.")
    elif len(levels):
        notes.append("Dotted: chance levels.")
    if view.chance_note:
        notes.append(f"Chance level: {view.chance_note}.")
    if others:
        notes.append(f"The result also holds {listed(sorted(others), most=5, longest=32)}.")
    # A map has no lines to be dotted.
    said = [n.replace(" (dotted)", "") for n in notes] if "colour:" in drawn else notes
    return tuple(note.replace("..", ".") for note in said if note)


def result_table(view: View) -> Table:
    """A row a label: the last value with bounds, and the first; for one line a row a sample."""
    bounds = ("low", "high") if view.band_LS is not None else ()
    chance = ("chance",) if np.isfinite(view.chance_L).any() else ()
    value = f"{plain(view.name)} ({view.unit})" if view.unit else plain(view.name)
    if view.clock is not None and len(view.keys) == 1:
        course = tuple(
            (round(float(step)), *_cells(view, 0, s), *_level(view, 0, chance))
            for s, step in enumerate(view.clock.steps[:LONGEST])
        )
        return Table(("step", value, *bounds, *chance), course)
    names = tuple(plain(dim) for dim in view.dims) or ("quantity",)
    first = ("first",) if view.clock is not None else ()
    rows: list[tuple[Any, ...]] = []
    for i, key in enumerate(view.keys[:LONGEST]):
        there = np.flatnonzero(np.isfinite(view.values_LS[i]))
        s = there[-1] if len(there) else -1
        start = (_cell(view, view.values_LS[i, there[0]] if len(there) else np.nan),)
        cells = _cells(view, i, s) if view.values_LS.shape[1] else (None,) * (1 + len(bounds))
        rows.append(
            (*(key or (view.name,)), *start[: len(first)], *cells, *_level(view, i, chance))
        )
    return Table((*names, *first, value, *bounds, *chance), tuple(rows))


def _cells(view: View, i: int, s: int) -> tuple[Any, ...]:
    ends = () if view.band_LS is None else tuple(_cell(view, b[i, s]) for b in view.band_LS)
    return (_cell(view, view.values_LS[i, s]), *ends)


def _cell(view: View, value: float) -> Any:
    if not np.isfinite(value):
        return None
    return view.say(float(value)) if view.words else float(value)


def _level(view: View, i: int, chance: tuple[str, ...]) -> tuple[Any, ...]:
    return (_cell(view, view.chance_L[i]),) if chance else ()


def _title(view: View) -> str:
    return plain(view.name.replace("_", " "), 48)


def _unit(view: View) -> str:
    return f" {view.unit}" if view.unit else ""


def _labels(view: View) -> str:
    count = len(view.keys)
    return many(count, plain(view.dims[0], 24)) if len(view.dims) == 1 else f"{count:,} labels"


def _at(view: View, i: int, s: int) -> str:
    text = view.say(float(view.values_LS[i, s]))
    if view.band_LS is not None:
        text += f" [{', '.join(view.say(float(b[i, s])) for b in view.band_LS)}]"
    return text + _unit(view)


def _extremes(view: View, s: int) -> str:
    """The greatest and the smallest of many."""
    values = np.where(np.isfinite(view.values_LS[:, s]), view.values_LS[:, s], np.nan)
    if len(values) < 2 or np.isfinite(values).sum() < 2:
        return ""
    top, low = int(np.nanargmax(values)), int(np.nanargmin(values))
    if values[top] == values[low]:
        return f" It is {view.say(float(values[top]))} everywhere."
    labels = view.labels
    return (
        f" It is greatest at {labels[top]}, {_at(view, top, s)}, "
        f"and smallest at {labels[low]}, {_at(view, low, s)}."
    )


def _over_chance(view: View, s: int) -> str:
    """How many intervals leave chance out."""
    level = view.chance_L
    if view.band_LS is None or not np.isfinite(level).any():
        return ""
    low, high = (bound[:, s] for bound in view.band_LS)
    over, under = int((low > level).sum()), int((high < level).sum())
    known = int((np.isfinite(level) & np.isfinite(view.values_LS[:, s])).sum())
    if known == 1:
        side = "above" if over else "below" if under else "across"
        return f" The interval lies {side} chance level."
    return f" Of {known} intervals {over} lie above chance level and {under} below."


def _level_sentence(view: View) -> str:
    what = _title(view)
    if len(view.keys) == 1:
        text = f"{what} is {_at(view, 0, 0)}.{_over_chance(view, 0)}"
    else:
        middle = view.say(float(np.nanmedian(view.values_LS[:, 0])))
        text = (
            f"the median of {what} over {_labels(view)} is {middle}{_unit(view)}."
            f"{_extremes(view, 0)}{_over_chance(view, 0)}"
        )
    return text[:1].upper() + text[1:]


def _words_sentence(view: View) -> str:
    """How often each word is said at the end."""
    there = np.isfinite(view.values_LS)
    last = [int(np.flatnonzero(row)[-1]) for row in there if row.any()]
    rows = view.values_LS[there.any(1)]
    said = Counter(view.say(float(row[s])) for row, s in zip(rows, last, strict=True))
    when = "" if view.clock is None else f"At step {view.clock.steps[max(last)]:,.0f} "
    if len(rows) == 1 and len(view.keys) == 1:
        text = f"{when}{_title(view)} is {next(iter(said))}."
    else:
        counts = listed([f"{word} at {n}" for word, n in said.most_common()], most=6)
        text = f"{when}{_title(view)} is {counts} of {_labels(view)}."
    return text[:1].upper() + text[1:]
