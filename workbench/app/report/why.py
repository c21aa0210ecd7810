"""Where and why: the answers about the capability that came last; and what other probes measured.

Needs   a Study.
Yields  the chapters `why` and `others`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from workbench.app import plots
from workbench.app.causes import Emergent
from workbench.app.kept import kept_results
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
            f"Asked about {task} on {arm}, whose onset is at step {about.onset:,.0f}: of "
            f"{_those(about)} it gained most, {about.gain:+.2f} on the scale from chance (0) to "
            f"perfect (1)."
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


def _those(about: Emergent) -> str:
    if about.verdict == "jump":
        return "the capabilities that came by a jump in the final stretch"
    return "all that arrived in the final stretch (none of it by a jump)"


def others(study: Study) -> Section:
    """The kept results of all other probes, one of each: its first quantity as a figure."""
    blocks: list[Any] = []
    kept = kept_results(study, without=plots.DRAWN)
    for i, shown in enumerate(kept[:SHOWN]):
        try:
            figure = shown.figure(study)
        except SchemaError as error:
            blocks.append(Missing(f"{plain(shown.title)}: {error}"))
            continue
        blocks.append(picture(f"probe-{i}", lambda drawn=figure: drawn))  # type: ignore[misc]
    if len(kept) > SHOWN:
        rest = listed([plain(shown.title) for shown in kept[SHOWN:]])
        blocks.append(Words(f"Kept as well, and drawn by `workbench plot NAME RUN`: {rest}."))
    if not blocks:
        blocks = [
            Missing(
                "No other probe was run. `workbench probe --list` names them; what "
                "`workbench probe RUN NAME` finds is shown here."
            )
        ]
    return Section("probes", "What other probes measured", blocks)
