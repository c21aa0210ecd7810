"""A whole run verified: its record, its description, its index and its weights.

Needs   a run's folder; any of run.json, store/ and index/ may be missing.
Yields  `verify_run`: one Report.

Records are held against the marks in the store (a checkpoint is recorded in both) and against the
files that they describe. Nothing is loaded, and nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from checkpoints_index.entry import Entry
from checkpoints_index.errors import (
    CheckpointIncomplete,
    CheckpointNotFound,
    PickleRefused,
    RecordError,
)
from checkpoints_index.index import CheckpointIndex
from checkpoints_index.record import CheckpointRecord
from workbench.capture.run_folder import RunFolder
from workbench.errors import RunNotFound
from workbench.store.names import CheckpointTag, read_tag
from workbench.store.run_store import RunStore
from workbench.store.verification.fault import Fault, Report
from workbench.store.verification.store_check import verify_store

BROKEN = (CheckpointIncomplete, CheckpointNotFound, RecordError, OSError, ValueError)


def verify_run(
    folder: Path,
    store: RunStore | None,
    *,
    branch: str | None = None,
    deep: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """What is wrong with the run in `folder`.

    Args:
        store: of the run, where it has one.
        branch: only this branch and its checkpoints; all otherwise.
        deep: as for `verify_store`; digests and fingerprints of the weights as well.
        progress: told, in a line, what is being looked at.
    """
    known = store is not None and (branch is None or branch in store.branches)
    if store is not None and (known or not (folder / "index" / str(branch)).is_dir()):
        report = verify_store(store, branch=branch, deep=deep, progress=progress)
    else:
        report = Report()
    _description(folder, report)
    records = _records(folder, branch, report)
    if store is not None:
        _marks(store, records, branch, report)
    for _, record in sorted(records.items()):
        if record.complete and record.pruned is None and not record.is_remote:
            if progress is not None:
                progress(f"the weights of {record.branch} at step {record.step}")
            _weights(folder, record, report, deep)
    return report


def _description(folder: Path, report: Report) -> None:
    run = RunFolder(folder)
    if not run.exists:
        return
    report.count("run.json")
    try:
        run.read()
    except (RunNotFound, OSError, RecursionError) as error:
        _tell(report, "record", "run.json", str(error), "the JSON object that describes the run")


def _records(
    folder: Path, branch: str | None, report: Report
) -> dict[tuple[str, int], CheckpointRecord]:
    index = CheckpointIndex(folder)
    found: dict[tuple[str, int], CheckpointRecord] = {}
    for file, _ in index.files():
        if branch is not None and file.split("/")[0] != branch:
            continue
        report.count("records")
        try:
            record = index.read_file(file)
        except (RecordError, OSError) as error:
            _tell(report, "record", f"index/{file}", str(error), "a checkpoint's record",
                  "remove the file and enter it again: workbench checkpoints scan")  # fmt: skip
            continue
        found[record.branch, record.step] = record
    return found


def _marks(
    store: RunStore,
    records: dict[tuple[str, int], CheckpointRecord],
    branch: str | None,
    report: Report,
) -> None:
    tags = [read_tag(name) for name in store.repository.list_tags()]
    marked = {(t.branch, t.step) for t in tags if isinstance(t, CheckpointTag)}
    arms, indexed = set(store.branches), {name for name, _ in records}
    for name, step in sorted(records.keys() - marked):
        if name in arms and step:
            fault = Fault(
                kind="record", branch=name, place=f"step {step}",
                files=(f"index/{name}/step-{step:08d}.json",),
                found="a record of weights without a mark in the store",
                expected="both, as a recorder leaves them",
                remedy="the weights can be used; the record cannot be forked or rolled back there",
            )  # fmt: skip
            report.add([fault])
    for name, step in sorted(marked - records.keys()):
        if name in indexed and branch in (None, name):
            fault = Fault(
                kind="record", branch=name, place=f"step {step}",
                found="a mark in the store without a record of weights",
                expected="both, as a recorder leaves them",
                remedy="if the weights are there, enter them: workbench checkpoints scan",
            )  # fmt: skip
            report.add([fault])


def _weights(folder: Path, record: CheckpointRecord, report: Report, deep: bool) -> None:
    from checkpoints_index.audit import audit
    from checkpoints_index.formats import recognise

    try:
        path = record.path(folder)
        recognise(path)
        found = audit(Entry.of_record(record, folder), deep=deep)
    except PickleRefused:
        report.count("checkpoints that only unpickling could read, not read")
        return
    except BROKEN as error:
        found = str(error)
    report.count("checkpoints")
    if not found:
        return
    fault = Fault(
        kind="checkpoint", branch=record.branch, place=f"step {record.step}", files=(record.uri,),
        found=found[:300], expected="the weights that were saved",
        remedy="copy the weights again, or use an earlier checkpoint",
    )  # fmt: skip
    report.add([fault])


def _tell(
    report: Report, kind: str, file: str, found: str, expected: str, remedy: str = ""
) -> None:
    fault = Fault(kind=kind, files=(file,), found=found[:300], expected=expected, remedy=remedy)
    report.add([fault])
