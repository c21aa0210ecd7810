"""Lead-lag: which of the captured signals moved before a capability arrived, and by how much?

Needs   evaluations: correct, logprob (checkpoint, task, item); the captured signals (signals.py).
Yields  of one task (signal), of several (task, signal): lead (steps; over 0: the signal moved
        first), lead_low, lead_high; score; p, q; leads, lags (bool); height, coincidence.

lead   the capability's onset less the middle of the signal's greatest move (moves.py) within
       WIDE x max_lag steps around the onset. Interval: 95 %, over draws of items (onset) and of the
       signal's noise (move). Between two checkpoints a curve is unknown, so the onset is drawn
       evenly from its gap: no lead is known better than about half the checkpoints' spacing
       (attribute `resolution`), and for smooth curves the interval is wider than it need be.
score  the move's height over its standard error.
p      of the move, against what the signal does anyway: block permutation, after whitening with a
       blend of AR(1), random walk and smooth bend, so that neither walks nor trends are moves.
q      Benjamini-Hochberg over all signals and tasks of the call.
leads  q <= 0.05, lead_low > 0 and lead <= max_lag. Of the signals called, at most 5 % have not
       moved, in the mean.
coincidence   the share of the observed steps that lie as near to the onset on the same side: how
       often a move at a time that has nothing to do with the onset would come as close.

What it does not say. One onset in one run is one event. p says that a signal moved; that it moved
so shortly before by chance has the probability `coincidence`, about lead / steps observed, and no
method makes that small in a short run: `expected_by_chance` (attribute) is how many signals would
lead if every move found had fallen anywhere. A common cause moves everything: after a change of the
data mix at a fork every signal that notices the new data "leads" every later onset, trivially. Pass
start= (the fork, or some steps after it) to look only after it. Signals move together: entropy,
margin and load of a layer are one witness, not three. Before is not because: for causes,
transplant and lesion.

It misleads after a change of the data mix, which moves everything at once (pass start=), where
several signals that lead are counted as several witnesses, and where evaluations are sparser than
the lead that is claimed.

Sources: measures of the house; false discovery rate as in discovery_rate.py, moves as in moves.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from probes.arrival import SPACINGS, Arrival, arrival_of
from probes.registry import probe
from probes.signals import signals as captured
from probes.source import Source, group_of, pick
from probes.statistics.discovery_rate import RATE, q_values
from probes.statistics.moves import FEWEST, MOST, Moves, greatest_moves, pooled_by
from probes.statistics.resample import CONFIDENCE, Floats, tails
from workbench.errors import SchemaError, UsageError

WIDE = 3
"""Steps that are looked at on either side of the onset, in units of max_lag."""

DURATIONS = (0.0, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Durations of moves that are tried, in units of max_lag; 0 is a step."""

PER_TASK = ("max_lag", "resolution", "observed_from", "observed_to")
"""Scalars of one task, coordinates (task) of several; steps."""

MEANING: dict[str, tuple[str, str]] = {
    "lead": ("steps", "onset less the time of the signal's greatest move; over 0: it moved first"),
    "lead_low": ("steps", "lower bound of the lead"),
    "lead_high": ("steps", "upper bound of the lead"),
    "score": ("1", "height of the move over its standard error; negative: the signal fell"),
    "p": ("1", "probability of such a move if the signal only wanders as it does"),
    "q": ("1", "false discovery rate at which it is just called (Benjamini-Hochberg)"),
    "leads": ("1", "moved, before the onset, within max_lag"),
    "lags": ("1", "moved, after the onset, within max_lag"),
    "height": ("coordinate `units`", "height of the move"),
    "coincidence": ("1", "share of the observed steps as near to the onset on the same side"),
}


