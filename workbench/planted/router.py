"""Router: a router record whose dead, rising and specialised experts are known.

Needs   sizes, a seed, and what is to be true.
Yields  a dataset like run.router, counted from tokens that were truly routed one by one.

Shapes: T tokens, L layers, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from workbench import moe_accessor  # noqa: F401  (registers ds.moe)
from workbench.capture.accumulators import ENTROPY_BINS, NEAR_TIE_LOGITS
from workbench.errors import UsageError
from workbench.store.schema import conform

Floats = NDArray[np.float64]

TASKS = ("knowledge/capitals", "reading/coreference", "logic/chain", "code/add")
"""Domain and task names where none are given: one of each family."""


@dataclass(frozen=True, kw_only=True)
class DeadExpert:
    """An expert that receives nothing from a step on."""

    expert: int
    """Which expert."""

    step: int
    """First step without any assignment."""

    layer: int = 0
    """Which layer."""


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """An expert whose router logit rises (or falls) evenly over the run."""

    expert: int
    """Which expert."""

    rise: float = 2.0
    """Logits by which it ends above the others; negative to fall."""

    layer: int = 0
    """Which layer."""


def router_record(
    *,
    steps: int = 60,
    layers: int = 2,
    experts: int = 8,
    k: int = 2,
    tokens: int = 512,
    domains: Sequence[str] = TASKS,
    dead: Sequence[DeadExpert] = (),
    ramps: Sequence[Ramp] = (),
    specialised: Mapping[str, int] | None = None,
    sample_every: int = 10,
    seed: int = 0,
) -> xr.Dataset:
    """A router record from tokens that were truly routed, one by one: every count adds up.

    A token's logits are its domain's bias plus Gumbel noise, so that its first choice follows the
    softmax of the bias; with no dead expert, ramp or specialisation the routing is fair.

    Args:
        steps, layers, experts, k, tokens: sizes; tokens per step, dealt evenly over the domains.
        dead: experts that die, ramps: experts that gain or lose ground.
        specialised: domain -> expert that it prefers, by 3 logits, in every layer.
        sample_every: steps between two co-activation samples.

    Returns:
        Dataset of the group "router" with coordinates step (from 1), layer, expert, expert2,
        domain, sample, tokens_seen (step); attrs k, branch, run.

    Raises:
        UsageError: k over the number of experts, or an unknown domain.

    Example:
        >>> record = router_record(steps=5, dead=[DeadExpert(expert=3, step=4)])
        >>> int(record["assignments"].sel(step=slice(4, None), layer=0, expert=3).sum())
        0
    """
    if not 0 < k <= experts:
        raise UsageError(f"k={k} of {experts} experts: expected 1 to {experts}.")
    unknown = set(specialised or {}) - set(domains)
    if unknown:
        raise UsageError(f"no domain {sorted(unknown)}; there are {', '.join(domains)}.")
    rng = np.random.default_rng(seed)
    domain_T = np.arange(tokens) % len(domains)
    bias = np.zeros((layers, len(domains), experts))
    for name, expert in (specialised or {}).items():
        bias[:, list(domains).index(name), expert] += 3.0
    clock = np.arange(1, steps + 1)
    rows, samples = [], []
    for step in clock:
        now = bias.copy()
        for ramp in ramps:
            now[ramp.layer, :, ramp.expert] += ramp.rise * (step - 1) / max(steps - 1, 1)
        for death in dead:
            if step >= death.step:
                now[death.layer, :, death.expert] = -50.0
        logits_TLE = now[:, domain_T].swapaxes(0, 1) + rng.gumbel(size=(tokens, layers, experts))
        row, chosen_TLE = _routed(logits_TLE, k, domain_T, len(domains))
        rows.append(row)
        if step % sample_every == 0:
            chosen = chosen_TLE.astype(np.int64)
            samples.append((step, np.einsum("tle,tlf->lef", chosen, chosen), _spread(logits_TLE)))
    record = xr.concat(rows, dim="step")
    record["tokens"] = ("step", np.full(steps, tokens))
    if samples:
        record["coactivation"] = (
            ("sample", "layer", "expert", "expert2"),
            np.stack([pairs for _, pairs, _ in samples]),
        )
        record["entropy_histogram"] = (
            ("sample", "layer", "bin"),
            np.stack([histogram for _, _, histogram in samples]),
        )
        record = record.assign_coords(
            sample=[step for step, _, _ in samples], expert2=np.arange(experts)
        )
    record = record.assign_coords(
        step=clock,
        layer=np.arange(layers),
        expert=np.arange(experts),
        domain=list(domains),
        tokens_seen=("step", clock * tokens),
    )
    return conform(record, "router").assign_attrs({"run": "planted", "branch": "main", "k": k})


def _routed(
    logits: Floats, k: int, domain_T: NDArray[np.intp], domains: int
) -> tuple[xr.Dataset, NDArray[np.bool_]]:
    """One step's statistics from (token, layer, expert) logits, and who was chosen."""
    order = np.sort(logits, axis=-1)[..., ::-1]
    chosen = logits >= order[..., k - 1 : k]
    top = logits.max(axis=-1, keepdims=True)
    lse = top + np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    probs = np.exp(logits - lse)
    gates = np.where(chosen, probs, 0.0)
    topk_mass = gates.sum(axis=-1, keepdims=True)
    gates = gates / topk_mass
    left_out = order[..., k] if k < logits.shape[-1] else np.full(order.shape[:-1], -np.inf)
    margin = np.minimum(order[..., k - 1] - left_out, 1e6)
    one_hot = np.eye(domains, dtype=np.int64)[domain_T]
    le, per_layer = ("layer", "expert"), ("layer",)
    values = {
        "assignments": (le, chosen.sum(axis=0, dtype=np.int64)),
        "gate_mass": (le, gates.sum(axis=0)),
        "prob_mass": (le, probs.sum(axis=0)),
        "entropy": (per_layer, -(probs * (logits - lse)).sum(axis=-1).mean(axis=0)),
        "margin": (per_layer, margin.mean(axis=0)),
        "z_squared": (per_layer, (lse[..., 0] ** 2).mean(axis=0)),
        "topk_mass": (per_layer, topk_mass[..., 0].mean(axis=0)),
        "near_tie": (per_layer, (np.abs(margin) < NEAR_TIE_LOGITS).mean(axis=0)),
        "domain_assignments": (
            ("layer", "domain", "expert"),
            np.einsum("td,tle->lde", one_hot, chosen.astype(np.int64)),
        ),
    }
    held = {
        name: (dims, array if array.dtype == np.int64 else array.astype(np.float32))
        for name, (dims, array) in values.items()
    }
    return xr.Dataset(held), chosen


def _spread(logits: Floats) -> NDArray[np.int64]:
    """Tokens (layer, bin) by entropy / ln E, from (token, layer, expert) logits."""
    probs = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probs /= probs.sum(axis=-1, keepdims=True)
    entropy = -(probs * np.log(np.maximum(probs, 1e-300))).sum(axis=-1) / np.log(logits.shape[-1])
    bins = np.minimum((entropy * ENTROPY_BINS).astype(np.int64), ENTROPY_BINS - 1)
    return (bins[..., None] == np.arange(ENTROPY_BINS)).sum(axis=0, dtype=np.int64)
