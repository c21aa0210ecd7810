"""The data mixture: how much of each domain a batch holds, as it changes with the training clock.

Needs   a Corpus, weights by domain for each phase.
Yields  batches, each with the domain of every row; a position that can be saved and restored
        exactly.

A batch holds each domain in proportion to its weight, to within one row (systematic sampling: one
random offset a step), so that the mix of a single step is never far from the plan. What a batch
holds depends on the seed, the step and the position alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.data.corpus import DOMAINS, Corpus
from model.errors import DataError


@dataclass(frozen=True)
class Batch:
    """One step's training data."""

    tokens: Tensor
    """(batch, pos), int64: the model's input."""

    targets: Tensor
    """(batch, pos), int64: the token after each."""

    domains: Tensor
    """(batch,), int64: each row's domain, as an index into `DOMAINS`."""

    @property
    def num_tokens(self) -> int:
        """Training tokens of the batch."""
        return self.tokens.numel()


def full_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """Shares for every domain, summing to 1, from weights in which a family may stand for its
    domains.

    "code" spreads its weight evenly over those code/... domains that are not named themselves.

    Raises:
        DataError: an unknown name, a negative weight, or nothing left to draw from.

    Example:
        >>> shares = full_weights({"code": 2.0, "code/index": 1.0, "prose": 1.0})
        >>> shares["code/index"], shares["code/arithmetic"], shares["prose"], shares["logic/chain"]
        (0.25, 0.25, 0.25, 0.0)
    """
    shares = dict.fromkeys(DOMAINS, 0.0)
    for name, weight in weights.items():
        if not weight >= 0:
            raise DataError(f"weight of {name!r} is {weight}: must be 0 or more.")
        members = [d for d in DOMAINS if d == name]
        if not members:
            members = [d for d in DOMAINS if d.startswith(f"{name}/") and d not in weights]
        if not members and any(d.startswith(f"{name}/") for d in DOMAINS):
            raise DataError(
                f"{name!r} has weight {weight}, but each of its domains has one of its own: "
                f"leave {name!r} out."
            )
        if not members:
            raise DataError(
                f"no domain or family {name!r} to give weight to; the domains are "
                f"{', '.join(DOMAINS)}."
            )
        for member in members:
            shares[member] += weight / len(members)
    total = sum(shares.values())
    if not total > 0:
        raise DataError("all weights are 0: give at least one domain a weight above 0.")
    return {d: s / total for d, s in shares.items()}


def mixture_digest(weights: Mapping[str, float]) -> str:
    """Hash of the shares, equal for equal mixtures however they were written.

    Example:
        >>> mixture_digest({"prose": 1}) == mixture_digest({"prose": 7.0})
        True
    """
    shares = {d: round(s, 12) for d, s in full_weights(weights).items()}
    return hashlib.sha256(json.dumps(shares, sort_keys=True).encode()).hexdigest()[:16]


class MixtureStream:
    """Batches drawn from a corpus; deterministic, and resumable at any step.

    Args:
        corpus: rows by domain; a row has one token more than the model's sequence.
        batch_rows: rows in a batch.
        seed: with the step, decides the random offset of the batch.
    """

    def __init__(self, corpus: Corpus, batch_rows: int, seed: int) -> None:
        self.corpus = corpus
        self.batch_rows = batch_rows
        self.seed = seed
        self.next_row = dict.fromkeys(DOMAINS, 0)

    def batch(self, step: int, shares: Mapping[str, float]) -> Batch:
        """The batch of a step under these shares; moves the position on."""
        edges = np.cumsum([shares[d] for d in DOMAINS])
        offset = np.random.default_rng([self.seed, step]).random()
        points = (offset + np.arange(self.batch_rows)) / self.batch_rows * edges[-1]
        chosen = np.minimum(np.searchsorted(edges, points, side="right"), len(DOMAINS) - 1)
        rows = []
        for index, count in zip(*np.unique(chosen, return_counts=True), strict=True):
            domain = DOMAINS[index]
            rows.append(self.corpus.rows(domain, self.next_row[domain], int(count)))
            self.next_row[domain] += int(count)
        tokens = torch.from_numpy(np.concatenate(rows))
        return Batch(tokens[:, :-1], tokens[:, 1:], torch.from_numpy(chosen.astype(np.int64)))

    def state(self) -> dict[str, Any]:
        """The position, as plain values for JSON."""
        return {"next_row": dict(self.next_row)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to a saved position.

        Raises:
            DataError: the position is of other domains.
        """
        saved = state.get("next_row")
        if not isinstance(saved, dict) or set(saved) != set(DOMAINS):
            found = ", ".join(saved) if isinstance(saved, dict) else repr(saved)
            raise DataError(
                f"a saved data position names {found or 'nothing'}; expected {', '.join(DOMAINS)}: "
                f"resume with the data that the run began with."
            )
        self.next_row = {d: int(saved[d]) for d in DOMAINS}
