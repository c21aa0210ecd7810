"""Series: checkpoints of one line of training, and every probe's results along them.

Needs   checkpoints, references of pair probes, an Exam, orders; a Dask client where there is one.
Yields  `Series.carry_out`: name -> dataset (checkpoint, ...). Kept is each result of each
        checkpoint as soon as it is there, and the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
import xarray as xr

from probes.exam import Exam
from probes.registry import Probe
from probes.running.one_pass import Failure, Order, Outcome, forget, sit
from workbench.checkpoints import Checkpoint
from workbench.errors import ProbeFailed, RunNotFound, UsageError, WorkbenchError
from workbench.run import Run
from workbench.store.result_key import NAMED, Asked
from workbench.store.results import Results

Against = str | int
RETRIES = 2
"""How often a worker's failure is tried again."""


@dataclass(frozen=True)
class Series:
    """Checkpoints to be examined, and where results are kept."""

    line: Run
    checkpoints: list[Checkpoint]
    references: list[Checkpoint | None]
    orders: list[Order]
    exam: Exam
    results: Results | None
    device: str

    @classmethod
    def of(
        cls, line: Run, checkpoints: Sequence[Checkpoint], orders: list[Order], *,
        against: Against, exam: Exam | None, results: Results | None, device: str,
    ) -> Series:  # fmt: skip
        """The usable ones among `checkpoints`, and what pair probes hold each against.

        Raises:
            RunNotFound: none of them has its weights still.
            UsageError: `against` names no reference.
        """
        # Those whose weights are gone stay in the index and cannot be looked at.
        usable = [c for c in checkpoints if c.record.complete]
        if not usable:
            raise RunNotFound(
                f"found no checkpoint whose weights are there on branch {line.branch!r} of "
                f"{line.path}; widen the window."
            )
        references: list[Checkpoint | None] = [None] * len(usable)
        if any(order.probe.reads == "pair" for order in orders):
            references = _references(line, usable, against)
        exam = Exam.of(line) if exam is None else exam
        if exam.identity is None:
            results = None  # nothing would tell this way of building models from another
        return cls(line, usable, references, orders, exam, results, device)

    def carry_out(self, client: Any, progress: bool, skip_broken: bool) -> dict[str, xr.Dataset]:
        """Every probe's result over all checkpoints."""
        wholes = self._kept_wholes()
        missing = [o for o in self.orders if o.probe.name not in wholes]
        if not missing:
            return self._told_of(wholes)
        faults: list[str] = []
        for order in [o for o in missing if o.probe.reads == "checkpoints"]:
            found = _all_at_once(self, order, client)
            if isinstance(found, Failure):
                faults.append(f"probe {order.probe.name!r} failed: {found.why.rstrip('.')}")
            else:
                wholes[order.probe.name] = self._keep_whole(order, found)
        missing = [o for o in missing if o.probe.reads != "checkpoints"]
        outcomes = self._outcomes(missing, client, progress) if missing else []
        for order in missing:
            name = order.probe.name
            parts = [(self.checkpoints[i], outcomes[i][name]) for i in self._positions(order)]
            failed = [(c, part.why) for c, part in parts if isinstance(part, Failure)]
            good = [(c, part) for c, part in parts if isinstance(part, xr.Dataset)]
            if failed and (not skip_broken or not good):
                faults.append(_told(name, failed, len(parts)))
                continue
            try:
                whole = self._together(order.probe, good, failed)
            except Exception as error:  # its results do not fit together, or `finish` failed
                why = f"{type(error).__name__}: {error}"
                faults.append(f"probe {name!r}: results of {len(good)} checkpoints: {why}")
                continue
            wholes[name] = whole if failed else self._keep_whole(order, whole)
        if faults:
            raise ProbeFailed("; ".join(faults) + ". What else was computed is kept.")
        return self._told_of(wholes)

    def _told_of(self, wholes: dict[str, xr.Dataset]) -> dict[str, xr.Dataset]:
        return {
            name: ds.assign_attrs(run=self.line.name, branch=self.line.branch)
            for name, ds in wholes.items()
        }

    def kept(self) -> dict[str, xr.Dataset]:
        """The results that can be had without loading a model."""
        found = self._kept_wholes()
        if self.results is None:
            return found
        for order in self.orders:
            positions = self._positions(order)
            if order.probe.name in found or not positions or order.probe.reads == "checkpoints":
                continue
            parts = self.results.kept(self._asked(order, i) for i in positions)
            pairs = zip(positions, parts, strict=True)
            good = [(self.checkpoints[i], ds.load()) for i, ds in pairs if ds is not None]
            if len(good) == len(positions):
                found[order.probe.name] = self._together(order.probe, good, [])
        return self._told_of(found)

    def _positions(self, order: Order) -> list[int]:
        """Places of the checkpoints that a probe looks at: a pair takes a reference."""
        pair = order.probe.reads == "pair"
        every = range(len(self.checkpoints))
        return [i for i in every if not pair or self.references[i] is not None]

    def _asked(self, order: Order, position: int) -> Asked:
        inputs = {"weights": weights_of(self.checkpoints[position]), "exam": self.exam.identity}
        reference = self.references[position]
        if order.probe.reads == "pair" and reference is not None:
            inputs["reference"] = weights_of(reference)
        return Asked(order.probe.name, order.probe.key_version, inputs, order.params)

    def _asked_whole(self, order: Order) -> Asked:
        positions = self._positions(order)
        each = [self._asked(order, i).inputs for i in positions]
        at = [self.checkpoints[i] for i in positions]
        steps = [[c.branch, c.step, c.tokens_seen] for c in at]
        return Asked(
            order.probe.name, order.probe.key_version,
            {"branch": self.line.branch, "checkpoints": steps, "each": each}, order.params,
        )  # fmt: skip

    def _kept_wholes(self) -> dict[str, xr.Dataset]:
        if self.results is None:
            return {}
        kept = self.results.kept(self._asked_whole(order) for order in self.orders)
        pairs = zip(self.orders, kept, strict=True)
        return {order.probe.name: ds for order, ds in pairs if ds is not None}

    def _keep_whole(self, order: Order, whole: xr.Dataset) -> xr.Dataset:
        if self.results is not None:
            self.results.keep([(self._asked_whole(order), whole)])
        return whole

    def _outcomes(self, orders: list[Order], client: Any, progress: bool) -> list[Outcome]:
        """By checkpoint: what is kept, and the rest computed and kept as soon as it is there."""
        outcomes: list[Outcome] = []
        todo: dict[int, list[Order]] = {}
        looked = {order.probe.name: set(self._positions(order)) for order in orders}
        for i in range(len(self.checkpoints)):
            here = [order for order in orders if i in looked[order.probe.name]]
            kept: Sequence[xr.Dataset | None] = [None] * len(here)
            if self.results is not None:
                kept = self.results.kept(self._asked(order, i) for order in here)
            pairs = list(zip(here, kept, strict=True))
            outcomes.append({o.probe.name: ds.load() for o, ds in pairs if ds is not None})
            if lacking := [o for o, ds in pairs if ds is None]:
                todo[i] = lacking
        bar = _bar(len(todo), progress)
        work = _here(self, todo) if client is None else _elsewhere(self, todo, client)
        try:
            for i, outcome in work:
                if self.results is not None:
                    done = [(o, outcome[o.probe.name]) for o in todo[i]]
                    self.results.keep(
                        (self._asked(o, i), ds) for o, ds in done if isinstance(ds, xr.Dataset)
                    )
                outcomes[i] |= outcome
                bar(i)
        finally:
            bar(None)
        return outcomes

    def _together(
        self,
        probe: Probe,
        good: Sequence[tuple[Checkpoint, xr.Dataset]],
        failed: Sequence[tuple[Checkpoint, str]],
    ) -> xr.Dataset:
        """The results of single checkpoints along `checkpoint`, their clocks beside it."""
        filed = (*NAMED, "provenance")
        bare = []
        for _, ds in good:
            own = {k: v for k, v in ds.attrs.items() if k not in filed}
            bare.append(ds.drop_attrs(deep=False).assign_attrs(own))
        steps = np.array([c.step for c, _ in good], dtype=np.int64)
        whole = xr.concat(
            bare, dim="checkpoint", data_vars="all", coords="different", compat="equals",
            join="outer", combine_attrs="drop_conflicts",
        )  # fmt: skip
        note = {"units": "tokens", "long_name": "training tokens learned from"}
        seen = np.array([c.tokens_seen for c, _ in good], dtype=np.int64)
        whole = whole.assign_coords(checkpoint=steps, tokens_seen=("checkpoint", seen, note))
        if probe.reads == "pair":
            by_step = dict(zip((c.step for c in self.checkpoints), self.references, strict=True))
            against = [by_step[c.step] for c, _ in good]
            whole = whole.assign_coords(
                against=("checkpoint", [r.step if r else -1 for r in against])
            )
        if probe.finish is not None:
            whole = probe.finish(whole)
        attrs = {"run": self.line.name, "branch": self.line.branch, "question": probe.question}
        if failed:
            attrs["left_out"] = "; ".join(f"step {c.step}: {why}" for c, why in failed)
        return whole.assign_attrs(attrs)


