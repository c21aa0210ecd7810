"""The tap: hooks on a model's routers, accumulators, and the ring that samples leave by.

Needs   router sites (adapters/), once; the begin and the end of every step.
Yields  Tap: exact samples in `ring`, whatever the step was made of: micro-batches, recomputation,
        evaluation in between, several ranks.

It knows no store. Between the hook and the step's end nothing leaves the model's device; capture
changes no number of the training: it reads detached tensors and draws nothing at random.

Imports with torch and numpy alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from time import perf_counter, time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from workbench.capture.accumulators import Accumulators, Table
from workbench.capture.adapters.router_site import Reading, RouterSite, Show
from workbench.capture.labels import Labels
from workbench.capture.ranks import Ranks
from workbench.capture.ring import Ring
from workbench.capture.route_stats import let_selective_checkpoints_pass, route_stats
from workbench.capture.spent import spent
from workbench.capture.traces import RouteTraces, Traces, capacity_for
from workbench.errors import CaptureError, UsageError


class Missed(NamedTuple):
    """Samples that found no slot in the ring."""

    tokens: int = 0
    """Their training tokens, where these are known."""
    steps: int = 0
    """Those whose tokens are not known."""


class Note(NamedTuple):
    """What is said of a step beside its table."""

    step: int
    tokens: int | None
    """As the trainer gave it, on this rank."""
    captured: bool
    """False: the routers were not read in this step, and its table is empty."""
    utc: float
    """At the step's end, seconds since 1970."""
    seconds: float
    """Time that this thread spent in capture in this step."""
    duration: float
    """Time from the step's begin to its end, capture included, seconds."""
    every: int
    """Steps between two captured ones, as it was in force."""
    values: dict[str, float]
    """Whatever else the caller wants to keep: loss, lr."""
    missed: Missed = Missed()
    """What was lost since the sample before."""


