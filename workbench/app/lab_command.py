"""`workbench lab`: JupyterLab on a working copy of the notebooks.

Needs   the extra [lab].
Yields  the command `lab`. It becomes JupyterLab: Ctrl-C is JupyterLab's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from workbench.app.echo import echo

FOLDER = Path("runs/notebooks")
"""Beside the runs, and like them not in git."""


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=FOLDER)
@click.option("--fresh", is_flag=True, help="Set edited notebooks aside and copy this version's.")
@click.option("--port", type=click.IntRange(1, 65535), default=None, help="8888 where it is free.")
@click.option("--no-browser", is_flag=True, help="Open no browser; the address is printed.")
@click.option("--jupyter", multiple=True, help="An option of Jupyter's: --jupyter=--allow-root.")
def lab(
    folder: Path, fresh: bool, port: int | None, no_browser: bool, jupyter: Sequence[str]
) -> None:
    """Open JupyterLab on a working copy of the notebooks in FOLDER (runs/notebooks).

    Notebooks that you edited are kept.

    The tile "Training dynamics" of its launcher opens the dashboard of the run that the variable
    WORKBENCH_RUN names, else of the one below runs/ that was written last.
    """
    import os
    import subprocess
    import sys

    from workbench.app.lab.copies import make_copies
    from workbench.app.lab.jupyter_lab import command, environment, tile_there, why_not
    from workbench.app.lab.newest_run import run_to_show
    from workbench.errors import UsageError

    if why := why_not():
        raise UsageError(why)
    for copy in make_copies(folder, fresh=fresh):
        echo(str(copy))
    run = run_to_show()
    if not tile_there():
        echo("no tile for the dashboard: pip install 'training-dynamics-workbench[lab,dashboard]'")
    elif run is None:
        echo("the tile Training dynamics waits for a run below runs/: workbench demo makes one")
    else:
        echo(f"the tile Training dynamics opens {run}")
    line = command(folder, port=port, browser=not no_browser, more=jupyter)
    sys.stdout.flush()
    if os.name == "posix":
        # In place of this process: Ctrl-C then reaches JupyterLab alone, which ends its kernels.
        os.execve(line[0], line, environment())
    sys.exit(subprocess.call(line, env=environment()))