def _references(
    line: Run, checkpoints: Sequence[Checkpoint], against: Against
) -> list[Checkpoint | None]:
    """What each checkpoint is held against; None where there is nothing before it."""
    if against == "previous":
        if len(checkpoints) < 2:
            raise UsageError("against='previous' takes 2 checkpoints or more; found 1.")
        return [None, *checkpoints[:-1]]
    if against == "final":
        one = checkpoints[-1]
    elif against == "first":
        one = checkpoints[0]
    elif against == "fork":
        if line.fork_step is None:
            raise UsageError(f"branch {line.branch!r} forked nowhere: choose another `against`.")
        one = line.checkpoints.at(line.fork_step)
    elif isinstance(against, int):
        one = line.checkpoints.at(against)
    else:
        raise UsageError(
            f"against={against!r}: expected 'final', 'first', 'previous', 'fork' or a step."
        )
    return [one] * len(checkpoints)


def _here(series: Series, todo: Mapping[int, list[Order]]) -> Iterator[tuple[int, Outcome]]:
    examination = uuid4().hex
    try:
        for i, orders in todo.items():
            yield i, _sat(series, i, orders, examination)
    finally:
        forget(examination)


def _elsewhere(
    series: Series, todo: Mapping[int, list[Order]], client: Any
) -> Iterator[tuple[int, Outcome]]:
    """On the workers of a Dask client, in the order in which they finish."""
    from distributed import as_completed

    examination = uuid4().hex
    tries = dict.fromkeys(todo, 0)
    futures: dict[Any, int] = {}

    def submit(i: int) -> Any:
        # Dask itself tries again where loading fails or a worker dies. The exam goes along with
        # every checkpoint: scattered data would be lost with the workers that hold it.
        future = client.submit(
            sit, series.checkpoints[i], series.exam, todo[i], series.references[i], series.device,
            examination=examination, pure=False, retries=RETRIES,
        )  # fmt: skip
        futures[future] = i
        return future

    done = as_completed([submit(i) for i in todo])
    try:
        for future in done:
            i = futures.pop(future)
            error = future.exception()
            outcome = _all_failed(todo[i], error) if error is not None else future.result()
            future.release()
            chance = any(isinstance(part, Failure) and part.by_chance for part in outcome.values())
            if chance and tries[i] < RETRIES:
                tries[i] += 1
                done.add(submit(i))
                continue
            yield i, outcome
    finally:
        client.cancel(list(futures))
        with suppress(Exception):  # workers that are gone hold nothing
            client.run(forget, examination)