class Tap:
    """Reads a model's routers, step by step.

    Args:
        sites: the routers; hooked now, so make the tap before the first compiled forward.
        domains: number of domains that labels may name; 0 for none.
        device: where the routers run; None for that of the first site's parameters.
        model: the root model; its `attention_mask` is then taken as the padding.
        coactivation_every: captured steps between two readings of the slow quantities.
        ranks: who counts together; None for all of torch.distributed.
        traces: tokens to trace, on the first rank; None for none. Needs `model`.
        slots: samples that may wait in the ring; None for as many as fit into 32 MiB.

    Raises:
        CaptureError: (at the end of the first step) some router's assignments are not tokens x k.
    """

    def __init__(
        self,
        sites: Sequence[RouterSite],
        *,
        domains: int = 0,
        device: torch.device | None = None,
        model: nn.Module | None = None,
        coactivation_every: int = 25,
        ranks: Ranks | None = None,
        traces: Traces | None = None,
        slots: int | None = None,
    ) -> None:
        if coactivation_every < 1:
            raise UsageError(f"coactivation_every={coactivation_every}: must be 1 or more.")
        let_selective_checkpoints_pass()
        self.sites = list(sites)
        self.device = device or next(self.sites[0].module.parameters()).device
        if self.device.type == "meta":
            raise UsageError(
                "the model is on the meta device: make the recorder after its weights are there."
            )
        self.layout = Table(len(self.sites), max(domains, 1), self.sites[0].num_experts)
        self.accumulators = Accumulators(self.layout, self.device)
        self.labels = Labels(self.device, domains)
        self.ranks = ranks or Ranks()
        self._handles: list[Any] = []
        self.traces: RouteTraces | None = None
        try:
            self._hook(model, traces)
        except BaseException:
            self.close()
            raise
        self.ring = Ring(
            self.layout,
            self.device,
            slots=slots if self.ranks.first else 1,
            extra=self.traces.layout.cells if self.traces else 0,
        )
        self.coactivation_every = coactivation_every
        self.every = 1
        """Steps between two captured ones."""
        self._slow = self._active = self._checked = False
        self._pauses = 0
        self._missed = Missed()
        self.told: dict[str, str] = {}
        """What somebody should be told of, by kind: the first of each."""
        self._step: int | None = None
        self._began = self._spent_before = self._seconds = 0.0

    def _hook(self, model: nn.Module | None, traces: Traces | None) -> None:
        if model is not None:
            inner = _takes_mask(model, [site.module for site in self.sites])
            self._handles.append(self.labels.watch(inner))
            if traces is not None and self.ranks.first:
                self.traces = self._trace(traces, model)
        for place, site in enumerate(self.sites):
            self._handles += site.attach(self._show(place, site))

    def _trace(self, plan: Traces, model: nn.Module) -> RouteTraces:
        traces = RouteTraces(
            len(self.sites),
            self.sites[0].experts_per_token,
            self.accumulators.flags,
            share=plan.share,
            capacity=capacity_for(plan.tokens_per_step, plan.share),
        )
        self._handles += traces.watch(model, self.labels, plan.embedding)
        return traces

    def _show(self, place: int, site: RouterSite) -> Show:
        # It must not hold the tap: one that is forgotten could then never be collected.
        labels, sums, module, traces = self.labels, self.accumulators, site.module, self.traces
        scores, layers, domains = int(site.scores), self.layout.layers, self.layout.domains

        def show(reading: Reading) -> None:
            # Evaluation shows nothing, wherever in a step it happens.
            if module.training:
                tokens = reading.logits_TE.shape[0]
                route_stats(
                    *reading, labels.fit("domains", tokens), labels.fit("keep", tokens),
                    scores, layers, place, domains, sums.flags, sums.table, sums.slow,
                )  # fmt: skip
                if traces is not None:
                    traces.read(place, reading)

        return show

    @property
    def step(self) -> int | None:
        """The step under way; None between steps."""
        return self._step

    def begin(self, step: int) -> None:
        """From here on the routers' forwards belong to `step`."""
        if self._step is not None:
            raise UsageError(f"step {step} begins while step {self._step} is under way; end it.")
        now = perf_counter()
        if not self._checked:
            self._check_device()
        self._active = step % self.every == 0 or not self._checked
        self._slow = self._active and step % (self.coactivation_every * self.every) == 0
        self.labels.misfit = None
        self.accumulators.switch(active=self._active, slow=self._slow)
        self._spent_before = spent()
        self._began = now
        self._step = step
        self._seconds = perf_counter() - now

    def _check_device(self) -> None:
        parameter = next(self.sites[0].module.parameters(), None)
        if parameter is not None and parameter.device.type != self.device.type:
            raise UsageError(
                f"the model is on {parameter.device} and was on {self.device} when the recorder "
                f"was made: make it after the model is moved."
            )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Forwards in here do not count, such as an evaluation in mid-step."""
        self._pauses += 1
        self.accumulators.switch(active=False)
        try:
            yield
        finally:
            self._pauses -= 1
            active = self._active and self._step is not None and not self._pauses
            self.accumulators.switch(active=active, slow=active and self._slow)

    def abandon(self) -> None:
        """Forgets the step under way."""
        self.accumulators.switch(active=False)
        self.accumulators.clear()
        if self.traces is not None:
            self.traces.begin()
        self.labels.clear()
        self._step = None

    def end(self, tokens: int | None = None, **values: float) -> Note | None:
        """Ends the step: sums over ranks, pushes the sample. Returns its note; None where it was
        dropped.
        """
        if self._step is None:
            raise UsageError("a step ends that has not begun; call begin(step) first.")
        try:
            return self._end(self._step, tokens, values)
        except BaseException:
            # Interrupted half-way: what was counted must not join the next step.
            self.abandon()
            raise

    def _end(self, step: int, tokens: int | None, values: dict[str, float]) -> Note | None:
        now = perf_counter()
        sums, traces = self.accumulators, self.traces
        sums.switch(active=False)
        captured = self._active and not self._misfits(step)
        if self._active and not self._checked:
            # This rank's own counts, before ranks are added up. Waits for the device, once.
            self._check(step, sums.table.cpu().numpy(), tokens)
            self._checked = True
        if self._active and not captured:
            sums.clear()
        if self._active:
            self.ranks.sum_to_first(sums, slow=self._slow)
        seconds = self._seconds + spent() - self._spent_before
        note = Note(
            step, tokens, captured, time(), seconds + perf_counter() - now, now - self._began,
            self.every, values, self._missed,
        )  # fmt: skip
        pushed = self.ranks.first and self.ring.push(
            note, sums, slow=self._slow and captured, extra=traces.table if traces else None
        )
        if pushed:
            self._missed = Missed()
        elif self.ranks.first:
            self._miss(note)
        if self._active:
            sums.clear(slow=self._slow)
        if traces is not None:
            traces.begin()
        self.labels.clear()
        self._step = None
        return note if pushed else None

    def _misfits(self, step: int) -> bool:
        """Whether labels did not fit the tokens of this step, which then cannot be recorded."""
        labels = self.labels
        if labels.mask_misfit:
            text = f"{labels.mask_misfit}, so padding was counted; give keep= by token."
            self.told.setdefault("mask", f"step {step}: {text}")
        if labels.misfit is None:
            return False
        text = (
            f"{labels.misfit}: give them by token or by row, anew for every micro-batch; forwards "
            f"that do not belong to the training go into `with recorder.paused():`."
        )
        if not self._checked:
            raise CaptureError(f"step {step}: {text}")
        self.told.setdefault("labels", f"step {step} was not recorded: {text}")
        return True

    def _miss(self, note: Note) -> None:
        """Keeps the tokens of a sample that found no slot, for the clock."""
        missed, host = self._missed, self.accumulators.on_host
        if note.captured and host is not None:
            known: int | None = int(self.layout.parts(host.table).tallies_L2[0, 0])
        else:
            known = None if note.tokens is None else note.tokens * self.ranks.count
        self._missed = Missed(missed.tokens + (known or 0), missed.steps + (known is None))

    def _check(self, step: int, table: np.ndarray, tokens: int | None) -> None:
        """The first step: assignments are tokens x k in every router."""
        parts = self.layout.parts(table)
        expected = int(parts.tallies_L2[0, 0]) if tokens is None else tokens
        for place, site in enumerate(self.sites):
            k, seen = site.experts_per_token, int(parts.tallies_L2[place, 0])
            found = int(parts.counts_LDE[place].sum())
            if seen == expected > 0 and (found == seen * k or site.drops):
                continue
            self.abandon()
            raise CaptureError(
                f"router {site.name}: counted {found} assignments of {seen} tokens in step {step}, "
                f"the first; expected tokens x k = {expected} x {k} = {expected * k}. "
                + _why(site, seen, found, expected)
            )

    def close(self) -> None:
        """Removes the hooks: nothing of capture is left in the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _takes_mask(model: nn.Module, routers: Sequence[nn.Module]) -> nn.Module:
    """The outermost module around all routers whose forward names an `attention_mask`; the model
    itself where there is none.

    A wrapper may hand a batch on by another way than its own forward (Lightning's training_step).
    """
    module: nn.Module | None = model
    while module is not None:
        if "attention_mask" in signature(module.forward).parameters:
            return module
        holding = [
            child
            for child in module.children()
            if set(routers) <= set(child.modules())
        ]  # fmt: skip
        module = holding[0] if len(holding) == 1 else None
    return model


def _why(site: RouterSite, seen: int, found: int, expected: int) -> str:
    if not seen and not site.module.training:
        return "The model is in evaluation mode, which is not counted: call model.train()."
    if not seen:
        return (
            "Its hooks did not run: make the recorder before the first compiled forward, on the "
            "model that is trained and not on a copy of it."
        )
    if found == seen * site.experts_per_token:
        return (
            f"tokens={expected} is not what this rank's model saw: leave it out, or count every "
            f"micro-batch's tokens without padding."
        )
    return "Assignments were dropped (-1 ids), or its adapter reads something else."