def lead_lag(
    source: Source,
    task: str,
    *,
    signals: xr.Dataset | Sequence[str] | None = None,
    max_lag: float | None = None,
    onset: float | None = None,
    level: float = 0.5,
    start: int | None = None,
    stop: int | None = None,
    n_perm: int = 1999,
    n_boot: int = 400,
    seed: int = 0,
) -> xr.Dataset:
    """Which signals moved before the capability's onset, by how much, with p, q and coincidence.

    Args:
        source: Run, Window, or anything with `.evaluations` and the groups of the signals.
        task: the capability.
        signals: None for all that were captured; kinds of them (probes.signals.KINDS); or a dataset
            (step, signal) of one's own with the variable `value`.
        max_lag: steps; None is SPACINGS gaps between checkpoints around the onset.
        onset: the step of the onset, if it is known otherwise; then taken as exact. None: the first
            step from which the accuracy stays at `level`.
        level: on the chance-normalised scale, as in `probes.onset`.
        start, stop: look at signals only at steps s with start < s <= stop, such as after a fork.
        n_perm: arrangements under the null; p is 1 / (n_perm + 1) at least.
        n_boot, seed: draws of items and of noise for the interval, and the seed of all.

    Returns:
        Dataset (signal): lead, lead_low, lead_high, score, p, q, leads, lags, height, coincidence;
        coordinates kind, layer, units and `reason`: why there is no number where there is none.
        attrs: task, onset, onset_low, onset_high, max_lag, resolution, null, block (the median of
        the signals', in values), floor, n (signals tested), expected_by_chance, note.

    Raises:
        RunNotFound: no such task.
        UsageError: the task never stays at the level (or was there from the start), no signal,
            or a max_lag that is not over 0.

    Example:
        >>> from workbench.testing import PlantedSkill, evaluations_record
        >>> from workbench.planted.signals import PlantedSignal, signals_record
        >>> skill = PlantedSkill("jump", at=500)
        >>> answers = evaluations_record({"code/add": skill}, every=28, checkpoints=41)
        >>> planted = {"a": PlantedSignal(lead=40, height=3), "b": PlantedSignal()}
        >>> seen = signals_record(planted, skill)
        >>> lead_lag(answers, "code/add", signals=seen, n_perm=499)["leads"].values.tolist()
        [True, False]
    """
    arrival = arrival_of(source, task, onset, level, n_boot, seed)
    if arrival.reason:
        raise UsageError(f"{task}: {arrival.reason}; give another level=, or onset=STEP.")
    found = _measured(source, arrival, signals, max_lag, start, stop, n_perm, n_boot, seed)
    result = _called(found, task=str(task), level=level if onset is None else "given")
    return result.assign_attrs(
        {name: float(result[name]) for name in PER_TASK},
        onset=arrival.step,
        onset_low=arrival.low,
        onset_high=arrival.high,
    )


@probe(
    "lead-lag",
    question="Which of the captured signals moved before each capability arrived?",
    reads="record",
    needs=("evaluations",),
)
def lead_lag_of_tasks(
    source: Source,
    *,
    task: str | Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
    max_lag: float | None = None,
    level: float = 0.5,
    start: int | None = None,
    stop: int | None = None,
    n_perm: int = 1999,
    n_boot: int = 400,
    seed: int = 0,
) -> xr.Dataset:
    """`lead_lag` of several tasks, None for all; q is over all signals of all of them.

    Returns:
        Dataset (task, signal) as of `lead_lag`; a task that never arrived has NaN throughout, and
        `task_reason` (task) says so. Further coordinates (task): onset, onset_low, onset_high.

    Raises:
        UsageError: not one of the tasks arrived.
    """
    names = pick(group_of(source, "evaluations", ["correct"]), "task", task)
    arrivals = {name: arrival_of(source, name, None, level, n_boot, seed) for name in names}
    rows = {
        name: _measured(source, arrival, kinds, max_lag, start, stop, n_perm, n_boot, seed)
        for name, arrival in arrivals.items()
        if not arrival.reason
    }
    if not rows:
        why = "; ".join(f"{name}: {arrival.reason}" for name, arrival in arrivals.items())
        raise UsageError(f"no task arrived ({why}): lower level=, or widen the window.")
    # In the order of the task that has the most signals, not of the alphabet.
    order = max((row["signal"].values for row in rows.values()), key=len)
    joined = xr.concat(
        [row.reset_coords(["reason", *PER_TASK]) for row in rows.values()],
        dim=xr.Variable("task", list(rows)), join="outer", coords="minimal", compat="override",
        combine_attrs="override", fill_value={"reason": "not recorded around the onset"},
    ).set_coords(["reason", *PER_TASK])  # fmt: skip
    joined = joined.reindex(
        task=names, signal=order, fill_value={"reason": "the task did not arrive"}
    )
    result = _called(joined, task=", ".join(names), level=level)
    return result.assign_coords(
        onset=("task", [arrivals[name].step for name in names]),
        onset_low=("task", [arrivals[name].low for name in names]),
        onset_high=("task", [arrivals[name].high for name in names]),
        task_reason=("task", [arrivals[name].reason for name in names]),
    )


