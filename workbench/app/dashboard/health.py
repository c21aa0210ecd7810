"""Health: is the training still writing, how fast, and is anything missing of it?

Needs   an open run on one branch, its newest state, and its training curves as a live record.
Yields  Health: a state in one word, why, and the facts in words.

A branch is written by one process that holds its lock until it ends. So a writer that was killed is
known at once, and one that hangs by the time since its last step. Which end was meant is told by
run.json's phases: a writer that ended before the last of their steps has stalled.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import xarray as xr

from workbench.app.dashboard.holder import Holder, holder_of
from workbench.errors import UsageError
from workbench.figures.wording import count, many, number, plain
from workbench.run import Run
from workbench.store.names import check_branch
from workbench.store.snapshot import Snapshot

State = Literal["waiting", "writing", "stalled", "finished"]

LEAST_PATIENCE_S = 10.0
"""Seconds without a step that are never called a stall while the writer lives."""
PATIENCE_STEPS = 10
"""Steps' worth of time after which they are."""
SILENT_S = 60.0
"""Seconds after which a writer that cannot be looked for is called silent."""


@dataclass(frozen=True)
class Health:
    """How the training of one branch is."""

    state: State
    why: str
    """One sentence."""
    age_s: float | None
    """Seconds since the last step ended; None before the first, or without its time."""
    facts: tuple[tuple[str, str], ...]
    """Name and value of what else is known."""


def health(run: Run, now: Snapshot | None, curves: xr.Dataset | None) -> Health:
    """The health of the run's branch.

    Args:
        run: opened on the branch.
        now: its newest state, rows that wait included; None where nothing was recorded.
        curves: train as `Run.overview` gives it, to its last step; None where there is none.
    """
    clock = time.time()
    count_of_steps, last = now.end("train", "step") if now is not None else (0, None)
    if now is not None and last is None:
        count_of_steps, last = now.end("router", "step")
    utc = _last(curves, "utc")
    age = None if utc is None else max(0.0, clock - utc)
    pace = _seconds_a_step(curves)
    waiting = _waiting(now)
    holder = _holder(run)
    planned = planned_end(run)
    state, why = _judged(run, holder, last, age, pace, waiting, planned)
    facts = [
        ("Last step", "none yet" if last is None else f"{last:,}{_of(planned)}"),
        ("Ended", "" if age is None else f"{ago(age)} ({_utc(utc)})"),
        ("Steps recorded", f"{count_of_steps:,}" if count_of_steps else ""),
        ("Missing", _missing(count_of_steps, last, curves)),
        ("Samples dropped", _dropped(run)),
        (
            "Waiting for their commit",
            f"{waiting:,} steps, safe in the journal" if waiting else "none",
        ),
        ("Pace", _pace(pace, curves)),
        ("Left", _left(state, last, planned, pace)),
        ("Capture", _capture(curves, pace)),
        ("Writer", _who(holder)),
    ]
    return Health(state, why, age, tuple((n, v) for n, v in facts if v))


def planned_end(run: Run) -> int | None:
    """The last step of the last phase in run.json; None where it plans none."""
    stops = [p.get("stop") for p in run.phases]
    known = [s for s in stops if isinstance(s, int) and not isinstance(s, bool)]
    return max(known, default=None)


def ago(seconds: float) -> str:
    """A time span that ended now, in the unit that people would say.

    Example:
        >>> ago(0.4), ago(75), ago(7300), ago(200_000)
        ('0 s ago', '1 min 15 s ago', '2 h 1 min ago', '2 days ago')
    """
    return f"{span(seconds)} ago"


def span(seconds: float) -> str:
    """Seconds in words.

    Example:
        >>> span(59.9), span(3600)
        ('59 s', '1 h 0 min')
    """
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} days"


def _judged(
    run: Run, holder: Holder | None, last: int | None, age: float | None, pace: float | None,
    waiting: int, planned: int | None,
) -> tuple[State, str]:  # fmt: skip
    done = planned is not None and last is not None and last >= planned
    forks = [b for b in run.branches if b != run.branch and run.arm(b).parent == run.branch]
    since = "" if age is None else f" for {span(age)}"
    if holder is not None and holder.state == "alive":
        if last is None:
            return "waiting", "A writer has the branch; no step has come yet."
        patience = max(LEAST_PATIENCE_S, PATIENCE_STEPS * (pace or 0.0))
        if age is not None and age > patience:
            took = f", where one took {number(pace)} s" if pace else ""
            return "stalled", (
                f"The writer lives and no step has come{since}{took}: it hangs, saves or evaluates."
            )
        return "writing", "Steps are coming."
    if last is None:
        return "waiting", "Nothing is recorded on this branch yet, and nobody writes to it."
    if holder is not None and holder.state == "unknown":
        if done:
            return "finished", f"It has reached its planned step {planned:,}."
        if age is not None and age > max(SILENT_S, PATIENCE_STEPS * (pace or 0.0)):
            host = plain(holder.host)
            return "stalled", f"No step has come{since}; its writer is on host {host}."
        return "writing", f"Steps are coming from host {plain(holder.host)}."
    return _ended(last, waiting, planned, done, forks, since)


