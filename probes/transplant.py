"""Transplant: which part of the model did a capability come with?

Needs   two checkpoints of one model (fork and end, or the ends of two arms), items of a task.
Yields  shapley (part), with bounds and standard error; alone, last (part); gap, before, after.

Part m of the later checkpoint is put into the earlier one, with and without others, and the task is
measured. Over all coalitions of parts that gives each part's Shapley value (statistics/shapley.py):
its share of the gap after - before. The shares sum to the gap exactly.

alone   what the part does by itself in the old body: v({m}) - v(none).
last    what is lost when it alone is left out of the new body: v(all) - v(all but m).

Alone 0 and last large: it works only together with others. Alone large and last 0: others can do
without it, or in its place.

measure  "logprob", mean log-probability of the right answer, nats; or "accuracy".
chance   0: a part that changes no answer. Parts without any change of weights are left out of the
         game and have 0 exactly.

The interval is over other items of the same kind, with the sampling of orders where there is any:
these two checkpoints, this run. It says nothing of another seed. It misleads where two checkpoints
lie so far apart that no mixture of them works at all: all coalitions but the whole are then broken,
and the gap is shared out evenly for want of anything better; `alone` far under 0 tells.

Sources: Shapley values of a network's parts, Ghorbani & Zou 2020, arXiv:2002.09815; layers set back
to an earlier checkpoint one at a time, Zhang et al. 2019, arXiv:1902.01996.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from probes.caption import Caption, captioned
from probes.exam import Exam
from probes.inputs.items import MEASURES, Measure, items_of, values_of
from probes.registry import probe
from probes.statistics.resample import BOOT, OF_MEAN, Floats
from probes.statistics.shapley import ShapleyValues, shapley
from probes.subject import Subject
from probes.surgery.hybrid import Hybrid
from probes.surgery.parts import Grain, Part, parts_of
from workbench.checkpoints import Checkpoint
from workbench.errors import UsageError

PERMUTATIONS = 64
"""Orders that are sampled where there are too many coalitions to measure all."""


def transplant(
    a: Checkpoint | Subject,
    b: Checkpoint | Subject,
    task: str | Sequence[str] | None = None,
    *,
    parts: Grain = "kind",
    measure: Measure = "logprob",
    exam: Exam | None = None,
    n_permutations: int | None = PERMUTATIONS,
    n_boot: int = BOOT,
    seed: int = 0,
    progress: bool = False,
) -> xr.Dataset:
    """What each part of `b` adds when it is put into `a`: Shapley values of the gain.

    Args:
        a, b: from and to; checkpoints of a run, of two arms, or Subjects. Neither is changed.
        task: one name, several, or None for all; one name drops the `task` dim. All are measured
            in the same passes.
        parts: "kind" (router, experts, attention, norms, embeddings), "layer", "kind-layer" or
            "expert".
        measure: "logprob" (nats) or "accuracy".
        exam: whose items; None takes the run's, or the Subject's.
        n_permutations: orders sampled where all coalitions would cost more; None: all coalitions.
        n_boot, seed: bootstrap draws; seed of these and of the orders.
        progress: whether a bar is shown on stderr.

    Returns:
        Dataset ([task,] part): shapley, shapley_low, shapley_high, shapley_se (of the sampling of
        orders; 0 where all coalitions were measured), alone, last; ([task]): gap, gap_low,
        gap_high, before, after. Coordinates kind, layer, expert (part). attrs: task, measure,
        from_step, to_step, from_branch, to_branch, n, coalitions, exact (1 or 0).

    Raises:
        UsageError: models of different shape, or an exam without tasks.
        RunNotFound: no such task.

    Example:
        >>> from workbench.planted.model import planted_model
        >>> world = planted_model("both", items=16)  # neither router nor expert helps alone
        >>> exam = Exam(tokens=world.tokens, domains=world.domains, items=world.items)
        >>> a, b = Subject(world.before, exam), Subject(world.after, exam)
        >>> found = transplant(a, b, "planted/skill")
        >>> (found["shapley"] / found["gap"]).sel(part=["router", "experts"]).values.round(3)
        array([0.5, 0.5])
    """
    if exam is None:
        exam = a.exam if isinstance(a, Subject) else Exam.of(a)
    items = items_of(exam.items, task)
    # Refused before anything is loaded.
    if measure not in MEASURES:
        raise UsageError(f"measure={measure!r}: expected one of {', '.join(MEASURES)}.")
    one, other = Subject.of(a, exam), Subject.of(b, exam)
    every = parts_of(one.model, parts)
    hybrid = Hybrid(one.model, other.model, every)
    moved = np.flatnonzero(hybrid.differing())

    def value(members: NDArray[np.bool_]) -> Floats:
        taken = np.zeros(len(every), dtype=bool)
        taken[moved] = members
        hybrid.take(taken)
        bar.update()
        return values_of(hybrid.model, items, measure)

    with _bar(progress) as bar:
        if len(moved):
            game = shapley(value, len(moved), n_permutations=n_permutations, seed=seed)
        else:
            game = _nothing_moved(value(np.zeros(0, dtype=bool)))
    tables = [
        _of_task(_part_of(game, n, items.items_per_task), moved, every, measure, n_boot, seed)
        for n in range(len(items.tasks))
    ]
    if isinstance(task, str):
        result = tables[0]
    else:
        result = xr.concat(tables, xr.IndexVariable("task", list(items.tasks)))
    return _described(result, measure, game).assign_attrs(
        task=", ".join(items.tasks), measure=measure, parts=parts,
        from_step=int(one.step), to_step=int(other.step), from_branch=one.branch,
        to_branch=other.branch, n=int(items.items_per_task), n_meaning="items of each task",
        coalitions=int(game.coalitions), exact=int(game.exact), n_boot=int(n_boot), seed=int(seed),
    )  # fmt: skip


@probe(
    "transplant",
    question="Which part of the model did each capability come with?",
    reads="pair",
    version=2,
)
def transplant_from_reference(
    subject: Subject,
    reference: Subject,
    *,
    task: str | Sequence[str] | None = None,
    parts: Grain = "kind",
    measure: Measure = "logprob",
    n_permutations: int | None = PERMUTATIONS,
    n_boot: int = BOOT,
    seed: int = 0,
) -> xr.Dataset:
    """`transplant` from the reference checkpoint to this one."""
    return transplant(
        reference, subject, task, parts=parts, measure=measure, n_permutations=n_permutations,
        n_boot=n_boot, seed=seed,
    )  # fmt: skip


def _bar(shown: bool) -> Any:
    from tqdm import tqdm

    return tqdm(unit=" coalitions", disable=not shown)


def _nothing_moved(values: Floats) -> ShapleyValues:
    nobody = np.zeros((0, len(values)))
    return ShapleyValues(nobody[None], values, values, nobody, nobody, 1, True)


def _part_of(game: ShapleyValues, task: int, items: int) -> ShapleyValues:
    """The game of one task of several that were measured together."""
    own = slice(task * items, (task + 1) * items)
    return ShapleyValues(
        game.by_pair[..., own], game.none[own], game.every[own], game.alone[:, own],
        game.last[:, own], game.coalitions, game.exact,
    )  # fmt: skip


def _of_task(
    game: ShapleyValues,
    moved: NDArray[np.int64],
    parts: Sequence[Part],
    measure: str,
    n_boot: int,
    seed: int,
) -> xr.Dataset:
    answers = measure == "accuracy"
    low, high = game.interval(answers=answers, n_boot=n_boot, seed=seed)
    columns = {
        "shapley": game.values, "shapley_low": low, "shapley_high": high,
        "shapley_se": game.standard_error, "alone": game.alone.mean(-1), "last": game.last.mean(-1),
    }  # fmt: skip
    result = xr.Dataset(
        coords={
            "part": [part.name for part in parts],
            "kind": ("part", [part.kind for part in parts]),
            "layer": ("part", [part.layer for part in parts]),
            "expert": ("part", [part.expert for part in parts]),
        }
    )
    for name, values in columns.items():
        whole = np.zeros(len(parts))
        whole[moved] = values
        result[name] = ("part", whole)
    # Two equal models have no gap on any items: known, not estimated.
    gap_low, gap_high = (
        game.gap_interval(answers=answers, n_boot=n_boot, seed=seed) if len(moved) else (0.0, 0.0)
    )
    scalars = {
        "gap": (game.every - game.none).mean(), "gap_low": gap_low, "gap_high": gap_high,
        "before": game.none.mean(), "after": game.every.mean(),
    }  # fmt: skip
    return result.assign({name: ((), float(value)) for name, value in scalars.items()})


def _described(result: xr.Dataset, measure: str, game: ShapleyValues) -> xr.Dataset:
    units, meaning = MEASURES[measure]
    how = "Bonett-Price" if measure == "accuracy" else f"bootstrap, {OF_MEAN}"
    sampled = "" if game.exact else f" and other orders ({2 * len(game.by_pair)} were sampled)"
    over_items = f"95 %, {how}: other items of the same kind{sampled}, same two checkpoints"
    none = "point estimate: the same items as shapley, whose interval tells how much they vary"
    return captioned(
        result,
        {
            "shapley": Caption(units, f"share of the gap: {meaning}", over_items, 0.0),
            "shapley_se": Caption(
                units, "standard error of shapley from sampling orders, these items given",
                "none: it is one itself; 0 where all coalitions were measured",
            ),
            "alone": Caption(units, "change with this part alone in the old body", none, 0.0),
            "last": Caption(units, "change from adding this part last", none, 0.0),
            "gap": Caption(
                units, f"after less before: {meaning}", over_items.replace(sampled, ""), 0.0
            ),
            "before": Caption(units, f"{meaning}, at the start", none),
            "after": Caption(units, f"{meaning}, at the end", none),
        },
    )  # fmt: skip
