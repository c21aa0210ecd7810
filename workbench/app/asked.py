"""What a figure of a run is asked for, beside its name: arm, stretch, layer, task, clock.

Needs   the options of `workbench plot`.
Yields  Asked; the sources that it means, and the Python that says the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import TypeVar

import xarray as xr

from workbench.app.study import Study, with_clocks
from workbench.errors import RunNotFound, SchemaError, UsageError
from workbench.figures.clock import ClockName
from workbench.run import Run
from workbench.window import Window

Measured = TypeVar("Measured", xr.Dataset, xr.DataArray)
STRETCH = ("last", "start", "stop")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Options; None is not asked."""

    x: ClockName = "step"
    arm: str | None = None
    """Draw this branch alone."""
    layer: int | None = None
    expert: int | None = None
    task: str | None = None
    last: float | str | None = None
    """The last share of the tokens, or stretch of time such as "7d"."""
    start: int | None = None
    """Steps after this one."""
    stop: int | None = None
    """Steps up to this one."""

    @property
    def given(self) -> set[str]:
        """Names of the options that were asked; a clock is always asked."""
        return {f.name for f in fields(self) if f.name != "x" and getattr(self, f.name) is not None}

    @property
    def stretch(self) -> dict[str, float | str]:
        """The keywords of `Run.window`; empty for the whole run."""
        return {name: getattr(self, name) for name in STRETCH if name in self.given}

    def part(self, run: Run) -> Run | Window:
        """The stretch of `run`, or the run itself."""
        return run.window(**self.stretch) if self.stretch else run  # type: ignore[arg-type]

    @property
    def part_code(self) -> str:
        """What follows a run in Python to say the same.

        Example:
            >>> Asked(last=0.2).part_code, Asked().part_code
            ('.window(last=0.2)', '')
        """
        if not self.stretch:
            return ""
        return f".window({', '.join(f'{k}={v!r}' for k, v in self.stretch.items())})"

    def refuse_others(self, name: str, takes: Iterable[str]) -> None:
        """UsageError where something was asked that the figure `name` does not know."""
        takes = [*takes]
        takes = [*takes, *STRETCH] if "last" in takes else takes
        if others := sorted(self.given - set(takes)):
            known = ", ".join(f"--{t}" for t in takes) or "none of these"
            raise UsageError(f"{name} has no --{others[0]}; it takes {known}.")


def arms_of(study: Study, asked: Asked) -> list[str]:
    """Names of the arms that are drawn."""
    return [asked.arm] if asked.arm else list(study.arms)


def measured(
    study: Study, asked: Asked, cached: str, measure: Callable[[Run | Window], Measured]
) -> dict[str, Measured]:
    """A measure of every arm that is asked for: the study's own where the whole arm is meant.

    Args:
        cached: name of the study's property that holds the measure of whole arms, if it has one.

    Raises:
        RunNotFound: no arm has what the measure takes; the first reason why.
    """
    found: dict[str, Measured] = {}
    reasons: list[str] = []
    whole = getattr(study, cached, {}) if not asked.stretch else {}
    for name in arms_of(study, asked):
        if name in whole:
            found[name] = of_layer(whole[name], asked.layer)
            continue
        if not asked.stretch and name in study.arms and hasattr(study, cached):
            continue  # the study has said why in `missing`
        run = study.run.arm(name)
        try:
            value = with_clocks(measure(asked.part(run)), run)
        except (RunNotFound, UsageError, SchemaError) as error:
            reasons.append(str(error))
            continue
        value = value.assign_attrs(run=study.run.name, branch=name)
        found[name] = of_layer(value, asked.layer)
    if not found and reasons:
        raise RunNotFound(reasons[0])
    return found


def of_layer(value: Measured, layer: int | None) -> Measured:
    """`value` with that layer alone; the dim stays.

    Raises:
        RunNotFound: there is no such layer.
    """
    if layer is None or "layer" not in value.dims:
        return value
    layers = value["layer"].values.tolist()
    if layer not in layers:
        raise RunNotFound(f"no layer {layer}; there are {layers[0]} to {layers[-1]}.")
    return value.sel(layer=[layer])
