"""Drifting: a run whose load drifts by the router, by the data mix, or by both, as planted.

Needs   how far each of them moves, sizes and a seed.
Yields  DriftingRun with `.router` and `.activations`, as a Run has them.

Shapes: D domains, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from workbench.planted.router import TASKS
from workbench.store.schema import conform

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DriftingRun:
    """A run's record and what is true of it."""

    router: xr.Dataset
    activations: xr.Dataset
    true_mix: Floats
    """(checkpoint, expert): change of load since the first checkpoint by the data mix."""
    true_router: Floats
    """(checkpoint, expert): the same by the router."""


def drifting_run(
    *,
    router: float = 0.0,
    mix: float = 0.0,
    steps: int = 60,
    checkpoints: int = 4,
    experts: int = 8,
    layers: int = 2,
    tokens: int = 2000,
    rows_per_domain: int = 6,
    row_tokens: int = 48,
    alike: float = 0.0,
    seed: int = 0,
) -> DriftingRun:
    """A top-1 router whose choice follows its domain's distribution; domains prefer experts.

    Over the run what every domain sends to its own expert moves by `router` to the last expert, and
    the mix from even weights by `mix` towards the first domain alone. Both move in leaps half-way
    between checkpoints, so that the stream nearest to a checkpoint is what the checkpoint is.

    Args:
        router, mix: 0 stays, 1 arrives.
        alike: 0 to 1, share of a row's tokens that do as its first one does: tokens of one text are
            then dependent.
        steps, checkpoints, experts, layers, tokens, rows_per_domain, row_tokens: sizes.

    Example:
        >>> run = drifting_run(steps=8, checkpoints=2)
        >>> float(abs(run.true_mix).max()), dict(run.activations.sizes)["token"]
        (0.0, 1152)
    """
    rng = np.random.default_rng(seed)
    domains = list(TASKS)
    own = np.eye(experts)[np.arange(len(domains)) * experts // len(domains)]
    start = 0.6 * own + 0.4 / experts
    end = start + 0.6 * (np.eye(experts)[-1] - own)
    shares = np.linspace(0, 1, checkpoints)
    even, first = np.full(len(domains), 1 / len(domains)), np.eye(len(domains))[0]
    rate = [start + router * u * (end - start) for u in shares]
    weight = [even + mix * u * (first - even) for u in shares]
    stops = np.round(np.linspace(0, steps, checkpoints)).astype(np.int64)
    clock = np.arange(1, steps + 1)
    nearest = np.searchsorted((stops[1:] + stops[:-1]) / 2, clock, side="left")
    counts = np.stack(
        [
            [
                [rng.multinomial(n, rate[c][d]) for d, n in enumerate(of_domain)]
                for of_domain in [rng.multinomial(tokens, weight[c])] * layers
            ]
            for c in nearest
        ]
    ).astype(np.int64)
    record = xr.Dataset(
        {
            "tokens": ("step", np.full(steps, tokens)),
            "assignments": (("step", "layer", "expert"), counts.sum(axis=2)),
            "domain_assignments": (("step", "layer", "domain", "expert"), counts),
        },
        coords={
            "step": clock,
            "layer": np.arange(layers),
            "expert": np.arange(experts),
            "domain": domains,
            "tokens_seen": ("step", clock * tokens),
        },
    )
    about = {"run": "planted", "branch": "main", "k": 1}
    true_mix, true_router = (np.zeros((checkpoints, experts)) for _ in range(2))
    for c in range(checkpoints):
        true_mix[c] = (weight[c] - weight[0]) @ (rate[c] + rate[0]) / 2
        true_router[c] = (weight[c] + weight[0]) / 2 @ (rate[c] - rate[0])
    return DriftingRun(
        conform(record, "router").assign_attrs(about),
        _fixed(rate, stops, layers, rows_per_domain, row_tokens, alike, rng).assign_attrs(about),
        true_mix,
        true_router,
    )


def _fixed(
    rate: list[Floats],
    stops: NDArray[np.int64],
    layers: int,
    rows: int,
    length: int,
    alike: float,
    rng: np.random.Generator,
) -> xr.Dataset:
    """The fixed tokens: each has one uniform number a layer, so that it moves only when it must."""
    domains, experts = rate[0].shape
    drawn = rng.uniform(size=(domains, rows, length, layers))
    follows = rng.uniform(size=(domains, rows, length, 1)) < alike
    drawn = np.where(follows, drawn[:, :, :1], drawn)
    ids = np.stack(
        [
            [
                np.minimum(np.searchsorted(np.cumsum(of), drawn[d]), experts - 1)
                for d, of in enumerate(now)
            ]
            for now in rate
        ]
    )
    count = domains * rows * length
    hot = np.eye(experts, dtype=np.float32)[ids.reshape(len(rate), count, layers)]
    record = xr.Dataset(
        {
            "expert_ids": (
                ("checkpoint", "token", "layer", "k"),
                ids.reshape(len(rate), count, layers, 1).astype(np.int16),
            ),
            "router_probs": (("checkpoint", "token", "layer", "expert"), hot),
        },
        coords={
            "checkpoint": stops,
            "tokens_seen": ("checkpoint", stops * 1000),
            "token": np.arange(count),
            "layer": np.arange(layers),
            "k": [0],
            "expert": np.arange(experts),
            "token_id": ("token", rng.integers(0, 500, count)),
            "domain": ("token", np.repeat(list(TASKS), rows * length)),
            "document": ("token", np.repeat(np.arange(domains * rows), length)),
        },
    )
    return conform(record, "activations")
