"""Checkpoints as aligned text.

Needs   entries of the catalogue, what a scan or a prune did.
Yields  `table`, `scan_summary`, `verified`, `catalogue_age`, `prune_summary`: lines;
        `pruned`: plain data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from checkpoints_index.audit import Verdict
from checkpoints_index.entry import Entry
from checkpoints_index.pruning import Examined
from checkpoints_index.retention import Plan
from checkpoints_index.scan import Scanned

SHOWN_FAULTS = 20


def size(count: int) -> str:
    """Bytes as people read them.

    Example:
        >>> size(3_300_000)
        '3.3 MB'
    """
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def when(utc: float | None) -> str:
    """An instant in UTC, to the minute; a dash where it is not known."""
    try:
        return "-" if utc is None else datetime.fromtimestamp(utc, UTC).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return "-"


def table(entries: Sequence[Entry], *, runs: bool) -> Iterator[str]:
    """A line a checkpoint.

    Args:
        runs: with the name of the run in front.
    """
    rows = [
        (
            *([e.run] if runs else []),
            e.branch,
            "-" if e.step is None else str(e.step),
            "-" if e.tokens_seen is None else f"{e.tokens_seen:,}",
            e.phase or "-",
            size(e.size_bytes),
            e.format,
            e.trainer or "-",
            (e.fingerprint or "-")[:12],
            "" if e.complete else e.why or "not complete",
        )
        for e in entries
    ]
    head = (*(["run"] if runs else []), "branch", "step", "tokens", "phase", "size", "format",
            "trainer", "fingerprint", "")  # fmt: skip
    wide = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head) - 1)]
    right = {"step", "tokens", "size"}
    for row in [head, *rows]:
        cells = [
            cell.rjust(w) if name in right else cell.ljust(w)
            for cell, w, name in zip(row, wide, head, strict=False)
        ]
        yield "  ".join([*cells, row[-1]]).rstrip()


def scan_summary(done: Scanned, file: str) -> Iterator[str]:
    """What a scan did."""
    yield (
        f"{done.checkpoints} checkpoints, {done.runs} recorded runs below "
        f"{', '.join(done.folders) or 'no folder'}: {done.read} read, {done.gone} gone, "
        f"{done.seconds:.1f} s"
    )
    if done.set_aside:
        yield f"the catalogue was broken and was made anew; the old file is {done.set_aside}"
    yield f"catalogue: {file}"


def faults(found: dict[str, str]) -> Iterator[str]:
    """What could not be read, the first of them in full."""
    for file, message in list(found.items())[:SHOWN_FAULTS]:
        yield message if message.startswith(file) else f"{file}: {message}"
    if len(found) > SHOWN_FAULTS:
        yield f"... and {len(found) - SHOWN_FAULTS} more; --json tells them all"


def verified(verdicts: Sequence[Verdict], *, incomplete: int, fast: bool) -> Iterator[str]:
    """How many checkpoints are whole, how closely that was looked at, and what was not read."""
    whole = [v for v in verdicts if v.kind == "whole"]
    unread = sum(v.kind == "unverified" for v in verdicts)
    yield f"{len(whole)} of {len(verdicts) - unread} checkpoints are whole"
    loose = sum(not v.by_digest for v in whole)
    if loose and not fast:
        yield (
            f"{loose} of them without digests: sizes and headers were compared, and values as far "
            f"as a fingerprint tells them apart, to bfloat16"
        )
    if unread:
        yield f"{unread} more could not be verified: nothing here reads them without unpickling"
    if incomplete:
        yield f"{incomplete} more are pruned or marked incomplete, and were not read"


def catalogue_age(known: Sequence[Entry], scanned: Mapping[str, float], file: str) -> Iterator[str]:
    """From when is what is known of other runs."""
    if not scanned:
        yield f"no catalogue at {file}: what other runs need is not known"
        return
    yield (
        f"what other runs need is known as of {when(min(scanned.values()))} UTC "
        f"({len(known)} checkpoints below {', '.join(sorted(scanned))}); for newer runs scan "
        f"first: workbench checkpoints scan"
    )


def prune_summary(
    plan: Plan, examined: Examined, broken: Mapping[tuple[str, int], str]
) -> Iterator[str]:
    """What would stay and why, what is broken, and what would go."""
    for (branch, step), why in broken.items():
        yield f"broken  {branch}@{step}   counted as lost, not deleted: {why}"
    dense = 0
    for (branch, step), reasons in plan.keep.items():
        if set(reasons) == {"in the window"}:
            dense += 1
        else:
            yield f"keep    {branch}@{step}   {'; '.join(dict.fromkeys(reasons))}"
    if dense:
        yield f"keep    {dense} more, in the window"
    for record, reason in examined.left:
        yield f"keep    {record.branch}@{record.step}   {reason}"
    for one in examined.doomed:
        yield f"delete  {one.record.branch}@{one.record.step}   {size(one.bytes)}   {one.path}"
    for path in examined.rest:
        yield f"delete  {path}   left by a prune that was interrupted"
    stay = len(plan.keep) + len(examined.left)
    yield (f"{stay} stay, {len(examined.doomed)} go, {size(examined.bytes)} freed")


def pruned(
    plan: Plan, examined: Examined, broken: Mapping[tuple[str, int], str], *, applied: bool
) -> dict[str, Any]:
    """What `prune_summary` says, as plain data."""
    return {
        "applied": applied,
        "keep": [
            {"branch": b, "step": s, "reasons": list(why)} for (b, s), why in plan.keep.items()
        ],
        "left": [
            {"branch": r.branch, "step": r.step, "reason": why} for r, why in examined.left
        ],
        "broken": [{"branch": b, "step": s, "reason": why} for (b, s), why in broken.items()],
        "delete": [
            {"branch": d.record.branch, "step": d.record.step, "path": str(d.path),
             "bytes": d.bytes}
            for d in examined.doomed
        ],
        "rest": [str(path) for path in examined.rest],
        "bytes": examined.bytes,
    }  # fmt: skip
