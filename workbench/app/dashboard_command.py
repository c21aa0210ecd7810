"""`workbench dashboard`: a live page of a run, for a browser.

Needs   a run's folder; the extra [dashboard].
Yields  the address on stdout; then answers until it is interrupted.
"""

from __future__ import annotations

from pathlib import Path

import click

from workbench.app.echo import echo


@click.command("dashboard")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8050, show_default=True, help="0: any."
)
@click.option(
    "--token", default=None,
    help="What a browser must show; made and printed where --host is not this machine alone.",
)  # fmt: skip
@click.option(
    "--prefix", default="/", show_default=True, help="Path that a proxy puts before every path."
)
def dashboard_command(run: Path, host: str, port: int, token: str | None, prefix: str) -> None:
    """Serve a live page of RUN, which may be being written. Nothing in it is changed.

    It answers on this machine only. With another --host a token is asked for, because whoever
    reaches the port could read the run otherwise.
    """
    from workbench.app.dashboard.server import serve

    serve(run, host=host, port=port, token=token, prefix=prefix, say=echo)
