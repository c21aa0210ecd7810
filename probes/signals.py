"""Signals: everything that was captured while a model trained, on one clock of steps.

Needs   a Run, a Window or a tree with some of: router, train, activations, evaluations.
Yields  value (step, signal), each signal in its own unit; coordinates kind, layer, units, clock.

    per layer, over training tokens      entropy, margin, topk_mass, near_tie, z_squared; of the
                                         loads load_entropy (over ln E), max_violation, gini;
                                         domain_information: I(expert; domain), bits, less its bias
    per layer, between two samples       coactivation_change: total variation, 0 to 1
    per layer, over the fixed tokens     churn, saturation (kappa against the last checkpoint)
    of the run                           loss, grad_norm
    of another task, if asked for        logprob: mean over its items, nats

Clock. Steps are finer than checkpoints and stay so: a signal per step is pooled only to `points`
bins (mean over the bin's steps; loads and domains are counted over the bin first, then measured),
labelled by the middle of the bin. What is known at samples or checkpoints only has NaN at all other
steps; what compares two of them (co-activation change, churn) stands in the middle between both.
A Run or a Window gives its bins from what was summarised as it was written, so that a million steps
are not read.

No intervals: counts and means over every training token of a bin are exact, and the spread from
step to step is what a probe such as lead_lag takes for noise. `saturation` looks at the end of the
run, and so does not belong into a forecast. The loads of the training stream move with the data
mix; those of the fixed tokens do not.

Sources: of each measure as in evenness.py, stability.py; Miller-Madow bias, Miller 1955.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from probes.source import Source, group_of
from probes.stability import churn, saturation
from probes.statistics import evenness
from probes.statistics.resample import Floats
from workbench.errors import RunNotFound, SchemaError, UsageError

KINDS: dict[str, str] = {
    "entropy": "nats",
    "margin": "logits",
    "topk_mass": "1",
    "near_tie": "1",
    "z_squared": "logits^2",
    "load_entropy": "1",
    "max_violation": "1",
    "gini": "1",
    "domain_information": "bits",
    "coactivation_change": "1",
    "churn": "1",
    "saturation": "1",
    "loss": "nats",
    "grad_norm": "1",
}
"""Every kind of signal and its unit; and "logprob" of other tasks, where they are asked for."""

ROUTER = ("entropy", "margin", "topk_mass", "near_tie", "z_squared")
LOADS = ("load_entropy", "max_violation", "gini")
SAMPLES = 256
"""Co-activation samples that are compared at most; of more, every other, third, ... is taken."""


@dataclass(frozen=True)
class _Column:
    """One signal on its own clock."""

    kind: str
    layer: int
    units: str
    clock: str
    steps: Floats
    values: Floats
    label: str = ""

    @property
    def name(self) -> str:
        words = self.label or self.kind.replace("_", " ")
        return f"{words}, layer {self.layer}" if self.layer >= 0 else words


def signals(
    source: Source,
    *,
    kinds: Sequence[str] | None = None,
    tasks: Sequence[str] = (),
    start: int | None = None,
    stop: int | None = None,
    points: int = 1000,
) -> xr.Dataset:
    """The captured signals of a run on one clock; what was not recorded is left out.

    Args:
        source: Run, Window, DataTree or anything with `.router`, `.train`, `.activations`.
        kinds: which kinds (KINDS lists them); None for all.
        tasks: tasks whose log-probability is a signal as well.
        start, stop: steps s with start < s <= stop; None: from the first, to the last.
        points: bins for what is known at every step; at most twice as many come out.

    Returns:
        Dataset: value (step, signal), NaN where a signal is not known; coordinates kind, layer
        (-1: of the whole run), units and clock ("step", "sample" or "checkpoint") of each signal.

    Raises:
        UsageError: an unknown kind, or no signal in this source.

    Example:
        >>> loss = xr.Dataset({"loss": ("step", [3.0, 2.0])}, coords={"step": [1, 2]})
        >>> found = signals(xr.DataTree.from_dict({"/train": loss}))
        >>> found["signal"].values.tolist(), found["value"].values.ravel().tolist()
        (['loss'], [3.0, 2.0])
    """
    wanted = list(KINDS) if kinds is None else list(kinds)
    unknown = [kind for kind in wanted if kind not in KINDS]
    if unknown:
        raise UsageError(f"no kind of signal {unknown[0]!r}; there are {', '.join(KINDS)}.")
    reading = _Reading(source, start, stop, points)
    columns = [
        column
        for part in (
            reading.of_the_router(wanted),
            reading.of_the_run(wanted),
            reading.of_coactivation(wanted),
            reading.of_the_fixed_tokens(wanted),
            reading.of_tasks(tasks),
        )
        for column in part
    ]
    if not columns:
        raise UsageError(
            f"found none of {', '.join(wanted)} in this {type(source).__name__} between steps "
            f"{start} and {stop}; widen the window, or record them."
        )
    return _together(columns)


class _Reading:
    """A source, cut to the steps that are wanted."""

    def __init__(self, source: Source, start: int | None, stop: int | None, points: int) -> None:
        if points < 1:
            raise UsageError(f"points={points}: ask for 1 or more.")
        self.source, self.points = source, points
        # A window's own bounds hold as well; a run has no such attributes.
        bounds = (getattr(source, "start", None), getattr(source, "stop", None))
        inside = [bound if isinstance(bound, int) else None for bound in bounds]
        self.start = max((s for s in (start, inside[0]) if s is not None), default=None)
        self.stop = min((s for s in (stop, inside[1]) if s is not None), default=None)
        self.run = getattr(source, "run", source)

    def group(self, name: str) -> xr.Dataset | None:
        """The group, cut; None where there is none, or nothing in it."""
        try:
            found = group_of(self.source, name)
        except (RunNotFound, UsageError, SchemaError):
            return None
        for dim in ("step", "sample", "checkpoint"):
            if dim in found.indexes:
                label = found[dim].values
                first = -np.inf if self.start is None else self.start
                last = np.inf if self.stop is None else self.stop
                low, high = np.searchsorted(label, [first, last], side="right")
                found = found.isel({dim: slice(int(low), int(high))})
        return found

    def binned(self, name: str, variables: Sequence[str]) -> xr.Dataset | None:
        """Means of the variables over bins of steps: (step, ...), labelled by the bins' middles."""
        whole = self.group(name)
        there = [v for v in variables if whole is not None and v in whole]
        if whole is None or not there or not whole.sizes.get("step"):
            return None
        run: Any = self.run
        if hasattr(run, "overview"):
            bins = run.overview(
                name, points=self.points, start=self.start, stop=self.stop, variables=there
            )
            middle = (bins["first_step"].values + bins["last_step"].values) / 2
            means = bins[there].drop_vars(["first_step", "last_step", "rows"], errors="ignore")
            return means.rename(bin="step").assign_coords(step=middle)
        width = -(-whole.sizes["step"] // self.points)
        if width == 1:
            return whole[there].load()
        means = whole[there].coarsen(step=width, boundary="trim").mean().load()
        return means

    def of_the_router(self, wanted: Sequence[str]) -> Iterator[_Column]:
        plain = [kind for kind in ROUTER if kind in wanted]
        loads = [kind for kind in LOADS if kind in wanted]
        names = [*plain, *(["assignments"] if loads else [])]
        if "domain_information" in wanted:
            names.append("domain_assignments")
        found = self.binned("router", names)
        if found is None:
            return
        measured = {kind: found[kind] for kind in plain if kind in found}
        if loads and "assignments" in found:
            total = found["assignments"].sum("expert")
            load = found["assignments"].astype(np.float64) / total.where(total > 0)
            measures = (evenness.normalized_entropy, evenness.max_violation, evenness.gini)
            if found.sizes["expert"] > 1:
                by_name = dict(zip(LOADS, measures, strict=True))
                measured |= {kind: by_name[kind](load) for kind in loads}
        if "domain_assignments" in found:
            measured["domain_information"] = domain_information(
                found["domain_assignments"], self._steps_a_bin(found)
            )
        for kind, values in measured.items():
            yield from _by_layer(kind, values, "step")

    def _steps_a_bin(self, bins: xr.Dataset) -> Floats | float:
        """Steps that each bin's mean is over; the counts behind it are so many times greater."""
        step = bins["step"].values.astype(np.float64)
        return float(np.median(np.diff(step))) if len(step) > 1 else 1.0

    def of_the_run(self, wanted: Sequence[str]) -> Iterator[_Column]:
        names = [kind for kind in ("loss", "grad_norm") if kind in wanted]
        found = self.binned("train", names)
        if found is None:
            return
        for kind in names:
            if kind in found:
                steps = found["step"].values.astype(np.float64)
                values = found[kind].values.astype(np.float64)
                yield _Column(kind, -1, KINDS[kind], "step", steps, values)

    def of_coactivation(self, wanted: Sequence[str]) -> Iterator[_Column]:
        router = self.group("router") if "coactivation_change" in wanted else None
        if router is None or "coactivation" not in router or router.sizes["sample"] < 2:
            return
        stride = -(-router.sizes["sample"] // SAMPLES)
        pairs = router["coactivation"].isel(sample=slice(None, None, stride))
        counts = pairs.transpose("sample", "layer", "expert", "expert2").values.astype(np.float64)
        own = np.arange(counts.shape[-1])
        counts[..., own, own] = 0
        total = counts.sum(axis=(-2, -1), keepdims=True)
        share = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
        change = np.abs(np.diff(share, axis=0)).sum(axis=(-2, -1)) / 2
        steps = pairs["sample"].values.astype(np.float64)
        middle = (steps[1:] + steps[:-1]) / 2
        values = xr.DataArray(change, dims=("step", "layer"), coords={"step": middle})
        if "layer" in pairs.coords:
            values = values.assign_coords(layer=pairs["layer"].values)
        yield from _by_layer("coactivation_change", values, "sample")

    def of_the_fixed_tokens(self, wanted: Sequence[str]) -> Iterator[_Column]:
        names = [kind for kind in ("churn", "saturation") if kind in wanted]
        routing = self.group("activations") if names else None
        if routing is None or "expert_ids" not in routing or routing.sizes["checkpoint"] < 3:
            return
        if int(routing["expert_ids"].isel(checkpoint=[0, -1]).min()) < 0:
            return
        # Of the bootstrap, nothing is used: two draws are the least.
        if "churn" in names:
            moved = churn(routing, n_boot=2)
            values = moved["churn"].rename(checkpoint="step")
            middle = (moved["checkpoint"].values + moved["since"].values) / 2
            yield from _by_layer("churn", values.assign_coords(step=middle), "checkpoint")
        if "saturation" in names:
            settled = saturation(routing, n_boot=2)["kappa"].rename(checkpoint="step")
            yield from _by_layer("saturation", settled, "checkpoint")

    def of_tasks(self, tasks: Sequence[str]) -> Iterator[_Column]:
        from probes.capability import capability

        record = self.group("evaluations") if tasks else None
        if record is None:
            return
        skill = capability(record, task=list(tasks), n_boot=2)
        for task in tasks:
            values = skill["logprob"].sel(task=task)
            steps = values["checkpoint"].values.astype(np.float64)
            yield _Column(
                "logprob", -1, "nats", "checkpoint", steps, values.values, f"logprob of {task}"
            )


def domain_information(counts: xr.DataArray, times: Floats | float = 1.0) -> xr.DataArray:
    """Mutual information of expert and domain, bits, less the Miller-Madow bias.

    Args:
        counts: (..., domain, expert), assignments, or their mean over `times` steps.
        times: steps that were pooled.

    Returns:
        (...), bits; about 0 when experts do not mind the domain, a little under it by chance. NaN
        where nothing was counted.

    Example:
        >>> apart = xr.DataArray([[900.0, 0.0], [0.0, 900.0]], dims=("domain", "expert"))
        >>> round(domain_information(apart).item(), 2)
        1.0
    """
    total = counts.sum(("domain", "expert")).astype(np.float64)
    joint = counts.astype(np.float64) / total.where(total > 0)
    apart = joint.sum("domain") * joint.sum("expert")
    ratio = (joint / apart.where(apart > 0)).where(joint > 0, 1.0)
    bits = (joint * np.log2(ratio)).sum(("domain", "expert"), skipna=False)
    experts = (joint.sum("domain") > 0).sum("expert")
    domains = (joint.sum("expert") > 0).sum("domain")
    bias = (experts - 1) * (domains - 1) / (2 * np.log(2) * (total * times).where(total > 0))
    return bits - bias


def _by_layer(kind: str, values: xr.DataArray, clock: str) -> Iterator[_Column]:
    values = values.transpose("step", "layer")
    layers = values["layer"].values if "layer" in values.coords else range(values.sizes["layer"])
    steps = values["step"].values.astype(np.float64)
    for position, layer in enumerate(layers):
        column = values.values[:, position].astype(np.float64)
        yield _Column(kind, int(layer), KINDS[kind], clock, steps, column)


def _together(columns: list[_Column]) -> xr.Dataset:
    """All signals on the union of their clocks."""
    clock: NDArray[np.float64] = np.unique(np.concatenate([c.steps for c in columns]))
    values = np.full((len(clock), len(columns)), np.nan)
    for position, column in enumerate(columns):
        values[np.searchsorted(clock, column.steps), position] = column.values
    told: dict[str, Any] = {
        "kind": ("signal", [c.kind for c in columns]),
        "layer": ("signal", [c.layer for c in columns]),
        "units": ("signal", [c.units for c in columns]),
        "clock": ("signal", [c.clock for c in columns]),
    }
    result = xr.Dataset(
        {"value": (("step", "signal"), values)},
        coords={"step": clock, "signal": [c.name for c in columns], **told},
    )
    result["step"].attrs = {"units": "steps", "long_name": "optimizer step, middle of the bin"}
    result["value"].attrs = {
        "units": "coordinate `units`",
        "long_name": "value of the signal over the training tokens, or fixed tokens, of the bin",
        "chance_level": "none",
        "interval": "none: exact over the tokens of the bin",
    }
    result.attrs = {"n": len(columns), "n_meaning": "signals"}
    return result
