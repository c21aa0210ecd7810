"""In-context score: how much better are tokens predicted late in a text than early?

Needs   a checkpoint of any model that gives logits; rows long enough.
Yields  in_context, early_loss, late_loss, each with a 95 % interval, nats per token; and
        in_context_of_domain (domain) with bounds.

score = mean loss at late positions - mean loss at early ones; below 0 the model makes use of what
it has read. The original takes single tokens, the 500th and the 50th of long documents; shorter
rows are cut into windows instead, which attrs state.

chance  0: a model that does not look back, on text whose tokens are as hard late as early. That
        condition is the text's, not the model's: compare checkpoints on one text, and rows that
        begin with documents. Where several documents lie in one row the score is nearer to 0.

The interval resamples rows: other texts like these, same checkpoint. NaN bounds: a single row.

It misleads where late text is easier of itself, where rows are cut in mid-document, and between
tokenizers: a gain in nats per token depends on what a token is.

Source: Olsson et al. 2022, arXiv:2209.11895.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from probes.inputs.rows import OVER_ROWS, following_logprob, mean_over_rows, text_rows
from probes.registry import probe
from probes.statistics.resample import BOOT
from probes.subject import Subject
from workbench.errors import UsageError

MEANING = {
    "in_context": "loss at late positions less loss at early ones",
    "early_loss": "loss at early positions",
    "late_loss": "loss at late positions",
}


@probe(
    "in-context",
    question="How much better are tokens predicted late in a text than early?",
    reads="checkpoint",
    needs=("next_logprob",),
)
def in_context(
    subject: Subject,
    *,
    early: int | None = None,
    late: int | None = None,
    width: int | None = None,
    rows: Sequence[Sequence[int]] | None = None,
    n_boot: int = BOOT,
    seed: int = 0,
) -> xr.Dataset:
    """Loss at late positions less loss at early positions.

    Args:
        subject: a checkpoint.
        early, late: first position of each window, counted from 0; the token at the position is the
            one predicted, so 1 is the first that can be. None: 50 and 500 in rows of more than 500
            tokens; in shorter ones a tenth of the row, and the row's last `width` positions.
        width: positions of each window; None: 1 in rows of more than 500 tokens, else an eighth of
            the row.
        rows: texts to read, (row, pos); None: the exam's.
        n_boot, seed: bootstrap draws over rows, and their seed.

    Returns:
        Dataset: in_context, early_loss, late_loss with bounds; in_context_of_domain (domain) with
        bounds where the exam's own rows are read.

    Raises:
        UsageError: windows that overlap or do not fit into the rows.

    Example:
        >>> from model.config import NANO
        >>> from model.lm import MoELM
        >>> from probes.exam import Exam
        >>> exam = Exam(tokens=np.arange(64).reshape(4, 16), domains=("a",) * 4)
        >>> found = in_context(Subject(MoELM(NANO), exam))
        >>> found.attrs["early_positions"], found.attrs["late_positions"]
        ('1 to 2', '14 to 15')
    """
    texts = text_rows(subject, rows, at_least=4)
    early, late, width = windows(texts.shape[1], early, late, width)
    if rows is None:
        # The one pass has read them already.
        logprob = subject["next_logprob"].view(texts.shape)[:, :-1].double().numpy()
    else:
        logprob = following_logprob(subject, texts)
    # Entry p of the log-probabilities is of the token at p + 1.
    first, last = (-logprob[:, at - 1 : at - 1 + width].mean(axis=1) for at in (early, late))
    found = {}
    of_row = np.stack([last - first, first, last], axis=1)
    for name, values in zip(MEANING, mean_over_rows(of_row, n_boot, seed)[0], strict=True):
        found[name] = ((), values)
    for end, bound in zip(("_low", "_high"), mean_over_rows(of_row, n_boot, seed)[1:], strict=True):
        found.update({name + end: ((), bound[i]) for i, name in enumerate(MEANING)})
    result = xr.Dataset(found)
    if rows is None:
        _add_domains(result, of_row[:, 0], np.array(subject.exam.domains), n_boot, seed)
    return _described(result, len(texts), early, late, width)


def windows(
    length: int, early: int | None, late: int | None, width: int | None
) -> tuple[int, int, int]:
    """First position of the early and of the late window, and their width.

    Example:
        >>> windows(64, None, None, None), windows(2048, None, None, None)
        ((6, 56, 8), (50, 500, 1))
    """
    long = length > 500
    width = (1 if long else max(1, length // 8)) if width is None else width
    early = (50 if long else max(1, length // 10)) if early is None else early
    late = (500 if long else length - width) if late is None else late
    if width < 1 or early < 1 or early + width > late or late + width > length:
        raise UsageError(
            f"windows of {width} positions from {early} and from {late} in rows of {length} "
            f"tokens: expected 1 or more positions, from 1 on, the early before the late, both "
            f"inside the row; choose other positions or give longer rows: rows=[[...], ...]."
        )
    return early, late, width


def _add_domains(
    result: xr.Dataset, score: np.ndarray, domain: np.ndarray, n_boot: int, seed: int
) -> None:
    names = list(dict.fromkeys(domain.tolist()))
    columns = zip(*(mean_over_rows(score[domain == d], n_boot, seed) for d in names), strict=True)
    for end, column in zip(("", "_low", "_high"), columns, strict=True):
        result["in_context_of_domain" + end] = ("domain", np.array(column))
    result.coords["domain"] = names


def _described(result: xr.Dataset, n: int, early: int, late: int, width: int) -> xr.Dataset:
    for name in map(str, result.data_vars):
        stem = name.removesuffix("_low").removesuffix("_high")
        bound = {"_low": "lower bound: ", "_high": "upper bound: "}.get(name[len(stem) :], "")
        meaning = MEANING.get(stem, MEANING["in_context"] + ", per domain")
        attrs: dict[str, object] = {
            "units": "nats",
            "long_name": bound + meaning,
            "interval": OVER_ROWS,
        }
        if stem.startswith("in_context"):
            attrs["chance_level"] = 0.0
        result[name].attrs = attrs
    result.attrs = {
        "n": n, "n_meaning": "rows", "early_positions": f"{early} to {early + width - 1}",
        "late_positions": f"{late} to {late + width - 1}", "interval": OVER_ROWS,
    }  # fmt: skip
    return result
