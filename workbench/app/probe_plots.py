"""Figures of what one probe found: by the figure's name, by the probe's, or any probe as it comes.

Needs   a Study; the name of a figure or of a probe.
Yields  DRAWERS, figure name -> Drawer; `draw_probe`; `draw_found`, the figure of a result that is
        there.

A drawer is said once, and both the figure and its "copy as code" follow from it: they cannot say
different things.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go
import xarray as xr

from workbench import figures
from workbench.app.asked import Asked, of_layer
from workbench.app.plot_code import program
from workbench.app.study import Study, with_clocks
from workbench.errors import RunNotFound
from workbench.run import Run
from workbench.window import Window


@dataclass(frozen=True, kw_only=True)
class Drawer:
    """How what a probe found is drawn."""

    probe: str
    figure: str
    """Name of the function in workbench.figures."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keywords that it is always given."""
    takes: tuple[str, ...] = ()
    """Of x, marks, layer, task: the keywords that it knows."""
    end_only: bool = False
    """Whether the last checkpoint against the start of the final stretch is asked, not all."""


DRAWERS: dict[str, Drawer] = {
    "lesions": Drawer(probe="lesion", figure="lesions", takes=("x", "task")),
    "weight-change": Drawer(probe="weight-change", figure="weight_changes", end_only=True),
    "router-transplant": Drawer(probe="router-transplant", figure="router_grid", takes=("task",)),
}
"""Figure name -> how it is drawn."""

_PLAIN = Drawer(probe="", figure="probe_result", takes=("x", "marks"))


def drawer_of(name: str) -> Drawer:
    """The drawer of a figure's name or of a probe's; any other probe's results are drawn as lines.

    Example:
        >>> drawer_of("lesion").figure, drawer_of("participation").figure
        ('lesions', 'probe_result')
    """
    if name in DRAWERS:
        return DRAWERS[name]
    return next((d for d in DRAWERS.values() if d.probe == name), _PLAIN)


def draw_probe(name: str, study: Study, asked: Asked) -> go.Figure:
    """Runs a probe along one branch, or takes what is kept of it, and draws it.

    Args:
        name: of a figure in DRAWERS, or of a probe.

    Raises:
        UsageError: an option that the figure does not know.
        RunNotFound: the record lacks what the probe takes.
    """
    from probes.examine import examine

    drawer = drawer_of(name)
    asked.refuse_others(name, ["arm", "last", "layer", *(["task"] * ("task" in drawer.takes))])
    probe = drawer.probe or name
    run = _run(study, asked)
    source: Any = asked.part(run)
    where, against = f"run{asked.part_code}", ""
    keywords: dict[str, Any] = {}
    if drawer.end_only:
        source, start = _end(study, source)
        keywords["against"] = start
        where, against = f"{where}.checkpoints[-1:]", f", against={start}"
    found = examine(source, probe, progress=study.load_models, **keywords)[probe]
    lines = [f"found = probes.examine({where}, {probe!r}{against})[{probe!r}]"]
    return draw_found(found, probe, study, run.branch, lines, asked)


def draw_found(
    found: xr.Dataset, probe: str, study: Study, branch: str, lines: list[str],
    asked: Asked | None = None, title: str = "",
) -> go.Figure:  # fmt: skip
    """The figure of a probe's result.

    Args:
        lines: Python that makes `found` from `run`.
        title: what stands for the probe's name where its own figure is not known.
    """
    asked = asked or Asked()
    drawer = drawer_of(probe)
    given: dict[str, Any] = dict(drawer.options)
    if drawer is _PLAIN:
        given["name"] = title or probe
    if asked.task is not None:
        given["task"] = asked.task
    if asked.layer is not None:
        if "layer" in drawer.takes:
            given["layer"] = asked.layer
        else:
            found = of_layer(found, asked.layer)
            lines = [*lines, f"found = found.sel(layer=[{asked.layer}])"]
    if asked.x != "step" and "x" in drawer.takes:
        given["x"] = asked.x
        found = with_clocks(found, study.run.arm(branch))
        lines = [*lines, "found = with_clocks(found, run)"]
    said = [f"{name}={value!r}" for name, value in given.items()]
    if "marks" in drawer.takes:
        said.append("marks=figures.marks_of(run)")
        given["marks"] = study.marks
    call = f"figures.{drawer.figure}({', '.join(['found', *said])})"
    return getattr(figures, drawer.figure)(
        found, **given, code=program(study, [*lines, call], branch)
    )


def _run(study: Study, asked: Asked) -> Run:
    if asked.arm is not None:
        return study.run.arm(asked.arm)
    return study.run if study.run.branch in study.arms else study.arms[list(study.arms)[-1]]


def _end(study: Study, source: Run | Window) -> tuple[Any, int]:
    """The last checkpoint, and the step of the one that the final stretch sets out from."""
    every = source.checkpoints
    usable = [c.step for c in every if c.record.complete]
    start = source.start if isinstance(source, Window) else study.final_start
    run = source.run if isinstance(source, Window) else source
    before = [c.step for c in run.checkpoints if c.record.complete and c.step <= start]
    if not usable or not before or usable[-1] == before[-1]:
        raise RunNotFound(
            f"{run.path}: the weights of a checkpoint after step {start} and of one at it or "
            "before are needed."
        )
    return every.chosen([every.steps.index(usable[-1])]), before[-1]
