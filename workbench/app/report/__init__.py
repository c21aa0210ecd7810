"""The report: one self-contained page that tells what a run was, what came of it, what to doubt.

Needs   the folder of a run; whatever is missing from the record is said to be missing.
Yields  `write_report`: a page that asks nobody for anything and runs no script but its own.

Every name in a run may be hostile: the template escapes text, figures escape their labels
(figures/wording.py), numbers travel as JSON in elements that no browser runs, and the page's
Content-Security-Policy admits our scripts by their hash and no request at all.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from workbench import __version__, open_run
from workbench.app.report.blocks import Picture
from workbench.app.report.doubts import doubts
from workbench.app.report.origin import checkpoint_table, origin
from workbench.app.report.story import sections, summary
from workbench.app.study import Study
from workbench.errors import UsageError
from workbench.figures.page import DRAW, cell_text, policy, to_fragment
from workbench.figures.wording import plain

__all__ = ["render", "write_report"]


def write_report(
    run_path: str | Path,
    out: str | Path | None = None,
    plotlyjs: Literal["inline"] = "inline",
    *,
    causes: bool = False,
) -> Path:
    """Writes the report of a run as one HTML file and returns where it is.

    Args:
        run_path: the run's folder.
        out: the file; by default report.html in the run's folder. Its folder is made if need be.
        plotlyjs: "inline", the only way so far: plotly.js stands in the page (5 MB), once.
        causes: load models to find where the last capability came from, unless that is kept; else
            what is kept is shown.

    Returns:
        The path. The file appears whole or not at all; one that was there is replaced.

    Raises:
        RunNotFound: no run there.
        UsageError: `out` is a folder, or another value of `plotlyjs`.
    """
    if plotlyjs != "inline":
        raise UsageError(f"plotlyjs={plotlyjs!r}: a report is self-contained; expected 'inline'.")
    target = Path(run_path) / "report.html" if out is None else Path(out)
    if target.is_dir():
        raise UsageError(
            f"{target} is a folder; give a file, for example {target / 'report.html'}."
        )
    page = render(Study(open_run(run_path), load_models=causes))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def render(study: Study) -> str:
    """The page of a study."""
    run = study.run
    chapters = sections(study)
    plotly = get_plotlyjs()
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(cell=cell_text, plain=_shown, kind=lambda b: type(b).__name__)
    environment.globals.update(fragment=_fragment)
    script = _own("page.js")
    return environment.get_template("page.html").render(
        name=plain(run.name, 64),
        title=f"{plain(run.name, 80)}: what happened in training",
        summary=summary(study),
        sections=chapters,
        # After the chapters: what could not be measured is known only then.
        doubts=doubts(study),
        provenance=origin(run),
        checkpoints=[(name, checkpoint_table(arm)) for name, arm in study.arms.items()],
        run_json=json.dumps(run.attrs, indent=1, sort_keys=True, ensure_ascii=False),
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        version=__version__,
        policy=policy(plotly, DRAW, script),
        style=Markup(_own("page.css")),
        plotly=Markup(plotly),
        draw=Markup(DRAW),
        script=Markup(script),
    )


def _shown(value: Any) -> str:
    """Text of a name on the page: on one line, cut where it is thousands of letters long."""
    return plain(value, 120)


def _fragment(picture: Picture) -> Markup:
    return Markup(to_fragment(picture.figure, picture.id))


def _own(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
