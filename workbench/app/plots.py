"""The figures of a run by name: what `workbench plot NAME RUN` draws, and the report too.

Needs   an open run.
Yields  PLOTS; `plot_names`; `draw`, name and run to a figure with its words, numbers and code.

Figures of what one probe found stand in probe_plots.py.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import plotly.graph_objects as go

import probes
from probes.registry import names
from workbench import figures
from workbench.app.asked import Asked, arms_of, measured
from workbench.app.distances import routing_distances
from workbench.app.plot_code import code, code_of_cause
from workbench.app.probe_plots import DRAWERS, draw_probe
from workbench.app.study import Study, curves_of, load_of
from workbench.errors import RunNotFound, UsageError
from workbench.figures.clock import ClockName
from workbench.figures.wording import plain
from workbench.run import Run


@dataclass(frozen=True)
class Plot:
    """One figure that a run can be asked for."""

    name: str
    question: str
    """What it answers, in a line for `--help`."""
    draw: Callable[[Study, Asked], go.Figure]
    takes: tuple[str, ...] = ()
    """Options that it knows; "last" stands for a stretch asked in any way."""


def plot_names() -> list[str]:
    """Names of the figures of a whole run, in the order of the report.

    Example:
        >>> plot_names()[:4]
        ['loss', 'emergence', 'arms', 'router-load']
    """
    return list(PLOTS)


def draw(name: str, run: Run | Study, *, x: ClockName = "step", **options: Any) -> go.Figure:
    """The figure `name` of a run.

    Args:
        name: one of `plot_names()`, of DRAWERS (figures of what one probe found), or any probe's
            (`probes.names()`): then its first quantity.
        run: an open run; router-load draws the branch it was opened on, unless that is a trunk
            which ends at its forks: then the last arm. The others draw all arms.
        x: clock of the x axis, where there is one.
        options: the other fields of Asked: arm, layer, task, last, start, stop.

    Raises:
        UsageError: no such figure, or an option that it has not; the message names those there are.
        RunNotFound: the record lacks what the figure takes.
    """
    study = run if isinstance(run, Study) else Study(run, load_models=True)
    asked = Asked(x=x, **options)
    if name in PLOTS:
        asked.refuse_others(name, PLOTS[name].takes)
        return PLOTS[name].draw(study, asked)
    known = names()
    if name in DRAWERS or name in known:
        return draw_probe(name, study, asked)
    every = [*PLOTS, *DRAWERS]
    near = difflib.get_close_matches(name, [*every, *known], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UsageError(
        f"no figure {name!r}; there are {', '.join(every)}, and each of `workbench probe --list`"
        f"{hint}"
    )


def questions() -> list[tuple[str, str]]:
    """Name and question of every figure: those of a run, then those of what one probe found."""
    from probes.registry import find

    drawn = [(name, find(drawer.probe).question) for name, drawer in DRAWERS.items()]
    return [*((plot.name, plot.question) for plot in PLOTS.values()), *drawn]


def draw_load(study: Study, x: ClockName = "step", arm: str | None = None) -> go.Figure:
    """Router load of one arm; by default the run's own branch, or the last arm of a trunk."""
    return _draw_load(study, Asked(x=x, arm=arm))


def _draw_load(study: Study, asked: Asked) -> go.Figure:
    own = study.run.branch if study.run.branch in study.arms else list(study.arms)[-1]
    asked = replace(asked, arm=asked.arm or own)
    arm = str(asked.arm)
    loads = measured(study, asked, "loads", load_of)
    _require(study, arm in loads, "router-load", "a router record", f"router load of {arm}")
    return figures.expert_load(
        loads[arm], marks=study.marks, x=asked.x, code=code("router-load", study, arm, asked)
    )


def _draw_balance(study: Study, asked: Asked) -> go.Figure:
    balances = measured(study, asked, "balances", probes.balance)
    _require(study, bool(balances), "balance", "a router record", "balance")
    return figures.balance(
        balances, marks=study.marks, x=asked.x, colors=study.colors,
        code=code("balance", study, asked=asked),
    )  # fmt: skip


def _draw_emergence(study: Study, asked: Asked) -> go.Figure:
    skills = measured(
        study, asked, "skills", lambda source: probes.capability(source, n_boot=study.n_boot)
    )
    _require(study, bool(skills), "emergence", "evaluations", "capabilities")
    onsets = {arm: study.onsets[arm] for arm in skills if not asked.stretch and arm in study.onsets}
    for arm in set(skills) - set(onsets):
        onsets[arm] = probes.onsets(skills[arm])
    return figures.emergence(
        skills, onsets, marks=study.marks, x=asked.x, colors=study.colors,
        code=code("emergence", study, asked=asked),
    )  # fmt: skip


def draw_arms(study: Study, x: ClockName = "step", arm: str | None = None) -> go.Figure:
    """Forest plot of an arm less the baseline; by default of the last arm."""
    needs = f"two arms with evaluations (found {', '.join(study.arms)})"
    _require(study, bool(study.differences), "arms", needs, "difference")
    arm = arm or list(study.differences)[-1]
    if arm not in study.differences:
        raise RunNotFound(
            f"arm {arm!r} is compared with nothing; {', '.join(study.differences)} can be asked, "
            f"each against {study.baseline}."
        )
    return figures.arms(study.differences[arm], colors=study.colors, code=code("arms", study, arm))


