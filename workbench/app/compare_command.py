"""`workbench compare`: what each arm bought over the baseline, as a table.

Needs   a run with two arms or more that were evaluated.
Yields  a sentence and a table for each arm on stdout, or JSON.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from workbench.app.echo import echo


@click.command("compare")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--arm", "arms", multiple=True, help="Only this arm; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
def compare_command(run: Path, arms: tuple[str, ...], as_json: bool) -> None:
    """Compare the arms of RUN with its baseline (continue, or main), item by item, task by task."""
    from workbench import figures, open_run
    from workbench.app.plots import draw_arms
    from workbench.app.study import Study
    from workbench.errors import RunNotFound

    study = Study(open_run(run))
    for arm in arms:
        if arm not in study.differences:
            raise RunNotFound(
                f"no arm {arm!r} to compare with {study.baseline!r}; there are "
                f"{', '.join(study.differences) or 'none'}."
            )
    chosen = list(arms) or list(study.differences)
    if not chosen:
        draw_arms(study)  # says what is missing
    captions = {arm: figures.caption_of(draw_arms(study, arm=arm)) for arm in chosen}
    if as_json:
        plain = {
            arm: {
                "baseline": study.baseline,
                "sentence": c.sentence,
                "columns": list(c.table.columns),
                "rows": [list(row) for row in c.table.rows],
            }
            for arm, c in captions.items()
        }
        echo(json.dumps(plain))
        return
    for caption in captions.values():
        echo(caption.sentence)
        echo(_as_text(caption.table.columns, caption.table.rows))


def _as_text(columns: tuple[str, ...], rows: tuple[tuple[object, ...], ...]) -> str:
    """Columns one under the other: text to the left, numbers to the right.

    Example:
        >>> print(_as_text(("task", "gain"), (("code", 0.5), ("logic", None))))
        task    gain
        code   0.500
        logic      –
    """
    cells = [columns, *[tuple(map(_cell, row)) for row in rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    numeric = [all(not isinstance(row[i], str) for row in rows) for i in range(len(columns))]
    return "\n".join(
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in cells
    )


def _cell(value: object) -> str:
    from workbench.figures.wording import plain

    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else plain(str(value), 40)
