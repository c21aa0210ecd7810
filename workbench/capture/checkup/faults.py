"""What would go wrong with a recording, each with what was found, what was expected, the remedy.

Needs   what was looked at and measured: machine, routers, size, trial; the training's plan.
Yields  Fault; `find_faults`, those that can be known and no guesses.

A fault that loses data makes the checkup unhealthy; the others are worth knowing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from workbench.capture.checkup.machine import Machine
from workbench.capture.checkup.overhead import Trial
from workbench.capture.checkup.record_size import RecordSize
from workbench.capture.checkup.routers import Seen
from workbench.capture.ring import RING_BYTES, SLOW_SLOTS
from workbench.capture.writer import COMMIT_EVERY, LOOK_EVERY

DAYS_AT_LEAST = 7
"""Days of record that the disk should hold."""
WIDE_SAMPLE_BYTES = 4 << 20
"""Samples of co-activation smaller than this are never worth a word."""
INT16 = 32_767
VOLATILE = {"tmpfs", "ramfs"}
NETWORK = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "9p", "afs",
    "glusterfs", "virtiofs",
}  # fmt: skip
"""File systems on which a lock or a sync may mean less than on a disk, besides fuse.*"""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that would go wrong."""

    name: str
    loses: bool
    """Whether data would be lost, or never recorded."""
    found: str
    expected: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What a trainer does with its checkpoints."""

    saved: int
    """Checkpoints that the training saves."""
    kept: int | None = None
    """How many of the newest stay on the disk; None: all."""


def find_faults(
    *,
    machine: Machine,
    seen: Seen,
    trial: Trial | None = None,
    size: RecordSize | None = None,
    step_seconds: float | None = None,
    days_until_full: float | None = None,
    coactivation_every: int = 25,
    traces: float = 0.0,
    domains: int = 0,
    retention: Retention | None = None,
) -> tuple[Fault, ...]:
    """All that would go wrong, what loses data first.

    Args:
        step_seconds: of a training step; None: not known.
        days_until_full: until the record fills the disk; None: not known.
        traces: share of the tokens that would be traced.
        domains: that the labels would name.
    """
    faults = [
        *_of_model(seen, traces, domains),
        *_of_trial(seen, trial),
        *_of_folder(machine),
        *_of_processes(machine),
    ]
    there = machine.writable and machine.blocked_by is None
    if there and days_until_full is not None and days_until_full < DAYS_AT_LEAST:
        faults.append(_disk_full(machine, days_until_full))
    if size is not None:
        faults += _of_size(size, step_seconds, coactivation_every)
    if retention is not None:
        faults += _of_retention(retention)
    return tuple(sorted(faults, key=lambda fault: not fault.loses))


def _of_model(seen: Seen, traces: float, domains: int) -> Iterator[Fault]:
    if seen.refusal is not None:
        yield Fault(
            name="routers-refused", loses=True, found=seen.refusal,
            expected="routers of one shape that an adapter knows",
            remedy="as said; see docs/adapters.md",
        )  # fmt: skip
    asleep = [router.name for router in seen.routers if not router.training]
    if asleep:
        yield Fault(
            name="evaluation-mode", loses=True,
            found=f"{_some(asleep)} in evaluation mode, which is not counted",
            expected="routers in training mode", remedy="model.train() before the first step",
        )  # fmt: skip
    if seen.compiled:
        yield Fault(
            name="compiled", loses=False,
            found=f"{_some([name or 'the model' for name in seen.compiled])} compiled already",
            expected="hooks that are there before the first compiled forward; later ones never run",
            remedy="make the Recorder before the first forward; its first step tells if it was not",
        )  # fmt: skip
    experts = max((router.experts for router in seen.routers), default=0)
    if experts > INT16 or domains > INT16:
        yield Fault(
            name="beyond-int16", loses=True, found=f"{experts} experts, {domains} domains",
            expected=f"at most {INT16} of each: traces and probe sets hold ids as int16",
            remedy="record without traces and probe set, or group the domains",
        )  # fmt: skip
    if traces and seen.no_embedding is not None:
        yield Fault(
            name="no-embedding", loses=True, found=seen.no_embedding,
            expected="a module that is given the token ids (row, position)",
            remedy="Traces(embedding='<module path>'), or no traces",
        )  # fmt: skip


def _of_trial(seen: Seen, trial: Trial | None) -> Iterator[Fault]:
    if trial is None:
        return
    if trial.miscount is not None:
        yield Fault(
            name="miscount", loses=True, found=trial.miscount,
            expected="tokens x k assignments in every layer", remedy="as said",
        )  # fmt: skip
    if trial.overhead is not None and trial.overhead.loss_unchanged is False:
        yield Fault(
            name="loss-changed", loses=True,
            found="the loss with capture is not the loss without, for the same random numbers",
            expected="the same, bit for bit", remedy="report it with the model; do not record",
        )  # fmt: skip
    if trial.alters_input and seen.recomputes:
        yield Fault(
            name="input-altered-and-recomputed", loses=False,
            found=f"{_some(trial.alters_input)} changes its input in place, and activations are "
            f"recomputed from it",
            expected="a recomputation from the same input: the record holds the first forward's "
            "routes, gradients follow the second's",
            remedy="jitter of 0, or no activation checkpointing",
        )  # fmt: skip


def _of_folder(machine: Machine) -> Iterator[Fault]:
    folder, kind = machine.folder, machine.file_system
    if machine.blocked_by is not None:
        yield Fault(
            name="not-a-folder", loses=True, found=f"{machine.blocked_by} is a file",
            expected="a folder, or nothing yet", remedy="--into another folder",
        )  # fmt: skip
        return
    if not machine.writable:
        yield Fault(
            name="not-writable", loses=True, found=f"{folder} cannot be written to",
            expected="a folder of one's own", remedy="--into another folder",
        )  # fmt: skip
        # Whatever else it is, nothing will be recorded there.
        return
    if machine.locks is False:
        yield Fault(
            name="no-locks", loses=True,
            found=f"{folder} ({kind}): a locked file could be locked again",
            expected="flock that refuses the second; without it two writers lose each other's rows",
            remedy="a run folder on a local disk",
        )  # fmt: skip
    if kind in VOLATILE:
        yield Fault(
            name="in-memory", loses=True, found=f"{folder} is in memory ({kind})",
            expected="a disk: the record is gone when the machine stops",
            remedy="a run folder on a disk, --into",
        )  # fmt: skip
    if kind in NETWORK or kind.startswith("fuse."):
        yield Fault(
            name="network-folder", loses=False, found=f"{folder} is on {kind}",
            expected="a local disk: a lock may not hold between hosts, nor a sync reach the server",
            remedy="record to a local disk and copy the run, or let one host alone write to it",
        )  # fmt: skip
    if kind == "overlay":
        yield Fault(
            name="in-container", loses=False, found=f"{folder} is in the container's own layer",
            expected="a folder that outlives the container", remedy="--into a mounted volume",
        )  # fmt: skip


def _of_processes(machine: Machine) -> Iterator[Fault]:
    cpu = machine.device == "cpu"
    passive = (machine.omp_wait_policy or "").lower() == "passive"
    crowded = machine.load + machine.threads >= machine.cores + 0.5
    if cpu and machine.threads > 1 and not passive and crowded:
        yield Fault(
            name="threads-spin", loses=False,
            found=f"{machine.threads} threads that wait by spinning (OMP_WAIT_POLICY "
            f"{machine.omp_wait_policy or 'not set'}), load {machine.load:.1f} on {machine.cores} "
            f"cores",
            expected="threads that sleep where others want the cores: else a step may take five "
            "times as long",
            remedy="OMP_WAIT_POLICY=PASSIVE before Python starts (`workbench train` does)",
        )  # fmt: skip
    if machine.world_size > 1 and not machine.joined:
        yield Fault(
            name="ranks-not-joined", loses=True,
            found=f"WORLD_SIZE={machine.world_size}, and torch.distributed is not initialised",
            expected="ranks that know of each other: else each would write the run, and all but "
            "one are refused",
            remedy="torch.distributed.init_process_group before the Recorder is made",
        )  # fmt: skip
    if not cpu and not machine.triton:
        yield Fault(
            name="no-triton", loses=False, found=f"{machine.device} without Triton",
            expected="the fused kernel; plain torch counts the same and takes longer",
            remedy="pip install triton",
        )  # fmt: skip


def _disk_full(machine: Machine, days: float) -> Fault:
    return Fault(
        name="disk-full-soon", loses=True,
        found=f"{machine.free_bytes / 1e9:.1f} GB free in {machine.folder}: {days:.1f} days of "
        f"record, checkpoints not counted",
        expected=f"{DAYS_AT_LEAST} days or more",
        remedy='another disk, a larger coactivation_every, fewer traces, or overhead="1%"',
    )  # fmt: skip


def _of_size(size: RecordSize, step_s: float | None, every: int) -> Iterator[Fault]:
    sample = size.coactivation
    if sample.raw > WIDE_SAMPLE_BYTES and sample.stored / every > size.step.stored:
        better = ceil(sample.stored / size.step.stored / 10) * 10
        yield Fault(
            name="wide-coactivation", loses=False,
            found=f"a sample of co-activation is {sample.raw / 1e6:.0f} MB, {SLOW_SLOTS} wait in "
            f"memory: every {every} steps they outweigh the rest "
            f"{sample.stored / every / size.step.stored:.1f} times",
            expected="at most as much as the rest of the record",
            remedy=f"Recorder(..., coactivation_every={better})",
        )  # fmt: skip
    if step_s is None:
        return
    slots = min(512, max(16, RING_BYTES // max(int(size.step.raw), 1)))
    busy = COMMIT_EVERY * step_s
    if size.commit_seconds > busy or slots * step_s < size.commit_seconds + LOOK_EVERY:
        yield Fault(
            name="writer-too-slow", loses=True,
            found=f"a commit of {COMMIT_EVERY} steps takes {size.commit_seconds:.2f} s; {slots} "
            f"steps of {step_s:.2g} s fit into memory meanwhile",
            expected="a writer that keeps up; else samples are dropped, and counted",
            remedy="a faster disk for the run's folder",
        )  # fmt: skip


def _of_retention(retention: Retention) -> Iterator[Fault]:
    saved, kept = retention.saved, retention.kept
    if kept is not None and kept < saved:
        yield Fault(
            name="checkpoints-deleted", loses=True,
            found=f"the trainer keeps {kept} of {saved} checkpoints",
            expected="all: weights that are deleted cannot be compared, transplanted or forked",
            remedy="keep all (transformers save_total_limit=None, torchtitan keep_latest_k=0), or "
            "copy each as it is saved",
        )  # fmt: skip


def _some(names: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more
