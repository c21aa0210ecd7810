"""The doctor: a checkup of a named model, as aligned text on one screen or as JSON for machines.

Needs   the name of a model (named_model.py), and what is known of its training.
Yields  `diagnose`, behind `workbench doctor`; `as_text`, `as_json`.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, replace
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

from model.config import PRESETS
from model.training.loop import pick_device
from workbench.app.named_model import NamedModel, named_model
from workbench.capture.checkup.checkup import DAY, SECONDS, Checkup, Plan, check_up
from workbench.capture.checkup.faults import Fault, Retention
from workbench.capture.checkup.machine import Machine
from workbench.capture.checkup.overhead import ENOUGH, Interval, Overhead
from workbench.capture.checkup.record_size import PROBE_TOKENS, Weight
from workbench.capture.writer import COMMIT_EVERY
from workbench.errors import UsageError

FORMAT_VERSION = 1
"""Raised by one whenever an entry of the JSON changes its name or meaning."""
INDENT = 14
ROWS, LENGTH = 8, 128
"""Of a batch where neither the user nor the model's own plan says it."""


def diagnose(
    name: str,
    *,
    rows: int | None = None,
    length: int | None = None,
    step_seconds: float | None = None,
    steps_per_day: float | None = None,
    traces: float = 1e-3,
    checkpoints: int | None = None,
    keep: int | None = None,
    into: Path = Path("runs"),
    device: str = "auto",
    omp_wait_policy: str | None = None,
) -> Checkup:
    """Builds a model and checks it up; arguments as of `workbench doctor`.

    Raises:
        UsageError: numbers that cannot be, or that contradict each other.
        ModelNotFound, ModelBroken: as of `named_model`.
    """
    if step_seconds is not None and steps_per_day is not None:
        raise UsageError("--step-seconds and --steps-per-day say the same: give one of them.")
    if steps_per_day is not None:
        if not (steps_per_day > 0 and isfinite(steps_per_day)):
            raise UsageError(f"--steps-per-day {steps_per_day}: must be above 0, and finite.")
        step_seconds = DAY / steps_per_day
    if keep is not None and checkpoints is None:
        raise UsageError("--keep says how many of --checkpoints are kept: give both.")
    retention = None if checkpoints is None else Retention(saved=checkpoints, kept=keep)
    if name.lower() in PRESETS:
        # `workbench train`, by which presets are trained, sees to it itself.
        omp_wait_policy = omp_wait_policy or "PASSIVE"
    wanted = Plan(
        rows=rows or ROWS, length=length or LENGTH, step_seconds=step_seconds, traces=traces,
        into=into, retention=retention, omp_wait_policy=omp_wait_policy,
    )  # fmt: skip
    on = pick_device(device)
    began = perf_counter()
    found = named_model(name, on)
    # What building took, on a busy machine several times as long, comes off the trial.
    left = max(SECONDS - (perf_counter() - began), SECONDS / 4)
    return check_up(found.model, _shaped(wanted, name, found, rows, length), seconds=left)


def _shaped(plan: Plan, name: str, found: NamedModel, rows: int | None, length: int | None) -> Plan:
    """The plan with the batch that the user, else the model's own plan, says."""
    if length is not None and found.longest is not None and length > found.longest:
        raise UsageError(f"--length {length}: {name} takes at most {found.longest} positions.")
    fitting = min(found.length or LENGTH, found.longest or LENGTH)
    return replace(plan, rows=rows or found.rows or ROWS, length=length or fitting)


