"""ds.moe: what one asks of a router record, asked of the dataset itself.

Needs   a router dataset: `assignments` (step, layer, expert) at least; as run.router, the engine
        "workbench" and workbench.testing give it.
Yields  loads as multiples of the fair share, windows, overviews, one expert.

Nothing is read before it is asked for, and then all of what is asked: take a window of a long run
first, or its overview.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from functools import cached_property

import numpy as np
import xarray as xr

from checkpoints_index.clock import Clock
from checkpoints_index.window import interval
from workbench.errors import RunNotFound, SchemaError

DIMS = ("step", "layer", "expert")


@xr.register_dataset_accessor("moe")
class MoeAccessor:
    """The accessor `ds.moe` of router datasets.

    Raises:
        SchemaError: the dataset is no router record.

    Example:
        >>> from workbench.testing import router_record
        >>> ds = router_record(steps=10, experts=8, k=2)
        >>> ds.moe.k, ds.moe.num_experts, ds.moe.layers
        (2, 8, (0, 1))
        >>> round(float(ds.moe.load.mean()), 6)
        1.0
    """

    def __init__(self, ds: xr.Dataset) -> None:
        found = set(ds["assignments"].dims) if "assignments" in ds else None
        if found is None or not {"layer", "expert"} <= found:
            have = (
                f"assignments {ds['assignments'].dims}"
                if found is not None
                else f"{', '.join(map(str, ds.data_vars)) or 'no variables'}"
            )
            raise SchemaError(
                f"ds.moe is for router records, which hold assignments {DIMS}; this dataset has "
                f"{have}. Open a run's group 'router' (run.router)."
            )
        self._ds = ds

    # What it is

    @property
    def num_experts(self) -> int:
        """Experts of a layer."""
        return int(self._ds.sizes["expert"])

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the recorded layers."""
        if "layer" in self._ds.coords:
            return tuple(int(n) for n in self._ds["layer"].values)
        return tuple(range(self._ds.sizes["layer"]))

    @cached_property
    def k(self) -> int:
        """Experts that a token is sent to: as the record says, or as its last step shows.

        Raises:
            SchemaError: the record does not say, and no step shows it (no tokens, or some that were
                dropped).
        """
        if "k" in self._ds.attrs:
            return int(self._ds.attrs["k"])
        if "tokens" in self._ds and self._ds.sizes.get("step"):
            last = self._ds.isel(step=-1)
            sent, tokens = last["assignments"].sum("expert").values.ravel(), int(last["tokens"])
            if tokens > 0 and (sent == sent[0]).all() and sent[0] > 0 and sent[0] % tokens == 0:
                return int(sent[0]) // tokens
        raise SchemaError(
            "how many experts a token is sent to is not in this dataset's attributes, and its last "
            "step does not show it; set ds.attrs['k']."
        )

    # What its experts carry

    @property
    def load(self) -> xr.DataArray:
        """Assignments of each expert over the fair share: 1 is fair, 0 dead, E all of the layer.

        (step, layer, expert), dimensionless, of mean 1 over `expert`; NaN where nothing was routed
        or recorded.
        """
        return _load(
            self._ds["assignments"], "relative_load",
            "Assignments of this expert over the layer's mean; 1: the fair share.",
        )  # fmt: skip

    @property
    def domain_load(self) -> xr.DataArray:
        """The same for the tokens of each domain: (step, layer, domain, expert).

        Raises:
            SchemaError: no domains were recorded.
        """
        if "domain_assignments" not in self._ds:
            raise SchemaError(
                "this record does not tell domains apart: it has no domain_assignments. Record "
                "with the documents' domains (Recorder(domains=...))."
            )
        return _load(
            self._ds["domain_assignments"], "relative_domain_load",
            "Assignments of this expert among the domain's tokens, over the layer's mean; 1: fair.",
        )  # fmt: skip

    def expert(self, layer: int, expert: int) -> xr.Dataset:
        """One expert's record: its variables without the dims layer and expert, and
        its `relative_load`.

        Args:
            layer, expert: labels, from 0.

        Raises:
            RunNotFound: no such layer or expert; those that are there are listed.
        """
        for dim, asked, there in (
            ("layer", layer, self.layers),
            ("expert", expert, tuple(self._labels("expert"))),
        ):
            if asked not in there:
                shown = ", ".join(map(str, there[:8])) + (", ..." if len(there) > 8 else "")
                raise RunNotFound(f"no {dim} {asked!r} in this record; it has {shown}.")
        place = self.layers.index(layer)
        own = [n for n, v in self._ds.data_vars.items() if {"layer", "expert"} <= set(v.dims)]
        one = self._ds[own].isel(layer=place, expert=self._labels("expert").index(expert))
        load = MoeAccessor(self._ds[["assignments"]].isel(layer=[place])).load.isel(layer=0)
        return one.assign(relative_load=load.isel(expert=self._labels("expert").index(expert)))

    def _labels(self, dim: str) -> list[int]:
        there = dim in self._ds.coords
        return self._ds[dim].values.tolist() if there else list(range(self._ds.sizes[dim]))

    # Its stretches

    def window(
        self,
        *,
        last: float | str | None = None,
        last_tokens: float | None = None,
        start: int | None = None,
        stop: int | None = None,
    ) -> xr.Dataset:
        """The steps s with start < s <= stop, still lazy. Give one of:

        Args:
            last: share of the run's tokens, such as 0.2, or a stretch of UTC, such as "7d".
            last_tokens: training tokens.
            start, stop: steps, one or both.

        Tokens and UTC are those of the run that the dataset was opened from, up to that run's end,
        where its rows are still that run's. They are those of the dataset's coordinates
        tokens_seen and utc where it was computed or put together since.

        Raises:
            ClockError: none or several were given, or the record has no such clock.
            SchemaError: the dataset has no steps that ascend; or it was computed or put together,
                and has no such coordinates.
        """
        for dim in ("step", "sample"):
            index = self._ds.indexes.get(dim)
            if (dim == "step" and index is None) or (
                index is not None and not index.is_monotonic_increasing
            ):
                found = "are missing" if index is None else "do not ascend"
                raise SchemaError(
                    f"a window is cut by the labels of {dim!r}, which {found} in this dataset; "
                    f"take it of the opened dataset, or sort it (ds.sortby({dim!r}))."
                )
        on_steps = last is None and last_tokens is None
        clock = Clock(self._ds["step"].values) if on_steps else self._clock()
        asked = interval(clock, last=last, last_tokens=last_tokens, start=start, stop=stop)
        cuts = {}
        for dim in ("step", "sample"):
            if dim in self._ds.indexes:
                edges = [asked.start, asked.stop]
                first, after = np.searchsorted(self._ds[dim], edges, side="right")
                cuts[dim] = slice(int(first), int(after))
        return self._ds.isel(cuts)

    def _clock(self) -> Clock:
        """The run's own clocks where the dataset's rows are a store's, else those of its steps."""
        from workbench.store.view import View

        ds, view = self._ds, View(self._ds)
        if view.origin is not None:
            if not view.is_of_origin():
                return self._own_clock()
            if "train" in view.origin.snapshot.groups:
                return _clock_of(view.origin.snapshot.dataset("train"))
        steps = ds["step"].values
        if "tokens_seen" in ds.variables:
            return Clock(steps, ds["tokens_seen"].values)
        from_first = np.array_equal(steps, np.arange(1, len(steps) + 1))
        counted = "tokens" in ds and len(steps) and from_first
        return Clock(steps, np.cumsum(ds["tokens"].values) if counted else None)

    def _own_clock(self) -> Clock:
        """That of the dataset's coordinates; SchemaError where it has none."""
        if not {"tokens_seen", "utc"} & {*self._ds.coords}:
            raise SchemaError(
                "the rows of this dataset are not, or cannot be told to be, those of the run that "
                "it was opened from (it was computed or put together since), and it has no clock "
                "of its own; take the window of the opened dataset first, give it the coordinates "
                "tokens_seen or utc, by step, or ask by start= and stop=."
            )
        return _clock_of(self._ds[["assignments"]])

    def overview(self, points: int = 1000, variables: Sequence[str] | None = None) -> xr.Dataset:
        """The stretch from the dataset's first to its last step in about `points` bins: mean, least
        and greatest of every variable, from what was summarised as the run was written.

        It is given only where the dataset shows just what is stored: an opened dataset, or a part
        of one, by a stretch of steps and any layers, experts and domains. Values that are in memory
        are compared with the stored ones, which reads those.

        Args:
            points: bins that are wanted.
            variables: only these; None: all of the dataset's that have a step.

        Returns:
            As `workbench.store.overview.overview`, of the dataset's own layers, experts and
            domains.

        Raises:
            SchemaError: the dataset, or one of the variables, is not what is stored (it was
                computed, put together, relabelled, turned round or thinned out); or that cannot be
                told (it was transposed before it was read, or cut after chunks= were given); or it
                holds no step.
            RunNotFound: no such variable.
        """
        from workbench.store.overview import overview
        from workbench.store.view import View

        ds, view = self._ds, View(self._ds)
        origin = view.origin
        own = [str(n) for n, v in ds.data_vars.items() if "step" in v.dims]
        if origin is None or not own or not ds["step"].size:
            raise SchemaError(
                "an overview is read from a run's store, and this dataset "
                + ("holds no step." if origin else "was computed, or loaded from elsewhere; ")
                + ("" if origin else "take the overview of run.router, or of the opened dataset.")
            )
        for name in variables or ():
            if name not in own:
                near = get_close_matches(str(name), own, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                raise RunNotFound(
                    f"no variable {ascii(name)[:80]} by step in this dataset; it has "
                    f"{', '.join(sorted(own))}{hint}"
                )
        view.check(variables or own)
        steps = ds["step"].values
        seen = overview(
            origin.snapshot, origin.group, points=points,
            start=int(steps[0]) - 1, stop=int(steps[-1]), variables=variables or own,
        )  # fmt: skip
        picked = {
            d: ds[d] for d in ("layer", "expert", "domain") if d in ds.coords and d in seen.dims
        }
        return seen.sel(picked)


def _clock_of(ds: xr.Dataset) -> Clock:
    """The clock that a dataset's variables by step show."""
    readings = (ds[n].values if n in ds.variables else None for n in ("tokens_seen", "utc"))
    return Clock(ds["step"].values, *readings)


def _load(counts: xr.DataArray, name: str, meaning: str) -> xr.DataArray:
    """Counts over their mean along `expert`; -1, not recorded, is NaN."""
    known = counts.where(counts >= 0)
    mean = known.mean("expert", skipna=False)
    load = (known / mean.where(mean > 0)).rename(name)
    return load.assign_attrs(units="1", long_name=meaning)
