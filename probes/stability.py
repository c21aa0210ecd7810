"""Stability: do the same tokens go to the same experts at another time of training?

Needs   activations: expert_ids (checkpoint, token, layer, k), on one fixed set of tokens.
Yields  overlap, chance, kappa, kappa_low, kappa_high (checkpoint, layer), dimensionless:
        saturation against the final checkpoint, churn against the checkpoint before.

overlap s = mean over tokens of |S_t ∩ S_u| / k.
chance  e = k sum_i p_i^t p_i^u with p_i the share of all choices that went to i: the overlap of two
            routings that share their loads and nothing else. It is k/E only when the loads are
            equal.
kappa   = (s - e) / (1 - e): 0 is chance, 1 is identical; undefined (NaN) where e = 1, a router
            that sends every token to the same k experts.

Where assignments were dropped (an id of -1), nothing is known of them: with a and b the experts
that a token kept at the two checkpoints, s = sum |S_t ∩ S_u| / sum min(a, b), what could be shared
at most, and e = sum a b / sum min(a, b) * sum_i p_i^t p_i^u.

The interval resamples stretches of text, not tokens: neighbouring tokens share their context, so
resampling single tokens would pretend to more evidence than there is. It answers "on other text
like this"; it says nothing about another training seed. Where every token agrees, the interval has
no width: nothing on this token set differs.

It misleads where the final checkpoint is not where training settles (saturation is against the last
one there is, and near it is near 1 by definition), where near-ties swap without effect, and where
checkpoints are unevenly spaced: churn grows with the gap.

Sources: router saturation, Muennighoff et al. 2024, OLMoE, arXiv:2409.02060; chance
correction after Cohen 1960; block bootstrap, Künsch 1989, Ann. Statist. 17(3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from probes.registry import probe
from probes.source import Source, group_of
from probes.statistics.resample import (
    BOOT,
    OF_MEAN,
    Floats,
    bootstrap_weights,
    percentile_interval,
)
from workbench.errors import RunNotFound, SchemaError, UsageError

BLOCK_TOKENS = 64
"""Tokens of contiguous text that are resampled together."""

FEWEST_BLOCKS = 20
"""Blocks are made shorter, and attrs say so, where the token set would give fewer than this."""

# Shapes: T tokens, L layers, K chosen, E experts, B blocks of text, D bootstrap draws.


@dataclass(frozen=True)
class Membership:
    """One checkpoint's routing of the token set, with the sums that every resample needs."""

    chosen: NDArray[np.bool_]
    """(token, layer, expert): is the expert among the token's k?"""

    counts: Floats
    """(block, layer, expert): tokens of the block that chose the expert."""


@probe(
    "saturation",
    question="How far has the routing settled to that of the final checkpoint?",
    reads="record",
    needs=("activations",),
    version=2,
)
def saturation(
    source: Source, final: int | None = None, *, n_boot: int = BOOT, seed: int = 0
) -> xr.Dataset:
    """How far each checkpoint's routing has settled to that of the final one, chance-corrected.

    Args:
        source: activations dataset, Run, Window or anything with `.activations`.
        final: the checkpoint (its step) to compare with; None is the last one.
        n_boot, seed: bootstrap draws over blocks of text, and their seed.

    Returns:
        Dataset (checkpoint, layer): overlap, chance, kappa, kappa_low, kappa_high; 95 %. At the
        final checkpoint itself kappa is 1 by definition.
        attrs: n (tokens), blocks, block_tokens, k, final.

    Raises:
        UsageError: the source has no activations, or fewer than two tokens.
        RunNotFound: no such final checkpoint.
        SchemaError: `expert_ids` missing, or a token that chose an expert twice.

    Example:
        >>> ids = np.array([[[[0, 1]], [[2, 3]]], [[[0, 1]], [[3, 2]]]])
        >>> dims = ("checkpoint", "token", "layer", "k")
        >>> routing = xr.Dataset({"expert_ids": (dims, ids)}, coords={"checkpoint": [10, 20]})
        >>> saturation(routing)["kappa"].values.tolist()
        [[1.0], [1.0]]
    """
    routing = _Routing(source)
    last = routing.position(final)
    target = routing.membership(last)
    weights = routing.weights(n_boot, seed)
    rows = [
        agreement(routing.membership(c) if c != last else target, target, routing, weights)
        for c in range(len(routing.steps))
    ]
    what = f"with the routing at step {routing.steps[last]}"
    return _described(rows, routing, routing.steps, what).assign_attrs(
        final=int(routing.steps[last])
    )


