"""Router transplant matrix: is it the routing that was learned, or what is routed to?

Needs   checkpoints of one run, or of its arms; an Exam.
Yields  loss (router_from, body_from), nats per token; accuracy and logprob (task, router_from,
        body_from); of each the change against the body's own router, with bounds.

The routers of checkpoint i are put into the body of checkpoint j, for all i and j. Read along a
body's column: where late routers help an early body, the routing was what lacked; where early
routers cost a late body little, routing had settled and the rest was learned in the experts. Where
both off-diagonal halves are bad, routers and experts have grown into each other.

change  value(i, j) - value(j, j): what body j gains by router i instead of its own; 0 on the
        diagonal, and for a router that does not matter.

The intervals are paired: the same items (or the same rows of text, for the loss) went through both,
so what is hard for both cancels. Other items or texts of the same kind, the same checkpoints.
accuracy by Bonett & Price's adjusted interval, the others by bootstrap. The grid holds C x C
intervals: about one in twenty will miss 0 where nothing is the matter.

Two passes over the checkpoints: the first keeps the routers, the second puts each body through all
of them. There is one whole model in memory at a time, and a copy of its outline.

It misleads where a foreign router only throws the body off (both off-diagonal halves are bad then
and nothing follows), and across runs whose experts have other numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor, nn

from model.evaluation import ItemBatch
from probes.caption import Caption, captioned
from probes.exam import Exam
from probes.inputs.items import MEASURES, all_values_of, items_of
from probes.inputs.rows import following_logprob
from probes.registry import probe
from probes.statistics.resample import (
    BOOT,
    OF_MEAN,
    Floats,
    bootstrap_weights,
    percentile_interval,
)
from probes.statistics.shapley import adjusted_interval
from probes.subject import Subject
from probes.surgery.hybrid import put, sharing_copy
from probes.surgery.parts import places, tensors_of
from workbench.checkpoints import Checkpoint
from workbench.errors import UsageError

AT_MOST = 8
"""Checkpoints of the grid, evenly spaced, where there are more."""
GRID = ("router_from", "body_from")


def router_transplant(
    source: Any,
    *,
    task: str | Sequence[str] | None = None,
    exam: Exam | None = None,
    at_most: int = AT_MOST,
    n_boot: int = BOOT,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = False,
) -> xr.Dataset:
    """Loss and capability with the routers of each checkpoint in the body of each.

    Args:
        source: a run, a window or checkpoints; or a list of Checkpoint or Subject, of several arms
            if wanted. None is changed.
        task: one name, several, or None for all; one name drops the `task` dim.
        exam: what is asked; None takes the run's.
        at_most: checkpoints, evenly spaced from the first to the last, where there are more.
        n_boot, seed: bootstrap draws.
        device: where models run.
        progress: whether a bar is shown on stderr.

    Returns:
        Dataset (router_from, body_from): loss and loss_change with bounds. With tasks
        ([task,] router_from, body_from): accuracy, logprob, accuracy_change, logprob_change with
        bounds. Coordinates: steps, router_branch, body_branch. attrs: n (items of each task), rows.

    Raises:
        UsageError: fewer than 2 checkpoints, or routers of different shape.
        RunNotFound: no such task.

    Example:
        >>> from workbench.planted.model import planted_model
        >>> world = planted_model("router", items=16)
        >>> exam = Exam(tokens=world.tokens, domains=world.domains, items=world.items)
        >>> early, late = Subject(world.before, exam, step=0), Subject(world.after, exam, step=9)
        >>> grid = router_transplant([early, late], task="planted/skill")["accuracy"]
        >>> bool((grid.sel(router_from=9) > 0.5).all()), bool((grid.sel(router_from=0) == 0).all())
        (True, True)
    """
    chosen = _chosen(source, at_most)
    if exam is None:
        first = chosen[0]
        exam = first.exam if isinstance(first, Subject) else Exam.of(first)
    items = None
    if exam.items is not None or task is not None:
        items = items_of(exam.items, task)
    routers = [_routers(subject.model) for subject in _subjects(chosen, exam, device)]
    _check_alike(routers)
    loss_CCR, answers = _measured(chosen, exam, items, routers, device, progress)
    return _result(chosen, exam, items, loss_CCR, answers, isinstance(task, str), n_boot, seed)


@probe(
    "router-transplant",
    question="Is it the routing that was learned, or what is routed to?",
    reads="checkpoints",
    version=2,
)
def router_transplant_of_run(
    checkpoints: Sequence[Checkpoint],
    exam: Exam,
    device: str = "cpu",
    *,
    task: str | Sequence[str] | None = None,
    at_most: int = AT_MOST,
    n_boot: int = BOOT,
    seed: int = 0,
) -> xr.Dataset:
    """`router_transplant` over the checkpoints of a run or a window."""
    return router_transplant(
        list(checkpoints), task=task, exam=exam, at_most=at_most, n_boot=n_boot, seed=seed,
        device=device,
    )  # fmt: skip


def _chosen(source: Any, at_most: int) -> list[Checkpoint | Subject]:
    found = list(getattr(source, "checkpoints", source))
    # Those whose weights are gone stay in the index and cannot be looked at.
    usable = [c for c in found if isinstance(c, Subject) or c.record.complete]
    if len(usable) < 2 or at_most < 2:
        raise UsageError(
            f"found {len(usable)} checkpoints and at_most={at_most}, expected 2 or more of each: a "
            f"router is put into another checkpoint's body."
        )
    at = np.unique(np.linspace(0, len(usable) - 1, min(at_most, len(usable))).round().astype(int))
    return [usable[i] for i in at]


def _subjects(chosen: Iterable[Any], exam: Exam, device: str) -> Iterator[Subject]:
    """One after the other: the one before is let go."""
    for one in chosen:
        yield Subject.of(one, exam, device=device)


def _routers(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of every router, apart from the model's memory."""
    tensors = tensors_of(model)
    names = [name for name, place in places(model).items() if place.kind == "router"]
    if not names:
        raise UsageError(
            f"found no router in {type(model).__name__}, expected a mixture of experts; "
            f"probes.places(model) says what each parameter was taken for."
        )
    return {name: tensors[name].detach().clone() for name in names}


