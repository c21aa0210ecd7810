"""Study: everything that the report and the plots want to know of a run, each measured once.

Needs   an open run, with whatever was recorded of it.
Yields  Study: its arms, its final stretch, and per arm load, balance, saturation, skills, onsets
        and the differences between arms; `None` or an empty dict where the record lacks what it
        takes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import xarray as xr

import probes
from checkpoints_index.errors import ClockError
from probes.emergence import Onset
from probes.report_card import report_cards
from probes.statistics.resample import BOOT
from workbench.errors import RunNotFound, SchemaError, UsageError
from workbench.figures.bins import by_step
from workbench.figures.marks import Mark, marks_of
from workbench.figures.template import arm_colors
from workbench.run import Run, Window

if TYPE_CHECKING:
    from workbench.app.causes import Causes

FINAL_SHARE = 0.2
"""Share of the tokens that counts as the final stretch of a run without forks and phases."""
LONG = 20_000
"""Steps beyond which figures of every step are drawn from the store's overviews."""
LONG_POINTS = 1000

BASELINES = ("continue", "main")
"""Arms that the others are compared with, the first that is there."""

Measured = TypeVar("Measured", xr.Dataset, xr.DataArray)


class Study:
    """One run, measured.

    Args:
        run: the open run, on any of its branches.
        n_boot: bootstrap draws of every interval.
        load_models: whether checkpoints are loaded for what is not kept of them yet.

    Example:
        >>> Study(workbench.open_run("runs/demo")).arms                     # doctest: +SKIP
        {'continue': Run ..., 'curriculum': Run ...}
    """

    def __init__(self, run: Run, *, n_boot: int = BOOT, load_models: bool = False) -> None:
        self.run = run
        self.load_models = load_models
        self.n_boot = n_boot
        self.missing: dict[str, str] = {}
        """What could not be measured, by name, and why: filled as measures are asked for."""

    # Lines of training

    @cached_property
    def arms(self) -> dict[str, Run]:
        """The lines of training that reach an end of their own: a trunk that ends at its forks is
        none. The baseline stands first.
        """
        every = {branch: self.run.arm(branch) for branch in self.run.branches}
        if not every:
            return {self.run.branch: self.run}
        forks: dict[str, int] = {}
        for arm in every.values():
            if arm.parent is not None and arm.fork_step is not None:
                forks[arm.parent] = max(forks.get(arm.parent, 0), arm.fork_step)
        ends = {name: arm.last_step for name, arm in every.items()}
        own = {n: a for n, a in every.items() if n not in forks or ends[n] > forks[n]}
        own = own or every
        first = next((name for name in BASELINES if name in own), next(iter(own)))
        return {first: own[first], **{n: a for n, a in own.items() if n != first}}

    @property
    def baseline(self) -> str:
        """The arm that the others are compared with."""
        return next(iter(self.arms))

    @cached_property
    def colors(self) -> dict[str, str]:
        return arm_colors(self.arms)

    @cached_property
    def marks(self) -> list[Mark]:
        return marks_of(self.run)

    @cached_property
    def fork_step(self) -> int | None:
        """The step at which the first of the arms forked."""
        steps = [arm.fork_step for arm in self.arms.values() if arm.fork_step]
        return min(steps, default=None)

    # The final stretch

    @property
    def final_start(self) -> int:
        """The step before the final stretch: the fork, else the start of the last phase, else what
        leaves a fifth of the tokens.
        """
        return self._final[0]

    @property
    def final_because(self) -> str:
        """How `final_start` was chosen, in words."""
        return self._final[1]

    @cached_property
    def _final(self) -> tuple[int, str]:
        if self.fork_step is not None:
            return self.fork_step, "what came after the fork"
        line = self.arms[self.baseline]
        last = line.last_step
        phases = line.phases
        # A run that is still in an earlier phase has no last phase yet.
        if len(phases) > 1 and 0 < (start := int(phases[-1].get("start", 0)) - 1) < last:
            return start, "the last phase"
        share = f"the last {100 * FINAL_SHARE:.0f} % of what is recorded"
        try:
            return line.window(last=FINAL_SHARE).start, share
        except (ClockError, RunNotFound):
            return int(last * (1 - FINAL_SHARE)), share

    def final(self, arm: str) -> Window | None:
        """The final stretch of an arm; None where it has no step after its start."""
        if self.arms[arm].last_step <= self.final_start:
            return None
        return self.arms[arm].window(start=self.final_start)

    def final_share(self, arm: str) -> float | None:
        """Share of the arm's training tokens that its final stretch takes; None without a clock."""
        tokens = self.arms[arm].clock.tokens
        if tokens is None or not len(tokens) or not tokens[-1]:
            return None
        steps = self.arms[arm].clock.step
        before = tokens[steps <= self.final_start]
        return float(1 - (before[-1] if len(before) else 0) / tokens[-1])

    # Measures

    @cached_property
    def train(self) -> dict[str, xr.Dataset]:
        """(step) training curves by arm."""
        return self._each("training curves", curves_of)

    @cached_property
    def loads(self) -> dict[str, xr.DataArray]:
        """(step, layer, expert) load by arm."""
        return self._each("router load", load_of)

    @cached_property
    def balances(self) -> dict[str, xr.Dataset]:
        """(step, layer) measures of balance by arm."""
        return self._each("balance", probes.balance)

    @cached_property
    def saturations(self) -> dict[str, xr.Dataset]:
        """(checkpoint, layer) agreement with each arm's final routing."""
        return self._each("saturation", lambda arm: probes.saturation(arm, n_boot=self.n_boot))

    @cached_property
    def skills(self) -> dict[str, xr.Dataset]:
        """(checkpoint, task) capability by arm."""
        return self._each("capabilities", lambda arm: probes.capability(arm, n_boot=self.n_boot))

    @cached_property
    def onsets(self) -> dict[str, dict[str, Onset]]:
        """Onset by arm and task; tasks for which none can be told are left out."""
        found: dict[str, dict[str, Onset]] = {}
        for arm, skill in self.skills.items():
            found[arm] = {}
            for task in map(str, skill["task"].values):
                try:
                    one = skill.sel(task=task)
                    found[arm][task] = probes.onset(one, n_boot=self.n_boot)
                except UsageError as error:
                    self.missing[f"onset of {task}, {arm}"] = str(error)
        return {arm: tasks for arm, tasks in found.items() if tasks}

    @cached_property
    def cards(self) -> dict[str, xr.Dataset]:
        """(task) everything known of how each capability emerged, by arm."""
        return self._each("report cards", lambda arm: report_cards(arm, n_boot=self.n_boot))

    @cached_property
    def drifts(self) -> dict[str, xr.Dataset]:
        """(checkpoint, layer, expert) drift of the load over the final stretch by arm, from the
        checkpoint before the one that it sets out from: around that the old mix still flows.
        """
        return self._each("load drift", self._drift)

    def _drift(self, arm: Run) -> xr.Dataset:
        before = [s for s in arm.activations["checkpoint"].values if s < self.final_start]
        if not before:
            raise RunNotFound("no checkpoint before the final stretch was read on fixed tokens.")
        return probes.drift(arm.window(start=int(before[-1]) - 1), against="first")

    @cached_property
    def differences(self) -> dict[str, xr.Dataset]:
        """Arm -> (checkpoint, task) difference of it less the baseline."""
        found = {}
        for arm in self.arms:
            if arm == self.baseline or not {arm, self.baseline} <= set(self.skills):
                continue
            try:
                pair = probes.arm_difference(self.arms[self.baseline], self.arms[arm])
            except (UsageError, SchemaError, RunNotFound) as error:
                self.missing[f"difference of {arm}"] = str(error)
                continue
            names = {"arm_a": self.baseline, "arm_b": arm, "run": self.run.name}
            found[arm] = pair.assign_attrs(names)
        return found

    @cached_property
    def causes(self) -> Causes:
        """What is known of why the capability that came last did."""
        from workbench.app.causes import causes

        return causes(self, compute=self.load_models, progress=self.load_models)

    @cached_property
    def mixes(self) -> xr.DataArray | None:
        """(stretch, domain) share of the tokens that was trained on, as counted by the routers."""
        rows: dict[str, xr.DataArray] = {}
        for name, arm in self.arms.items():
            router = self._group(arm, "router")
            if router is None or "domain_assignments" not in router:
                return None
            counted = router["domain_assignments"].isel(layer=0).sum("expert")
            before = counted.sel(step=slice(None, self.final_start))
            after = counted.sel(step=slice(self.final_start + 1, None))
            rows.setdefault("before", before.sum("step"))
            rows[name] = after.sum("step")
        table = xr.concat(list(rows.values()), dim="stretch", coords="minimal", compat="override")
        table = table.assign_coords(stretch=list(rows))
        total = table.sum("domain")
        return table / total.where(total > 0)

    def _each(self, what: str, measure: Callable[[Run], Measured]) -> dict[str, Measured]:
        """The measure of every arm that has what it takes; why not is kept in `missing`."""
        found = {}
        for name, arm in self.arms.items():
            try:
                value = with_clocks(measure(arm), arm)
                found[name] = value.assign_attrs(run=self.run.name, branch=name)
            except (RunNotFound, UsageError, SchemaError) as error:
                self.missing[f"{what} of {name}"] = str(error)
        return found

    def _group(self, arm: Run, name: str) -> xr.Dataset | None:
        try:
            return getattr(arm, name)
        except RunNotFound:
            return None


