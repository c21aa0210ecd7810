"""`workbench checkpoints ...`: which weights there are, in one run or in all, and room for more.

Needs   arguments.
Yields  `checkpoints`, the group of commands; exit codes as in cli.py.

Heavy libraries are imported inside the commands.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench.app.echo import echo

if TYPE_CHECKING:
    from checkpoints_index.catalogue import Catalogue
    from checkpoints_index.entry import Entry
    from checkpoints_index.pruning import Examined
    from checkpoints_index.retention import Plan, Rule

    Broken = dict[tuple[str, int], str]

RUN = click.argument("run", type=click.Path(path_type=Path))
ANY_RUN = click.argument("run", type=click.Path(path_type=Path), required=False)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
CATALOGUE = click.option(
    "--catalogue", type=click.Path(path_type=Path, dir_okay=False), default=None,
    help="The catalogue's file; by default $WORKBENCH_CATALOGUE, else "
    "training-dynamics-workbench/catalogue.sqlite in $XDG_DATA_HOME (~/.local/share).",
)  # fmt: skip
STEP = click.IntRange(-1, 2**63 - 1)
"""-1, so that "after" can mean all."""
_FINGERPRINT = re.compile(r"[0-9a-f]{6,128}")


def _tokens(_: Any, __: Any, value: float | None) -> int | None:
    """Tokens, of which people say 2e9."""
    if value is None or abs(value) < 2**63:
        return None if value is None else int(value)
    raise click.BadParameter(f"{value}: expected a number of tokens, such as 2e9.")


@click.group()
def checkpoints() -> None:
    """Which weights there are, where they lie, what they came from and whether they are whole."""


@checkpoints.command("scan")
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@click.option("--fingerprints", is_flag=True,
              help="Read all weights whose fingerprint no record tells.")  # fmt: skip
@click.option("--forget", multiple=True, type=click.Path(path_type=Path),
              help="Take a folder's entries out; nothing on disk is touched.")  # fmt: skip
@click.option("--wait", "wait_s", default=60.0, show_default=True,
              help="Seconds to wait for another process that is scanning.")  # fmt: skip
@CATALOGUE
@JSON
def scan_folders(
    folders: Sequence[Path], fingerprints: bool, forget: Sequence[Path], wait_s: float,
    catalogue: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Bring the catalogue up to date with FOLDERS, or with those that were scanned before.

    Finds our runs by their records and the checkpoints of other trainers by their layout. What has
    not changed is not read again. Exits 1 where something could not be read; the rest is entered.
    """
    from dataclasses import asdict

    from checkpoints_index.scan import scan
    from workbench.app.checkpoint_text import faults, scan_summary

    where = _catalogue(catalogue)
    done = scan(where, folders, fingerprints=fingerprints, forget=forget, wait_s=wait_s)
    if as_json:
        echo(json.dumps({**asdict(done), "catalogue": str(where.file)}))
    else:
        _lines(scan_summary(done, str(where.file)))
        for line in faults(done.faults):
            echo(line, err=True)
    sys.exit(1 if done.faults else 0)


@checkpoints.command("list")
@ANY_RUN
@click.option("--run", "run_name", default=None, help="Only runs of this name, or in this folder.")
@click.option("--branch", "--arm", "branch", default=None, help="Only this branch.")
@click.option("--phase", default=None, help="Only this phase of the schedule.")
@click.option("--trainer", default=None, help="Only this trainer's, such as torchtitan.")
@click.option("--format", default=None, help="Only this format, such as native or dcp.")
@click.option("--kind", type=click.Choice(["training", "weights"]), default=None)
@click.option("--after", type=STEP, default=None, help="Only steps after this one.")
@click.option("--until", type=STEP, default=None, help="Only steps up to this one.")
@click.option("--tokens-after", type=float, default=None, callback=_tokens,
              help="Only with more training tokens.")  # fmt: skip
