"""Examine: probes run by name over a run, a window or checkpoints; what is kept is not done again.

Needs   a source; names of probes (registry.py); for those that look at checkpoints an Exam.
Yields  `examine`: name -> dataset. Checkpoints are loaded once each, for all probes together
        (one_pass.py), here or on the workers of a Dask client.

Kept is each result of each checkpoint as soon as it is there, so that a stopped run of probes goes
on where it stood and a new checkpoint costs one pass; and the whole, so that asking again is one
read. What was computed from other weights, another exam or by another version is not taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from probes.exam import Exam
from probes.registry import find
from probes.running.one_pass import Order
from probes.running.series import Against, Series
from workbench.checkpoints import Checkpoints
from workbench.errors import ProbeFailed, UsageError, WorkbenchError
from workbench.run import Run
from workbench.store.results import Results
from workbench.window import Window


def examine(
    source: Run | Window | Checkpoints,
    *names: str,
    params: Mapping[str, Mapping[str, Any]] | None = None,
    against: Against = "final",
    exam: Exam | None = None,
    client: Any = None,
    keep: bool = True,
    progress: bool = False,
    device: str = "cpu",
    skip_broken: bool = False,
    compute: bool = True,
    at_most: int | None = None,
) -> dict[str, xr.Dataset]:
    """Runs probes by name and returns what each found.

    Args:
        source: a run, a window of it, or (some of) its checkpoints.
        names: of probes; `probes.names()` lists them.
        params: parameters by probe, plain data: {"saturation": {"n_boot": 200}}.
        against: what pair probes hold each checkpoint against: "final", "first", "previous",
            "fork" (where the branch forked) or a step.
        exam: what checkpoints are asked; None takes the run's own.
        client: of Dask's `distributed`: its workers take the checkpoints, failures are tried again;
            the numbers are the same where torch has as many threads there as here.
        keep: whether results are kept in the run's store and taken from it.
        progress: whether a bar is shown on stderr.
        device: where models run: "cpu", "cuda", ...
        skip_broken: leave out checkpoints that a probe failed at (attribute `left_out`).
        compute: False gives what is kept, and loads no model: probes of checkpoints that were not
            run before are then missing from the result.
        at_most: checkpoints at most, spread evenly, the last among them; probes of the record read
            the whole source all the same.

    Returns:
        Name -> dataset. Of checkpoint and pair probes (checkpoint, ...), with tokens_seen.

    Raises:
        RunNotFound: no such probe, record or checkpoint.
        UsageError: parameters that the probe does not have, or a source that fits none.
        ProbeFailed: a probe or a checkpoint failed; whatever else was computed is kept.

    Example:
        >>> examine(workbench.open_run("runs/demo"), "saturation")          # doctest: +SKIP
        {'saturation': <xarray.Dataset> ...}
    """
    orders = [
        Order(find(name), dict((params or {}).get(name, {}))) for name in dict.fromkeys(names)
    ]
    _check(source, orders, params or {}, client)
    results = _results(source) if keep else None
    found: dict[str, xr.Dataset] = {}
    faults: list[WorkbenchError] = []
    for order in orders:
        if order.probe.reads == "record":
            try:
                found[order.probe.name] = _of_record(source, order, results)
            except WorkbenchError as error:
                faults.append(error)
    rest = [order for order in orders if order.probe.reads != "record"]
    if rest:
        checkpoints = source if isinstance(source, Checkpoints) else source.checkpoints
        try:
            series = Series.of(
                _run_of(source), _spread(checkpoints, at_most), rest, against=against, exam=exam,
                results=results, device=device,
            )  # fmt: skip
            if compute:
                found |= series.carry_out(client, progress, skip_broken)
            else:
                found |= series.kept()
        except WorkbenchError as error:
            faults.append(error)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise ProbeFailed("; ".join(str(fault).rstrip(".") for fault in faults) + ".")
    return {name: found[name] for name in dict.fromkeys(names) if name in found}


def _check(source: Any, orders: Sequence[Order], params: Mapping[str, Any], client: Any) -> None:
    if not isinstance(source, Run | Window | Checkpoints):
        raise UsageError(
            f"found a {type(source).__name__}, expected a run, a window or checkpoints: "
            f"workbench.open_run(path). A probe's function itself takes datasets as well."
        )
    if client is not None and not hasattr(client, "submit"):
        raise UsageError(
            f"client={client!r}: expected a distributed.Client; distributed.Client(address) "
            f"makes one."
        )
    if not orders:
        raise UsageError("no probe was named; probes.names() lists them.")
    for order in orders:
        unknown = [name for name in order.params if name not in order.probe.params]
        if unknown:
            takes = ", ".join(order.probe.params) or "no parameter"
            raise UsageError(f"probe {order.probe.name!r} has no {unknown[0]!r}; it takes {takes}.")
    for name in params:
        if name not in {order.probe.name for order in orders}:
            raise UsageError(f"params names {name!r}, a probe that was not asked for.")


def _spread(checkpoints: Checkpoints, at_most: int | None) -> Checkpoints:
    """Some of them, evenly, from the last back; those whose weights are gone are not counted."""
    if at_most is None:
        return checkpoints
    if at_most < 1:
        raise UsageError(f"at_most={at_most}: expected 1 or more.")
    there = [i for i, checkpoint in enumerate(checkpoints) if checkpoint.record.complete]
    count = min(at_most, len(there))
    places = np.linspace(len(there) - 1, 0, count).round().astype(int)
    return checkpoints.chosen(there[i] for i in places)


def _run_of(source: Any) -> Run:
    run = source if isinstance(source, Run) else source.run
    assert isinstance(run, Run)
    return run


def _results(source: Any) -> Results | None:
    run = _run_of(source)
    return run.results if run.store is not None else None


# Probes of the record


def _of_record(source: Any, order: Order, results: Results | None) -> xr.Dataset:
    probe, run = order.probe, _run_of(source)
    about = {"run": run.name, "branch": run.branch, "question": probe.question}

    def compute() -> xr.Dataset:
        try:
            found = probe.function(source, **order.params)
        except WorkbenchError:
            raise
        except Exception as error:  # a scientist's probe, or a parameter that it cannot take
            why = f"{type(error).__name__}: {error}"
            raise ProbeFailed(f"probe {probe.name!r} failed: {why}.") from error
        # What is no dataset is told by who keeps it.
        return found.assign_attrs(about) if isinstance(found, xr.Dataset) else found

    if results is None:
        return compute()
    return results.fetch(
        probe.name, probe.key_version, _stretch(source), compute, params=order.params
    )


def _stretch(source: Any) -> dict[str, Any]:
    """What names the part of the record that a source shows, and changes when that does.

    A source shows the record as it was when its run was opened or refreshed, which may be another
    state than the store's by now: checkpoints came, or a rollback took steps off.
    """
    run = _run_of(source)
    assert run.store is not None
    start, stop = 0, run.last_step
    inputs: dict[str, Any] = {"branch": run.branch}
    if isinstance(source, Window):
        start, stop = source.start, source.stop
    elif isinstance(source, Checkpoints):
        inputs["checkpoints"] = source.steps
        stop = max(source.steps, default=0)
    # The measures of the last checkpoint are committed with it, whatever the clock's last step.
    stop = max(stop, max((s for s in run.checkpoints.steps if s <= stop), default=0))
    inputs["record"] = run.state
    if isinstance(source, Window | Checkpoints) and run.store.read(run.branch).state == run.state:
        # A stretch stays the same when later steps come; a whole run does not.
        stretch = run.store.identity(run.branch, stop)
        if run.store.read(run.branch).state == run.state:
            inputs["record"] = stretch
    return inputs | {"start": start, "stop": stop}
