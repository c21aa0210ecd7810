"""What capture costs a training step, measured against the same step without it.

Needs   a model that runs, and for how long to measure.
Yields  Overhead, by `measure`: the bare step, what capture adds with and without traces, the time
        inside capture; whether counts add up and the loss stays bit for bit.

Contenders take turns step by step, in an order that turns as well, so that a slow second falls on
all of them. They are twins of one model: modules of their own, so that only some are hooked, and
the same weights. The recorders are real ones, each with its writer.

A median of differences comes with the interval in which it lies in 95 of 100 such measurements
(order statistics; no shape of the noise is assumed). One that holds zero says that the effect is
smaller than the noise, and is reported so, not as a number.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from math import floor, sqrt
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from workbench.capture.recorder import Recorder
from workbench.capture.spent import spent
from workbench.capture.traces import Traces
from workbench.errors import CaptureError

WARM_UP = 2
"""Rounds that are not counted: memory is allocated in them."""
ROUNDS = 60
"""At most."""
FEWEST = 3
ENOUGH = 6
"""Values whose range holds the median of what they are drawn from in 95 of 100 cases."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A median, and where it lies in 95 of 100 such measurements."""

    median: float
    low: float
    high: float
    of: int
    """Values that it comes from. Of fewer than ENOUGH even their whole range is no 95 %."""

    @property
    def above_noise(self) -> bool:
        """Whether it can be told from zero."""
        return self.of >= ENOUGH and self.low > 0


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """What was measured. Times in seconds, shares of the bare step."""

    rounds: int
    bare: Interval
    """The step without capture: forward, backward, AdamW."""
    capture: Interval
    """What every-step capture adds, as a share."""
    with_traces: Interval | None
    """What capture with traces adds; None where none were asked for."""
    inside_p50: float
    inside_p99: float
    """Time of the training thread in capture, a step."""
    beyond_op_p99: float
    """Of it, what is not the op."""
    op_per_layer: float
    """The op for one router, median; on a GPU what launching it takes."""
    loss_unchanged: bool | None
    """Whether the loss with capture is the one without, bit for bit; None: it is not the same twice
    without."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A model that is run, and what came of it."""

    overhead: Overhead | None = None
    failure: str | None = None
    """Why it could not be run, in one line."""
    miscount: str | None = None
    """What did not add up in the first step."""
    alters_input: tuple[str, ...] = ()
    """Modules around routers that change their input in place."""


class Contender:
    """A twin of a model, and a recorder on it or none."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module], Tensor], adam: Any) -> None:
        self.model, self._loss, self._adam = model, loss, adam
        self.recorder: Recorder | None = None
        self._device = next(model.parameters()).device
        self.seconds: list[float] = []
        self.around: list[float] = []
        """Time in the recorder's begin and end."""
        self.in_op: list[float] = []
        self._step = 0

    def step(self) -> None:
        """One training step, timed."""
        in_op, around = spent(), 0.0
        self._wait()
        began = perf_counter()
        if self.recorder is not None:
            self._step = self.recorder.last_step + 1
            self.recorder.begin(self._step)
            around = perf_counter() - began
        self._loss(self.model).backward()
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        if self.recorder is not None:
            ending = perf_counter()
            self.recorder.end()
            around += perf_counter() - ending
        self._wait()
        self.seconds.append(perf_counter() - began)
        self.around.append(around)
        self.in_op.append(spent() - in_op)

    def loss(self, seed: int = 0) -> float:
        """Of a forward alone, the same random numbers every time."""
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            return float(self._loss(self.model).detach())

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def try_out(
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    *,
    folder: Path,
    seconds: float,
    tokens: int,
    traces: float,
    routers: Any = None,
) -> Trial:
    """Runs a model with and without capture. Its weights move, as in training.

    Args:
        model: in training mode.
        loss: a forward of it, down to a scalar.
        folder: on the disk in question; written to below a temporary folder, which is removed.
        seconds: for all of it, about; a few rounds are taken whatever they take.
        tokens: of one such forward.
        traces: share of the tokens to trace; 0 for none.
        routers: an adapter, as of the recorder.
    """
    altered: tuple[str, ...] = ()
    until = perf_counter() + seconds
    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            adam = torch.optim.AdamW(
                [p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True
            )
            bare = Contender(twin(model), loss, adam)
            altered = alters_input(bare, routers)
            for _ in range(WARM_UP):
                bare.step()
        except Exception as error:  # it is somebody's model: whatever it raises is the answer
            return Trial(failure=f"{type(error).__name__}: {_first_line(error)}")
        contenders = [bare]
        made = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder)))
        for share in (None, traces) if traces else (None,):
            contender = Contender(twin(model), loss, adam)
            plan = None if share is None else Traces(share=share, tokens_per_step=tokens)
            contender.recorder = Recorder(
                contender.model, made / f"run-{share}", routers=routers, traces=plan
            )
            stack.callback(contender.recorder.close)
            contenders.append(contender)
        try:
            unchanged = _loss_unchanged(contenders)
        except CaptureError as error:
            return Trial(miscount=str(error), alters_input=altered)
        rounds = _take_turns(contenders, until)
        return Trial(overhead=_summary(contenders, rounds, unchanged), alters_input=altered)