def as_json(name: str, checkup: Checkup) -> dict[str, Any]:
    """Plain data: every field of the checkup under its name, "model", "healthy" and
    "format_version".
    """
    plain: dict[str, Any] = _plain(asdict(checkup))
    return {
        "format_version": FORMAT_VERSION, "model": name, "healthy": checkup.healthy, **plain
    }  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def as_text(name: str, checkup: Checkup, width: int | None = None) -> str:
    """The page. Lines are as wide as the terminal, at most 110."""
    width = min(width or shutil.get_terminal_size().columns, 110)
    rows = [
        ("model", _model(name, checkup)),
        ("captured", _captured(checkup)),
        ("machine", _machine(checkup.machine)),
        ("folder", _folder(checkup)),
        ("record", _record(checkup)),
        ("step", _step(checkup)),
        ("overhead", _overhead(checkup)),
    ]
    lines: list[str] = []
    for label, texts in rows:
        for place, text in enumerate(texts):
            lines += _wrapped(label if place == 0 else "", text, width)
    lines += ["", *_verdict(checkup, width)]
    return "\n".join(lines)


def _wrapped(label: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=label.ljust(INDENT), subsequent_indent=" " * INDENT,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _model(name: str, checkup: Checkup) -> Iterator[str]:
    seen, plan = checkup.seen, checkup.plan
    yield (
        f"{name}: {seen.model}, {_count(seen.parameters)} parameters; a step of {plan.rows} x "
        f"{plan.length} = {plan.tokens:,} tokens on {checkup.machine.device}"
    )


def _captured(checkup: Checkup) -> Iterator[str]:
    seen = checkup.seen
    if not seen.routers:
        yield "nothing: no router can be read (below)"
        return
    routers, first = seen.routers, seen.routers[0]
    ends = first.name if len(routers) == 1 else f"{first.name} to {routers[-1].name}"
    kinds = ", ".join(sorted({router.kind for router in routers}))
    scores = ", ".join(sorted({router.scores for router in routers}))
    plural = "" if len(routers) == 1 else "s"
    yield (
        f"{len(routers)} router{plural} ({kinds}) of {first.experts} experts, {first.k} a token; "
        f"scores: {scores}"
    )
    yield ends
    if checkup.plan.traces:
        of = f"token ids from {seen.embedding}" if seen.embedding else "no embedding found (below)"
        yield f"traces of {checkup.plan.traces:.3g} of the tokens: {of}"
    trial = checkup.trial
    if trial is not None and trial.overhead is not None:
        bits = {
            True: "the loss is the same bit for bit",
            False: "THE LOSS CHANGES",
            None: "the loss differs from run to run without capture too",
        }
        yield f"tried: every layer counts tokens x k; {bits[trial.overhead.loss_unchanged]}"


def _machine(machine: Machine) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    yield f"{machine.device_name}; {machine.cores} cores, load {machine.load:.1f}"
    yield f"Python {machine.python}, {versions}"
    triton = "Triton found" if machine.triton else "no Triton"
    yield (
        f"op: {machine.op} ({triton}); {machine.threads} threads, OMP_WAIT_POLICY "
        f"{machine.omp_wait_policy or 'not set'}"
    )


def _folder(checkup: Checkup) -> Iterator[str]:
    machine = checkup.machine
    if machine.sync_seconds is None:
        yield f"{machine.folder} ({machine.file_system}): cannot be written to"
        return
    locks = "locks hold" if machine.locks else "LOCKS DO NOT HOLD"
    yield (
        f"{machine.folder} ({machine.file_system}): {_size(machine.free_bytes)} free, a sync takes "
        f"{_time(machine.sync_seconds)}, {locks}"
    )


def _record(checkup: Checkup) -> Iterator[str]:
    size, plan = checkup.size, checkup.plan
    if size is None or checkup.per_step is None:
        yield "nothing to write"
        return
    yield f"{'':<34}{'raw':>11}{'stored':>11}"
    table: list[tuple[str, Weight]] = [
        ("a step: loads, masses, statistics", size.step),
        (
            f"+ co-activation, every {plan.coactivation_every} steps",
            size.coactivation * (1 / plan.coactivation_every),
        ),
    ]
    if plan.traces:
        traced = plan.tokens * plan.traces
        table.append((f"+ traces of {traced:.3g} tokens", size.traced_token * traced))
    table.append(("= a step", checkup.per_step))
    if checkup.per_day is not None and checkup.step_seconds is not None:
        table.append((f"= a day, {_time(checkup.step_seconds)} a step", checkup.per_day))
    table.append((f"a checkpoint, {PROBE_TOKENS:,} probe tokens", size.checkpoint))
    if plan.retention is not None:
        saved = plan.retention.saved
        table.append((f"= {saved:,} checkpoints", size.checkpoint * saved))
    for what, weight in table:
        yield f"{what:<34}{_size(weight.raw):>11}{_size(weight.stored):>11}"
    if checkup.days_until_full is None:
        yield "a day: not known without a step's time; give --step-seconds or --steps-per-day"
    else:
        at = "" if plan.step_seconds is not None else ", at the pace of the trial"
        yield f"the disk is full of it in {_days(checkup.days_until_full)}{at}"


def _step(checkup: Checkup) -> Iterator[str]:
    trial = checkup.trial
    if trial is None or trial.overhead is None:
        yield f"not run: {checkup.not_run or 'its first step failed (below)'}"
        return
    bare = trial.overhead.bare
    yield (
        f"{_time(bare.median)} without capture ({_time(bare.low)} to {_time(bare.high)}): forward, "
        f"backward, AdamW; eager"
    )


def _overhead(checkup: Checkup) -> Iterator[str]:
    if checkup.trial is None or checkup.trial.overhead is None:
        yield "not measured"
        return
    cost = checkup.trial.overhead
    yield f"capture: {_share(cost.capture)}"
    if cost.with_traces is not None:
        yield f"with traces: {_share(cost.with_traces)}"
    yield _inside(cost)
    if checkup.size is not None:
        yield (
            f"writer, on a thread of its own: {_time(checkup.size.commit_seconds)} for "
            f"{COMMIT_EVERY} steps"
        )


def _inside(cost: Overhead) -> str:
    share = cost.inside_p50 / cost.bare.median
    return (
        f"time in capture: {_time(cost.inside_p50)} a step ({share:.2%}), p99 "
        f"{_time(cost.inside_p99)}; without the op p99 {_time(cost.beyond_op_p99)}; the op "
        f"{_time(cost.op_per_layer)} a router"
    )


def _share(added: Interval) -> str:
    spread = f"{added.low:+.1%} to {added.high:+.1%}"
    if added.of < ENOUGH:
        return f"{added.of} steps are too few to tell ({spread}, all of them)"
    if added.above_noise:
        return f"{added.median:+.1%} of a step ({spread}, 95 %)"
    return f"too small to tell from this machine's noise ({spread}, 95 %)"


def _verdict(checkup: Checkup, width: int) -> Iterator[str]:
    if not checkup.faults:
        yield "healthy: nothing was found that would go wrong"
        return
    losing = sum(fault.loses for fault in checkup.faults)
    yield (
        f"{losing} would lose data, {len(checkup.faults) - losing} to know"
        if losing
        else f"healthy; {len(checkup.faults)} to know"
    )
    for fault in checkup.faults:
        yield from _fault(fault, width)


def _fault(fault: Fault, width: int) -> Iterator[str]:
    yield f"{'LOSES DATA' if fault.loses else 'to know':<{INDENT}}{fault.name}"
    for what, text in (
        ("found", fault.found), ("expected", fault.expected), ("remedy", fault.remedy)
    ):  # fmt: skip
        yield from _wrapped(f"  {what}", text, width)


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} B" if unit == "B" else f"{size:.3g} {unit}"


def _time(seconds: float) -> str:
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _days(days: float) -> str:
    if days < 730:
        return f"{days:.3g} days" if days < 100 else f"{days:.0f} days"
    return f"{days / 365:,.0f} years"


def _count(number: int) -> str:
    for factor, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return str(number)
