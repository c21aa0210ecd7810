"""`workbench probe`: probes by name over a run, kept beside it.

Needs   a run, names of probes.
Yields  a few lines for each on stdout, or JSON; a file where one is asked for.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench.app.echo import echo

if TYPE_CHECKING:
    from workbench.run import Run
    from workbench.window import Window


def _list(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    from probes.registry import BROKEN, find, names

    for name in names():
        known = find(name)
        echo(f"{name:<24} {known.reads:<11} {known.question}")
    for package, why in BROKEN.items():
        echo(f"{package}: could not be imported: {why}", err=True)
    context.exit()


@click.command("probe")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("names", nargs=-1, required=True)
@click.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list,
    help="List the probes that there are, and leave.",
)
@click.option("--branch", "--arm", "branch", default=None, help="Arm; by default main.")
@click.option("--last", default=None, help="The last share (0.2) or stretch of time (7d) alone.")
@click.option("--start", type=int, default=None, help="Steps after this one alone.")
@click.option("--stop", type=int, default=None, help="Steps up to this one alone.")
@click.option(
    "--at-most",
    type=click.IntRange(min=1),
    default=None,
    help="Checkpoints at most, spread evenly; the last is one of them.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="PROBE.NAME=VALUE",
    help="A parameter of a probe; may be repeated.",
)
@click.option(
    "--against",
    default="final",
    show_default=True,
    help="For pairs: final, first, previous, fork or a step.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, ...")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=None,
    help="Processes of this machine to share the checkpoints.",
)
@click.option("--client", default=None, metavar="ADDRESS", help="A Dask scheduler to use instead.")
@click.option("--no-keep", is_flag=True, help="Neither take nor keep results in the run.")
@click.option("--skip-broken", is_flag=True, help="Leave out checkpoints that a probe fails at.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="Write the result of one probe: .csv, .json or .nc.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
def probe_command(
    run: Path, names: Sequence[str], branch: str | None, last: str | None, start: int | None,
    stop: int | None, at_most: int | None, settings: Sequence[str], against: str, device: str,
    workers: int | None, client: str | None, no_keep: bool, skip_broken: bool, out: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Run probes NAMES over RUN and keep what they find; what is there is not computed again.

    Probes that look at checkpoints share one pass over each. `workbench probe --list` names all.
    """
    from probes.examine import examine
    from probes.registry import find
    from workbench import open_run
    from workbench.app.probe_files import ResultFile
    from workbench.errors import UsageError

    if out is not None and len(names) > 1:
        raise UsageError(f"-o {out}: expected one probe, found {len(names)}.")
    params = _params(settings)
    for name in names:
        find(name)  # refused before anything is computed
    source = _source(open_run(run, branch), last, start, stop)
    file = ResultFile(out) if out is not None else None  # likewise
    with _client(workers, client) as dask:
        found = examine(
            source, *names, params=params,
            against=_against(against), client=dask, keep=not no_keep,
            progress=not as_json, device=_device(device), skip_broken=skip_broken,
            at_most=at_most,
        )  # fmt: skip
    if file is not None:
        file.write(found[names[0]])
    if as_json:
        from workbench.app.probe_text import as_plain

        echo(json.dumps({name: as_plain(ds) for name, ds in found.items()}))
        return
    from workbench.app.probe_text import as_text

    for name, ds in found.items():
        echo(as_text(name, ds))
    if out is not None:
        echo(str(out))


def _params(settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Parameters by probe. A value that Python reads as a literal is that, else it is text.

    Example:
        >>> _params(["saturation.n_boot=200", "lesion.way=zero"])
        {'saturation': {'n_boot': 200}, 'lesion': {'way': 'zero'}}
    """
    from workbench.errors import UsageError

    found: dict[str, dict[str, Any]] = {}
    for setting in settings:
        place, equals, text = setting.partition("=")
        probe, dot, name = place.partition(".")
        if not (equals and dot and probe and name):
            raise UsageError(
                f"--set {setting}: expected PROBE.NAME=VALUE, as saturation.n_boot=99."
            )
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
        found.setdefault(probe, {})[name] = value
    return found


def _source(run: Run, last: str | None, start: int | None, stop: int | None) -> Run | Window:
    if last is not None:
        try:
            share: float | str = float(last)
        except ValueError:
            share = last
        return run.window(last=share, start=start, stop=stop)
    if start is not None or stop is not None:
        return run.window(start=start, stop=stop)
    return run


def _against(said: str) -> Any:
    """A step where it is written as one; anything else is judged by who knows the words."""
    plain = said.isascii() and said.isdigit() and len(said) <= 18
    return int(said) if plain else said


def _device(name: str) -> str:
    from model.training.loop import pick_device

    return str(pick_device(name))


@contextmanager
def _client(workers: int | None, address: str | None) -> Iterator[Any]:
    """A Dask client; None where none was asked for."""
    from workbench.errors import UsageError

    if workers is None and address is None:
        yield None
        return
    try:
        import distributed
    except ImportError:
        raise UsageError(
            "Dask's distributed is not installed: "
            "pip install 'training-dynamics-workbench[probes]'."
        ) from None
    if address is not None:
        try:
            client = distributed.Client(address, timeout=10)
        except (OSError, ValueError, TimeoutError) as error:
            raise UsageError(f"--client {address}: no scheduler answers there ({error}).") from None
        with client:
            yield client
        return
    # Processes: Python's threads would take turns, and models of several checkpoints share nothing.
    cluster = distributed.LocalCluster(
        n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=40
    )
    with cluster, distributed.Client(cluster) as client:
        yield client
