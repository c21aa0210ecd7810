"""The command line: `workbench ...`.

Needs   arguments.
Yields  exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such run or data, 130 interrupted.

Heavy libraries are imported inside the commands, so that `--help` answers at once. An error that
the user can mend is one line on stderr; anything else is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench import __version__
from workbench.app.checkpoint_commands import checkpoints
from workbench.app.compare_command import compare_command
from workbench.app.dashboard_command import dashboard_command
from workbench.app.echo import echo
from workbench.app.export_command import export_command
from workbench.app.lab_command import lab
from workbench.app.plot_command import plot_command
from workbench.app.probe_commands import probe_command
from workbench.app.store_commands import gc, results, verify

if TYPE_CHECKING:
    from workbench.app.experiment import Experiment

RUN = click.argument("run", type=click.Path(path_type=Path))
DEVICE = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ..."
)
COMPILE = click.option("--compile", is_flag=True, help="Compile the model with torch.compile.")
THREADS = click.option(
    "--threads", type=click.IntRange(min=1), default=None,
    help="CPU threads of torch; by default its own choice, at most 4.",
)  # fmt: skip
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="workbench")
def commands() -> None:
    """Record how a mixture-of-experts language model changes while it trains, and study it."""


@commands.command()
@click.option("--preset", default=None, help="Model and training plan; nano by default.")
@click.option("--into", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--seed", type=int, default=None, help="Of world, weights and batches.")
@click.option("--steps", type=int, default=None, help="Optimizer steps; by default the plan's.")
@click.option("--until", type=float, default=None, help="Stop at this share of the steps.")
@click.option("--resume", is_flag=True, help="Go on with a run that is there.")
@DEVICE
@COMPILE
@THREADS
def train(
    preset: str | None, into: Path, seed: int | None, steps: int | None, until: float | None,
    resume: bool, device: str, compile: bool, threads: int | None,
) -> None:  # fmt: skip
    """Train a model with capture on, its main line from the start to the end."""
    from workbench.app.experiment import fork_step
    from workbench.errors import UsageError

    experiment = _experiment(into, device, compile, threads)
    share = None if until == 1 else until
    if resume:
        if (preset, seed, steps) != (None, None, None):
            raise UsageError(
                "--resume goes on with the run's own plan: leave out --preset, --seed and --steps."
            )
        echo(experiment.standing())
    else:
        plan = _plan(preset or "nano", seed, steps)
        if share is not None:
            fork_step(plan, share)  # refused before a run is begun
        experiment.begin(plan)
    experiment.train_main(None if share is None else fork_step(experiment.plan, share))
    _next("workbench report RUN", "workbench plot router-load RUN", run=into)


@commands.command()
@RUN
@click.option("--fork-at", default=0.8, show_default=True, help="Share of the steps to fork at.")
@click.option("--arm", "arms", multiple=True, required=True, help="Arm to train; may be repeated.")
@DEVICE
@COMPILE
@THREADS
def arms(
    run: Path, fork_at: float, arms: Sequence[str], device: str, compile: bool, threads: int | None
) -> None:
    """Fork arms from the main line of RUN and train each to the end on its own mixture."""
    from model.training.schedule import arm_mixture
    from workbench.app.experiment import fork_step

    for arm in arms:
        arm_mixture(arm)  # refuse all before training any
    experiment = _experiment(run, device, compile, threads)
    step = fork_step(experiment.plan, fork_at)
    for arm in arms:
        experiment.train_arm(arm, step)
    _next("workbench report RUN", "workbench plot arms RUN", run=run)


@commands.command()
@click.option(
    "--into", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True,
    help="Folder of the run.",
)  # fmt: skip
@click.option("--preset", default=None, help="Model and training plan; nano by default.")
@click.option("--seed", type=int, default=None)
@click.option("--steps", type=int, default=None)
@click.option("--fresh", is_flag=True, help="Move a run that is there aside, and begin another.")
@DEVICE
@COMPILE
@THREADS
def demo(
    into: Path, preset: str | None, seed: int | None, steps: int | None, fresh: bool, device: str,
    compile: bool, threads: int | None,
) -> None:  # fmt: skip
    """The whole job: train to 80 %, fork two arms, evaluate, report. Goes on after a stop."""
    from workbench.app.experiment import move_aside
    from workbench.app.report import write_report
    from workbench.errors import UsageError

    experiment = _experiment(into, device, compile, threads)
    there, asked = experiment.folder.exists, (preset, seed, steps) != (None, None, None)
    if there and asked and not fresh:
        raise UsageError(
            f"{into} holds a run with a plan of its own: leave out --preset, --seed and --steps to "
            f"go on with it, or add --fresh to begin another."
        )
    plan = _plan(preset or "nano", seed, steps)
    if there and fresh:
        echo(f"moved the run that was there to {move_aside(into)}")
    if experiment.folder.exists:
        echo(f"found {experiment.standing()}")
        echo("going on with it; --fresh (make demo FRESH=1) begins another instead")
    else:
        experiment.begin(plan)
    fork = experiment.plan.schedule.fork_step
    experiment.train_main(until=fork)
    for arm in ("continue", "curriculum"):
        experiment.train_arm(arm, fork)
    echo("probing where the last capability came from")
    page = write_report(into, causes=True)
    echo(f"\nreport: {page}")
    _next(
        "workbench plot router-load RUN -o load.html", "workbench checkpoints list RUN", "make lab",
        run=into,
    )  # fmt: skip


@commands.command()
@RUN
@click.option("-o", "--out", type=click.Path(path_type=Path), help="By default RUN/report.html.")
@click.option(
    "--causes", is_flag=True,
    help="Load models to find where the last capability came from, unless that is kept.",
)  # fmt: skip
@JSON
def report(run: Path, out: Path | None, causes: bool, as_json: bool) -> None:
    """Write the report of RUN: one HTML page that asks nobody for anything."""
    from workbench.app.report import write_report

    page = write_report(run, out, causes=causes)
    echo(json.dumps({"report": str(page)}) if as_json else str(page))


@commands.command()
@click.argument("model", default="nano")
@click.option("--batch", type=click.IntRange(min=1), default=None, help="Rows of a step.")
@click.option("--length", type=click.IntRange(min=1), default=None, help="Positions of a row.")
@click.option("--step-seconds", type=float, default=None, help="Of a training step of yours.")
@click.option("--steps-per-day", type=float, default=None, help="The same, the other way round.")
@click.option(
    "--traces", default=1e-3, show_default=True, help="Share of the tokens to trace; 0 for none."
)
@click.option("--checkpoints", type=int, default=None, help="Checkpoints that your trainer saves.")
@click.option("--keep", type=int, default=None, help="How many of them it keeps; by default all.")
@click.option(
    "--into", type=click.Path(path_type=Path), default=Path("runs"), show_default=True,
    help="Folder that runs would be recorded into.",
)  # fmt: skip
@DEVICE
@THREADS
@JSON
def doctor(
    model: str, batch: int | None, length: int | None, step_seconds: float | None,
    steps_per_day: float | None, traces: float, checkpoints: int | None, keep: int | None,
    into: Path, device: str, threads: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Say what capture would do with MODEL on this machine: what is recorded, how many bytes, what
    it costs, what would go wrong. Exits 1 where data would be lost.

    MODEL is a preset (nano, small, base, dbrx), a folder with a Hugging Face config.json, or
    package.module:function that returns an nn.Module. Takes about 15 s, longer on a busy machine.
    """
    import os

    policy = os.environ.get("OMP_WAIT_POLICY")
    _use_threads(threads)
    from workbench.app.doctor import as_json as plain
    from workbench.app.doctor import as_text, diagnose

    checkup = diagnose(
        model, rows=batch, length=length, step_seconds=step_seconds, steps_per_day=steps_per_day,
        traces=traces, checkpoints=checkpoints, keep=keep, into=into, device=device,
        omp_wait_policy=policy,
    )  # fmt: skip
    echo(json.dumps(plain(model, checkup)) if as_json else as_text(model, checkup))
    sys.exit(0 if checkup.healthy else 1)


