"""Lesion: what a checkpoint can no longer do when one expert is gone.

Needs   a Subject: a checkpoint's model, items of tasks, fixed tokens by domain.
Yields  drop (task, layer, expert), fraction: accuracy intact less accuracy without the expert;
        drop_logprob, nats: the same of the mean log-probability of the right answer;
        loss_rise (domain, layer, expert), nats per token: next-token loss without the expert less
        intact; each with a 95 % interval and q; used, used_in_domain: share of tokens routed there.

Over the checkpoints of a run this is the lesion curve: when a capability begins to need an expert.

way "zero" takes the expert's output away and leaves the other gates: all that it contributed.
"reroute" sends its tokens to the next best expert: what it contributes beyond its stand-in. An
expert whose lesion hurts by zero and not by reroute does what others can do as well. Both are
far from anything in training, "zero" farther: a network may fail for being thrown off, and not for
missing what the expert knew. A task may need two experts that each make up for the other; single
lesions then show nothing.

Chance level 0: an expert that none of the task's tokens goes to drops by exactly 0. Intervals are
about other items (rows of text) of the same kind put to the same checkpoint, paired: accuracy by
Bonett & Price, p by McNemar's exact test; log-probability and loss by a paired t, whose bounds are
NaN where fewer than 10 items changed: what a rare item would lose cannot be bounded by items
that lose nothing. q: Benjamini-Hochberg over layer x expert of one task and one measure; the tasks
of one expert, and the checkpoints, are not corrected for.

It misleads where experts make up for one another, where an expert that every token needs drops
every task, and where zeroing throws the rest of the network off.

Sources: McGrath et al. 2023, arXiv:2307.15771, on networks that make up for what is ablated;
Bonett & Price 2012, J. Educ. Behav. Stat. 37(4); Benjamini & Hochberg 1995.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from model.evaluation import ItemBatch, scores_of
from probes.arms import bonett_price, mcnemar, paired_t
from probes.registry import probe
from probes.statistics.discovery_rate import q_values
from probes.statistics.resample import Floats
from probes.subject import Subject
from probes.surgery.lesioned import ROUNDING, Answers, Questions, Way, answers

FEWEST = 10
"""Observations that a lesion must have changed for an interval to be given. Measured on a trained
model, 64 items: the t interval held the mean of a large pool in 94 % of draws with 10 or more,
in 88 % with fewer (a percentile bootstrap in 92 %, less with few)."""
TASK = ("task", "layer", "expert")
DOMAIN = ("domain", "layer", "expert")


@probe("lesion", question="Which expert does each capability need?", reads="checkpoint")
def lesion(subject: Subject, way: Way = "zero", fixed_tokens: bool = True) -> xr.Dataset:
    """What is lost with each expert: accuracy, log-probability of the right answer, loss.

    Args:
        subject: the checkpoint.
        way: "zero", its output is 0; "reroute", its tokens go to the next best expert.
        fixed_tokens: whether the next-token loss on the fixed tokens is measured as well.

    Returns:
        Dataset (task, layer, expert): drop, drop_logprob and bounds `_low`, `_high`, `_q`; used.
        (domain, layer, expert): loss_rise and bounds, `_q`; used_in_domain. (task,): accuracy,
        logprob, intact. Without tasks in the exam only what is by domain.

    Raises:
        UsageError: an unknown way; "reroute" with one expert, or in a model that is not a MoELM;
            a model whose single experts are not known.

    Example:
        >>> from model.config import NANO
        >>> from model.lm import MoELM
        >>> from probes.exam import Exam
        >>> exam = Exam(tokens=np.arange(32).reshape(4, 8), domains=("a", "a", "b", "b"))
        >>> dict(lesion(Subject(MoELM(NANO), exam))["loss_rise"].sizes)
        {'domain': 2, 'layer': 3, 'expert': 16}
    """
    found = xr.Dataset()
    if subject.exam.items is not None:
        found = _tasks(subject.exam.items, answers(subject.model, _choices(subject), way))
    if fixed_tokens or subject.exam.items is None:
        asked = following(subject.exam.tokens)
        by_domain = _domains(subject.exam.domains, asked, answers(subject.model, asked, way))
        found = found.merge(by_domain)
    layers, experts = (found.sizes[dim] for dim in ("layer", "expert"))
    found = found.assign_coords(layer=np.arange(layers), expert=np.arange(experts))
    return _described(found, subject, way)


def _choices(subject: Subject) -> Questions:
    """Every token of every choice of every item."""
    batch: ItemBatch = subject._items()
    lengths = np.array([len(tokens) for tokens in batch.continuation])
    inside = np.concatenate([np.arange(n) for n in lengths])
    return Questions(
        batch.sequences,
        np.repeat(np.asarray(batch.sequence_of), lengths),
        np.repeat(np.asarray(batch.start), lengths) + inside,
        np.concatenate([np.asarray(tokens, dtype=np.int64) for tokens in batch.continuation]),
    )


def following(tokens: np.ndarray) -> Questions:
    """Every token of every row but the first, after those before it."""
    rows, length = tokens.shape
    row, position = np.divmod(np.arange(rows * (length - 1)), length - 1)
    return Questions(torch.tensor(tokens), row, position, tokens[row, position + 1])


def _tasks(batch: ItemBatch, heard: Answers) -> xr.Dataset:
    lengths = [len(tokens) for tokens in batch.continuation]
    starts = np.cumsum([0, *lengths[:-1]])
    whole = scores_of(batch, np.add.reduceat(heard.intact, starts))
    layers, experts = heard.lesioned.shape[:2]
    right = whole.correct > 0
    shape = (layers, experts, *right.shape)
    lost, gained = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    fall = np.zeros(shape)
    for layer in range(layers):
        for expert in range(experts):
            if not heard.used[layer, expert].any():
                continue
            now = scores_of(batch, np.add.reduceat(heard.lesioned[layer, expert], starts))
            lost[layer, expert] = right & (now.correct == 0)
            gained[layer, expert] = ~right & (now.correct > 0)
            fall[layer, expert] = whole.logprob.astype(np.float64) - now.logprob
    n = np.full(shape[:-1], right.shape[-1])
    drop, low, high = bonett_price(lost.sum(-1), gained.sum(-1), n)
    mean, mean_low, mean_high, mean_p = mean_change(fall)
    p = mcnemar(lost.sum(-1), gained.sum(-1))
    found = {
        "drop": drop, "drop_low": low, "drop_high": high, "drop_q": _q(p),
        "drop_logprob": mean, "drop_logprob_low": mean_low, "drop_logprob_high": mean_high,
        "drop_logprob_q": _q(mean_p),
        "used": _shares(heard, _task_of_row(batch), len(batch.tasks)),
    }  # fmt: skip
    result = xr.Dataset({name: (TASK, np.moveaxis(v, 2, 0)) for name, v in found.items()})
    result["accuracy"] = ("task", right.mean(-1))
    result["logprob"] = ("task", whole.logprob.astype(np.float64).mean(-1))
    return result.assign_coords(task=list(batch.tasks))


def _task_of_row(batch: ItemBatch) -> np.ndarray:
    task = np.zeros(len(batch.sequences), dtype=np.int64)
    task[np.asarray(batch.sequence_of)] = np.asarray(batch.item_of) // batch.items_per_task
    return task


def _shares(heard: Answers, group_of_row: np.ndarray, groups: int) -> Floats:
    """(layer, expert, group): share of the tokens of each group that chose the expert."""
    belongs = (group_of_row[:, None] == np.arange(groups)).astype(np.float64)
    return heard.used @ belongs / np.maximum(heard.reach @ belongs, 1)


def _domains(domains: tuple[str, ...], asked: Questions, heard: Answers) -> xr.Dataset:
    """The rise of the loss, each row one observation: tokens of a row are not independent."""
    names = list(dict.fromkeys(domains))
    rows = len(domains)
    by_row = (heard.intact - heard.lesioned).reshape(*heard.lesioned.shape[:2], rows, -1).mean(-1)
    columns: dict[str, list[Floats]] = {}
    for name in names:
        mine = np.array([domain == name for domain in domains])
        mean, low, high, p = mean_change(by_row[..., mine])
        measured = {"": mean, "_low": low, "_high": high, "_q": _q(p[..., None])[..., 0]}
        for end, values in measured.items():
            columns.setdefault("loss_rise" + end, []).append(values)
    found = {name: (DOMAIN, np.stack(values)) for name, values in columns.items()}
    number = np.array([names.index(domain) for domain in domains])
    used = _shares(heard, number, len(names))
    result = xr.Dataset({**found, "used_in_domain": (DOMAIN, np.moveaxis(used, 2, 0))})
    return result.assign_coords(domain=names)


def mean_change(change: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """(mean, low, high, p) over the last axis of what a lesion changed, paired t.

    Bounds are NaN where fewer than `FEWEST` observations changed (or, of fewer, not all): the rare
    ones that others would show cannot be told from them.

    Example:
        >>> mean, low, _, p = mean_change(np.array([0.0] * 60 + [1.0] * 4))
        >>> mean.item(), low.item(), round(p.item(), 3)
        (0.0625, nan, 0.045)
    """
    mean, low, high, p = paired_t(change)
    few = (change != 0).sum(-1) < min(FEWEST, change.shape[-1])
    return mean, np.where(few, np.nan, low), np.where(few, np.nan, high), p


def _q(p: Floats) -> Floats:
    """q over the first two axes (layer, expert), for each of the last."""
    return np.stack([q_values(p[..., i]) for i in range(p.shape[-1])], axis=-1)


_ITEMS = "95 %, paired by item: other items of the same kind, the same checkpoint"
_ROWS = "95 %, paired t over rows of text: other text of the same domain, the same checkpoint"
_FEW = f"; NaN where fewer than {FEWEST} (of fewer: not all) changed"
_NOTES = {
    "drop": ("1", "accuracy intact less accuracy without the expert", f"{_ITEMS} (Bonett-Price)"),
    "drop_logprob": (
        "nats",
        "mean log-probability of the right answer intact less without the expert",
        f"{_ITEMS} (t){_FEW}",
    ),
    "loss_rise": (
        "nats",
        "next-token loss without the expert less intact, per token",
        _ROWS + _FEW,
    ),
    "used": ("1", "share of the task's tokens up to the answer that chose the expert", "exact"),
    "used_in_domain": ("1", "share of the domain's tokens that chose the expert", "exact"),
    "accuracy": ("1", "accuracy of the intact model", "none here: see the probe capability"),
    "logprob": (
        "nats",
        "mean log-probability of the right answer, intact",
        "none here: see the probe capability",
    ),
}


def _described(found: xr.Dataset, subject: Subject, way: Way) -> xr.Dataset:
    for name in map(str, found.data_vars):
        stem = next(
            name.removesuffix(end) for end in ("_low", "_high", "_q", "") if name.endswith(end)
        )
        unit, meaning, interval = _NOTES[stem]
        if name.endswith("_q"):
            unit, meaning = "1", f"q of no change over layer x expert: {meaning}"
            interval = "none: an adjusted p (Benjamini-Hochberg)"
        elif name != stem:
            meaning = f"{'lower' if name.endswith('_low') else 'upper'} bound: {meaning}"
        found[name].attrs = {"units": unit, "long_name": meaning, "interval": interval}
        if stem in ("drop", "drop_logprob", "loss_rise") and not name.endswith("_q"):
            found[name].attrs["chance_level"] = 0.0
        if stem in ("used", "used_in_domain"):
            found[name].attrs["chance_level"] = subject.experts_per_token / subject.num_experts
        if stem == "accuracy" and all(str(t) in subject.exam.chance for t in found["task"].values):
            found[name].attrs["chance_level"] = "the exam's, by task"
    items = subject.exam.items
    found.attrs = {
        "way": way,
        "n": items.items_per_task if items is not None else len(subject.exam.domains),
        "n_meaning": "items of a task" if items is not None else "rows of fixed tokens",
        "rounding_nats": ROUNDING,
        "multiple_comparisons": "q over layer x expert of one task (domain) and one measure",
    }
    return found