@click.option("--complete/--incomplete", default=None, help="Only whole ones, or only others.")
@click.option("--fingerprint", default=None, help="Only weights whose digest begins so.")
@click.option("--limit", type=click.IntRange(0, 2**63 - 1), default=None, help="At most so many.")
@CATALOGUE
@JSON
def list_checkpoints(
    run: Path | None, run_name: str | None, catalogue: Path | None,
    as_json: bool, **filters: Any,
) -> None:  # fmt: skip
    """The checkpoints of RUN as they are now; without RUN, all that the last scan found."""
    from workbench.app.checkpoint_text import table

    where = _catalogue(catalogue) if run is None else _of_run(run)
    entries = where.list(run=run_name, **filters)
    if as_json:
        echo(json.dumps([entry.plain() for entry in entries]))
        return
    _lines(table(entries, runs=run is None))


@checkpoints.command("show")
@click.argument("what")
@click.argument("branch", required=False)
@click.argument("step", type=STEP, required=False)
@click.option("--json", is_flag=True, expose_value=False, help="As it is without: JSON.")
@CATALOGUE
def show_checkpoint(
    what: str, branch: str | None, step: int | None, catalogue: Path | None
) -> None:
    """All that is known of one checkpoint, as JSON, and where the same weights lie elsewhere.

    Name it by RUN BRANCH STEP, by its path, or by the first digits of its fingerprint.
    """
    where = _catalogue(catalogue)
    entries = _named(where, what, branch, step)
    shown = []
    for entry in entries:
        others = where.same_weights(entry) if where.exists else []
        shown.append(entry.plain() | {"same_weights_at": [other.path for other in others]})
    echo(json.dumps(shown[0] if len(shown) == 1 else shown, indent=1, sort_keys=True))


@checkpoints.command("lineage")
@ANY_RUN
@click.option("--run", "run_name", default=None, help="Only runs of this name, or in this folder.")
@CATALOGUE
@JSON
def show_lineage(
    run: Path | None, run_name: str | None, catalogue: Path | None, as_json: bool
) -> None:
    """The tree of runs and arms: where each forked, and what was merged into its checkpoints."""
    from checkpoints_index.lineage import as_plain, as_text, lineage

    where = _catalogue(catalogue) if run is None else _of_run(run)
    forest = lineage(where.list(run=run_name), {} if run is None else _forks(run))
    if as_json:
        echo(json.dumps(as_plain(forest)))
        return
    _lines(as_text(forest))