@probe(
    "churn",
    question="How much of the routing changed since the checkpoint before?",
    reads="record",
    needs=("activations",),
    version=2,
)
def churn(source: Source, *, n_boot: int = BOOT, seed: int = 0) -> xr.Dataset:
    """How much of the routing changed since the checkpoint before.

    Args:
        source: activations dataset, Run, Window or anything with `.activations`.
        n_boot, seed: bootstrap draws over blocks of text, and their seed.

    Returns:
        Dataset (checkpoint, layer), from the second checkpoint on: churn = 1 - overlap, and
        overlap, chance, kappa, kappa_low, kappa_high as in `saturation`; coordinate
        `since (checkpoint)`, the step of the checkpoint before.

    Raises:
        As `saturation`; UsageError where there are fewer than two checkpoints.

    Example:
        >>> ids = np.array([[[[0, 1]], [[2, 3]]], [[[0, 2]], [[3, 2]]]])
        >>> dims = ("checkpoint", "token", "layer", "k")
        >>> routing = xr.Dataset({"expert_ids": (dims, ids)}, coords={"checkpoint": [10, 20]})
        >>> churn(routing)["churn"].values.tolist()
        [[0.25]]
    """
    routing = _Routing(source)
    if len(routing.steps) < 2:
        raise UsageError(
            f"churn compares checkpoints and found {len(routing.steps)}, expected 2 or more; "
            "widen the window."
        )
    weights = routing.weights(n_boot, seed)
    rows, before = [], routing.membership(0)
    for c in range(1, len(routing.steps)):
        now = routing.membership(c)
        rows.append(agreement(now, before, routing, weights))
        before = now
    result = _described(rows, routing, routing.steps[1:], "with the checkpoint before")
    result["churn"] = 1 - result["overlap"]
    result["churn"].attrs = {
        "units": "1",
        "long_name": "share of expert choices that changed since the checkpoint before",
        "chance_level": "1 - chance, per layer",
        "interval": result["overlap"].attrs["interval"],
    }
    return result.assign_coords(since=("checkpoint", routing.steps[:-1]))


def agreement(
    now: Membership, then: Membership, routing: _Routing, weights: Floats
) -> dict[str, Floats]:
    """Overlap, chance and kappa of two routings of the same tokens, per layer, with interval."""
    blocks = routing.starts
    a_TL, b_TL = (x.chosen.sum(axis=-1, dtype=np.int64) for x in (now, then))
    shared_BL, most_BL, pairs_BL = (
        np.add.reduceat(x, blocks, axis=0).astype(np.float64)
        for x in ((now.chosen & then.chosen).sum(axis=-1), np.minimum(a_TL, b_TL), a_TL * b_TL)
    )

    def measure(weight: Floats) -> tuple[Floats, Floats, Floats]:
        most = weight @ most_BL
        overlap = _share(weight @ shared_BL, most)
        in_now, in_then = (np.tensordot(weight, x.counts, 1) for x in (now, then))
        all_pairs = in_now.sum(axis=-1) * in_then.sum(axis=-1)
        meet = _share((in_now * in_then).sum(axis=-1), all_pairs)
        chance = _share(weight @ pairs_BL, most) * meet
        room = 1 - chance
        # Where chance is 1 nothing can be learned from agreement: NaN, not a division by zero.
        kappa = np.divide(
            overlap - chance, room, out=np.full_like(room, np.nan), where=room > 1e-12
        )
        return overlap, chance, kappa

    overlap, chance, kappa = (m[0] for m in measure(np.ones((1, len(blocks)))))
    low, high = percentile_interval(measure(weights)[2], len(blocks), within=(-np.inf, 1.0))
    return {
        "overlap": overlap,
        "chance": chance,
        "kappa": kappa,
        "kappa_low": np.minimum(low, kappa),
        "kappa_high": np.maximum(high, kappa),
    }


