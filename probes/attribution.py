"""Attribution: which training domain teaches which capability, by the alignment of gradients.

Needs   a Subject with tasks; rows of text of every domain; the learning rate.
Yields  influence (domain, task), nats: by how much one step of gradient descent on the domain alone
        lowers the task's loss, to first order, at one checkpoint; summed over the checkpoints by
        `total_influence`. Each with a 95 % interval and q. Above 0 helps, below 0 harms.

    influence(d, t) = sum over checkpoints of lr <P g_d, g_t>

g_d is the gradient of the mean next-token loss of the domain's rows, g_t that of the task's loss:
minus the log-probability of the right answer, mean over items. P is the identity ("none"), the step
of plain gradient descent; or ("adam") 1 / (sqrt(v) + eps), with v the second moments in the
checkpoint's own optimizer state, bias-corrected: the step that Adam takes with this gradient, its
momentum counted in full. With P the products are far larger: Adam's steps are.

"cosine" divides by the lengths of P g_d and g_t, which leaves the direction: 1 pulls exactly the
task's way. The sum over checkpoints is then a mean weighted by learning rate. Few rows make the
measured direction noisier and its cosine nearer to 0 than that of the whole domain would be; the
interval does not know of that.

Interval: other rows of the domain and other items of the task, same checkpoints. The rows' and
items' own products come from directional derivatives (directional.py); variances of the two means
add up, Welch's t. The estimate itself is the exact product of the gradients;
`difference_error` says how far the derivatives' means are from it, over the largest product. q:
Benjamini-Hochberg over domain x task. Chance level 0, but unrelated domains need not be at 0: what
any text teaches (which tokens are common, in early training) helps every task. Compare domains.

Text. "training" takes the first rows of the run's own training; "exam" the fixed tokens, which in
runs of ours are made of the tasks' own items: a domain then has its own task's answers before it.

It misleads where one step is not small (early, or at Adam's lengths: first order only), where a
task is learned by chance of the order, and where what helps is taught by one domain for another to
use: leaving the domain out and training again is the truth that this estimates.

Sources: TracIn, Pruthi et al. 2020, arXiv:2002.08484; with Adam's preconditioner and cosines, LESS,
Xia et al. 2024, arXiv:2402.04333 (which keeps the first moment, the same for all domains); Welch
1947.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from probes.inputs.training_text import has_training_text, training_rows
from probes.lesion import following
from probes.registry import probe
from probes.statistics.resample import Floats
from probes.subject import Subject
from probes.surgery.alignment import Normalize, aligned, judged, nothing
from probes.surgery.directional import Directional
from probes.surgery.lesioned import Questions
from workbench.errors import RunNotFound, UsageError

Preconditioner = Literal["none", "adam"]
Text = Literal["auto", "training", "exam"]

DIMS = ("domain", "task")


def total_influence(found: xr.Dataset) -> xr.Dataset:
    """The influences of several checkpoints summed, with the interval of the sum.

    The same rows and items were asked at every checkpoint, so they are summed before their spread
    is taken. Checkpoints without an influence (Adam before its first step) are left out and counted
    in `checkpoints`.

    Args:
        found: (checkpoint, ...): `attribution` of each checkpoint.

    Returns:
        Dataset: influence and `_low`, `_high`, `_q` (domain, task), summed ("cosine": mean weighted
        by learning rate); influence_at and bounds (checkpoint, domain, task); lr,
        difference_error (checkpoint,).
    """
    there = ~np.isnan(found["influence"].values).all(axis=(1, 2))
    lr = np.where(there, found["lr"].values, 0.0)
    weight = np.where(there, 1.0, 0.0)
    if found.attrs["normalize"] == "cosine":
        weight = np.divide(lr, lr.sum(), out=np.full(lr.shape, np.nan), where=lr.sum() > 0)

    def summed(name: str) -> Floats:
        values = np.where(there.reshape(-1, *[1] * (found[name].ndim - 1)), found[name].values, 0.0)
        total: Floats = np.tensordot(weight, values, 1)
        return total if there.any() else np.full(total.shape, np.nan)

    names = ["influence", "influence_low", "influence_high", "influence_q"]
    at = found[names].rename({n: n.replace("influence", "influence_at") for n in names})
    domain_of_row = found["row_domain"].values
    sums = (summed("influence"), summed("of_row"), summed("of_item"))
    verdict = judged(*sums, domain_of_row, found["domain"].values)
    total = xr.Dataset({n: (DIMS, v) for n, v in verdict.items()})
    total = total.assign_coords(domain=found["domain"], task=found["task"])
    total = total.merge(at).assign(lr=found["lr"], difference_error=found["difference_error"])
    return _described(total, {**found.attrs, "checkpoints": int(there.sum())})


@probe(
    "attribution",
    question="Which training domain teaches each capability?",
    reads="checkpoint",
    finish=total_influence,
)
def attribution(
    subject: Subject,
    task: str | Sequence[str] | None = None,
    preconditioner: Preconditioner = "none",
    normalize: Normalize = "none",
    text: Text = "auto",
    rows: int = 8,
    lr: float | None = None,
    beta2: float = 0.95,
    eps: float = 1e-8,
) -> xr.Dataset:
    """Alignment of each domain's gradient with each task's, at one checkpoint.

    Args:
        subject: the checkpoint.
        task: one task, several, or None for all; a family stands for its tasks ("code").
        preconditioner: "none", or "adam" with the second moments of the checkpoint's optimizer.
        normalize: "none", nats; or "cosine", -1 to 1.
        text: where the domains' rows come from: "training", "exam", or "auto": training's where
            the run is ours, else the exam's.
        rows: of each domain, of training text.
        lr: learning rate; None takes the checkpoint's own.
        beta2, eps: Adam's, as the run used them.

    Returns:
        Dataset (domain, task): influence, influence_low, influence_high, influence_q; (row, task):
        of_row; (domain, task, item): of_item, the parts that the mean is of; lr; difference_error.
        NaN with "adam" where the optimizer has not stepped yet.

    Raises:
        UsageError: no tasks, an unknown choice, no learning rate, no optimizer state.
        RunNotFound: no such task; "training" text of a run that is not ours.

    Example:
        >>> from probes.exam import Exam
        >>> from workbench.planted.model import planted_model
        >>> world = planted_model(items=4)
        >>> exam = Exam(tokens=world.tokens, domains=world.domains, items=world.items)
        >>> found = attribution(Subject(world.after, exam), lr=1e-3)
        >>> bool(found["influence"].item() > 0)
        True
    """
    for name, value, known in (
        ("preconditioner", preconditioner, ("none", "adam")),
        ("normalize", normalize, ("none", "cosine")),
        ("text", text, ("auto", "training", "exam")),
    ):
        if value not in known:
            raise UsageError(f"{name}={value!r}: expected one of {', '.join(known)}.")
    tokens, domains, source = _text(subject, text, rows)
    tasks = _tasks(subject, task)
    rate = _learning_rate(subject) if lr is None else float(lr)
    names = list(dict.fromkeys(domains))
    model = Directional(subject.model)
    scale = _adam(subject, model, beta2, eps) if preconditioner == "adam" else None
    shown = model.rows(following(tokens), "mean")
    asked = model.rows(_right_answers(subject, tasks), "sum")
    n_items = subject._items().items_per_task
    if preconditioner == "adam" and scale is None:
        measured = (*nothing(len(names), len(tasks), len(tokens), n_items), np.nan)
    else:
        number = np.array([names.index(domain) for domain in domains])
        measured = aligned(model, shown, number, asked, n_items, scale, normalize)
    influence, of_row, of_item, error = measured
    if normalize == "none":
        influence, of_row, of_item = (rate * part for part in (influence, of_row, of_item))
    verdict = judged(influence, of_row, of_item, np.array(domains), np.array(names))
    found = xr.Dataset({name: (DIMS, values) for name, values in verdict.items()})
    found["of_row"] = (("row", "task"), of_row)
    found["of_item"] = (("domain", "task", "item"), of_item)
    found["lr"], found["difference_error"] = ((), rate), ((), error)
    found = found.assign_coords(domain=names, task=list(tasks), row_domain=("row", list(domains)))
    settings = {
        "preconditioner": preconditioner, "normalize": normalize, "text": source,
        "n": n_items, "n_meaning": "items of a task", "rows": len(tokens) / len(names),
        "rows_meaning": "rows of text of a domain, in the mean",
    }  # fmt: skip
    return _described(found, settings)


# What is asked


def _text(subject: Subject, text: Text, rows: int) -> tuple[np.ndarray, tuple[str, ...], str]:
    checkpoint = subject.checkpoint
    if text == "exam" or (text == "auto" and not has_training_text(checkpoint)):
        return subject.exam.tokens, subject.exam.domains, "exam"
    if checkpoint is None:
        raise UsageError(
            "text='training' of a Subject without a checkpoint: found no run whose text it is; "
            "expected Subject.of(checkpoint), or text='exam'."
        )
    return *training_rows(Path(checkpoint.run_path), rows), "training"


def _tasks(subject: Subject, task: str | Sequence[str] | None) -> list[str]:
    known = list(subject._items().tasks)
    if task is None:
        return known
    found: list[str] = []
    for name in [task] if isinstance(task, str) else task:
        members = [t for t in known if t == name or t.startswith(f"{name}/")]
        if not members:
            raise RunNotFound(f"no task {name!r}; the known ones are {', '.join(known)}.")
        found += members
    return list(dict.fromkeys(found))


def _right_answers(subject: Subject, tasks: Sequence[str]) -> Questions:
    """One row an item, task after task: what is to be found is its right answer."""
    batch = subject._items()
    per_task = batch.items_per_task
    item_of = np.asarray(batch.item_of)
    right = np.flatnonzero(np.asarray(batch.is_right))
    choice = np.empty(len(batch.tasks) * per_task, dtype=np.int64)
    choice[item_of[right]] = right
    items = [list(batch.tasks).index(task) * per_task + np.arange(per_task) for task in tasks]
    chosen = choice[np.concatenate(items)]
    lengths = np.array([len(batch.continuation[c]) for c in chosen])
    inside = np.concatenate([np.arange(n) for n in lengths])
    return Questions(
        batch.sequences[torch.from_numpy(np.asarray(batch.sequence_of)[chosen])],
        np.repeat(np.arange(len(chosen)), lengths),
        np.repeat(np.asarray(batch.start)[chosen], lengths) + inside,
        np.concatenate([np.asarray(batch.continuation[c], dtype=np.int64) for c in chosen]),
    )


def _learning_rate(subject: Subject) -> float:
    from model.errors import TrainingStateError
    from model.training.checkpoint import read_state

    if subject.checkpoint is not None:
        try:
            rate = read_state(subject.checkpoint.path).extra.get("lr")
        except TrainingStateError:
            rate = None
        if rate is not None:
            return float(rate)
    raise UsageError(
        f"step {subject.step}: this checkpoint does not say its learning rate; give it: lr=3e-4, "
        f"or lr=1.0 for the influence per unit of it."
    )


def _adam(subject: Subject, model: Directional, beta2: float, eps: float) -> list[Tensor] | None:
    """1 / (sqrt(v) + eps) for each parameter; None where the optimizer has not stepped."""
    from safetensors.torch import load_file

    path = subject.checkpoint.path if subject.checkpoint is not None else None
    if path is None or not (path / "optimizer.safetensors").is_file():
        raise UsageError(
            f"preconditioner='adam': found no optimizer.safetensors at {path}, expected a "
            f"checkpoint of ours with its optimizer state; use preconditioner='none'."
        )
    saved = load_file(path / "optimizer.safetensors")
    if not saved:
        return None
    scale = []
    for name, parameter in zip(model.names, model.parameters, strict=True):
        if f"{name}|exp_avg_sq" not in saved:
            raise UsageError(
                f"{path}/optimizer.safetensors has no second moments of {name}; expected Adam's. "
                f"Use preconditioner='none'."
            )
        correction = 1 - beta2 ** float(saved[f"{name}|step"])
        v = saved[f"{name}|exp_avg_sq"].to(parameter.device, parameter.dtype) / correction
        scale.append(1 / (v.sqrt() + eps))
    return scale


# What it says


_INTERVAL = (
    "95 %, Welch's t over rows of the domain and items of the task: other text and other items of "
    "the same kind, the same checkpoints; NaN with one row or one item"
)


def _described(found: xr.Dataset, settings: Mapping[str, Any]) -> xr.Dataset:
    """Attaches unit, meaning, chance level and interval to each variable, the settings to all."""
    cosine = settings["normalize"] == "cosine"
    unit = "1" if cosine else "nats"
    what = {
        "influence": "alignment of the domain's gradient with the task's"
        if cosine
        else "fall of the task's loss by one step on the domain alone, first order",
        "of_row": "the same, of one row of text; its mean over a domain is the influence",
        "of_item": "the same, of one item; its mean over a task is the influence",
    }
    over = "checkpoints" in settings
    for name in map(str, found.data_vars):
        stem = name.replace("influence_at", "influence")
        part = next((s for s in ("_low", "_high", "_q") if stem.endswith(s)), "")
        if (meaning := what.get(stem.removesuffix(part))) is not None:
            if over and "_at" not in name:
                meaning += ", mean over checkpoints by lr" if cosine else ", sum over checkpoints"
            bound = {"_low": "lower bound: ", "_high": "upper bound: ", "_q": "q of 0: "}
            found[name].attrs = {
                "units": "1" if part == "_q" else unit,
                "long_name": bound.get(part, "") + meaning,
                "interval": "none: an adjusted p (Benjamini-Hochberg, domain x task)"
                if part == "_q"
                else _INTERVAL,
            }
            if part != "_q":
                found[name].attrs["chance_level"] = 0.0
    found["lr"].attrs = {"units": "1", "long_name": "learning rate", "interval": "exact"}
    found["difference_error"].attrs = {
        "units": "1",
        "long_name": "error of the derivatives by row and item, over the largest influence",
        "interval": "exact: measured against the product of the gradients",
    }
    found.attrs = dict(settings)
    return found
