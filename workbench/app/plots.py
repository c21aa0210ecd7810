"""The figures of a run by name: what `workbench plot NAME RUN` draws, and the report too.

Needs   an open run.
Yields  PLOTS; `plot_names`; `draw`, name and run to a figure with its words, numbers and code.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import plotly.graph_objects as go

from probes.registry import names
from workbench import figures
from workbench.app.study import LONG_POINTS, Study, is_long
from workbench.errors import RunNotFound, UsageError
from workbench.figures.clock import ClockName
from workbench.run import Run


@dataclass(frozen=True)
class Plot:
    """One figure that a run can be asked for."""

    name: str
    question: str
    """What it answers, in a line for `--help`."""
    draw: Callable[[Study, ClockName], go.Figure]


def plot_names() -> list[str]:
    """Names for `draw`, in the order of the report.

    Example:
        >>> plot_names()[:4]
        ['loss', 'emergence', 'arms', 'router-load']
    """
    return list(PLOTS)


def draw(name: str, run: Run | Study, *, x: ClockName = "step") -> go.Figure:
    """The figure `name` of a run.

    Args:
        name: one of `plot_names()`, or any probe's (`probes.names()`): then its first quantity.
        run: an open run; router-load draws the branch it was opened on, unless that is a trunk
            which ends at its forks: then the last arm. The others draw all arms.
        x: clock of the x axis; arms has none.

    Raises:
        UsageError: no such figure; the message names those there are.
        RunNotFound: the record lacks what the figure takes.
    """
    study = run if isinstance(run, Study) else Study(run, load_models=True)
    if name in PLOTS:
        return PLOTS[name].draw(study, x)
    known = names()
    if name in known:
        return _draw_probe(name, study, x)
    near = difflib.get_close_matches(name, [*PLOTS, *known], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UsageError(
        f"no figure {name!r}; there are {', '.join(PLOTS)}, and each of `workbench probe --list`"
        f"{hint}"
    )


def draw_load(study: Study, x: ClockName = "step", arm: str | None = None) -> go.Figure:
    """Router load of one arm; by default the run's own branch, or the last arm of a trunk."""
    arm = arm or (study.run.branch if study.run.branch in study.arms else list(study.arms)[-1])
    _require(study, arm in study.loads, "router-load", "a router record", f"router load of {arm}")
    return figures.expert_load(
        study.loads[arm], marks=study.marks, x=x, code=code("router-load", study, arm)
    )


def _draw_balance(study: Study, x: ClockName) -> go.Figure:
    _require(study, bool(study.balances), "balance", "a router record", "balance")
    return figures.balance(
        study.balances if len(study.balances) > 1 else next(iter(study.balances.values())),
        marks=study.marks, x=x, colors=study.colors, code=code("balance", study),
    )  # fmt: skip


def _draw_emergence(study: Study, x: ClockName) -> go.Figure:
    _require(study, bool(study.skills), "emergence", "evaluations", "capabilities")
    return figures.emergence(
        study.skills, study.onsets, marks=study.marks, x=x, colors=study.colors,
        code=code("emergence", study),
    )  # fmt: skip


def draw_arms(study: Study, x: ClockName = "step", arm: str | None = None) -> go.Figure:
    """Forest plot of an arm less the baseline; by default of the last arm."""
    needs = f"two arms with evaluations (found {', '.join(study.arms)})"
    _require(study, bool(study.differences), "arms", needs, "difference")
    arm = arm or list(study.differences)[-1]
    return figures.arms(study.differences[arm], colors=study.colors, code=code("arms", study, arm))


def _draw_saturation(study: Study, x: ClockName) -> go.Figure:
    _require(study, bool(study.saturations), "saturation", "activations", "saturation")
    return figures.saturation(
        study.saturations, marks=study.marks, x=x, colors=study.colors,
        code=code("saturation", study),
    )  # fmt: skip


def _draw_loss(study: Study, x: ClockName) -> go.Figure:
    _require(study, bool(study.train), "loss", "training curves", "training curves")
    return figures.loss(
        study.train, marks=study.marks, x=x, colors=study.colors, code=code("loss", study)
    )


def draw_cause(study: Study, name: str, x: ClockName = "step") -> go.Figure:
    """One answer about the capability that came last: "transplant", "lead-lag", ..."""
    causes = study.causes
    if causes.about is None:
        raise RunNotFound(
            f"{name} is about a capability that arrived in the final stretch; none did in "
            f"{study.run.path}."
        )
    if name not in causes.found:
        raise RunNotFound(
            f"{name} of {causes.about.task}: {causes.missing.get(name, 'not asked').rstrip('.')}. "
            f"`workbench report {study.run.path} --causes` computes it where it can be."
        )
    draw = figures.leads if name == "lead-lag" else figures.transplant
    return draw(causes.found[name], code=code_of_cause(name, study))


