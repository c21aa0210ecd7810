"""The Python that makes a figure again, from nothing but the run's folder: "copy as code".

Needs   the study, and what was asked of the figure.
Yields  `code` of a figure of the run, `code_of_cause` of an answer about the last capability,
        `code_of_probe` of what a probe found.
"""

from __future__ import annotations

from collections.abc import Sequence

from workbench.app.asked import Asked, arms_of
from workbench.app.study import LONG_POINTS, Study, is_long
from workbench.figures.template import arm_colors

WHOLE = Asked()


def program(study: Study, lines: Sequence[str], branch: str | None = None) -> str:
    """`lines` after what opens the run; marks and probes only where they are named."""
    of = f", {branch!r}" if branch is not None else ""
    opening = ["import probes"] if any("probes." in line for line in lines) else []
    opening.append("from workbench import figures, open_run")
    if any("with_clocks(" in line for line in lines):
        opening.append("from workbench.app.study import with_clocks")
    opening += [
        "",
        f"run = open_run({str(study.run.path)!r}{of})",
    ]
    if any("=marks" in line for line in lines):
        opening.append("marks = figures.marks_of(run)")
    return "\n".join([*opening, *lines])


def code(name: str, study: Study, arm: str = "", asked: Asked = WHOLE) -> str:
    """Python that makes one of the figures that have a name of their own."""
    arms = arms_of(study, asked)
    arm = arm or asked.arm or ""
    first = study.run.arm(arm or arms[0])
    long = is_long(asked.part(first))
    part, layer = asked.part_code, "" if asked.layer is None else f".sel(layer=[{asked.layer}])"
    each = f"for arm in {arms!r}"
    source = f"run.arm(arm){part}"
    curves = f"overview('train', points={LONG_POINTS})" if long else "train"
    points = f", points={LONG_POINTS}" if long else ""
    x = f", x={asked.x!r}" if asked.x != "step" else ""
    marks = f"marks=marks{x}"
    clocked = "with_clocks({}, run.arm(arm))" if x else "{}"
    # Without their origin the figure would stand without a foot, and without its arm's name.
    clocked += ".assign_attrs(run=run.name, branch=arm)"
    skill, even, settled, moved = (
        clocked.format(made)
        for made in (
            f"probes.capability({source})",
            f"probes.balance({source}){layer}",
            f"probes.saturation({source}){layer}",
            f"probes.churn({source}){layer}",
        )
    )
    load = f"probes.expert_load(run.arm({arm!r}){part}{points}){layer}"
    if x:
        load = f"with_clocks({load}, run.arm({arm!r}))"
    load += f".assign_attrs(run=run.name, branch={arm!r})"
    alone = {"arms": [study.baseline, arm], "load-distribution": [arm]}
    of = colors(study, alone.get(name, arms))
    lines = {
        "loss": [
            f"train = {{arm: {source}.{curves} {each}}}",
            f"figures.loss(train, {marks}{of})",
        ],
        "emergence": [
            f"skills = {{arm: {skill} {each}}}",
            "onsets = {arm: probes.onsets(skill) for arm, skill in skills.items()}",
            f"figures.emergence(skills, onsets, {marks}{of})",
        ],
        "arms": [
            f"a, b = run.arm({study.baseline!r}), run.arm({arm!r})",
            "gap = probes.arm_difference(a, b).assign_attrs(run=run.name)",
            f"figures.arms(gap{of})",
        ],
        "router-load": [
            f"load = {load}",
            f"figures.expert_load(load, {marks})",
        ],
        "load-distribution": [
            f"load = {load}",
            f"figures.load_spread(load, {marks}{of})",
        ],
        "balance": [
            f"balance = {{arm: {even} {each}}}",
            f"figures.balance(balance, {marks}{of})",
        ],
        "saturation": [
            f"settled = {{arm: {settled} {each}}}",
            f"figures.saturation(settled, {marks}{of})",
        ],
        "churn": [
            f"churn = {{arm: {moved} {each}}}",
            f"figures.churn(churn, {marks}{of})",
        ],
        "trajectory": [
            "from workbench.app.distances import routing_distances",
            f"apart = routing_distances({{arm: {source} {each}}})",
            f"figures.trajectory(apart{of})",
        ],
    }[name]
    return program(study, lines)


def colors(study: Study, drawn: Sequence[str]) -> str:
    """The keyword that keeps the arms' colours; empty where the figure finds them by itself."""
    wanted = {arm: study.colors[arm] for arm in drawn if arm in study.colors}
    return "" if wanted == arm_colors(wanted) else f", colors={wanted!r}"


def code_of_cause(name: str, study: Study) -> str:
    """Python that asks about the last capability again."""
    about = study.causes.about
    assert about is not None
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
    return program(study, lines, about.arm)
