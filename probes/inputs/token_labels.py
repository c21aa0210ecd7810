"""Token labels: what a linear probe is asked to read off the residual stream, by name.

Needs   what is known of every fixed token (exam.labels), and the chosen experts for "expert".
Yields  class numbers (token,), −1 where a token has none, and the names of the classes.

    domain      of the row
    token       the token itself: the 15 most frequent on the fixed text, and all others
    next_token  the token that follows, likewise; the last of a row has none
    position    eight equal stretches of the row
    expert      the most probable chosen expert of one layer; a dropped token has none
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from workbench.errors import UsageError

NAMES = ("domain", "token", "next_token", "position", "expert")
FREQUENT = 15
"""Token identities that are classes of their own."""
STRETCHES = 8
"""Classes of position."""


@dataclass(frozen=True, eq=False)
class TokenLabel:
    """One label of the tokens."""

    name: str
    classes: tuple[str, ...]
    """Names of the classes, those that occur."""
    of_token: NDArray[np.int64]
    """(token,): number of the class, −1: none."""


def token_labels(
    known: xr.Dataset,
    names: Sequence[str] = NAMES,
    *,
    experts: NDArray[np.int64] | None = None,
    given: Mapping[str, ArrayLike] | None = None,
) -> list[TokenLabel]:
    """The labels of these names, and those that the user gives.

    Args:
        known: (token): token_id, next_id, position, domain, as `exam.labels` has them.
        names: any of `NAMES`.
        experts: (token,), the first chosen expert of the layer that "expert" is about.
        given: name: (token,) numbers or texts; −1, NaN and "" are none.

    Raises:
        UsageError: an unknown name, a given label of the wrong length, or one name twice.

    Example:
        >>> known = xr.Dataset({"domain": ("token", ["code", "prose", "code"])})
        >>> token_labels(known, ["domain"])[0].of_token.tolist()
        [0, 1, 0]
    """
    given = given or {}
    if unknown := [n for n in names if n not in NAMES]:
        raise UsageError(
            f"no label {unknown[0]!r}; known are {', '.join(NAMES)}; your own go in "
            f"given={{name: one value a token}}."
        )
    both = [*names, *given]
    if len(set(both)) < len(both) or not both:
        raise UsageError(f"labels {both}: expected one or more, each name once.")
    made = [_numbered(name, _known(name, known, experts)) for name in names]
    for name, values in given.items():
        column = np.asarray(values)
        if column.shape != (known.sizes["token"],):
            raise UsageError(
                f"label {name!r} has shape {column.shape}, expected ({known.sizes['token']},): one "
                f"value for each fixed token, row after row."
            )
        made.append(_numbered(name, column))
    return made


def _known(name: str, known: xr.Dataset, experts: NDArray[np.int64] | None) -> NDArray:
    if name == "domain":
        return known["domain"].values.astype(str)
    if name == "token":
        return _identity(known["token_id"].values)
    if name == "next_token":
        return _identity(known["next_id"].values)
    if name == "position":
        position = known["position"].values
        return position * STRETCHES // (int(position.max()) + 1)
    if experts is None:
        raise UsageError("the label 'expert' needs the chosen experts: experts=(token,).")
    return experts


def _identity(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each of the frequent ids is itself, every other the largest id + 1 ("other")."""
    there, count = np.unique(ids[ids >= 0], return_counts=True)
    # Ties by id, so that the classes do not depend on how numpy sorts.
    frequent = there[np.lexsort((there, -count))][:FREQUENT]
    other = int(ids.max()) + 1
    return np.where(ids < 0, -1, np.where(np.isin(ids, frequent), ids, other))


def _numbered(name: str, values: NDArray) -> TokenLabel:
    if values.dtype.kind in "US":
        there = values != ""
    elif values.dtype.kind in "iufb":
        there = np.isfinite(values) & (values.astype(np.float64) >= 0)
    else:
        raise UsageError(f"label {name!r}: found {values.dtype}, expected numbers or texts.")
    classes, number = np.unique(values[there], return_inverse=True)
    of_token = np.full(len(values), -1, dtype=np.int64)
    of_token[there] = number
    return TokenLabel(name, tuple(map(str, classes)), of_token)