def twin(model: nn.Module) -> nn.Module:
    """A model of its own modules with the same parameters and buffers.

    Example:
        >>> one = nn.Linear(2, 2)
        >>> other = twin(one)
        >>> other is one, other.weight is one.weight
        (False, True)
    """
    shared: dict[int, Any] = {id(t): t for t in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)


def alters_input(contender: Contender, routers: Any = None) -> tuple[str, ...]:
    """Modules around routers that change their own input in place, found by running a step."""
    from workbench.capture.adapters.find import find_routers
    from workbench.capture.adapters.module_names import modules_by_name, parent

    sites = {site.name for site in find_routers(contender.model, routers)}
    around = sites | {parent(name) for name in sites} - {""}
    found: list[str] = []
    handles = []
    for name, module in modules_by_name(contender.model):
        if name in around:
            before, after = _versions(name, found)
            handles += [
                module.register_forward_pre_hook(before), module.register_forward_hook(after)
            ]  # fmt: skip
    try:
        contender.loss()
    finally:
        for handle in handles:
            handle.remove()
    return tuple(dict.fromkeys(found))


def _versions(name: str, found: list[str]) -> tuple[Any, Any]:
    seen: list[int] = []

    def before(module: nn.Module, args: Any) -> None:
        if args and isinstance(args[0], Tensor):
            seen.append(args[0]._version)

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if args and isinstance(args[0], Tensor) and seen and args[0]._version != seen.pop():
            found.append(name)

    return before, after


def _loss_unchanged(contenders: Sequence[Contender]) -> bool | None:
    """Also the recorders' first step, in which they check their counts."""
    bare, *captured = contenders
    first, again = bare.loss(), bare.loss()
    same = []
    for contender in captured:
        assert contender.recorder is not None
        with contender.recorder.step(1):
            same.append(contender.loss() == first)
    return all(same) if first == again else None


def _take_turns(contenders: Sequence[Contender], until: float) -> int:
    rounds = 0
    while rounds < ROUNDS + WARM_UP and (rounds < FEWEST or perf_counter() < until):
        turn = rounds % len(contenders)
        for contender in (*contenders[turn:], *contenders[:turn]):
            contender.step()
        rounds += 1
    skipped = WARM_UP if rounds > FEWEST + WARM_UP else 0
    for contender in contenders:
        contender.seconds = contender.seconds[-(rounds - skipped) :]
    return rounds - skipped


def _summary(contenders: Sequence[Contender], rounds: int, unchanged: bool | None) -> Overhead:
    bare, captured, *traced = contenders
    step = median(bare.seconds)
    layers = len(captured.recorder.sites) if captured.recorder is not None else 1
    around, in_op = captured.around[-rounds:], captured.in_op[-rounds:]
    inside = [a + o for a, o in zip(around, in_op, strict=True)]

    def added(contender: Contender) -> Interval:
        pairs = zip(contender.seconds, bare.seconds, strict=True)
        return median_interval([(mine - base) / step for mine, base in pairs])

    return Overhead(
        rounds=rounds,
        bare=median_interval(bare.seconds),
        capture=added(captured),
        with_traces=added(traced[0]) if traced else None,
        inside_p50=median(inside),
        inside_p99=_p99(inside),
        beyond_op_p99=_p99(around),
        op_per_layer=median(in_op) / layers,
        loss_unchanged=unchanged,
    )


def median_interval(values: Sequence[float]) -> Interval:
    """The median with its 95 % interval from order statistics; of few values the whole range.

    Example:
        >>> median_interval([3.0, 1.0, 2.0])
        Interval(median=2.0, low=1.0, high=3.0, of=3)
    """
    ordered, n = sorted(values), len(values)
    place = max(floor((n - 1.96 * sqrt(n)) / 2), 0)
    return Interval(median=median(ordered), low=ordered[place], high=ordered[n - 1 - place], of=n)


def _p99(values: Sequence[float]) -> float:
    return quantiles(values, n=100, method="inclusive")[-1] if len(values) > 1 else values[0]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def loss_of(tokens: Tensor) -> Callable[[nn.Module], Tensor]:
    """How a model is trained on token ids: by its own loss where it has one, else on the mean
    square of what it returns.

    Args:
        tokens: (row, position) int64, on the model's device.
    """

    def loss(model: nn.Module) -> Tensor:
        inner: Any = getattr(model, "_orig_mod", model)
        ours, theirs = sys.modules.get("model.lm"), sys.modules.get("transformers.modeling_utils")
        if ours is not None and isinstance(inner, ours.MoELM):
            total: Tensor = model(tokens, return_type="losses").total
            return total
        if theirs is not None and isinstance(inner, theirs.PreTrainedModel):
            output = model(input_ids=tokens, **_labels(inner, tokens))
        else:
            output = model(tokens)
        return _scalar(output)

    return loss


def _labels(model: Any, tokens: Tensor) -> dict[str, Tensor]:
    has_head = model.get_output_embeddings() is not None
    return {"labels": tokens} if has_head else {}


def _scalar(output: Any) -> Tensor:
    said = getattr(output, "loss", None)
    if isinstance(said, Tensor):
        return said
    parts = output.values() if hasattr(output, "values") else output
    for part in (output,) if isinstance(output, Tensor) else parts:
        if isinstance(part, Tensor) and part.is_floating_point():
            return part if part.ndim == 0 else part.float().square().mean()
    raise TypeError(f"forward(tokens) returned {type(output).__name__}, without a float tensor")