def _measured(
    source: Source,
    arrival: Arrival,
    wanted: xr.Dataset | Sequence[str] | None,
    max_lag: float | None,
    start: int | None,
    stop: int | None,
    n_perm: int,
    n_boot: int,
    seed: int,
) -> xr.Dataset:
    """Everything but q of one capability's signals."""
    reach = SPACINGS * arrival.spacing if max_lag is None else float(max_lag)
    if not reach > 0:
        raise UsageError(f"max_lag={max_lag}: expected steps, over 0.")
    low, high = arrival.step - WIDE * reach, arrival.step + WIDE * reach
    low = max(low, -np.inf if start is None else start)
    high = min(high, np.inf if stop is None else stop)
    if isinstance(wanted, xr.Dataset):
        seen = _own(wanted)
    else:
        first, last = _whole(low), _whole(high)
        seen = captured(source, kinds=wanted, start=first, stop=last, points=4 * MOST)
    step = seen["step"].values.astype(np.float64)
    seen = seen.isel(step=np.flatnonzero((step > low) & (step <= high)))
    found, reasons, grain = _moves_of(seen, reach, n_perm, n_boot, seed)
    return _against(found, arrival, seen, reasons, grain, reach, n_perm)


def _whole(step: float) -> int | None:
    return int(np.floor(step)) if np.isfinite(step) and step > 0 else None


def _own(given: xr.Dataset) -> xr.Dataset:
    if "value" not in given or set(given["value"].dims) != {"step", "signal"}:
        raise SchemaError(
            f"signals: found {dict(given.sizes)} with {', '.join(map(str, given.data_vars))}; "
            "expected the variable value (step, signal), as probes.signals returns it."
        )
    names = given["signal"].values
    usual: dict[str, Any] = {
        "kind": names,
        "layer": np.full(len(names), -1),
        "units": np.full(len(names), "1"),
    }
    missing = {k: ("signal", v) for k, v in usual.items() if k not in given.coords}
    return given.assign_coords(missing).sortby("step")