def _check_alike(routers: Sequence[dict[str, Tensor]]) -> None:
    shapes = [{n: (tuple(t.shape), t.dtype) for n, t in of.items()} for of in routers]
    for other in shapes[1:]:
        if other != shapes[0]:
            name = next(n for n in {**shapes[0], **other} if shapes[0].get(n) != other.get(n))
            raise UsageError(
                f"routers differ, the first of them {name}: {shapes[0].get(name, 'none')} and "
                f"{other.get(name, 'none')}; expected checkpoints of one model."
            )


def _measured(
    chosen: Sequence[Any],
    exam: Exam,
    items: ItemBatch | None,
    routers: Sequence[dict[str, Tensor]],
    device: str,
    progress: bool,
) -> tuple[Floats, dict[str, Floats]]:
    """Loss (router, body, row); each measure (router, body, item through all tasks)."""
    from tqdm import tqdm

    C = len(chosen)
    n_items = len(items.tasks) * items.items_per_task if items is not None else 0
    loss_CCR = np.empty((C, C, len(exam.tokens)))
    answers = {measure: np.empty((C, C, n_items)) for measure in MEASURES}
    with tqdm(total=C * C, unit=" forwards", disable=not progress) as bar:
        for j, body in enumerate(_subjects(chosen, exam, device)):
            model = sharing_copy(body.model)
            own = tensors_of(model)
            for i, router in enumerate(routers):
                for name, tensor in router.items():
                    put(own[name], tensor)
                loss_CCR[i, j] = -following_logprob(body, exam.tokens, model).mean(1)
                if items is not None:
                    for measure, values in all_values_of(model, items).items():
                        answers[measure][i, j] = values
                bar.update()
    return loss_CCR, answers