for command in (
    checkpoints, compare_command, export_command, gc, lab, plot_command, probe_command, results,
    verify,
    dashboard_command,
):  # fmt: skip
    commands.add_command(command)


def _plan(preset: str, seed: int | None, steps: int | None) -> Any:
    from dataclasses import replace

    from model.training.plan import plan_for

    plan = plan_for(preset)
    if seed is not None:
        plan = replace(plan, seed=seed)
    return plan if steps is None else plan.scaled(steps)


def _experiment(into: Path, device: str, compile: bool, threads: int | None) -> Experiment:
    _use_threads(threads)
    from workbench.app.experiment import Experiment

    return Experiment(into, say=echo, device=device, compile=compile)


def _use_threads(threads: int | None) -> None:
    import os

    # Threads that wait by spinning starve each other when anything else runs: measured with one
    # busy process beside two threads, 1,000 ms a step against 220. Read once, when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_num_threads(threads or min(4, os.cpu_count() or 1, torch.get_num_threads()))


def _next(*commands: str, run: Path) -> None:
    import shlex

    lines = (c.replace("RUN", shlex.quote(str(run))) for c in commands)
    echo("next:\n" + "\n".join(f"  {line}" for line in lines))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and leaves with its exit code."""
    try:
        commands.main(
            args=list(arguments) if arguments is not None else None, standalone_mode=False
        )
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        echo(shown.getvalue(), err=True, nl=False)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        echo("interrupted; what was committed is kept", err=True)
        sys.exit(130)
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        echo(f"workbench: {error}", err=True)
        sys.exit(code)


if __name__ == "__main__":
    main()
