"""A stretch of a run: its datasets and checkpoints between two steps.

Needs   a run and an Interval (checkpoints_index/window.py): half-open, (start, stop].
Yields  Window, which probes take in place of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from checkpoints_index.window import Interval
from workbench.checkpoints import Checkpoints
from workbench.run_html import window_card

if TYPE_CHECKING:
    from workbench.run import Run

_GROWING = ("step", "sample", "checkpoint")


class Window:
    """The steps s of `run` with start < s <= stop, as datasets that stay lazy.

    The interval is half-open: the checkpoint at `start` is where the stretch sets out from and is
    not in it, the one at `stop` is. Two windows that meet share no step.
    """

    def __init__(self, run: Run, interval: Interval) -> None:
        self.run = run
        self.interval = interval

    @property
    def clock(self) -> str:
        """The clock it was asked on: "tokens", "utc" or "step"."""
        return self.interval.clock

    @property
    def start(self) -> int:
        """The step before its first."""
        return self.interval.start

    @property
    def stop(self) -> int:
        """Its last step."""
        return self.interval.stop

    @property
    def router(self) -> xr.Dataset:
        """The run's router record of these steps."""
        return self._cut(self.run.router)

    def overview(
        self, group: str = "router", *, points: int = 1000, variables: Sequence[str] | None = None
    ) -> xr.Dataset:
        """These steps in about `points` bins, as `Run.overview` gives them."""
        return self.run.overview(
            group, points=points, start=self.start, stop=self.stop, variables=variables
        )

    @property
    def train(self) -> xr.Dataset:
        """The run's training curves of these steps."""
        return self._cut(self.run.train)

    @property
    def evaluations(self) -> xr.Dataset:
        """The scores of the checkpoints in the window."""
        return self._cut(self.run.evaluations)

    @property
    def activations(self) -> xr.Dataset:
        """The probe set's routing and sites at the checkpoints in the window."""
        return self._cut(self.run.activations)

    @property
    def traces(self) -> xr.Dataset:
        """The traced tokens of these steps."""
        whole = self.run.traces
        first, stop = np.searchsorted(whole.step, [self.start, self.stop], side="right")
        return whole.isel(trace=slice(int(first), int(stop)))

    @property
    def interiors(self) -> xr.Dataset:
        """The insides of experts at the checkpoints in the window; offsets still count from the
        first row of the run, and all rows are there.
        """
        return self._cut(self.run.interiors)

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints in the window."""
        whole = self.run.checkpoints
        first, stop = np.searchsorted(whole.steps, [self.start, self.stop], side="right")
        return whole[int(first) : int(stop)]

    def _cut(self, ds: xr.Dataset) -> xr.Dataset:
        cuts = {}
        for dim in _GROWING:
            if dim in ds.indexes:
                first, stop = np.searchsorted(ds[dim], [self.start, self.stop], side="right")
                cuts[dim] = slice(int(first), int(stop))
        return ds.isel(cuts)

    def __repr__(self) -> str:
        return (
            f"Window of run {self.run.name!r}, branch {self.run.branch!r}: steps "
            f"{self.start + 1:,} to {self.stop:,} ({self.clock} clock)"
        )

    def _repr_html_(self) -> str:
        return window_card(self)
