"""Training text: rows that a run of ours really trained on, by domain.

Needs   a run's folder: its plan and its tokenizer; the text that comes with this Python.
Yields  the first rows of each domain's training stream, (row, pos), and the domain of each.

The rows of a run's fixed tokens are held out, and those of its tasks are made of the very items
that the tasks are scored by: a gradient of such a row knows the answers. What training did is seen
on training's own rows.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from workbench.errors import RunNotFound, UsageError

if TYPE_CHECKING:
    from workbench.checkpoints import Checkpoint


def has_training_text(checkpoint: Checkpoint | None) -> bool:
    """Whether a checkpoint belongs to a run whose training rows can be made again."""
    if checkpoint is None:
        return False
    try:
        _plan_of(checkpoint.run_path)
    except RunNotFound:
        return False
    return True


def training_rows(run_path: Path, per_domain: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """The first rows of each domain's stream, with the token that follows each row at its end.

    Args:
        run_path: folder of a run of ours.
        per_domain: rows of each domain.

    Returns:
        Tokens (row, pos) int64, pos one more than the model is given; the domain of each row.

    Raises:
        RunNotFound: the run has no plan or no tokenizer.
        UsageError: fewer than one row; this Python's text is not what the run trained on.
    """
    if per_domain < 1:
        raise UsageError(f"rows={per_domain}: expected 1 or more of each domain.")
    return _rows(Path(run_path), per_domain)


@lru_cache(maxsize=4)
def _rows(run_path: Path, per_domain: int) -> tuple[np.ndarray, tuple[str, ...]]:
    from model.data.corpus import DOMAINS, Corpus, collect_standard_library
    from model.data.tokenizer import load_tokenizer
    from model.data.world import World
    from workbench.capture.run_folder import RunFolder

    plan = _plan_of(run_path)
    text = collect_standard_library()
    _check_text(run_path, text.digest)
    tokenizer = load_tokenizer(RunFolder(run_path).tokenizer, plan.model.d_vocab)
    corpus = Corpus(World(plan.seed), text, tokenizer, plan.row_tokens + 1, plan.seed)
    rows = np.concatenate([corpus.rows(domain, 0, per_domain) for domain in DOMAINS])
    return rows, tuple(domain for domain in DOMAINS for _ in range(per_domain))


def _plan_of(run_path: Path):  # type: ignore[no-untyped-def]
    from model.training.plan import TrainingPlan
    from workbench.capture.run_folder import RunFolder
    from workbench.run import Run

    plan = Run(run_path).attrs.get("config")
    if not isinstance(plan, dict) or not RunFolder(run_path).tokenizer.is_file():
        raise RunNotFound(
            f"the run {run_path} keeps no plan and tokenizer of ours, so its training rows cannot "
            f"be made again; use text='exam', or an Exam of rows of your own."
        )
    return TrainingPlan.from_dict(plan)


def _check_text(run_path: Path, digest: str) -> None:
    from model.training.checkpoint import read_state
    from workbench.run import Run

    checkpoints = Run(run_path).checkpoints
    if not len(checkpoints):
        return
    said = read_state(checkpoints[-1].path).extra.get("text")
    if said not in (None, digest):
        raise UsageError(
            f"{run_path} was trained on text {said}, this Python carries {digest}; use the Python "
            f"that it was trained with, or text='exam'."
        )