def _draw_saturation(study: Study, asked: Asked) -> go.Figure:
    settled = measured(
        study, asked, "saturations", lambda source: probes.saturation(source, n_boot=study.n_boot)
    )
    _require(study, bool(settled), "saturation", "activations", "saturation")
    return figures.saturation(
        settled, marks=study.marks, x=asked.x, colors=study.colors,
        code=code("saturation", study, asked=asked),
    )  # fmt: skip


def _draw_spread(study: Study, asked: Asked) -> go.Figure:
    own = study.run.branch if study.run.branch in study.arms else list(study.arms)[-1]
    asked = replace(asked, arm=asked.arm or own)
    arm = str(asked.arm)
    loads = measured(study, asked, "loads", load_of)
    needs = "a router record"
    _require(study, arm in loads, "load-distribution", needs, f"router load of {arm}")
    return figures.load_spread(
        loads[arm], marks=study.marks, x=asked.x, colors=study.colors,
        code=code("load-distribution", study, arm, asked),
    )  # fmt: skip


def _draw_churn(study: Study, asked: Asked) -> go.Figure:
    churn = measured(
        study, asked, "churns", lambda source: probes.churn(source, n_boot=study.n_boot)
    )
    _require(study, bool(churn), "churn", "activations", "churn")
    return figures.churn(
        churn, marks=study.marks, x=asked.x, colors=study.colors,
        code=code("churn", study, asked=asked),
    )  # fmt: skip


def _draw_trajectory(study: Study, asked: Asked) -> go.Figure:
    arms = {arm: asked.part(study.run.arm(arm)) for arm in arms_of(study, asked)}
    return figures.trajectory(
        routing_distances(arms), colors=study.colors, code=code("trajectory", study, asked=asked)
    )


def _draw_loss(study: Study, asked: Asked) -> go.Figure:
    train = measured(study, asked, "train", curves_of)
    _require(study, bool(train), "loss", "training curves", "training curves")
    return figures.loss(
        train, marks=study.marks, x=asked.x, colors=study.colors,
        code=code("loss", study, asked=asked),
    )  # fmt: skip


def draw_cause(study: Study, name: str, x: ClockName = "step") -> go.Figure:
    """One answer about the capability that came last: "transplant", "lead-lag", ..."""
    causes = study.causes
    if causes.about is None:
        raise RunNotFound(
            f"{name} is about a capability that arrived in the final stretch; none did in "
            f"{study.run.path}."
        )
    if name not in causes.found:
        why = causes.missing.get(name, "not asked").rstrip(".")
        raise RunNotFound(
            f"{name} of {plain(causes.about.task)}: {why}. "
            f"`workbench report {study.run.path} --causes` computes it where it can be."
        )
    draw = figures.leads if name == "lead-lag" else figures.transplant
    return draw(causes.found[name], code=code_of_cause(name, study))


_OVER_TRAINING = ("arm", "last")
PLOTS = {
    plot.name: plot
    for plot in (
        Plot("loss", "How did training go?", _draw_loss, _OVER_TRAINING),
        Plot("emergence", "When do capabilities arrive?", _draw_emergence, _OVER_TRAINING),
        Plot(
            "arms",
            "What did an arm buy over the baseline?",
            lambda study, asked: draw_arms(study, arm=asked.arm),
            ("arm",),
        ),
        Plot("router-load", "Where do the tokens go?", _draw_load, (*_OVER_TRAINING, "layer")),
        Plot(
            "load-distribution",
            "How is the load spread over the experts?",
            _draw_spread,
            (*_OVER_TRAINING, "layer"),
        ),
        Plot("balance", "Is the load even?", _draw_balance, (*_OVER_TRAINING, "layer")),
        Plot(
            "saturation",
            "When does the routing settle?",
            _draw_saturation,
            (*_OVER_TRAINING, "layer"),
        ),
        Plot(
            "churn",
            "How much does the routing still change?",
            _draw_churn,
            (*_OVER_TRAINING, "layer"),
        ),
        Plot(
            "trajectory",
            "Which way did training go, and where did the arms part?",
            _draw_trajectory,
            _OVER_TRAINING,
        ),
        Plot(
            "transplant",
            "Which part did the last capability come with?",
            lambda study, asked: draw_cause(study, "transplant"),
        ),
        Plot(
            "lead-lag",
            "What moved before the last capability came?",
            lambda study, asked: draw_cause(study, "lead-lag"),
        ),
    )
}

DRAWN = (
    "load",
    "balance",
    "saturation",
    "churn",
    "capability",
    "emergence",
    "transplant",
    "lead-lag",
)
"""Probes whose results the report draws in its chapters."""


def _require(study: Study, there: bool, name: str, needs: str, measure: str) -> None:
    if not there:
        reasons = [why for what, why in study.missing.items() if what.startswith(measure)]
        raise RunNotFound(
            f"{name} needs {needs}; the run {study.run.path} lacks it"
            + (f": {reasons[0]}" if reasons else ".")
        )
