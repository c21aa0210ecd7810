"""Export command: `workbench export RUN --to TARGET`.

Needs   a run, and a target that does not exist yet.
Yields  a Zarr folder, a NetCDF file or Parquet tables; what was written, on stdout.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from workbench.app.echo import echo


@click.command("export")
@click.argument("run")
@click.option(
    "--to", "target", type=click.Path(path_type=Path), required=True,
    help="File or folder to make: NAME.zarr, NAME.nc, NAME.parquet.",
)  # fmt: skip
@click.option("--branch", "--arm", "branch", default=None, help="Arm to export; by default main.")
@click.option("--group", "groups", multiple=True, help="Group to export; may be repeated.")
@click.option(
    "--format", "kind", type=click.Choice(["zarr", "netcdf", "parquet"]), default=None,
    help="By default as the suffix of the target says.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
def export_command(
    run: str, target: Path, branch: str | None, groups: Sequence[str], kind: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Write the record of RUN to plain Zarr, NetCDF or Parquet, whole or not at all."""
    from workbench.store.export import export

    done = export(run, target, branch=branch, groups=groups, format=kind)
    if as_json:
        note = {
            "target": str(done.target), "format": done.format, "groups": done.groups,
            "files": [str(file) for file in done.files], "bytes": done.bytes, **done.origin,
        }  # fmt: skip
        echo(json.dumps(note))
        return
    echo(
        f"exported {', '.join(done.groups)} of {done.origin['run']}, branch "
        f"{done.origin['branch']}, snapshot {done.origin['snapshot']} "
        f"({done.bytes / 1e6:,.1f} MB, {done.format}):"
    )
    for file in done.files:
        echo(f"  {file}")
