"""Folds: which rows of text are held out together, so that no row is on both sides of a probe.

Needs   the row of every token, and the domain of every token.
Yields  the fold of every token, and cluster-bootstrap sums over rows.

Tokens of one text share their context: a probe that saw half of a text has seen the answer to the
other half. Whole rows are held out, and the rows of one domain are dealt to different folds so
that every fold is trained on every domain that has two rows or more.

Source of the grouping: Roberts et al. 2017, Ecography 40(8), cross-validation with dependence.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workbench.errors import UsageError

FOLDS = 5
"""Parts that the rows are dealt into; each is held out once."""


def fold_of_tokens(
    row: NDArray[np.int64], domain: NDArray[np.str_], folds: int = FOLDS
) -> NDArray[np.int64]:
    """(token,): the fold in which each token is held out, the same for all tokens of a row.

    Args:
        row: (token,), which row each token is of.
        domain: (token,), its domain; rows are dealt in turn in the order of their domains.
        folds: parts; fewer where there are fewer rows.

    Raises:
        UsageError: fewer than two rows, or `folds` under two.

    Example:
        >>> fold_of_tokens(np.array([0, 0, 1, 1, 2]), np.array(list("aaaab")), folds=2).tolist()
        [0, 0, 1, 1, 0]
    """
    rows, first, of_token = np.unique(row, return_index=True, return_inverse=True)
    if folds < 2 or len(rows) < 2:
        raise UsageError(
            f"found {len(rows)} rows of text and folds={folds}, expected 2 or more of each: whole "
            f"rows are held out. Give the exam more rows."
        )
    order = np.argsort(domain[first], kind="stable")
    fold_of_row = np.empty(len(rows), dtype=np.int64)
    fold_of_row[order] = np.arange(len(rows)) % min(folds, len(rows))
    return fold_of_row[of_token]