def _result(
    chosen: Sequence[Any],
    exam: Exam,
    items: ItemBatch | None,
    loss_CCR: Floats,
    answers: dict[str, Floats],
    one_task: bool,
    n_boot: int,
    seed: int,
) -> xr.Dataset:
    steps, branches = [c.step for c in chosen], [c.branch for c in chosen]
    result = xr.Dataset(
        coords={
            "router_from": steps, "body_from": steps, "router_branch": ("router_from", branches),
            "body_branch": ("body_from", branches),
        }
    )  # fmt: skip
    result = result.assign(_columns("loss", loss_CCR, GRID, n_boot, seed))
    if items is not None:
        dims = GRID if one_task else ("task", *GRID)
        if not one_task:
            result = result.assign_coords(task=list(items.tasks))
        for measure, values in answers.items():
            C = len(chosen)
            of_task = values.reshape(C, C, len(items.tasks), -1).transpose(2, 0, 1, 3)
            shown = of_task[0] if one_task else of_task
            result = result.assign(_columns(measure, shown, dims, n_boot, seed))
    return _described(result, items is not None).assign_attrs(
        n=int(items.items_per_task) if items is not None else len(exam.tokens),
        n_meaning="items of each task" if items is not None else "rows of text",
        rows=len(exam.tokens), n_boot=int(n_boot), seed=int(seed),
    )  # fmt: skip


def _columns(
    name: str, values: Floats, dims: tuple[str, ...], n_boot: int, seed: int
) -> dict[str, tuple[tuple[str, ...], Floats]]:
    """Mean over the last axis (units), and the change against the diagonal with bounds."""
    C = values.shape[-2]
    own = values[..., np.arange(C), np.arange(C), :]
    change = values - own[..., None, :, :]
    flat = change.reshape(-1, change.shape[-1])
    units = flat.shape[1]
    if name == "accuracy":
        low, high = adjusted_interval(flat, np.zeros(len(flat)))
    else:
        draws = bootstrap_weights(units, n_boot, seed) / units @ flat.T
        low, high = percentile_interval(draws, units)
        low, high = np.minimum(low, flat.mean(1)), np.maximum(high, flat.mean(1))
    bounds = [b.reshape(change.shape[:-1]) for b in (low, high)]
    for bound in bounds:
        # A body with its own router is itself: no change on any item.
        bound[..., np.arange(C), np.arange(C)] = 0.0
    return {
        name: (dims, values.mean(-1)),
        f"{name}_change": (dims, change.mean(-1)),
        f"{name}_change_low": (dims, bounds[0]),
        f"{name}_change_high": (dims, bounds[1]),
    }


def _described(result: xr.Dataset, tasks: bool) -> xr.Dataset:
    point = "point estimate: see its change, whose interval is paired"
    boot = f"95 %, bootstrap over {{}} ({OF_MEAN}), paired with the body's own router"
    captions = {
        "loss": Caption("nats/token", "next-token loss on the fixed tokens", point),
        "loss_change": Caption(
            "nats/token", "loss with this router less that with the body's own",
            boot.format("rows of text"), 0.0,
        ),
    }  # fmt: skip
    if tasks:
        captions |= {
            "logprob": Caption("nats", "mean log-probability of the right answer", point),
            "logprob_change": Caption(
                "nats", "log-probability with this router less that with the body's own",
                boot.format("items"), 0.0,
            ),
            "accuracy": Caption("1", "share of items answered right", point),
            "accuracy_change": Caption(
                "1", "accuracy with this router less that with the body's own",
                "95 %, Bonett-Price, paired by item with the body's own router", 0.0,
            ),
        }  # fmt: skip
    return captioned(result, captions)