def _all_at_once(series: Series, order: Order, client: Any) -> xr.Dataset | Failure:
    """What a probe that mixes checkpoints finds; on one worker where there is a client."""
    arguments = (series.checkpoints, series.exam, series.device)
    try:
        if client is None:
            found = order.probe.function(*arguments, **order.params)
        else:
            found = client.submit(
                order.probe.function, *arguments, **order.params, pure=False, retries=RETRIES
            ).result()
    except WorkbenchError as error:
        return Failure(str(error))
    except Exception as error:  # a scientist's probe must not take the others down
        return Failure(f"{type(error).__name__}: {error}")
    if not isinstance(found, xr.Dataset):
        return Failure(f"it returned a {type(found).__name__}, expected an xr.Dataset")
    return found.assign_attrs(question=order.probe.question)


def _sat(series: Series, i: int, orders: list[Order], examination: str) -> Outcome:
    at, reference = series.checkpoints[i], series.references[i]
    try:
        return sit(at, series.exam, orders, reference, series.device, examination=examination)
    except Exception as error:  # one damaged checkpoint must not cost the others
        return _all_failed(orders, error)


def _all_failed(orders: Sequence[Order], error: BaseException) -> Outcome:
    return {order.probe.name: Failure(str(error) or type(error).__name__) for order in orders}


def _told(name: str, failed: Sequence[tuple[Checkpoint, str]], of: int) -> str:
    checkpoint, why = failed[0]
    where = f"step {checkpoint.step}" + (f" and {len(failed) - 1} more" if failed[1:] else "")
    return (
        f"probe {name!r} failed at {len(failed)} of {of} checkpoints ({where}): {why.rstrip('.')}"
    )


def weights_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What names a checkpoint's weights, and changes when they do."""
    record = checkpoint.record
    if record.digests:
        # The optimizer's among them: probes that reckon with its moments read it too.
        return {"digests": dict(sorted(record.digests.items()))}
    if record.fingerprint is not None:
        return {"fingerprint": record.fingerprint}
    return {"uri": str(checkpoint.location), "utc": record.utc, "bytes": record.size_bytes}


def _bar(total: int, progress: bool) -> Callable[[int | None], None]:
    """Advances a bar by one; None closes it."""
    if not progress or not total:
        return lambda i: None
    from tqdm.auto import tqdm

    bar = tqdm(total=total, unit="checkpoint", desc="probes")

    def advance(i: int | None) -> None:
        bar.close() if i is None else bar.update()

    return advance
