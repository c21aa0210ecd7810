"""How JupyterLab is started: where, with which settings, and without a question of its own.

Needs   a folder; what the user adds for Jupyter.
Yields  `command`, `environment`, `why_not`.

JupyterLab would ask whether to build itself anew as soon as Dash is installed beside it, and
whether to fetch news; both are settled here, for this start alone: nothing of the user's own
settings is changed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

SETTINGS = Path(__file__).parent / "settings"
"""A folder as JUPYTER_CONFIG_PATH takes it: labconfig/page_config.json."""


def why_not() -> str:
    """Why JupyterLab cannot be started here; "" where it can.

    Example:
        >>> isinstance(why_not(), str)
        True
    """
    if find_spec("jupyterlab") is None:
        return "JupyterLab is not installed: pip install 'training-dynamics-workbench[lab]'."
    return ""


def tile_there() -> bool:
    """Whether JupyterLab will show the dashboard's tile."""
    return find_spec("jupyter_server_proxy") is not None


def command(
    folder: Path, *, port: int | None = None, browser: bool = True, more: Sequence[str] = ()
) -> list[str]:
    """The command line of JupyterLab on `folder`.

    Args:
        folder: what its file browser shows.
        port: None leaves it to Jupyter: 8888, or the next that is free.
        browser: whether it opens one.
        more: options for Jupyter; they come last, and so before ours.

    Example:
        >>> command(Path("mine"), browser=False)[-1]
        '--no-browser'
    """
    line = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder.absolute()}"]
    if port is not None:
        line.append(f"--ServerApp.port={port}")
    if not browser:
        line.append("--no-browser")
    return [*line, *more]


def environment(given: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of JupyterLab: `given` (or this process's), with our page settings before
    the others.

    Example:
        >>> environment({"JUPYTER_CONFIG_PATH": "/etc/mine"})["JUPYTER_CONFIG_PATH"][-9:]
        '/etc/mine'
    """
    env = dict(os.environ if given is None else given)
    paths = [str(SETTINGS), env.get("JUPYTER_CONFIG_PATH", "")]
    env["JUPYTER_CONFIG_PATH"] = os.pathsep.join(filter(None, paths))
    return env