def _share(part: Floats, whole: Floats) -> Floats:
    """NaN where there is nothing to have a share of: a layer that dropped every token."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


class _Routing:
    """The expert choices of a fixed token set, one checkpoint in memory at a time."""

    def __init__(self, source: Source) -> None:
        activations = group_of(source, "activations", ["expert_ids"])
        dims = ("checkpoint", "token", "layer", "k")
        if set(activations["expert_ids"].dims) != set(dims):
            raise SchemaError(
                f"expert_ids: {activations['expert_ids'].dims}, expected {dims}; transpose or name "
                "its axes so."
            )
        self.ids = activations["expert_ids"].transpose(*dims)
        self.steps = activations["checkpoint"].values
        self.clocks = activations.drop_vars(
            name for name, c in activations.coords.items() if c.dims != ("checkpoint",)
        ).coords
        self.layers = activations["layer"] if "layer" in activations.coords else None
        self.tokens, self.k = self.ids.sizes["token"], self.ids.sizes["k"]
        if self.tokens < 2:
            raise UsageError(
                f"found {self.tokens} tokens, expected 2 or more; record activations on more text."
            )
        self.block_tokens = max(1, min(BLOCK_TOKENS, self.tokens // FEWEST_BLOCKS))
        self.starts = self._block_starts(activations)
        self.experts = int(self.ids.isel(checkpoint=-1).max()) + 1

    def _block_starts(self, activations: xr.Dataset) -> NDArray[np.intp]:
        """Where each block begins: documents where the record names them, else equal stretches."""
        if "document" in activations.coords:
            document = activations["document"].values
            starts = np.flatnonzero(np.r_[True, document[1:] != document[:-1]])
            self.block_tokens = round(self.tokens / len(starts))
            return starts
        return np.arange(0, self.tokens, self.block_tokens)

    def position(self, step: int | None) -> int:
        if step is None:
            return len(self.steps) - 1
        found = np.flatnonzero(self.steps == step)
        if not len(found):
            raise RunNotFound(
                f"no checkpoint at step {step}; there are {len(self.steps)}, from "
                f"{self.steps[0]} to {self.steps[-1]}."
            )
        return int(found[0])

    def weights(self, n_boot: int, seed: int) -> Floats:
        return bootstrap_weights(len(self.starts), n_boot, seed)

    def membership(self, position: int) -> Membership:
        ids = self.ids.isel(checkpoint=position).values.astype(np.int64)
        kept = ids >= 0
        if ids.min() < -1 or not kept.any():
            raise SchemaError(
                f"expert_ids at step {self.steps[position]} runs from {ids.min()} to {ids.max()}, "
                "expected experts from 0, and -1 only where an assignment was dropped: was this "
                "checkpoint captured?"
            )
        self.experts = max(self.experts, int(ids.max()) + 1)
        # The dropped go to one place more, which is cut off.
        wide = np.zeros((*ids.shape[:2], self.experts + 1), dtype=bool)
        np.put_along_axis(wide, np.where(kept, ids, self.experts), True, axis=-1)
        chosen = wide[..., : self.experts]
        if not (chosen.sum(axis=-1) == kept.sum(axis=-1)).all():
            raise SchemaError(
                f"expert_ids at step {self.steps[position]} names an expert twice for one token; "
                f"expected {self.k} different ones."
            )
        return Membership(chosen, np.add.reduceat(chosen, self.starts, axis=0, dtype=np.float64))


def _described(
    rows: list[dict[str, Floats]], routing: _Routing, steps: NDArray[np.int64], what: str
) -> xr.Dataset:
    meanings = {
        "overlap": f"share of expert choices in common {what}",
        "chance": "overlap of routings that share their loads and nothing else",
        "kappa": f"agreement {what}, beyond chance: 0 chance, 1 identical",
        "kappa_low": "lower bound of kappa",
        "kappa_high": "upper bound of kappa",
    }
    dims = ("checkpoint", "layer")
    interval = (
        f"95 %, bootstrap over {len(routing.starts)} blocks of about {routing.block_tokens} "
        f"contiguous tokens ({OF_MEAN}): other text, same training run"
    )
    result = xr.Dataset(
        {name: (dims, np.stack([row[name] for row in rows])) for name in meanings},
        coords={"checkpoint": ("checkpoint", steps)},
    )
    # tokens_seen and whatever else says when a checkpoint was: a curve may be drawn over any clock.
    for name, clock in routing.clocks.items():
        if name != "checkpoint":
            result = result.assign_coords({name: clock.sel(checkpoint=steps)})
    if routing.layers is not None:
        result = result.assign_coords(layer=routing.layers)
    for name, meaning in meanings.items():
        chance = {"overlap": "chance, per checkpoint and layer", "chance": "itself"}
        result[name].attrs = {
            "units": "1",
            "long_name": meaning,
            "chance_level": chance.get(name, 0.0),
            "interval": interval if name.startswith("kappa") else "of kappa only",
        }
    result.attrs = {
        "n": routing.tokens,
        "n_meaning": "tokens of the fixed set",
        "k": routing.k,
        "blocks": len(routing.starts),
        "block_tokens": routing.block_tokens,
        "interval": interval,
    }
    return result
