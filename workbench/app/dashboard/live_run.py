"""Live run: a run that may be being written, and what the pages show of it, each read once.

Needs   a run's folder.
Yields  LiveRun, for as long as the server lives; `moment`, what a view shows of it now: Moment.

Several browsers may ask at once and share what was read; one asks at a time.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import xarray as xr

import probes
from checkpoints_index.window import Interval
from workbench.app.dashboard.health import Health, health
from workbench.app.dashboard.holder import holder_of
from workbench.app.dashboard.later import Later
from workbench.app.dashboard.live_record import LiveRecord
from workbench.app.dashboard.view import View
from workbench.app.study import Study
from workbench.errors import RunNotFound
from workbench.figures.bins import by_step
from workbench.figures.marks import Mark, marks_of
from workbench.figures.template import arm_colors
from workbench.run import Run, Window, open_run
from workbench.store.results import Stored
from workbench.store.snapshot import Snapshot

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CURVES = ("loss", "lr", "grad_norm", "tokens_seen", "utc", "capture_seconds", "captured_every")
ROUTER = ("assignments", "tokens", "entropy", "margin", "topk_mass", "near_tie")
CURVE_POINTS = 120
"""Points of a training curve, up to twice as many."""
CELLS = 16_000
"""Cells of an image of loads, up to twice as many: what a refresh may send."""
KEPT_RECORDS = 24
KEPT_MOMENTS = 16
N_BOOT = 200
"""Bootstrap draws of the intervals on a live page."""

T = TypeVar("T")


class LiveRun:
    """A run, followed.

    Args:
        path: the run's folder.

    Raises:
        RunNotFound: no run there.
    """

    def __init__(self, path: str | Path) -> None:
        self.run = open_run(path)
        self.lock = threading.RLock()
        self._arms: dict[str, Run] = {self.run.branch: self.run}
        self._records: OrderedDict[tuple[Any, ...], LiveRecord] = OrderedDict()
        self._computed: dict[str, tuple[Any, Any]] = {}
        self._moments: OrderedDict[View, Moment] = OrderedDict()
        self.vital: tuple[Any, ...] = ()
        self.later = Later()

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The run's, read once; None where it has none, or one that cannot be read."""
        from tokenizers import Tokenizer

        file = self.run.path / "tokenizer.json"
        try:
            return Tokenizer.from_file(str(file)) if file.is_file() else None
        except Exception:  # the library raises no narrower one
            return None

    def moment(self, view: View) -> Moment:
        """What `view` shows of the run, as it is now; the same moment while there is no news."""
        vitals = self._vitals()
        if self.vital != vitals:
            self.vital = vitals
            self._moments.clear()
        if view not in self._moments:
            self._moments[view] = self._new_moment(view)
        while len(self._moments) > KEPT_MOMENTS:
            self._moments.popitem(last=False)
        return self._moments[view]

    def _vitals(self) -> tuple[Any, ...]:
        """What changes when anything does that a page shows, but for who writes: all of it is told
        by a few small files.
        """
        store, folder = self.run.store, self.run.path
        is_here = "://" not in str(folder)
        # Of a folder that went an open store tells the same as of one that is still empty.
        if is_here and not (folder / "store" if store is not None else folder).is_dir():
            raise RunNotFound(f"{folder} was moved or deleted.")
        if store is None:
            # It may begin at any time.
            return (object(),)
        tips = {b: store.repository.lookup_branch(b) for b in store.repository.list_branches()}
        waiting = store.location.journal_folder
        files = [*waiting.glob("*.log"), folder / "run.json"]
        stamps = {str(f): (s.st_mtime_ns, s.st_size) for f in files if (s := _stat(f))}
        saved = dict(self.run.index.files()) if is_here else {}
        return (sorted(tips.items()), sorted(stamps.items()), sorted(saved.items()))

    def _new_moment(self, view: View) -> Moment:
        self.run.refresh()
        branches = self.run.branches
        arms = list(Study(self.run).arms) if len(branches) > 1 else branches or [self.run.branch]
        arm = view.arm if view.arm in arms else self._liveliest(arms)
        run = self.arm(arm)
        moment = Moment(self, run if run is self.run else run.refresh(), view, arms)
        layers, experts = moment.sizes
        fitted = replace(view, arm=arm).within(
            arms=arms, layers=layers, experts=experts, last_step=moment.last_step
        )
        # An arm that was not asked for stays unsaid: the link goes on to follow the liveliest.
        return replace(moment, view=replace(fitted, arm=arm if view.arm == arm else ""))

    def arm(self, name: str) -> Run:
        """The run seen from one of its branches, opened once."""
        if name not in self._arms:
            self._arms[name] = self.run.arm(name)
        return self._arms[name]

    def record(
        self, run: Run, group: str, variables: tuple[str, ...], points: int, view: View
    ) -> LiveRecord:
        """The record of a stretch, which goes on from where it was read to."""
        if run.store is None:
            raise RunNotFound(f"the run {run.path} has no record yet.")
        key = (run.branch, group, points, view.start, view.stop)
        record = self._records.pop(key, None) or LiveRecord(
            run.store, run.branch, group, variables,
            points=points, start=view.start, stop=view.stop,
        )  # fmt: skip
        self._records[key] = record
        while len(self._records) > KEPT_RECORDS:
            self._records.popitem(last=False)
        return record

    def once(self, name: str, depends_on: Any, compute: Callable[[], T]) -> T:
        """What `compute` gives, kept until `depends_on` changes."""
        kept = self._computed.get(name)
        if kept is None or kept[0] != depends_on:
            kept = self._computed[name] = (depends_on, compute())
        return kept[1]

    def _liveliest(self, arms: list[str]) -> str:
        """The arm that somebody writes to; else the one that was begun to be written last."""
        folder = self.run.path / "store" / "locks"
        begun: dict[str, tuple[bool, float]] = {}
        for arm in arms:
            file = folder / f"{arm}.lock"
            holder = holder_of(file)
            if holder is not None:
                begun[arm] = (holder.state == "alive", file.stat().st_mtime)
        return max(begun, key=lambda arm: begun[arm], default=next(iter(arms), self.run.branch))