@checkpoints.command("verify")
@ANY_RUN
@click.argument("branch", required=False)
@click.argument("step", type=STEP, required=False)
@click.option("--fast", is_flag=True, help="Compare sizes only, not digests.")
@CATALOGUE
@JSON
def verify_checkpoints(
    run: Path | None, branch: str | None, step: int | None, fast: bool, catalogue: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Compare checkpoints with what was written; exits 1 if one is not whole.

    Of RUN, or one of it (RUN BRANCH STEP), or without RUN of all runs in the catalogue; RUN may be
    another trainer's folder. Those that were pruned or are known to be incomplete are counted and
    not read; those that only unpickling could read are counted, and are no failure.
    """
    from checkpoints_index.audit import judge
    from workbench.app.checkpoint_text import verified

    entries = _to_verify(_catalogue(catalogue), run, branch, step)
    known = [e for e in entries if not e.complete and "nothing lies there" not in e.why]
    verdicts = [(e.path, judge(e, deep=not fast)) for e in entries if e not in known]
    wrong = {path: v.why for path, v in verdicts if v.kind == "wrong"}
    if as_json:
        whole = [(path, v) for path, v in verdicts if v.kind == "whole"]
        told = {
            "whole": len(whole), "wrong": wrong, "incomplete": len(known),
            "unverified": {path: v.why for path, v in verdicts if v.kind == "unverified"},
            "without_digests": [path for path, v in whole if not v.by_digest],
        }  # fmt: skip
        echo(json.dumps(told))
    else:
        for line in wrong.values():
            echo(line, err=True)
        _lines(verified([v for _, v in verdicts], incomplete=len(known), fast=fast))
    sys.exit(1 if wrong else 0)


def _to_verify(
    where: Catalogue, run: Path | None, branch: str | None, step: int | None
) -> list[Entry]:
    """The checkpoints that were named, or all."""
    if run is None:
        return where.list()
    if branch is None and _is_run(run):
        return _of_run(run).list()
    if branch is None and os.path.isdir(run):
        return (where.at(run) if where.exists else []) or _of_run(run).list()
    return _named(where, str(run), branch, step)


@checkpoints.command("prune")
@RUN
@click.option("--window", default="0.2", show_default=True,
              help="Keep all in each branch's last share of tokens, last tokens (2e9), or last "
              "stretch of time (7d).")  # fmt: skip
@click.option("--dense-last", type=click.IntRange(min=1), default=None,
              help="In place of the window: keep the last N of each branch.")  # fmt: skip
@click.option("--elsewhere", type=click.IntRange(min=0), default=16, show_default=True,
              help="Keep N of each branch before its window, spread over log tokens.")  # fmt: skip
@click.option("--apply", is_flag=True, help="Delete. Without it, nothing is touched.")
@CATALOGUE
@JSON
def prune(
    run: Path, window: str, dense_last: int | None, elsewhere: int, apply: bool,
    catalogue: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Thin out the checkpoints of RUN: dense where it matters, log-spaced elsewhere. A dry run
    unless --apply is given.

    Kept whatever the plan says: where arms forked and begin, the newest of each branch, where the
    store goes on or was rolled back to, what was merged into others, what runs in the catalogue
    came from, and anything that lies outside RUN or shares files with what stays. Records stay.
    """
    from checkpoints_index.pruning import sweep, withdraw
    from checkpoints_index.retention import Rule
    from workbench.app.checkpoint_text import catalogue_age, prune_summary, pruned, size

    _of_run(run)
    where = _catalogue(catalogue)
    for line in catalogue_age(*_known(where), str(where.file)):
        echo(line, err=True)
    share: float | str = float(window) if _is_number(window) else window
    rule = Rule(window=share, dense_last=dense_last, elsewhere=elsewhere)
    why = "pruned to make room: " + (
        f"not among the last {dense_last}" if dense_last else f"before the window {window}"
    )
    with ExitStack() as held:
        store = _store(run)
        if apply and store is not None:
            # No arm can be forked at a checkpoint between its being chosen and its being withdrawn.
            held.enter_context(store.commit_lock()).acquire(wait=True)
        plan, examined, broken = _plan(run, rule, where, store)
        if not as_json:
            _lines(prune_summary(plan, examined, broken))
        if apply:
            withdraw(run, examined, why)
    freed = sweep(run, examined, why) if apply else 0
    if as_json:
        echo(json.dumps(pruned(plan, examined, broken, applied=apply)))
    elif apply:
        echo(f"deleted; {size(freed)} freed")
    else:
        echo("a dry run: nothing was touched; --apply deletes")


def _known(where: Catalogue) -> tuple[list[Entry], dict[str, float]]:
    """What the catalogue knows, and when which folder was scanned; nothing where there is none."""
    from checkpoints_index.errors import CatalogueMissing

    try:
        return where.list(), where.folders
    except CatalogueMissing:
        return [], {}


def _plan(run: Path, rule: Rule, where: Catalogue, store: Any) -> tuple[Plan, Examined, Broken]:
    """What goes, of the checkpoints as they really are; what that is on disk; what is broken."""
    from checkpoints_index.audit import Standing
    from checkpoints_index.index import CheckpointIndex
    from checkpoints_index.lineage import used_elsewhere
    from checkpoints_index.pruning import examine
    from checkpoints_index.retention import plan
    from workbench.checkpoints import needed_by_store

    real = os.path.realpath(run)
    recorded = {(r.branch, r.step): r for r in CheckpointIndex(run).list()}
    known, _ = _known(where)
    standing = Standing(run, list(recorded.values()))
    protected = dict(standing.relied_on)
    if store is not None:
        protected |= needed_by_store(store, standing.records, standing.is_whole)
    # A scan may have read the fingerprint of weights that were too large while they were saved.
    read = {e.path: e.fingerprint for e in known if e.fingerprint}
    records = [
        r if r.fingerprint or r.is_remote
        else replace(r, fingerprint=read.get(str(r.path(real))))
        for r in standing.records
    ]  # fmt: skip
    made = plan(records, rule, protected=protected, used=used_elsewhere(known, real))
    made = replace(made, go=tuple(recorded[r.branch, r.step] for r in made.go))
    others = [e.path for e in known if e.run_path != real and "://" not in e.path]
    return made, examine(run, recorded.values(), made, others), standing.broken


def _catalogue(file: Path | None) -> Catalogue:
    from checkpoints_index.catalogue import Catalogue

    return Catalogue(file)


def _is_run(folder: Path) -> bool:
    return any(os.path.exists(folder / part) for part in ("run.json", "store", "index"))


def _of_run(run: Path) -> Catalogue:
    """What a run's records say now; in a folder of another trainer's, what its layout says."""
    from checkpoints_index.catalogue import Catalogue
    from checkpoints_index.entry import Entry
    from checkpoints_index.index import CheckpointIndex
    from checkpoints_index.layouts import find
    from checkpoints_index.particulars import footprint

    real = Path(os.path.realpath(run))
    if _is_run(run):
        records = CheckpointIndex(real).list()
        return Catalogue.of(
            Entry.of_record(r, real, there=r.is_remote or os.path.lexists(r.path(real)))
            for r in records
        )
    found = list(find(real)) if os.path.isdir(run) else []
    if not found:
        from workbench.run import open_run

        open_run(run)  # says that there is no run, and what is near by
    return Catalogue.of(Entry.of_found(f, run=None, size_bytes=footprint(f.path)[0]) for f in found)


def _named(where: Catalogue, what: str, branch: str | None, step: int | None) -> list[Entry]:
    """The checkpoint that was named, by run, branch and step, by path or by fingerprint."""
    from checkpoints_index.errors import CheckpointNotFound
    from checkpoints_index.index import CheckpointIndex

    if branch is not None:
        if step is None:
            raise click.UsageError(f"which step of branch {branch!r}? Expected RUN BRANCH STEP.")
        run = _of_run(Path(what))
        found = run.list(branch=branch, after=step - 1, until=step)
        if not found:
            CheckpointIndex(what).get(branch, step)  # says what is near by
        return found
    found = []
    if where.exists:
        found = where.at(what)
        if not found and _FINGERPRINT.fullmatch(what):
            found = where.list(fingerprint=what)
    if not found and os.path.exists(what):
        found = _of_run(Path(what)).at(what)
    if not found:
        known = f"the catalogue {where.file}" if where.exists else "no catalogue yet"
        raise CheckpointNotFound(
            f"no checkpoint {what[:200]!r}, in {known}; expected RUN BRANCH STEP, a path, or the "
            f"first 6 or more digits of a fingerprint."
        )
    return found


def _store(run: Path) -> Any:
    """The run's store, or None where it has none."""
    from workbench.capture.run_folder import RunFolder
    from workbench.store.run_store import RunStore

    place = RunFolder(run).store
    return RunStore.open(place) if place.exists() else None


def _forks(run: Path) -> dict[tuple[str, str], tuple[str, int]]:
    """Where the arms of a run forked, as its store knows it."""
    store = _store(run)
    real = os.path.realpath(run)
    known = {} if store is None else {b: store.lineage(b) for b in store.branches}
    return {(real, branch): fork for branch, fork in known.items() if fork is not None}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _lines(lines: Any) -> None:
    for line in lines:
        echo(line)
