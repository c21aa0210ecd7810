"""Series: checkpoints of one line of training, and every probe's results along them.

Needs   checkpoints, references of pair probes, an Exam, orders; a Dask client where there is one.
Yields  `Series.carry_out`: name -> dataset (checkpoint, ...). Kept is each result of each
        checkpoint as soon as it is there, and the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from probes.exam import Exam
from probes.registry import Probe
from probes.running.one_pass import Failure, Order, Outcome
from probes.running.work import all_at_once, elsewhere, here
from workbench.checkpoints import Checkpoint
from workbench.errors import ProbeFailed, RunNotFound, SchemaError, UsageError
from workbench.run import Run
from workbench.store.result_key import NAMED, Asked
from workbench.store.results import Results

Against = str | int


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
        return cls(line, usable, references, orders, exam, results, device)

    def carry_out(self, client: Any, progress: bool, skip_broken: bool) -> dict[str, xr.Dataset]:
        """Every probe's result over all checkpoints."""
        wholes = self._kept_wholes()
        missing = [o for o in self.orders if o.probe.name not in wholes]
        if not missing:
            return self._told_of(wholes)
        faults: list[str] = []
        for order in [o for o in missing if o.probe.reads == "checkpoints"]:
            found = all_at_once(self, order, client)
            if isinstance(found, Failure):
                faults.append(f"probe {order.probe.name!r} failed: {found.why.rstrip('.')}")
                continue
            try:
                wholes[order.probe.name] = self._keep_whole(order, found)
            except Exception as error:
                faults.append(_not_together(order, 0, error))
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
                wholes[name] = whole if failed else self._keep_whole(order, whole)
            except Exception as error:  # they do not fit together, or `finish` failed
                faults.append(_not_together(order, len(good), error))
        if faults:
            raise ProbeFailed("; ".join(faults) + ". What else was computed is kept.")
        return self._told_of(wholes)

    def _told_of(self, wholes: dict[str, xr.Dataset]) -> dict[str, xr.Dataset]:
        own = {"run": self.line.name, "branch": self.line.branch}
        return {
            o.probe.name: wholes[o.probe.name].assign_attrs(
                own | ({"not_kept": why} if (why := self._not_kept(o)) else {})
            )
            for o in self.orders
            if o.probe.name in wholes
        }

    def _not_kept(self, order: Order) -> str:
        """Why nothing is kept of what was to be kept; "" where it is, or was not asked for."""
        if self.results is None:
            return ""
        if self.exam.identity is None:
            return "nothing names the exam's way of building models: give a function of a module"
        return "" if order.probe.lasting else "the probe holds what is no plain data"

    def _home(self, order: Order) -> Results | None:
        """Where its results are kept."""
        return None if self._not_kept(order) else self.results

    def kept(self) -> dict[str, xr.Dataset]:
        """The results that can be had without loading a model."""
        found = self._kept_wholes()
        faults: list[str] = []
        for order in self.orders:
            positions, home = self._positions(order), self._home(order)
            if order.probe.name in found or not positions or order.probe.reads == "checkpoints":
                continue
            if home is None:
                continue
            parts = home.kept((self._asked(order, i) for i in positions), load=True)
            pairs = zip(positions, parts, strict=True)
            good = [(self.checkpoints[i], ds) for i, ds in pairs if ds is not None]
            if len(good) != len(positions):
                continue
            try:
                whole = self._together(order.probe, good, [])
            except Exception as error:
                faults.append(_not_together(order, len(good), error))
                continue
            found[order.probe.name] = whole.assign_attrs(self._asked_whole(order).named())
        if faults:
            raise ProbeFailed("; ".join(faults) + ".")
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
        orders = [order for order in self.orders if self._home(order) is not None]
        if self.results is None or not orders:
            return {}
        kept = self.results.kept(self._asked_whole(order) for order in orders)
        pairs = zip(orders, kept, strict=True)
        return {order.probe.name: ds for order, ds in pairs if ds is not None}

    def _keep_whole(self, order: Order, whole: xr.Dataset) -> xr.Dataset:
        """What is kept from now on: the same as who asks next is given."""
        if (home := self._home(order)) is None:
            return whole
        asked = self._asked_whole(order)
        home.keep([(asked, whole)])
        kept = home.kept([asked], load=True)[0]
        return kept if kept is not None else whole.assign_attrs(asked.named())

    def _outcomes(self, orders: list[Order], client: Any, progress: bool) -> list[Outcome]:
        """By checkpoint: what is kept, and the rest computed and kept as soon as it is there."""
        outcomes: list[Outcome] = []
        todo: dict[int, list[Order]] = {}
        looked = {order.probe.name: set(self._positions(order)) for order in orders}
        for i in range(len(self.checkpoints)):
            at = [order for order in orders if i in looked[order.probe.name]]
            told = self._told_already(at, i)
            outcomes.append(told)
            if lacking := [order for order in at if order.probe.name not in told]:
                todo[i] = lacking
        bar = _bar(len(todo), progress)
        work = here(self, todo) if client is None else elsewhere(self, todo, client)
        try:
            with closing(work):
                for i, outcome in work:
                    outcomes[i] |= self._keep_parts(todo[i], i, outcome)
                    if all(order.probe.name in outcomes[i] for order in todo[i]):
                        bar(i)
        finally:
            bar(None)
        return outcomes

    def _told_already(self, orders: Sequence[Order], i: int) -> Outcome:
        """What is kept of one checkpoint."""
        orders = [order for order in orders if self._home(order) is not None]
        if self.results is None or not orders:
            return {}
        kept = self.results.kept((self._asked(order, i) for order in orders), load=True)
        pairs = zip(orders, kept, strict=True)
        return {order.probe.name: ds for order, ds in pairs if ds is not None}

    def _keep_parts(self, orders: Sequence[Order], i: int, outcome: Outcome) -> Outcome:
        """What was found at one checkpoint, kept; one that cannot be stored has failed."""
        done = [
            (order, part)
            for order in orders
            if isinstance(part := outcome.get(order.probe.name), xr.Dataset)
            and self._home(order) is not None
        ]
        if self.results is None or not done:
            return outcome
        try:
            self.results.keep((self._asked(order, i), part) for order, part in done)
            return outcome
        except SchemaError:
            outcome = dict(outcome)
        for order, part in done:
            try:
                self.results.keep([(self._asked(order, i), part)])
            except SchemaError as error:
                outcome[order.probe.name] = Failure(str(error))
        return outcome

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


def _told(name: str, failed: Sequence[tuple[Checkpoint, str]], of: int) -> str:
    checkpoint, why = failed[0]
    where = f"step {checkpoint.step}" + (f" and {len(failed) - 1} more" if failed[1:] else "")
    return (
        f"probe {name!r} failed at {len(failed)} of {of} checkpoints ({where}): {why.rstrip('.')}"
    )


def _not_together(order: Order, count: int, error: Exception) -> str:
    of = f"results of {count} checkpoints" if count else "its result"
    why = f"{type(error).__name__}: {error}".rstrip(".")
    return f"probe {order.probe.name!r}: {of}: {why}"


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
