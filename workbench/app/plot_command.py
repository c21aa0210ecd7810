"""`workbench plot`: a figure of a run as a page, a picture, or its numbers.

Needs   the name of a figure or of a probe; a run.
Yields  a file, whole or not at all; its path on stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from workbench.app.echo import echo

FORMS = "html, png, svg, json or csv"


def _list(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    from probes.registry import find, names
    from workbench.app.plots import questions

    told = questions()
    for name, question in told:
        echo(f"{name:<24} {question}")
    echo("\nany probe's first quantity:")
    for name in names():
        if name not in dict(told):
            echo(f"{name:<24} {find(name).question}")
    context.exit()


@click.command("plot")
@click.argument("name")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list,
    help="List the figures that there are by the question that each answers, and leave.",
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path),
    help=f"Ends in .{FORMS.replace(', ', ', .').replace(' or ', ' or .')}; by default NAME.html.",
)  # fmt: skip
@click.option(
    "--x", type=click.Choice(["step", "tokens", "utc"]), default="step", show_default=True,
    help="Clock of the x axis.",
)  # fmt: skip
@click.option("--arm", "--branch", "arm", default=None, help="This branch alone.")
@click.option("--layer", type=int, default=None, help="This layer alone.")
@click.option("--expert", type=int, default=None, help="Of a figure of one expert: which.")
@click.option("--task", default=None, help="Of a figure of one capability: which.")
@click.option(
    "--last", "--window", "last", default=None,
    help="The last share of the tokens (0.2) or stretch of time (7d) alone.",
)  # fmt: skip
@click.option("--start", type=int, default=None, help="Steps after this one alone.")
@click.option("--stop", type=int, default=None, help="Steps up to this one alone.")
def plot_command(
    name: str, run: Path, out: Path | None, x: str, arm: str | None, last: str | None,
    **options: Any,
) -> None:  # fmt: skip
    """Draw the figure NAME of RUN: router-load, emergence, balance, ... or any probe's by its name.

    The suffix of the file says what it is: .html one page with everything in it, .png and .svg a
    picture (a browser on this machine draws it), .json the plotly figure, .csv its table.
    """
    from workbench import open_run
    from workbench.app.plots import draw
    from workbench.figures.saved import FigureFile

    # Refused before anything is computed.
    file = FigureFile(out or Path(f"{name}.html"))
    figure = draw(
        name, open_run(run, arm), x=x, arm=arm, last=_stretch(last), **options  # type: ignore[arg-type]
    )  # fmt: skip
    echo(str(file.write(figure)))


def _stretch(last: str | None) -> float | str | None:
    """A share where it is written as a number."""
    try:
        return None if last is None else float(last)
    except ValueError:
        return last
