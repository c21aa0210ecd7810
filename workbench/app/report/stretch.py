"""The final stretch: which one it is, on which clock, and what was different after it.

Needs   a Study.
Yields  `stretch_words`, the clock named and the share stated; `change_table`, before and after.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from workbench.app.study import Study
from workbench.figures.caption import Table
from workbench.figures.tasks import by_family
from workbench.figures.wording import count, listed, per_arm


def stretch_words(study: Study) -> str:
    """The final stretch by its steps, its tokens and its share of them."""
    start = study.final_start
    told, tokens = {}, {}
    for name, arm in study.arms.items():
        clock = arm.clock
        if not len(clock):
            continue
        told[name] = f"steps {start + 1:,} to {int(clock.step[-1]):,}"
        share = study.final_share(name)
        if share is not None and clock.tokens is not None:
            tokens[name] = f"{count(share * clock.tokens[-1])} of {count(clock.tokens[-1])}"
            tokens[name] += f" training tokens, {100 * share:.0f} % of the run"
    if not told:
        return "Nothing was trained yet: the record holds no step."
    said = f"The final stretch is {study.final_because}: {per_arm(told)}"
    clock_is = f", on the tokens clock {per_arm(tokens)}" if tokens else ", on the step clock"
    arms = f" The arms: {listed(study.arms)}." if len(study.arms) > 1 else ""
    return f"{said}{clock_is}.{arms}"


def change_table(study: Study) -> Table:
    """A row a measure: its value before the final stretch, and after it in every arm."""
    rows: list[tuple[Any, ...]] = []
    rows += _row("training loss (nats/token)", study, study.train, _of("loss"))
    rows += _row("MaxVio, median layer", study, study.balances, _of("max_violation"))
    rows += _row(
        "load entropy / ln E, median layer", study, study.balances, _of("normalized_entropy")
    )
    rows += _row("dead experts, all layers", study, study.balances, _of("dead_experts", total=True))
    rows += _families(study)
    rows += _settled(study)
    return Table(("measure", "before", *(f"after, {arm}" for arm in study.arms)), tuple(rows))


def drift_table(study: Study) -> Table:
    """A row an arm and layer: how far the load moved over the final stretch, and what share of that
    the data mix and the router explain.
    """
    rows: list[tuple[Any, ...]] = []
    for arm, drift in study.drifts.items():
        last = drift.isel(checkpoint=-1)
        for layer in last["layer"].values:
            here = last.sel(layer=layer)
            cells = [_known(here[n]) for n in ("moved", "mix_share", "router_share", "rest_share")]
            rows.append((arm, int(layer), *cells))
    heads = ("arm", "layer", "load that moved", "by the data mix", "by the router", "by neither")
    return Table(heads, tuple(rows))


def _known(value: xr.DataArray) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None


def _of(name: str, total: bool = False) -> Any:
    def read(ds: xr.Dataset) -> xr.DataArray | None:
        if name not in ds:
            return None
        if "layer" not in ds[name].dims:
            return ds[name]
        return ds[name].sum("layer", skipna=False) if total else ds[name].median("layer")

    return read


def _row(
    label: str, study: Study, measured: dict[str, xr.Dataset], read: Any
) -> list[tuple[Any, ...]]:
    start = study.final_start
    before: float | None = None
    after: list[float | None] = []
    for arm in study.arms:
        line = read(measured[arm]) if arm in measured else None
        if line is None:
            after.append(None)
            continue
        early, late = line.sel(step=slice(None, start)), line.sel(step=slice(start + 1, None))
        n = max(1, round(late.sizes["step"] / 10))
        if before is None and early.sizes["step"]:
            before = float(early.isel(step=slice(-n, None)).mean())
        after.append(float(late.isel(step=slice(-n, None)).mean()) if late.sizes["step"] else None)
    known = before is not None or any(v is not None for v in after)
    return [(label, before, *after)] if known else []


def _families(study: Study) -> list[tuple[Any, ...]]:
    """Mean accuracy of every family at the last checkpoint before, and at the end."""
    if not study.skills:
        return []
    rows = []
    tasks = [str(t) for t in next(iter(study.skills.values()))["task"].values]
    for family, names in by_family(tasks).items():
        before: float | None = None
        after: list[float | None] = []
        for arm in study.arms:
            if arm not in study.skills:
                after.append(None)
                continue
            mean = study.skills[arm]["accuracy"].sel(task=names).mean("task")
            early = mean.sel(checkpoint=slice(None, study.final_start))
            late = mean.sel(checkpoint=slice(study.final_start + 1, None))
            if before is None and early.sizes["checkpoint"]:
                before = float(early[-1])
            after.append(float(late[-1]) if late.sizes["checkpoint"] else None)
        rows.append((f"accuracy, mean of {family} tasks", before, *after))
    return rows


def _settled(study: Study) -> list[tuple[Any, ...]]:
    """How far the routing at the start of the stretch was already what it is at its end."""
    values: list[float | None] = []
    for arm in study.arms:
        early = None
        if arm in study.saturations:
            kappa = study.saturations[arm]["kappa"].median("layer")
            early = kappa.sel(checkpoint=slice(None, study.final_start))
        values.append(float(early[-1]) if early is not None and early.sizes["checkpoint"] else None)
    if all(v is None for v in values):
        return []
    return [
        (
            "routing kept from the start of the stretch to its end (kappa, median layer)",
            None,
            *values,
        )
    ]