def _ended(
    last: int, waiting: int, planned: int | None, done: bool, forks: list[str], since: str
) -> tuple[State, str]:
    """What it means that nobody writes."""
    if done:
        return "finished", f"It has reached its planned step {planned:,}, and nobody writes to it."
    if forks and not waiting:
        return "finished", f"It ended at step {last:,}; {many(len(forks), 'arm')} go on from it."
    if waiting:
        return "stalled", (
            f"The writer is gone: it was killed or crashed. Its journal holds "
            f"{many(waiting, 'step')} that the next writer takes in."
        )
    if planned is not None:
        return "stalled", (
            f"Nobody has written{since}: it stopped at step {last:,} of {planned:,} planned."
        )
    return "finished", "Nobody writes to it, and all that was recorded is committed."


def _holder(run: Run) -> Holder | None:
    if run.store is None:
        return None
    try:
        folder = run.store.location.folder
    except UsageError:
        # On object storage the lease is not looked into: the age of the last step decides.
        return Holder("unknown", host=str(run.store.location))
    return holder_of(folder / "locks" / f"{check_branch(run.branch)}.lock")


def _waiting(now: Snapshot | None) -> int:
    held = now.tail.get("train", now.tail.get("router", {})) if now is not None else {}
    return len(held.get("step", {}).get("step", ()))


def _last(curves: xr.Dataset | None, name: str) -> float | None:
    """The greatest value of a clock in the last bin."""
    if curves is None or f"{name}_max" not in curves or not curves.sizes["bin"]:
        return None
    value = float(curves[f"{name}_max"][-1])
    return value if np.isfinite(value) else None


def _seconds_a_step(curves: xr.Dataset | None) -> float | None:
    """Of the recent stretch: the median over its bins, so that one long pause does not count."""
    if curves is None or "utc_max" not in curves or curves.sizes["bin"] < 3:
        return None
    late = curves.isel(bin=slice(-20, None))
    took = np.diff(late["utc_max"].values) / np.diff(late["last_step"].values)
    took = took[np.isfinite(took)]
    return float(np.median(took)) if len(took) and np.median(took) > 0 else None


def _missing(rows: int, last: int | None, curves: xr.Dataset | None) -> str:
    """Steps between the first and the last that have no row."""
    if last is None or curves is None or not curves.sizes["bin"]:
        return ""
    first = int(curves["first_step"][0])
    lost = last - first + 1 - rows
    if lost <= 0:
        return "no step"
    return f"{lost:,} of {last - first + 1:,} steps: dropped, or not recorded"


def _dropped(run: Run) -> str:
    said = run.attrs.get("capture")
    mine: Any = said.get(run.branch) if isinstance(said, Mapping) else None
    lost = mine.get("dropped") if isinstance(mine, Mapping) else None
    return f"{lost:,}, says the recorder" if isinstance(lost, int) and lost else "none told"


def _pace(pace: float | None, curves: xr.Dataset | None) -> str:
    if pace is None:
        return ""
    said = f"{number(pace)} s a step"
    tokens = curves["tokens_seen_max"].values[-2:] if curves is not None and (
        "tokens_seen_max" in curves
    ) else np.empty(0)  # fmt: skip
    if len(tokens) == 2 and curves is not None:
        steps = np.diff(curves["last_step"].values[-2:])[0]
        said += f", {count(float(np.diff(tokens)[0] / steps / pace))} tokens/s"
    return said


def _left(state: State, last: int | None, planned: int | None, pace: float | None) -> str:
    if state not in ("writing", "stalled") or not pace or planned is None or last is None:
        return ""
    return f"{span((planned - last) * pace)} at this pace" if planned > last else ""


def _capture(curves: xr.Dataset | None, pace: float | None) -> str:
    if curves is None or "capture_seconds" not in curves or not pace:
        return ""
    cost = float(curves["capture_seconds"][-1])
    said = f"{100 * cost / pace:.2g} % of a step" if np.isfinite(cost) else ""
    if said and "captured_every" in curves:
        every = float(curves["captured_every"][-1])
        said += f", reading every {number(every, 3)} steps" if every > 1 else ", every step read"
    return said


def _who(holder: Holder | None) -> str:
    if holder is None:
        return ""
    if holder.pid is None:
        return plain(holder.host, 80)
    words = {"alive": "writes", "gone": "has ended", "unknown": "cannot be looked for from here"}
    since = f", since {plain(holder.since_utc)}" if holder.since_utc else ""
    return f"process {holder.pid} on {plain(holder.host)}{since}: {words[holder.state]}"


def _of(planned: int | None) -> str:
    return f" of {planned:,}" if planned else ""


def _utc(seconds: float | None) -> str:
    return f"{datetime.fromtimestamp(seconds or 0, UTC):%Y-%m-%d %H:%M:%S} UTC"
