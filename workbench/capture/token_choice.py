"""Which tokens are traced: those whose hash of document and position falls under the share.

Needs   the token ids of a forward (row, position), what is known of their documents.
Yields  `choose`, a mask (row, position) and each token's document, position and domain; `fit`,
        whether labels fit the tokens; `limit_of`, the share as a hash's limit.

The choice is a matter of arithmetic, not of chance: a token is traced if a hash of its
document and its position there falls under the share. So the same place of the same document is
traced in every epoch, in every arm and on every device. Where documents are not known, the row's
own tokens stand in for the document: the same row is then sampled alike wherever it turns up.

The hash is SplitMix64: entry `position` of the generator seeded with the document (Steele, Lea and
Flood 2014, "Fast splittable pseudorandom number generators"). Rows are keyed by a multilinear hash
modulo 2^64 (Carter and Wegman 1979). Integers wrap alike everywhere, so every device agrees.

Imports with torch and numpy alone.
"""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Shapes: R rows of P tokens. An array is numpy's on a CPU and torch's elsewhere.


def limit_of(share: float) -> int:
    """The greatest 63-bit hash that is traced at a share in (0, 1].

    Example:
        >>> limit_of(1.0) == 2**63 - 1, limit_of(0.5) == 2**62 - 1
        (True, True)
    """
    return max(int(share * 2**63) - 1, 0)


_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64
_UNSIGNED_1, _UNSIGNED_2 = np.uint64(_MIX_1 % 2**64), np.uint64(_MIX_2 % 2**64)
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)


def mixed(x: Any) -> Any:
    """The finaliser of SplitMix64, on int64 arrays of either kind.

    Example:
        >>> int(mixed(np.array([_GOLDEN]))[0]) % 2**64 == 0xE220A8397B1DCDAF
        True
    """
    if isinstance(x, np.ndarray):
        # Unsigned and in place: three operations in four.
        y = x.view(np.uint64) ^ (x.view(np.uint64) >> _30)
        y *= _UNSIGNED_1
        y ^= y >> _27
        y *= _UNSIGNED_2
        y ^= y >> _31
        return y.view(np.int64)
    # Signed integers shift their sign in; the masks take it out again.
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _MIX_1
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _MIX_2
    return x ^ ((x >> 31) & (2**33 - 1))


class _Columns(NamedTuple):
    """What depends on the length of rows alone."""

    column_P: Any
    factor_P: Any
    """Multipliers of a row's hash."""
    stride_1P: Any
    """What positions counted from the row's start add to the state of the generator."""


@cache
def _columns_on_host(length: int) -> _Columns:
    return _columns(np.arange(length))


def _columns(column_P: Any) -> _Columns:
    stride_P = (column_P + 1) * _GOLDEN
    return _Columns(column_P, mixed(stride_P), stride_P.reshape(1, -1))


def _row_keys(tokens_RP: Any, columns: _Columns) -> Any:
    """(R, 1): one number for the content of each row."""
    return mixed((tokens_RP * columns.factor_P).sum(1)).reshape(-1, 1)


def _per_token(labels: Any, shape: tuple[int, int]) -> Any:
    """Labels of rows or tokens in a shape that spreads over (R, P); None where there are none."""
    count = labels.numel() if isinstance(labels, Tensor) else labels.size
    if not count:
        return None
    return labels.reshape(shape[0], -1)


def _from_run_starts(documents_RP: Any, column_P: Any) -> Any:
    """Position of each token since its document began in its row."""
    begins = documents_RP != documents_RP
    begins[:, 1:] = documents_RP[:, 1:] != documents_RP[:, :-1]
    starts = begins * column_P
    if isinstance(starts, Tensor):
        return column_P - starts.cummax(1).values
    return column_P - np.maximum.accumulate(starts, axis=1)


def fit(tokens_RP: Any, *labels: Any) -> bool:
    """Whether each of some labels says something of every token: (R, P), all tokens in one row,
    (R,), (R, 1), or empty.

    Example:
        >>> tokens = np.zeros((2, 5))
        >>> fit(tokens, np.zeros(2), np.zeros(0)), fit(tokens, np.zeros((5, 2)))
        (True, False)
    """
    R, P = tokens_RP.shape
    fitting = {(R, P), (R * P,), (1, R * P), (R,), (R, 1)}
    for each in labels:
        shape = tuple(each.shape)
        # Tokens that the model was given flat are one row here, and their labels have rows.
        flat = R == 1 and prod(shape) == P
        if prod(shape) and shape not in fitting and not flat:
            return False
    return True


class Chosen(NamedTuple):
    """Which tokens of a forward are traced, and what is known of all of them."""

    chosen_RP: Any
    document_RP: Any
    """None: unknown."""
    position_RP: Any
    """Of each token in its document where that is known, else in its row; it may be (1, P)."""
    domain_RP: Any


def choose(
    tokens_RP: Any, documents: Any, positions: Any, domains: Any, keep: Any, limit: int
) -> Chosen:
    """Which tokens are traced. All arrays are numpy's, or all are torch's.

    Args:
        tokens_RP: int64.
        documents: (R,) or (R, P), int64; negative: unknown; empty: all unknown.
        positions: (R, P), each token's in its document; or (R,), that of each row's first token;
            empty: counted from where the document begins in the row.
        domains, keep: (R,) or (R, P), or empty.
        limit: as of `limit_of`.
    """
    shape = tokens_RP.shape
    library: Any = np
    if isinstance(tokens_RP, Tensor):
        library = torch
        columns = _columns(torch.arange(shape[1], device=tokens_RP.device))
    else:
        columns = _columns_on_host(shape[1])
    column_P, _, stride_RP = columns
    document_RP = _per_token(documents, shape)
    position_RP = _per_token(positions, shape)
    if position_RP is not None and position_RP.shape[1] == 1:
        position_RP = position_RP + column_P
    if position_RP is None and document_RP is not None and document_RP.shape[1] > 1:
        position_RP = _from_run_starts(document_RP, column_P)
    if position_RP is None:
        position_RP = column_P.reshape(1, -1)
    else:
        stride_RP = (position_RP + 1) * _GOLDEN
    keys = _row_keys(tokens_RP, columns)
    if document_RP is not None:
        keys = library.where(document_RP >= 0, mixed(document_RP ^ _GOLDEN), keys)
    hashes_RP = mixed(keys + stride_RP)
    if library is np:
        chosen_RP = (hashes_RP.view(np.uint64) >> np.uint64(1)) <= np.uint64(limit)
    else:
        chosen_RP = ((hashes_RP >> 1) & (2**63 - 1)) <= limit
    kept = _per_token(keep, shape)
    if kept is not None:
        chosen_RP = chosen_RP & kept
    return Chosen(chosen_RP, document_RP, position_RP, _per_token(domains, shape))
