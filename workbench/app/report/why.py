"""Where and why: the answers about the capability that came last; and what other probes measured.

Needs   a Study.
Yields  the chapters `why` and `others`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from workbench import figures
from workbench.app import plots
from workbench.app.report.blocks import Missing, Section, Words, picture
from workbench.app.study import Study
from workbench.errors import SchemaError
from workbench.figures.wording import listed, plain

SHOWN = 12
"""Results of other probes that are drawn; the rest are named."""


def why(study: Study) -> Section:
    """Which part of the model the last capability came with, and what moved before it."""
    about = study.causes.about
    if about is None:
        text = (
            "No capability arrived in the final stretch (an onset there, and a gain of a tenth of "
            "the way from chance to perfect): there is none to trace back."
        )
        return Section("why", "Where and why", [Missing(text)])
    task, arm = plain(about.task), plain(about.arm)
    blocks: list[Any] = [
        Words(
            f"Asked about {task} on {arm}, whose onset is at step {about.onset:,.0f}: of all that "
            f"arrived in the final stretch it gained most, {about.gain:+.2f} on the scale from "
            f"chance (0) to perfect (1)."
        )
    ]
    if "lead-lag" in study.causes.found:
        blocks.append(
            Words(
                f"Leaders are sought after step {study.final_start:,}, where the final stretch "
                f"begins: what its new data moved at once would lead every later onset."
            )
        )
    blocks += [
        picture(name.replace(" ", "-"), partial(plots.draw_cause, study, name))
        for name in ("transplant", "transplant by layer", "lead-lag")
    ]
    return Section("why", "Where and why", blocks)


def others(study: Study) -> Section:
    """The kept results of all other probes, the newest of each: the first quantity as a figure."""
    blocks: list[Any] = []
    kept = plots.kept_results(study)
    for i, (name, branch, result) in enumerate(kept[:SHOWN]):
        try:
            code = plots.code_of_probe(name, study, branch)
            figure = figures.probe_result(
                result, name=f"{name} ({branch})", marks=study.marks, code=code
            )
        except SchemaError as error:
            blocks.append(Missing(f"{plain(name)}: {error}"))
            continue
        blocks.append(picture(f"probe-{i}", lambda drawn=figure: drawn))  # type: ignore[misc]
    if len(kept) > SHOWN:
        rest = listed([plain(name) for name, _, _ in kept[SHOWN:]])
        blocks.append(Words(f"Kept as well, and drawn by `workbench plot NAME RUN`: {rest}."))
    if not blocks:
        blocks = [
            Missing(
                "No other probe was run. `workbench probe --list` names them; what "
                "`workbench probe RUN NAME` finds is shown here."
            )
        ]
    return Section("probes", "What other probes measured", blocks)