def _moves_of(
    seen: xr.Dataset, reach: float, n_perm: int, n_boot: int, seed: int
) -> tuple[Moves, NDArray[np.str_], Floats]:
    """The greatest move of each signal, on the clock on which it is known; why there is none."""
    values = seen["value"].transpose("signal", "step").values.astype(np.float64)
    step = seen["step"].values.astype(np.float64)
    known = np.isfinite(values)
    found = Moves.none(len(values), n_boot)
    reasons = np.full(len(values), "", dtype="<U64")
    grain = np.full(len(values), np.nan)
    for clock in np.unique(known, axis=0):
        members = np.flatnonzero((known == clock).all(axis=1))
        if clock.sum() < FEWEST:
            reasons[members] = f"{clock.sum()} values around the onset, {FEWEST} needed"
            continue
        width = -(-int(clock.sum()) // MOST)
        times, pooled = pooled_by(width, step[clock], values[members][:, clock])
        durations = tuple(share * reach for share in DURATIONS)
        moves = greatest_moves(
            times, pooled, durations, pooled=width, n_perm=n_perm, n_boot=n_boot, seed=seed
        )
        found.put(members, moves)
        grain[members] = np.median(np.diff(times))
        reasons[members[np.isnan(moves.p)]] = "does not change around the onset"
    return found, reasons, grain


def _against(
    found: Moves,
    arrival: Arrival,
    seen: xr.Dataset,
    reasons: NDArray[np.str_],
    grain: Floats,
    reach: float,
    n_perm: int,
) -> xr.Dataset:
    """The moves of the signals against the onset."""
    lead = arrival.step - found.at
    draws = arrival.draws[:, None] - found.draws
    low, high = np.quantile(draws, tails(arrival.n, CONFIDENCE), axis=0)
    step = seen["step"].values
    observed = float(step[-1] - step[0]) if len(step) > 1 else np.nan
    side = np.where(lead > 0, arrival.step - step[0], step[-1] - arrival.step) if len(step) else 1.0
    columns = {
        "lead": lead,
        "lead_low": np.fmin(low, lead),
        "lead_high": np.fmax(high, lead),
        "score": found.score,
        "p": found.p,
        "height": found.height,
        "coincidence": np.minimum(np.abs(lead), side) / observed,
    }
    result = xr.Dataset({name: ("signal", values) for name, values in columns.items()})
    told = {name: seen[name] for name in ("signal", "kind", "layer", "units")}
    tested = np.isfinite(found.p)
    finest = float(np.nanmin(grain, initial=np.inf)) if tested.any() else np.nan
    ends = (float(step[0]), float(step[-1])) if len(step) else (np.nan, np.nan)
    scalars = dict(zip(PER_TASK, (reach, max(arrival.spacing, finest) / 2, *ends), strict=True))
    result = result.assign_coords(told | scalars | {"reason": ("signal", reasons)})
    block = float(np.median(found.block[tested])) if tested.any() else np.nan
    return result.assign_attrs(block=block, floor=1 / (n_perm + 1), n_perm=n_perm, items=arrival.n)


def _called(found: xr.Dataset, *, task: str, level: float | str) -> xr.Dataset:
    """With q over all that was tested, the calls, and what everything means."""
    q = found["p"].copy(data=q_values(found["p"].values))
    sure = (q <= RATE) & (np.abs(found["lead"]) <= found["max_lag"])
    found = found.assign(
        q=q, leads=sure & (found["lead_low"] > 0), lags=sure & (found["lead_high"] < 0)
    )
    interval = (
        "95 %, over draws of items and, by blocks, of the signal's noise; the onset is unknown "
        "within its gap between checkpoints: same run, other items and noise"
    )
    for name, (unit, meaning) in MEANING.items():
        found[name].attrs = {
            "units": unit,
            "long_name": meaning,
            "interval": interval if name.startswith("lead") and name != "leads" else "none",
        }
    found["p"].attrs |= {"chance_level": "uniform", "interval": "none: a probability"}
    found["lead"].attrs["chance_level"] = "none: see coincidence"
    moved = q <= RATE
    ahead = found["max_lag"] / (found["observed_to"] - found["observed_from"])
    found.attrs |= {
        "task": task,
        "level": level,
        "null": (
            "blocks of the signal, whitened by AR(1) + random walk + smooth bend, in random order"
        ),
        "n": int(np.isfinite(found["p"].values).sum()),
        "n_meaning": "signals tested",
        "moved": int(moved.sum()),
        "expected_by_chance": float((moved * np.minimum(ahead, 1)).sum()),
        "note": (
            "moved before is not caused; a change of the data at a fork moves every signal and so "
            "leads every later onset trivially: start= looks after it only"
        ),
    }
    return found
