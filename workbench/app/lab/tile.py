"""The tile "Training dynamics" of JupyterLab's launcher: the dashboard, behind Jupyter's own login.

Needs   jupyter-server-proxy, which finds `training_dynamics` under the entry point group
        `jupyter_serverproxy_servers` and asks it when JupyterLab starts.
Yields  the description of the server that it starts when somebody clicks the tile.

The tile opens the run that WORKBENCH_RUN names where JupyterLab was started, else the one below
runs/ that was written last at the first click. It goes on showing that run until JupyterLab stops.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

NAME = "training-dynamics"
"""The entry point's name, and the part of the address below which the dashboard lies."""

TITLE = "Training dynamics"

READY_SECONDS = 60
"""A dashboard imports plotly and opens a store before it answers."""


def training_dynamics() -> dict[str, Any]:
    """What jupyter-server-proxy is to start, and how it shows it.

    The proxy takes its own part off every address, and the dashboard puts it back into its links.
    `Host` is the address that it listens on: it refuses any other, as a server on loopback should.

    Example:
        >>> training_dynamics()["launcher_entry"]["title"]
        'Training dynamics'
    """
    return {
        "command": [
            sys.executable, "-m", "workbench.app.lab.tile_server", "--port", "{port}",
            "--prefix", "{base_url}" + NAME + "/",
        ],
        "timeout": READY_SECONDS,
        "request_headers_override": {"Host": "127.0.0.1:{port}"},
        "new_browser_tab": True,
        "launcher_entry": {
            "title": TITLE,
            "icon_path": str(Path(__file__).parent / "tile.svg"),
            "category": "Notebook",
        },
    }  # fmt: skip