def is_long(source: Run | Window) -> bool:
    """Whether the figures of every step are drawn from overviews of it."""
    steps = source.stop - source.start if isinstance(source, Window) else source.step_count
    return steps > LONG


def load_of(source: Run | Window) -> xr.DataArray:
    """(step, layer, expert) load; of a long source from its overview."""
    if not is_long(source):
        return probes.expert_load(source)
    load = probes.expert_load(source, points=LONG_POINTS)
    # The clocks come from an overview too: whole, they are as long as the run.
    bins = by_step(source.overview("train", points=LONG_POINTS))
    clocks = [name for name in ("tokens_seen", "utc") if name in bins]
    if not np.array_equal(bins["step"], load["step"]):
        return load
    return load.assign_coords({name: ("step", bins[name].values) for name in clocks})


def curves_of(source: Run | Window) -> xr.Dataset:
    """(step) training curves; of a long source means from its overview, extremes beside them."""
    if not is_long(source):
        return source.train
    return by_step(source.overview("train", points=LONG_POINTS))


def with_clocks(value: Measured, arm: Run) -> Measured:
    """`value` with tokens and UTC beside its steps, where the run kept them, for any x axis."""
    dim = next((d for d in ("step", "checkpoint") if d in value.dims and d in value.coords), None)
    has = set(value.coords) | (set(value.data_vars) if isinstance(value, xr.Dataset) else set())
    if dim is None or {"tokens_seen", "utc"} <= has:
        return value
    clock = arm.clock
    if not len(clock):
        return value
    steps = value[dim].values
    # Step 0 is before the first recorded one: no token seen, and the time of the first.
    begun = np.concatenate([[0], clock.step])
    readings = {"tokens_seen": (clock.tokens, 0), "utc": (clock.utc, None)}
    for name, (reading, at_start) in readings.items():
        if reading is None or name in has:
            continue
        whole = np.concatenate([[reading[0] if at_start is None else at_start], reading])
        value = value.assign_coords({name: (dim, np.interp(steps, begun, whole))})
    return value


def evaluated_gaps(skill: xr.Dataset, start: int) -> tuple[int | None, int | None]:
    """Typical steps between two evaluated checkpoints up to `start` and after it.

    Example:
        >>> evaluated_gaps(xr.Dataset(coords={"checkpoint": [0, 80, 160, 200, 240]}), start=160)
        (80, 40)
    """
    steps = skill["checkpoint"].values
    early, late = steps[steps <= start], steps[steps >= start]
    gaps = [int(np.median(np.diff(part))) if len(part) > 1 else None for part in (early, late)]
    return gaps[0], gaps[1]
