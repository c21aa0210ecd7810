"""Checkpoints, or one of them, as a card in a notebook.

Needs   their records; no weights are read and torch is not imported.
Yields  `checkpoints_card`, `checkpoint_card`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from checkpoints_index.record import CheckpointRecord
from checkpoints_index.url import without_password
from workbench.html_card import card, rows, safe, section, table

if TYPE_CHECKING:
    from workbench.checkpoints import Checkpoint, Checkpoints

ENDS = 20
"""Of a long list so many are shown from the beginning and as many from the end."""


def checkpoints_card(checkpoints: Checkpoints) -> str:
    """How many there are, what they span, and a click away each of them.

    Args:
        checkpoints: of one branch, or a slice of them.

    Returns:
        HTML, every name in it escaped.
    """
    run = checkpoints.run
    title = f"<b>{len(checkpoints):,} checkpoints</b> of run {safe(run.name)}"
    if not len(checkpoints):
        return card(title, f"branch {safe(run.branch)}")
    records = [c.record for c in checkpoints]
    first, last = records[0], records[-1]
    own: dict[str, int] = {}
    for record in records:
        own[record.branch] = own.get(record.branch, 0) + 1
    facts = {
        "steps": f"{first.step:,} to {last.step:,}",
        "tokens": f"{first.tokens_seen:,} to {last.tokens_seen:,}",
        "saved": f"{_utc(first.utc)} to {_utc(last.utc)}",
        "on": ", ".join(f"{safe(branch)} ({n})" for branch, n in own.items()),
        "size": f"{_bytes(sum(r.size_bytes for r in records))} in all",
    }
    shown = records if len(records) <= 2 * ENDS else [*records[:ENDS], None, *records[-ENDS:]]
    heads = ["step", "tokens", "saved", "branch", "phase", "size", "state"]
    lines = [_line(record) if record else ["…"] * len(heads) for record in shown]
    each = section("each of them", table(heads, lines, counts=["step", "tokens", "size"]))
    return card(title, f"branch {safe(run.branch)}", rows(facts), each)


def checkpoint_card(checkpoint: Checkpoint) -> str:
    """What the index knows about one checkpoint.

    Args:
        checkpoint: whole or not, there or pruned.

    Returns:
        HTML, every name in it escaped.
    """
    record = checkpoint.record
    came = f"{safe(record.parent[0])}, step {record.parent[1]:,}" if record.parent else "nothing"
    facts = {
        "tokens": f"{record.tokens_seen:,}",
        "saved": _utc(record.utc),
        "phase": safe(record.phase or ""),
        "continues": came,
        "weights": safe(" · ".join(filter(None, [record.format, record.dtype, record.kind]))),
        "size": _bytes(record.size_bytes),
        "where": f"<code>{safe(without_password(record.uri), 300)}</code>",
        "state": _state(record),
        "fingerprint": f"<code>{safe(record.fingerprint)}</code>" if record.fingerprint else "",
    }
    title = f"<b>Checkpoint</b> of run {safe(record.run)}"
    note = f"branch {safe(record.branch)}, step {record.step:,}"
    return card(title, note, rows(facts))


def _line(record: CheckpointRecord) -> list[str]:
    return [
        f"{record.step:,}", f"{record.tokens_seen:,}", _utc(record.utc), safe(record.branch),
        safe(record.phase or ""), _bytes(record.size_bytes), _state(record),
    ]  # fmt: skip


def _state(record: CheckpointRecord) -> str:
    if record.pruned:
        return f"weights deleted: {safe(record.pruned, 120)}"
    return "whole" if record.complete else "unfinished or written over"


def _utc(seconds: float) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, OSError, ValueError):  # another trainer's clock, or none
        return "–"


def _bytes(count: float) -> str:
    """Bytes, three digits.

    Example:
        >>> _bytes(900), _bytes(1010), _bytes(10801148)
        ('900 B', '1,010 B', '10.3 MiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if count >= 100 else f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:,.0f} TiB" if count >= 100 else f"{count:.3g} TiB"
