"""Commands that look after a store: `verify`, `gc`, `results`.

Needs   a run's folder, or a store's own (a folder or an s3:// URL).
Yields  click commands that cli.py registers; exit codes as there: 1 where verify finds a fault.
"""

from __future__ import annotations

import json
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from workbench.app.echo import echo

if TYPE_CHECKING:
    from workbench.store.run_store import RunStore

RUN = click.argument("run")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")


class Duration(click.ParamType):
    """A duration such as 30m, 1h or 7d."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        if isinstance(value, timedelta):
            return value
        found = _DURATION.fullmatch(str(value).strip())
        if found is None:
            self.fail(f"{str(value)[:40]!r}: expected a number and s, m, h, d or w, such as 1h.")
        try:
            return timedelta(**{_UNITS[found[2]]: float(found[1])})
        except OverflowError:
            self.fail(f"{str(value)[:40]!r}: longer than a duration can be.")


@click.command()
@RUN
@click.option("--branch", default=None, help="Only this branch; checkpoints of all are looked at.")
@click.option("--deep", is_flag=True, help="Every overview, every tag, every byte of the weights.")
@JSON
def verify(run: str, branch: str | None, deep: bool, as_json: bool) -> None:
    """Read all that RUN holds and say what is wrong, and where; exits 1 if anything is.

    Every chunk is read against its checksum, the numbers against each other, records against tags
    and weights. Nothing is changed, and a run may be verified while it is written.
    """
    from workbench.store.verification import verify_run, verify_store

    folder, store = _opened(run)
    say = None if as_json else (lambda what: echo(f"reading {what}", err=True))
    if folder is None:
        assert store is not None
        report = verify_store(store, branch=branch, deep=deep, progress=say)
    else:
        report = verify_run(folder, store, branch=branch, deep=deep, progress=say)
    echo(json.dumps(report.as_json()) if as_json else str(report))
    if not report.sound:
        sys.exit(1)


@click.command()
@RUN
@click.option("--apply", is_flag=True, help="Remove it; without this nothing is touched.")
@click.option(
    "--older-than", type=Duration(), default="1h", show_default=True,
    help="Objects that are younger stay.",
)  # fmt: skip
@click.option(
    "--set-aside", is_flag=True, help="Also what rollbacks set aside; it cannot be read afterwards."
)
@JSON
def gc(run: str, apply: bool, older_than: timedelta, set_aside: bool, as_json: bool) -> None:
    """Say how much space of RUN nothing can reach any more, and with --apply give it back.

    No branch, checkpoint or history is ever shortened. While a branch is written --apply is
    refused, and the process that writes is named.
    """
    from workbench.store.space import collect, survey

    folder, store = _opened(run)
    store = _needed(store, run)
    if apply:
        weights = _weights(folder) if set_aside and folder is not None else {}
        space = collect(store, older_than=older_than, set_aside=set_aside, weights=weights)
    else:
        space = survey(store, older_than=older_than, set_aside=set_aside)
    if as_json:
        echo(json.dumps(space.as_json()))
        return
    echo(str(space))
    if not apply and space.objects:
        echo("nothing was touched; add --apply to remove it")


@click.group()
def results() -> None:
    """Results of probes that are kept in a run, under what they were computed from."""


@results.command("list")
@RUN
@click.option("--probe", default=None, help="Only this probe's.")
@JSON
def list_results(run: str, probe: str | None, as_json: bool) -> None:
    """The results kept in RUN, a line each."""
    from dataclasses import asdict

    from workbench.store.results import Results

    kept = Results(_needed(_opened(run)[1], run)).list(probe)
    if as_json:
        echo(json.dumps([asdict(stored) | {"path": stored.path} for stored in kept]))
        return
    for stored in kept:
        echo(
            f"{stored.probe:<24}{stored.version:>8}  {stored.utc:<26}{stored.nbytes / 1e6:>9.2f} MB"
            f"  {stored.key[:12]}  {json.dumps(stored.params)}"
        )
    echo(f"{len(kept)} results")


@results.command("drop")
@RUN
@click.option("--probe", default=None, help="Only this probe's; by default all.")
@JSON
def drop_results(run: str, probe: str | None, as_json: bool) -> None:
    """Forget results of RUN; they are computed again when they are asked for."""
    from workbench.store.results import Results

    dropped = Results(_needed(_opened(run)[1], run)).drop(probe)
    echo(json.dumps({"dropped": dropped}) if as_json else f"{dropped} results dropped")


def _opened(run: str) -> tuple[Path | None, RunStore | None]:
    """The run's folder, None for a store by itself; and its store, None where it has none."""
    from workbench.capture.run_folder import RunFolder
    from workbench.store.run_store import RunStore

    folder = Path(run)
    if "://" in run[:40] or (folder / "refs").is_dir():
        return None, RunStore.open(run)
    place = RunFolder(folder).store
    if place.exists() or (folder / "store").exists():
        return folder, RunStore.open(place)
    from workbench.run import open_run

    open_run(folder)  # says so if there is no run
    return folder, None


def _needed(store: RunStore | None, run: str) -> RunStore:
    from workbench.errors import RunNotFound

    if store is None:
        raise RunNotFound(f"{run} has no store, only checkpoints; there is nothing to look after.")
    return store


def _weights(folder: Path) -> dict[str, set[int]]:
    """Steps of the checkpoints whose weights are there, by branch."""
    from checkpoints_index.index import CheckpointIndex

    found: dict[str, set[int]] = {}
    for record in CheckpointIndex(folder).list(complete=True):
        found.setdefault(record.branch, set()).add(record.step)
    return found