@dataclass(frozen=True)
class Moment:
    """A view of a run at one moment. Everything is read when it is first asked for."""

    live: LiveRun
    run: Run
    """Opened on the arm that is shown, refreshed."""
    view: View
    """What was asked, fitted to the run."""
    arms: list[str]
    _states: dict[str, Snapshot | None] = field(default_factory=dict)

    @cached_property
    def now(self) -> Snapshot | None:
        """The arm's newest state; None where nothing was recorded of it."""
        return self.state_of(self.run.branch)

    def state_of(self, arm: str) -> Snapshot | None:
        """The newest state of an arm, read once a moment."""
        store = self.run.store
        if arm not in self._states:
            there = store is not None and arm in store.branches
            self._states[arm] = store.read(arm) if store is not None and there else None
        return self._states[arm]

    def pulse(self, found: Health) -> str:
        """A word that changes when anything does that a page shows.

        Args:
            found: the moment's health, as it was shown.
        """
        # Seconds pass without news, and only the page about them is to show each.
        why = found.why if self.view.page == "health" else re.sub("[0-9]+", "", found.why)
        seen = hashlib.blake2b(
            repr((self.live.vital, self.live.later.done)).encode(), digest_size=8
        )
        return f"{seen.hexdigest()} {why}"

    @property
    def last_step(self) -> int:
        """Of the arm."""
        return self.run.last_step

    @property
    def stop(self) -> int:
        """The last step that is shown."""
        return self.last_step if self.view.stop is None else self.view.stop

    @cached_property
    def window(self) -> Window:
        """The steps that are shown."""
        stop = max(self.stop, self.view.start + 1)
        return Window(self.run, Interval("step", self.view.start, stop))

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The run's tokenizer, for the text of token ids; None where there is none to be read."""
        return self.live.tokenizer

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """Layers, and experts of each; 0 where nothing was recorded."""
        return (len(self.now.layout.layers), self.now.layout.experts) if self.now else (0, 0)

    @cached_property
    def marks(self) -> tuple[Mark, ...]:
        return tuple(marks_of(self.run))

    @cached_property
    def colors(self) -> dict[str, str]:
        return arm_colors(self.arms)

    def curves_of(self, arm: str) -> xr.Dataset:
        """(step) training curves of an arm, few points of them.

        Raises:
            RunNotFound: there are none in these steps.
        """
        return self._noted(by_step(self._bins(arm, "train", CURVES, CURVE_POINTS)), arm)

    def router_of(self, arm: str) -> LiveRecord:
        """The routers' record of an arm, few points of it."""
        layers, experts = self.sizes
        points = max(24, min(200, CELLS // max(1, layers * experts)))
        record = self._record(arm, "router", ROUTER, points)
        _ = record.bins  # refused here where there is nothing
        return record

    def load_of(self, arm: str) -> xr.DataArray:
        """(step, layer, expert) load of an arm, with its clocks."""
        load = probes.expert_load(self.router_of(arm), points=1)
        return self._noted(self._clocked(load, arm), arm)

    def balance_of(self, arm: str) -> xr.Dataset:
        """(step, layer) balance of an arm, each over the steps of a point."""
        bins = self.router_of(arm).bins
        counts = xr.Dataset(
            {
                name: ((bins[name] * bins["rows"]).round().astype("int64"))
                for name in ("assignments", "tokens")
            },
            attrs={"k": bins.attrs["k"]},
        )
        counts = counts.rename(bin="step").assign_coords(step=counts["last_step"].values)
        found = probes.balance(counts.drop_vars(["last_step"]))
        # To the figure these are samples: each is measured over its steps, none is a mean of them.
        found = found.drop_vars(["rows", "first_step"], errors="ignore")
        return self._noted(self._clocked(found, arm), arm)

    def router_lines_of(self, arm: str) -> xr.Dataset:
        """(step, layer) means of what the routers were sure of, few points of them."""
        bins = self.router_of(arm).bins
        lines = by_step(bins[[n for n in ROUTER if f"{n}_min" in bins]])
        return self._noted(self._clocked(lines, arm), arm)

    @cached_property
    def curves(self) -> xr.Dataset | None:
        """The arm's training curves to its very end, as an overview; None where there are none."""
        try:
            follow = replace(self, view=replace(self.view, start=0, stop=None))
            return follow._bins(self.run.branch, "train", CURVES, CURVE_POINTS)
        except RunNotFound:
            return None

    @property
    def health(self) -> Health:
        """As it is at this second: who writes, and how long ago a step came."""
        return health(self.run, self.now, self.curves)

    def evaluated(self) -> Evaluated:
        """What evaluations tell, computed beside the pages, again when one was added.

        Raises:
            Computing: it is not there yet.
        """
        states = {arm: self.state_of(arm) for arm in self.arms}
        done = [(a, s.end("evaluations", "checkpoint")) for a, s in states.items() if s is not None]
        path, arm = self.live.run.path, self.run.branch
        key = (tuple(self.arms), tuple(done))
        return self.live.later.get("evaluated", key, lambda: _evaluated(path, arm))

    def kept(self) -> list[Stored]:
        """The results of probes that are kept, listed beside the pages, again when one was added.

        Raises:
            Computing: they are not listed yet.
        """
        if self.run.store is None:
            return []
        path = self.live.run.path
        state = self.run.results.state
        return self.live.later.get("kept", state, lambda: open_run(path).results.list())

    def _record(self, arm: str, group: str, variables: tuple[str, ...], points: int) -> LiveRecord:
        run = self.run if arm == self.run.branch else self.live.arm(arm)
        record = self.live.record(run, group, variables, points, self.view)
        now = self.state_of(arm)
        if now is None:
            raise RunNotFound(f"nothing is recorded of branch {arm!r} yet.")
        record.refresh(now)
        return record

    def _bins(self, arm: str, group: str, variables: tuple[str, ...], points: int) -> xr.Dataset:
        return self._record(arm, group, variables, points).bins

    def _noted(self, found: Any, arm: str) -> Any:
        window = f"steps {self.view.start + 1:,} to {self.stop:,}"
        return found.assign_attrs(run=self.run.name, branch=arm, window=window)

    def _clocked(self, found: Any, arm: str) -> Any:
        """With tokens and UTC at its steps, as the training curves tell them."""
        try:
            train = self._bins(arm, "train", CURVES, CURVE_POINTS)
        except RunNotFound:
            return found
        ends = {n: train[f"{n}_max"].values for n in ("tokens_seen", "utc") if f"{n}_max" in train}
        steps = found["step"].values
        told = {n: np.interp(steps, train["last_step"].values, v) for n, v in ends.items()}
        return found.assign_coords({n: ("step", v) for n, v in told.items()})


@dataclass(frozen=True)
class Evaluated:
    """What a study measures of evaluations, by arm."""

    skills: dict[str, xr.Dataset]
    onsets: dict[str, Any]
    differences: dict[str, xr.Dataset]
    missing: dict[str, str]
    """What could not be measured, and why."""


def _evaluated(path: Path, arm: str) -> Evaluated:
    # A run of its own: the pages refresh theirs meanwhile.
    study = Study(open_run(path).arm(arm), n_boot=N_BOOT)
    return Evaluated(study.skills, study.onsets, study.differences, study.missing)


def _stat(file: Path) -> os.stat_result | None:
    """None where it went since it was listed."""
    try:
        return file.stat()
    except OSError:
        return None