def _draw_probe(name: str, study: Study, x: ClockName) -> go.Figure:
    """Any probe's result along the study's branch."""
    from probes.examine import examine

    run = study.run if study.run.branch in study.arms else study.arms[list(study.arms)[-1]]
    result = examine(run, name)[name]
    return figures.probe_result(
        result, name=name, marks=study.marks, x=x, code=code_of_probe(name, study, run.branch)
    )


PLOTS = {
    plot.name: plot
    for plot in (
        Plot("loss", "How did training go?", _draw_loss),
        Plot("emergence", "When do capabilities arrive?", _draw_emergence),
        Plot("arms", "What did an arm buy over the baseline?", draw_arms),
        Plot("router-load", "Where do the tokens go?", draw_load),
        Plot("balance", "Is the load even?", _draw_balance),
        Plot("saturation", "When does the routing settle?", _draw_saturation),
        Plot(
            "transplant",
            "Which part did the last capability come with?",
            lambda study, x: draw_cause(study, "transplant", x),
        ),
        Plot(
            "lead-lag",
            "What moved before the last capability came?",
            lambda study, x: draw_cause(study, "lead-lag", x),
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
"""Probes that have figures of their own."""


def _require(study: Study, there: bool, name: str, needs: str, measure: str) -> None:
    if not there:
        reasons = [why for what, why in study.missing.items() if what.startswith(measure)]
        raise RunNotFound(
            f"{name} needs {needs}; the run {study.run.path} lacks it"
            + (f": {reasons[0]}" if reasons else ".")
        )


def code(name: str, study: Study, arm: str = "") -> str:
    """Python that makes the figure again, from nothing but the run's folder."""
    arms = list(study.arms)
    each = f"for arm in {arms!r}"
    long = is_long(study.arms[arm or study.baseline])
    curves = f"overview('train', points={LONG_POINTS})" if long else "train"
    points = f", points={LONG_POINTS}" if long else ""
    lines = {
        "loss": [
            f"train = {{arm: run.arm(arm).{curves} {each}}}",
            "figures.loss(train, marks=marks)",
        ],
        "emergence": [
            f"skills = {{arm: probes.capability(run.arm(arm)) {each}}}",
            "onsets = {arm: probes.onsets(skill) for arm, skill in skills.items()}",
            "figures.emergence(skills, onsets, marks=marks)",
        ],
        "arms": [
            f"a, b = run.arm({study.baseline!r}), run.arm({arm!r})",
            "figures.arms(probes.arm_difference(a, b))",
        ],
        "router-load": [
            f"load = probes.expert_load(run.arm({arm!r}){points})",
            "figures.expert_load(load, marks=marks)",
        ],
        "balance": [
            f"balance = {{arm: probes.balance(run.arm(arm)) {each}}}",
            "figures.balance(balance, marks=marks)",
        ],
        "saturation": [
            f"settled = {{arm: probes.saturation(run.arm(arm)) {each}}}",
            "figures.saturation(settled, marks=marks)",
        ],
    }[name]
    opening = [
        "import probes",
        "from workbench import figures, open_run",
        "",
        f"run = open_run({str(study.run.path)!r})",
    ]
    if any("marks" in line for line in lines):
        opening.append("marks = figures.marks_of(run)")
    return "\n".join([*opening, *lines])


def code_of_cause(name: str, study: Study) -> str:
    """Python that asks about the last capability again."""
    about = study.causes.about
    assert about is not None
    opening = [
        "import probes",
        "from workbench import figures, open_run",
        "",
        f"run = open_run({str(study.run.path)!r}, {about.arm!r})",
    ]
    if name == "lead-lag":
        lines = [
            f"found = probes.lead_lag(run, {about.task!r}, start={study.final_start})",
            "figures.leads(found.assign_attrs(run=run.name, branch=run.branch))",
        ]
    else:
        grain = ", parts='kind-layer', n_permutations=8" if name != "transplant" else ""
        ends = study.causes.found[name].attrs
        lines = [
            f"before = run.checkpoints.at({ends['from_step']})",
            f"after = run.checkpoints.at({ends['to_step']})",
            f"figures.transplant(probes.transplant(before, after, {about.task!r}{grain}))",
        ]
    return "\n".join([*opening, *lines])


def code_of_probe(name: str, study: Study, branch: str) -> str:
    """Python that runs a probe by name and draws what it found."""
    return "\n".join(
        [
            "import probes",
            "from workbench import figures, open_run",
            "",
            f"run = open_run({str(study.run.path)!r}, {branch!r})",
            f"found = probes.examine(run, {name!r})[{name!r}]",
            f"figures.probe_result(found, name={name!r}, marks=figures.marks_of(run))",
        ]
    )
