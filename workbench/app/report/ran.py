"""What ran: the particulars of a run in words, from its record and from what its run.json says.

Needs   a Study; run.json may hold anything.
Yields  `facts`, name and value; `mix_table`, the data mix as it was counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from model.config import MoEConfig, parameter_counts
from model.errors import ConfigError
from workbench.app.study import Study
from workbench.errors import RunNotFound
from workbench.figures.caption import Table
from workbench.figures.wording import count, listed, many, plain


def facts(study: Study) -> list[tuple[str, str]]:
    """Name and value of what is known, in the order of the page."""
    run = study.run
    rows = [
        ("Model", _model(study)),
        ("Training", _training(study)),
        ("Phases", _phases(study)),
        ("Arms", _arms(study)),
        ("Seed", _seed(run.attrs)),
        ("Checkpoints", _checkpoints(study)),
        ("Evaluated on", _tasks(study)),
        ("Wall time", _wall_time(study)),
    ]
    return [(name, value) for name, value in rows if value]


def _model(study: Study) -> str:
    config = search(study.run.attrs, "model")
    if isinstance(config, Mapping):
        try:
            shape = MoEConfig.from_dict(dict(config))
        except (ConfigError, TypeError, KeyError):
            pass
        else:
            total = parameter_counts(shape)
            return (
                f"{many(shape.n_layers, 'layer')} of {shape.num_experts} experts, "
                f"{shape.experts_per_token} a token, width {shape.d_model}; {count(total.total)} "
                f"parameters, {count(total.active)} of them active for a token"
            )
    for arm in study.arms.values():
        try:
            router = arm.router
        except RunNotFound:
            continue
        layers, experts = router.sizes["layer"], router.sizes["expert"]
        return f"{many(layers, 'layer')} of {experts} experts, {router.attrs['k']} a token"
    return ""


def _training(study: Study) -> str:
    clock = study.arms[study.baseline].clock
    if not len(clock):
        return ""
    steps = int(clock.step[-1])
    if clock.tokens is None:
        return f"{steps:,} steps"
    tokens = int(clock.tokens[-1])
    return f"{count(tokens)} tokens in {steps:,} steps, {count(tokens / max(steps, 1))} a step"


def _phases(study: Study) -> str:
    def step(value: Any) -> str:
        return f"{value:,}" if isinstance(value, int) else plain(value)

    return "; ".join(
        f"{plain(p.get('name'))}: steps {step(p.get('start'))} to {step(p.get('stop'))}"
        for p in study.run.phases
    )


def _arms(study: Study) -> str:
    told = []
    for name, arm in study.arms.items():
        if arm.fork_step is None:
            told.append(f"{plain(name)}, from the start")
        else:
            told.append(f"{plain(name)}, from {plain(arm.parent)} at step {arm.fork_step:,}")
    return "; ".join(told)


def _seed(attrs: Mapping[str, Any]) -> str:
    seed = search(attrs, "seed")
    return plain(seed) if isinstance(seed, int | str) else ""


def _checkpoints(study: Study) -> str:
    saved = {name: len(arm.checkpoints) for name, arm in study.arms.items()}
    evaluated = {name: skill.sizes["checkpoint"] for name, skill in study.skills.items()}
    told = [
        f"{plain(name)}: {many(saved[name], 'weight file')}, {evaluated.get(name, 0)} evaluated"
        for name in study.arms
    ]
    return "; ".join(told)


def _tasks(study: Study) -> str:
    if not study.skills:
        return ""
    skill = next(iter(study.skills.values()))
    items = sorted({int(n) for n in skill["n"].isel(checkpoint=-1).values})
    each = f"{items[0]}" if len(items) == 1 else f"{items[0]} to {items[-1]}"
    names = [plain(t) for t in skill["task"].values]
    return f"{many(len(names), 'task')} of {each} held-out items each: {listed(names, most=20)}"


def _wall_time(study: Study) -> str:
    told = []
    for name, arm in study.arms.items():
        utc = arm.clock.utc
        if utc is None or not len(utc):
            continue
        first, last = (datetime.fromtimestamp(float(t), UTC) for t in utc[[0, -1]])
        took = timedelta(seconds=round((last - first).total_seconds()))
        told.append(f"{plain(name)}: {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC ({took})")
    return "; ".join(told)


def search(attrs: Mapping[str, Any], key: str, depth: int = 3) -> Any:
    """The value of `key` in nested mappings, nearest to the top first; None where it is nowhere.

    Example:
        >>> search({"config": {"model": {"seed": 3}}}, "seed")
        3
    """
    if key in attrs:
        return attrs[key]
    if depth:
        for value in attrs.values():
            if isinstance(value, Mapping) and (found := search(value, key, depth - 1)) is not None:
                return found
    return None


def mix_table(study: Study) -> Table | None:
    """A row a domain: its share before the final stretch and in every arm's, %; None uncounted."""
    mixes = study.mixes
    if mixes is None or not mixes.sizes["domain"]:
        return None
    stretches = [str(s) for s in mixes["stretch"].values]
    rows = []
    for domain in mixes["domain"].values:
        shares = [f"{100 * float(v):.1f}" for v in mixes.sel(domain=domain).values]
        rows.append((str(domain), *shares))
    heads = ["before the final stretch" if s == "before" else f"final, {s}" for s in stretches]
    return Table(("domain", *heads), tuple(rows))
