"""Memorisation: given the first k tokens of a text, does the model write the next k word for word?

Needs   a checkpoint of any model that gives logits; rows of at least 2 k tokens.
Yields  memorised: share of rows continued exactly (k of k), Wilson's 95 % interval;
        match: share of the k tokens that agree, mean over rows, bootstrap over rows;
        memorised_of_domain (domain) with bounds, where the exam's own rows are read.

Greedy decoding: the most probable token is appended k times, whatever the text says, and then
compared position by position.

What it means depends on the rows. Rows that the model was trained on measure memorisation. The
exam's rows, which are the default, are fixed text that need not have been trained on: then this is
the level of what can be guessed from the first half alone (boilerplate, counting, formats), and the
chance level for trained rows of the same kind. A claim needs both. A model that knows nothing gets
about (1 / vocabulary) of the tokens, and no row.

Intervals: other texts like these, same checkpoint.

It misleads where text can be guessed (boilerplate, counting) and where only greedy continuations
count: a text may be known and begun in another way.

Source: Biderman et al. 2023, arXiv:2304.11158, with k = 32 as there where rows are long enough.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from probes.inputs.rows import OVER_ROWS, mean_over_rows, text_rows
from probes.registry import probe
from probes.statistics.resample import BOOT, wilson
from probes.subject import ROWS_TOKENS, Subject
from workbench.errors import UsageError

WILSON = "95 %, Wilson: other texts like these, same checkpoint"
K = 32


@probe(
    "memorisation",
    question="Does the model continue these texts word for word?",
    reads="checkpoint",
)
def memorisation(
    subject: Subject,
    *,
    k: int | None = None,
    rows: Sequence[Sequence[int]] | None = None,
    n_boot: int = BOOT,
    seed: int = 0,
) -> xr.Dataset:
    """Share of texts whose second k tokens greedy decoding gives back from the first k.

    Args:
        subject: a checkpoint.
        k: tokens given, and tokens compared; None: 32, or half a row where rows are shorter.
        rows: texts, (row, pos), of which the first 2 k tokens are used; None: the exam's.
        n_boot, seed: bootstrap draws over rows, and their seed.

    Returns:
        Dataset: memorised, match with bounds; (row): matched, tokens that agree, 0 to k;
        memorised_of_domain (domain) with bounds where the exam's own rows are read.

    Raises:
        UsageError: rows of fewer than 2 k tokens.

    Example:
        >>> from model.config import NANO
        >>> from model.lm import MoELM
        >>> from probes.exam import Exam
        >>> exam = Exam(tokens=np.arange(64).reshape(4, 16), domains=("a",) * 4)
        >>> memorisation(Subject(MoELM(NANO), exam))["memorised"].item()
        0.0
    """
    if k is not None and k < 1:
        raise UsageError(f"k={k}: expected 1 token or more.")
    texts = text_rows(subject, rows, at_least=2 * (k or 1))
    k = min(K, texts.shape[1] // 2) if k is None else k
    written = greedy(subject, texts[:, :k], k)
    matched = (written == texts[:, k : 2 * k]).sum(axis=1)
    whole = matched == k
    low, high = wilson(np.array(float(whole.sum())), np.array(float(len(whole))))
    mean, mean_low, mean_high = (
        bound.clip(0, 1) for bound in mean_over_rows(matched / k, n_boot, seed)
    )
    result = xr.Dataset(
        {
            "memorised": ((), whole.mean()),
            "memorised_low": ((), low),
            "memorised_high": ((), high),
            "match": ((), mean),
            "match_low": ((), mean_low),
            "match_high": ((), mean_high),
            "matched": ("row", matched.astype(np.int64)),
        }
    )
    if rows is None:
        _add_domains(result, whole, np.array(subject.exam.domains))
    vocabulary = subject.logits(torch.from_numpy(texts[:1, :1].copy())).shape[-1]
    return _described(result, len(texts), k, rows is None, vocabulary)


def greedy(subject: Subject, prompts: np.ndarray, tokens: int) -> np.ndarray:
    """The most probable continuation, token by token, (row, tokens).

    Args:
        prompts: (row, pos).
    """
    known_RP = torch.tensor(np.ascontiguousarray(prompts))
    at_once = max(1, ROWS_TOKENS // (known_RP.shape[1] + tokens))
    written = []
    for part_RP in known_RP.split(at_once):
        for _ in range(tokens):
            following = subject.logits(part_RP)[:, -1].argmax(-1, keepdim=True).cpu()
            part_RP = torch.cat([part_RP, following], dim=1)
        written.append(part_RP[:, -tokens:])
    return torch.cat(written).numpy()


def _add_domains(result: xr.Dataset, whole: np.ndarray, domain: np.ndarray) -> None:
    names = list(dict.fromkeys(domain.tolist()))
    n = np.array([(domain == d).sum() for d in names], dtype=np.float64)
    right = np.array([whole[domain == d].sum() for d in names], dtype=np.float64)
    low, high = wilson(right, n)
    for end, column in (("", right / n), ("_low", low), ("_high", high)):
        result["memorised_of_domain" + end] = ("domain", column)
    result.coords["domain"] = names


def _described(result: xr.Dataset, n: int, k: int, of_exam: bool, vocabulary: int) -> xr.Dataset:
    meanings = {
        "memorised": (f"share of rows whose {k} tokens are given back exactly", WILSON, 0.0),
        "memorised_of_domain": ("the same, per domain", WILSON, 0.0),
        "match": (f"share of the {k} tokens that agree", OVER_ROWS, 1 / vocabulary),
        "matched": (f"tokens of {k} that agree, per row", "exact", k / vocabulary),
    }
    for name in map(str, result.data_vars):
        stem = name.removesuffix("_low").removesuffix("_high")
        bound = {"_low": "lower bound: ", "_high": "upper bound: "}.get(name[len(stem) :], "")
        meaning, interval, level = meanings[stem]
        result[name].attrs = {
            "units": "tokens" if stem == "matched" else "1", "long_name": bound + meaning,
            "interval": interval, "chance_level": level,
        }  # fmt: skip
    whose = "the exam's rows: what can be guessed of such text, unless it was trained on"
    result.attrs = {
        "n": n, "n_meaning": "rows", "k": k, "interval": WILSON,
        "rows": whose if of_exam else "the given rows",
    }  # fmt: skip
    return result
