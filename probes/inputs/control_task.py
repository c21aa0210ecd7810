"""Control task: labels that a probe can only learn by heart, one drawn for every token type.

Needs   token ids and a label for each token.
Yields  the same number of classes in the same proportions, by token type alone.

A probe that is as accurate on such labels as on the real ones shows what it can memorise about
tokens, not what the model computes. Selectivity = accuracy − control accuracy: about 0 says that
token identity explains all of it.

Source: Hewitt & Liang 2019, arXiv:1909.03368.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def control_labels(
    token_id: NDArray[np.int64], label: NDArray[np.int64], seed: int = 0
) -> NDArray[np.int64]:
    """(token,): for each token type a class drawn from the label's own distribution.

    Args:
        token_id: (token,), the types.
        label: (token,), classes from 0; −1 is left out, and stays so.
        seed: of the draw.

    Example:
        >>> ids = np.array([7, 7, 9, 9, 9])
        >>> drawn = control_labels(ids, np.array([0, 1, 0, -1, 1]))
        >>> bool(drawn[0] == drawn[1]), bool(drawn[2] == drawn[4]), int(drawn[3])
        (True, True, -1)
    """
    there = label >= 0
    share = np.bincount(label[there]) / max(int(there.sum()), 1)
    types, of_token = np.unique(token_id, return_inverse=True)
    drawn = np.random.default_rng(seed).choice(len(share), size=len(types), p=share)
    return np.where(there, drawn[of_token], -1).astype(np.int64)
