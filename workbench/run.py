"""A run, opened: what was recorded, as lazy labelled arrays, and the weights that were saved.

Needs   a run's folder; any of run.json, store/ and index/ may be missing.
Yields  `open_run`: Run, of one branch, as it stood when it was opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from checkpoints_index.clock import Clock
from checkpoints_index.index import CheckpointIndex
from checkpoints_index.window import interval
from workbench.capture.run_folder import RunFolder
from workbench.checkpoints import Checkpoint, Checkpoints
from workbench.errors import RunNotFound
from workbench.run_html import run_card
from workbench.run_text import describe
from workbench.store.names import MAIN
from workbench.store.overview import overview
from workbench.store.ragged import expert_rows
from workbench.store.results import Results
from workbench.store.run_store import RunStore
from workbench.store.schema import SCHEMA
from workbench.store.snapshot import Snapshot
from workbench.window import Window

__all__ = ["Checkpoint", "Checkpoints", "Run", "Window", "open_run"]


def open_run(path: str | Path, branch: str | None = None) -> Run:
    """The run in the folder `path`, whether or not it is still being written.

    Args:
        path: the run's folder, or the s3:// URL of its record (then without its checkpoints).
        branch: the arm to look at; "main" where nothing else is said, or the only one there is.

    Raises:
        RunNotFound: no run there (runs near by are named), or no such branch (those there are
            listed).
    """
    if isinstance(path, str) and "://" in path:
        return Run(Path(path), branch, RunStore.open(path))
    folder = Path(path)
    if not any((folder / part).exists() for part in ("run.json", "store", "index")):
        raise RunNotFound(_nothing_at(folder))
    return Run(folder, branch)


class Run:
    """One branch of a run, history included. Datasets are lazy; all of them show the same moment.

    That moment is when the run was opened, or last refreshed: commits that land meanwhile are not
    seen, and nothing fails because of them.

    Args:
        path: the run's folder.
        branch: as for `open_run`.
        store: its record, where that is not for the folder to say.
    """

    def __init__(
        self, path: Path, branch: str | None = None, store: RunStore | None = None
    ) -> None:
        self.path = Path(path) if store else Path(path).absolute()
        self.index = CheckpointIndex(self.path)
        self.store = store or self._find_store()
        self.branch = self._choose(branch)
        self._snapshot = self._look()

    def _choose(self, branch: str | None) -> str:
        known = self.branches
        if branch is None:
            return MAIN if MAIN in known or not known else known[0]
        if branch not in known:
            near = get_close_matches(str(branch), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise RunNotFound(
                f"no branch {ascii(branch)[:80]} in the run {self.path}; it has "
                f"{', '.join(known) or 'none yet'}{hint}"
            )
        return branch

    def _find_store(self) -> RunStore | None:
        place = RunFolder(self.path).store
        return RunStore.open(place) if place.exists() else None

    def _look(self) -> Snapshot | None:
        if self.store is None or self.branch not in self.store.branches:
            return None
        return self.store.read(self.branch)

    def refresh(self) -> Run:
        """See what was committed since the run was opened; returns the run. Datasets taken before
        keep their moment."""
        for name in ("attrs", *SCHEMA, "checkpoints", "clock", "_end", "_fork"):
            self.__dict__.pop(name, None)
        self.store = self.store or self._find_store()
        self._snapshot = self._look()
        return self

    # What it is

    @cached_property
    def attrs(self) -> dict[str, Any]:
        """What run.json says: name, created_utc, provenance, config, phases; empty where it is
        missing.
        """
        folder = RunFolder(self.path)
        return folder.read() if folder.exists else {}

    @property
    def name(self) -> str:
        """The run's name: of run.json, or of its folder."""
        return str(self.attrs.get("name") or self.path.resolve().name)

    @property
    def phases(self) -> list[dict[str, Any]]:
        """Phases of the schedule, each with name, start and stop (steps). What a run.json that was
        edited by hand calls a phase and is none is left out.
        """
        said = self.attrs.get("phases")
        phases = [dict(one) for one in said if isinstance(one, dict)] if type(said) is list else []
        starts = ((one, one.get("start", 0)) for one in phases)
        return [one for one, start in starts if type(start) is int and 0 <= start < 2**53]

    @property
    def branches(self) -> list[str]:
        """Every arm of the run, main first."""
        names = {*(self.store.branches if self.store else ()), *self.index.branches}
        return sorted(names, key=lambda name: (name != MAIN, name))

    def arm(self, branch: str) -> Run:
        """The run seen from another branch, whose history includes the trunk up to its fork."""
        return Run(self.path, branch, self.store)

    @cached_property
    def _fork(self) -> tuple[str, int] | None:
        if self.store is not None and self.branch in self.store.branches:
            return self.store.lineage(self.branch)
        return next((r.parent for r in self.index.list(branch=self.branch) if r.parent), None)

    @property
    def parent(self) -> str | None:
        """The branch that this one forked from; None for a trunk."""
        return self._fork[0] if self._fork else None

    @property
    def fork_step(self) -> int | None:
        """The step at which it forked; None for a trunk."""
        return self._fork[1] if self._fork else None

    # What was recorded

    @cached_property
    def router(self) -> xr.Dataset:
        """What the routers did: assignments, gate mass, entropy, ... (step, layer, expert).

        `tokens_seen` is a coordinate of its steps. Raises RunNotFound where nothing was recorded.
        """
        router = self._group("router")
        train = self.train if "train" in self._groups else None
        if train is not None and "tokens_seen" in train and train.step.equals(router.step):
            # As it is for nearly every run; of a long one it is not read before it is used.
            return router.assign_coords(tokens_seen=train.tokens_seen.variable)
        tokens = self._tokens_at(router)
        if tokens is None:
            return router
        note = {"units": "tokens", "long_name": "Training tokens up to and including this step."}
        return router.assign_coords(tokens_seen=("step", tokens, note))

    @cached_property
    def train(self) -> xr.Dataset:
        """Training curves: loss, lr, gradient norm, tokens_seen, utc (step)."""
        return self._group("train")

    @cached_property
    def evaluations(self) -> xr.Dataset:
        """Scores of every checkpoint: correct, logprob (checkpoint, task, item)."""
        return self._group("evaluations")

    @cached_property
    def activations(self) -> xr.Dataset:
        """What the model did with the fixed probe set at every checkpoint: its routing, and every
        site that was recorded, under the site's name (checkpoint, token, ...).
        """
        return self._group("activations")

    @cached_property
    def traces(self) -> xr.Dataset:
        """Where sampled training tokens were sent, one row a token: expert_ids, gates (trace,
        layer, k), token, document, position, domain, step (trace).

        The names of the domains are in its attribute `domains`.
        """
        traces = self._group("traces")
        assert self._snapshot is not None
        return traces.assign_attrs(domains=list(self._snapshot.layout.domains))

    @cached_property
    def interiors(self) -> xr.Dataset:
        """Hidden rows of the experts that were looked into, for the probe tokens that each received
        at every checkpoint, end to end: values (row, d_mlp), offsets (checkpoint, layer, bound).

        `interior` picks those of one expert.
        """
        return self._group("interiors")

    def interior(self, *, layer: int, expert: int, checkpoint: int | None = None) -> xr.Dataset:
        """One expert's rows at one checkpoint, the last where none is named: values (row, d_mlp);
        token (row), a place in the probe set; gate (row).

        Raises:
            RunNotFound: nothing of the kind was recorded; what was is listed.
        """
        return expert_rows(self.interiors, layer=layer, expert=expert, checkpoint=checkpoint)

    @property
    def snapshot_id(self) -> str | None:
        """Id of the commit that is being looked at; None where nothing was recorded."""
        return self._snapshot.id if self._snapshot else None

    @property
    def state(self) -> str | None:
        """What tells the record that is being looked at from every other, rows that wait to be
        committed included; None where nothing was recorded.
        """
        return self._snapshot.state if self._snapshot else None

    def overview(
        self,
        group: str = "router",
        *,
        points: int = 1000,
        start: int | None = None,
        stop: int | None = None,
        variables: Sequence[str] | None = None,
    ) -> xr.Dataset:
        """Many steps in few numbers: mean, least and greatest of every variable in each of at most
        about `points` bins, read from what was summarised as it was written. A run of a million
        steps takes no longer than one of ten thousand.

        Args:
            group: "router" or "train".
            points: bins, at most twice as many.
            start, stop: steps s with start < s <= stop; all where they are not given.
            variables: which; None for all.

        Returns:
            x, x_min and x_max over `bin`, with first_step, last_step and rows of every bin.
        """
        if self._snapshot is None:
            raise RunNotFound(f"the run {self.path} has no record of branch {self.branch!r}.")
        return overview(
            self._snapshot, group, points=points, start=start, stop=stop, variables=variables
        )

    @property
    def results(self) -> Results:
        """What probes have computed from this run and keep beside it; RunNotFound where the run has
        no record.
        """
        if self.store is None:
            raise RunNotFound(f"the run {self.path} has no record that could keep results.")
        return Results(self.store)

    @property
    def tree(self) -> xr.DataTree:
        """All groups that hold rows, as one tree."""
        groups = {name: getattr(self, name) for name in self._groups}
        root = xr.Dataset(attrs={"run": self.name, "branch": self.branch})
        # A node's name is a step of a path; the run's own name stands in the attributes.
        name = self.name.replace("/", "_")
        return xr.DataTree.from_dict({"/": root, **groups}, name=name)

    @property
    def _groups(self) -> tuple[str, ...]:
        return self._snapshot.groups if self._snapshot else ()

    def _group(self, name: str) -> xr.Dataset:
        if self._snapshot is None:
            raise RunNotFound(
                f"the run {self.path} has no record of branch {self.branch!r}, only checkpoints; "
                f"{name} is recorded by a Recorder while it trains."
            )
        ds = self._snapshot.dataset(name)
        note = {"run": self.name, "branch": self.branch, "k": self._snapshot.layout.k}
        return ds.assign_attrs(
            {key: v for key, v in ds.attrs.items() if key != "coordinates"} | note
        )

    def _tokens_at(self, router: xr.Dataset) -> np.ndarray | None:
        """Tokens seen at the steps of the router record, where they can be known exactly."""
        steps = router.step.values
        if "train" in self._groups and "tokens_seen" in self.train:
            clock = Clock(self.train.step.values, self.train.tokens_seen.values)
            if clock.tokens is not None and np.isin(steps, clock.step).all():
                return clock.tokens[np.searchsorted(clock.step, steps)]
        if (
            "tokens" in router
            and len(steps)
            and np.array_equal(steps, np.arange(1, len(steps) + 1))
        ):
            return np.cumsum(router.tokens.values)
        return None

    # Its clocks and stretches

    @cached_property
    def clock(self) -> Clock:
        """Step, tokens and UTC of the recorded steps."""
        if "train" in self._groups:
            train = self.train
            return Clock(
                train.step.values,
                train.tokens_seen.values if "tokens_seen" in train else None,
                train.utc.values if "utc" in train else None,
            )
        if "router" in self._groups:
            router = self.router
            tokens = router.tokens_seen.values if "tokens_seen" in router.coords else None
            return Clock(router.step.values, tokens)
        saved = [c.record for c in self.checkpoints]
        return Clock(
            np.array([r.step for r in saved], np.int64),
            np.array([r.tokens_seen for r in saved], np.int64),
            np.array([r.utc for r in saved], np.float64),
        )

    @cached_property
    def _end(self) -> tuple[int, int]:
        """Steps on the clock, and the last of them; of a long record without reading it whole."""
        if self._snapshot is not None:
            for group in ("train", "router"):
                count, last = self._snapshot.end(group, "step")
                if last is not None:
                    return count, last
        return len(self.clock), int(self.clock.step[-1]) if len(self.clock) else 0

    @property
    def step_count(self) -> int:
        """How many steps its clock knows."""
        return self._end[0]

    @property
    def last_step(self) -> int:
        """The last step that its clock knows; 0 where there is none."""
        return self._end[1]

    def window(
        self,
        *,
        last: float | str | None = None,
        last_tokens: float | None = None,
        start: int | None = None,
        stop: int | None = None,
    ) -> Window:
        """A stretch of the run, half-open: steps s with start < s <= stop.

        Args:
            last: the last share of the run's tokens, such as 0.2; or the last stretch of UTC, such
                as "7d" (s, m, h, d, w).
            last_tokens: the last so many training tokens.
            start, stop: steps, one or both.

        Raises:
            ClockError: none or several of these were given, or the run has no such clock.
        """
        asked = interval(self.clock, last=last, last_tokens=last_tokens, start=start, stop=stop)
        return Window(self, asked)

    # Its weights

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """The saved weights on the way to this branch's end, the trunk's included, by step.

        Those that a rollback set aside are left out; the index still lists them.
        """
        forks = {}
        aside: dict[str, set[int]] = {}
        if self.store is not None:
            for name in self.store.branches:
                lineage = self.store.lineage(name)
                if lineage:
                    forks[name] = lineage
                aside[name] = self.store.set_aside_checkpoints(name)
        records = self.index.lineage(self.branch, forks)
        kept = [r for r in records if r.step not in aside.get(r.branch, ())]
        return Checkpoints(self, [Checkpoint(record, self.path) for record in kept])

    def __repr__(self) -> str:
        return describe(self)

    def _repr_html_(self) -> str:
        return run_card(self)


def _nothing_at(folder: Path) -> str:
    """Why there is no run at `folder`, and what is near by."""
    found = "nothing" if not folder.exists() else "no run.json, store or index"
    here = folder if folder.is_dir() else next((p for p in folder.parents if p.is_dir()), Path("."))
    near = _runs_in(here) or _runs_in(here.parent)
    by_name = {run.name: run for run in near}
    close = [by_name[n] for n in get_close_matches(folder.name, by_name, n=3)] or near[:3]
    hint = f"; runs near by: {', '.join(map(str, close))}" if close else "; no runs near by"
    return f"no run at {folder}: found {found} there{hint}."


def _runs_in(folder: Path) -> list[Path]:
    """Runs among the first few hundred entries of a folder."""
    try:
        entries = sorted(folder.iterdir())[:300]
    except OSError:
        return []
    return [e for e in entries if (e / "run.json").is_file() or (e / "store" / "refs").is_dir()]
