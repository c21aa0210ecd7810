"""Figures of what one probe found: by the figure's name, by the probe's, or any probe as it comes.

Needs   a Study; the name of a figure or of a probe.
Yields  DRAWERS, figure name -> Drawer; `draw_probe`; `draw_found`, the figure of a result that is
        there.

A drawer is said once, and both the figure and its "copy as code" follow from it: they cannot say
different things.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import plotly.graph_objects as go
import xarray as xr

from probes.examine import examine
from workbench import figures
from workbench.app.asked import Asked, of_layer
from workbench.app.plot_code import program
from workbench.app.study import Study, with_clocks
from workbench.errors import RunNotFound
from workbench.run import Run
from workbench.window import Window

TOKENIZER = "tokenizer.json"
"""Where a run that the workbench trained keeps its tokenizer; others show ids."""


@dataclass(frozen=True, kw_only=True)
class Drawer:
    """How what a probe found is drawn."""

    probe: str
    figure: str
    """Name of the function in workbench.figures."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keywords that it is always given."""
    takes: tuple[str, ...] = ()
    """Of x, marks, layer, expert, task, tokens: the keywords that it knows."""
    asks: Literal["all", "last", "end"] = "all"
    """Checkpoints that the probe is asked about: all; the last, for a figure of one moment; the
    last against the start of the final stretch."""


DRAWERS: dict[str, Drawer] = {
    "routing-flow": Drawer(probe="flow", figure="flow", takes=("layer",), asks="last"),
    "flow-sankey": Drawer(probe="flow", figure="sankey", takes=("layer",), asks="last"),
    "rerouting": Drawer(probe="rerouting", figure="rerouting", takes=("layer",)),
    "coactivation": Drawer(probe="coactivation", figure="coactivation", takes=("layer",)),
    "domain-experts": Drawer(probe="domains", figure="domains", takes=("layer",)),
    "expert-vocabulary": Drawer(
        probe="vocabulary", figure="vocabulary", takes=("layer", "expert", "tokens"), asks="last"
    ),
    "lesions": Drawer(probe="lesion", figure="lesions", takes=("x", "task")),
    "weight-change": Drawer(probe="weight-change", figure="weight_changes", asks="end"),
    "router-transplant": Drawer(probe="router-transplant", figure="router_grid", takes=("task",)),
    "probe-heatmap": Drawer(
        probe="linear",
        figure="by_layer",
        takes=("x", "marks"),
        options={"variable": "accuracy", "name": "linear"},
    ),
    "essential-dynamics": Drawer(probe="essential-dynamics", figure="trajectory"),
}
"""Figure name -> how it is drawn."""

ALIKE = {"coactivation-fixed": "coactivation", "domains-fixed": "domain-experts"}
"""Probes whose results the figure of another draws as well."""

_CAUSES = {
    "transplant": Drawer(probe="transplant", figure="transplant"),
    "lead-lag": Drawer(probe="lead-lag", figure="leads"),
}
"""Probes whose figures by these names are of what the report asked of them (plots.py)."""

_PLAIN = Drawer(probe="", figure="probe_result", takes=("x", "marks"))


def drawer_of(name: str) -> Drawer:
    """The drawer of a figure's name or of a probe's; any other probe's results are drawn as lines,
    or as a map by layer.

    Example:
        >>> drawer_of("lesion").figure, drawer_of("participation").figure
        ('lesions', 'probe_result')
        >>> drawer_of("domains-fixed").probe
        'domains-fixed'
    """
    if name in DRAWERS or name in _CAUSES:
        return DRAWERS.get(name) or _CAUSES[name]
    if name in ALIKE:
        return replace(DRAWERS[ALIKE[name]], probe=name, asks="last")
    # What a linear probe found is a quantity like others; its map has a name of its own.
    own = (d for d in DRAWERS.values() if d.probe == name and d.figure != "by_layer")
    return next(own, plain_drawer(name))


def plain_drawer(name: str) -> Drawer:
    """The drawer of any probe's first quantity."""
    return replace(_PLAIN, probe=name)


def draw_probe(name: str, study: Study, asked: Asked) -> go.Figure:
    """Runs a probe along one branch, or takes what is kept of it, and draws it.

    Args:
        name: of a figure in DRAWERS, or of a probe.

    Raises:
        UsageError: an option that the figure does not know.
        RunNotFound: the record lacks what the probe takes.
    """
    drawer = drawer_of(name)
    own = [option for option in ("task", "expert") if option in drawer.takes]
    asked.refuse_others(name, ["arm", "last", "layer", *own])
    probe = drawer.probe
    run = _run(study, asked)
    source: Any = asked.part(run)
    where, against = f"run{asked.part_code}", ""
    keywords: dict[str, Any] = {}
    if drawer.asks != "all":
        at = _last(source)
        where = f"{where}.checkpoints.chosen([{at}])"
        if drawer.asks == "end":
            keywords["against"] = start = _start(study, source, at)
            against = f", against={start}"
        source = source.checkpoints.chosen([at])
    found = examine(source, probe, progress=study.load_models, **keywords)[probe]
    lines = [f"found = probes.examine({where}, {probe!r}{against})[{probe!r}]"]
    return draw_found(found, drawer, study, run.branch, lines, asked)


def draw_found(
    found: xr.Dataset, drawer: Drawer, study: Study, branch: str, lines: list[str],
    asked: Asked | None = None, title: str = "",
) -> go.Figure:  # fmt: skip
    """The figure of a probe's result.

    Args:
        drawer: `drawer_of` the probe's name.
        lines: Python that makes `found` from `run`.
        title: what stands for the probe's name where its own figure is not known.
    """
    asked = asked or Asked()
    given: dict[str, Any] = dict(drawer.options)
    if drawer.figure == _PLAIN.figure:
        given["name"] = title or drawer.probe
    for option in ("task", "expert"):
        if option in asked.given:
            given[option] = getattr(asked, option)
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
    file = study.run.path / TOKENIZER
    if "tokens" in drawer.takes and file.is_file():
        from tokenizers import Tokenizer

        given["tokens"] = Tokenizer.from_file(str(file))
        lines = ["from tokenizers import Tokenizer", *lines,
                 f"tokens = Tokenizer.from_file({str(file)!r})"]  # fmt: skip
        said.append("tokens=tokens")
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


def _last(source: Run | Window) -> int:
    """Place of the last checkpoint whose weights are there."""
    usable = [i for i, c in enumerate(source.checkpoints) if c.record.complete]
    if not usable:
        raise RunNotFound(f"{_run_of(source).path}: no checkpoint there has its weights.")
    return usable[-1]


def _start(study: Study, source: Run | Window, last: int) -> int:
    """Step of the checkpoint that the final stretch, or the window, sets out from."""
    run = _run_of(source)
    start = source.start if isinstance(source, Window) else study.final_start
    before = [c.step for c in run.checkpoints if c.record.complete and c.step <= start]
    if not before or source.checkpoints[last].step == before[-1]:
        raise RunNotFound(
            f"{run.path}: the weights of a checkpoint after step {start} and of one at it or "
            "before are needed."
        )
    return before[-1]


def _run_of(source: Run | Window) -> Run:
    return source.run if isinstance(source, Window) else source
