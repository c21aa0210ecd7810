"""Committee: is there a standing group of experts that has a large say whatever the domain?

Needs   a checkpoint's router_probs and expert_ids; a domain for every fixed token.
Yields  gate (layer, domain, expert); coverage, member, confidence (layer, expert); size and mass
        with bounds (layer).

gate       mean weight of the expert over the domain's tokens: its share of the probability of the
           chosen experts, 0 where it was not chosen. Over experts it sums to 1; fair is 1/E.
coverage   share of domains in which the expert's gate is `times` / E or more (2 where not said).
member     coverage of `domains_share` or more (0.8 where not said).
confidence share of bootstrap draws over texts, within domains, in which it is a member.
size       members; mass: their share of all gates, domains alike. A fair router has 0 and 0. A mass
           near 1 from few members is a layer that routes in name only.

Interval of size and mass: the same bootstrap, 95 %: other text of these domains; it knows nothing
of other domains. A domain with one text cannot vary, so that its part of the interval is missing:
NaN where no domain has two. Membership rests on two thresholds; move them before believing it.

It misleads where the domains are few or alike (coverage of 3 of 3 is easily had), and where a
balance loss holds gates even while the choice is free.

Source: the "standing committee" of arXiv:2601.03425, which finds it by ranks within domains; here,
by the size of the gate, so that a layer may have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from probes.caption import Caption, captioned
from probes.inputs.routing import FixedTokens, Routing, over_checkpoints
from probes.registry import probe
from probes.source import Source
from probes.statistics.resample import NOT_OF_MEAN, percentile_interval
from workbench.errors import UsageError

if TYPE_CHECKING:
    from probes.subject import Subject

Floats = NDArray[np.float64]

TIMES = 2.0
DOMAINS_SHARE = 0.8
DRAWS = 200
"""Bootstrap draws; each needs the gates of every domain anew."""


@probe(
    "committee",
    question="Is there a standing group of experts with a large say in every domain?",
    reads="checkpoint",
    needs=("router_probs", "expert_ids"),
    version=2,
)
def committee(
    source: Source | Subject,
    *,
    times: float = TIMES,
    domains_share: float = DOMAINS_SHARE,
    n_boot: int = DRAWS,
    seed: int = 0,
) -> xr.Dataset:
    """Experts with a large gate in most domains, layer by layer.

    Args:
        source: a Subject; or a record with `.activations` and a domain a token.
        times: multiple of the fair gate 1/E from which a gate is large.
        domains_share: share of domains in which a member's gate is large.
        n_boot, seed: bootstrap draws over texts, and their seed.

    Returns:
        Dataset of gate (layer, domain, expert), coverage, member (0 or 1), confidence (layer,
        expert), size, mass with bounds (layer); of a record with `checkpoint` first.

    Raises:
        UsageError: thresholds that cannot be.
        SchemaError: router_probs were not recorded.

    Example:
        >>> from workbench.testing import activations_record
        >>> found = committee(activations_record(checkpoints=1, tokens=800))
        >>> int(found["size"].max())
        0
    """
    if times <= 0 or not 0 < domains_share <= 1:
        raise UsageError(
            f"times={times}, domains_share={domains_share}: expected times above 0 and a share of "
            "domains above 0 and up to 1."
        )

    def measure(routing: Routing) -> xr.Dataset:
        found = _of(routing, times, domains_share, n_boot, seed)
        return found.assign_attrs(times=times, domains_share=domains_share, seed=seed)

    return over_checkpoints(source, measure, probs=True)


def _of(routing: Routing, times: float, domains_share: float, n_boot: int, seed: int) -> xr.Dataset:
    tokens = routing.tokens
    gates = routing.probabilities() * routing.chosen
    gates /= np.maximum(gates.sum(axis=-1, keepdims=True), np.float32(1e-30))
    sums = np.add.reduceat(gates, tokens.starts, axis=1, dtype=np.float64).swapaxes(0, 1)
    least = times / routing.experts
    gate = domain_means(sums, tokens, np.ones((1, len(tokens.starts))))[0]

    def elected(gate: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """coverage, member (..., expert), size, mass (...) of (..., domain, expert)."""
        coverage = (gate >= least - 1e-12).mean(axis=-2)
        member = (coverage >= domains_share - 1e-12).astype(np.float64)
        mass = (gate.mean(axis=-2) * member).sum(axis=-1)
        return coverage, member, member.sum(axis=-1), mass

    coverage, member, size, mass = elected(gate)
    # A domain of one text says nothing of other texts of it.
    several = np.bincount(tokens.domain_of_block).min() > 1
    if several and n_boot:
        drawn = elected(domain_means(sums, tokens, _within_domains(tokens, n_boot, seed)))
        confidence = drawn[1].mean(axis=0)
        ends = [percentile_interval(d, len(tokens.starts), of_mean=False) for d in drawn[2:]]
    else:
        confidence = np.full_like(member, np.nan)
        ends = [np.full((2, *size.shape), np.nan)] * 2
    columns = {"size": size, "mass": mass}
    for name, (low, high) in zip(("size", "mass"), ends, strict=True):
        columns |= {
            f"{name}_low": np.minimum(low, columns[name]),
            f"{name}_high": np.maximum(high, columns[name]),
        }
    of_expert = {"coverage": coverage, "member": member, "confidence": confidence}
    result = routing.result(
        {"gate": (("layer", "domain", "expert"), gate.astype(np.float32))}
        | {name: (("layer", "expert"), column) for name, column in of_expert.items()}
        | {name: ("layer", column) for name, column in columns.items()},
        {"domain": tokens.domains, "expert": np.arange(routing.experts)},
    )
    return captioned(result, _captions(tokens, times, domains_share, routing.experts))


def domain_means(sums: Floats, tokens: FixedTokens, weights: Floats) -> Floats:
    """(draw, layer, domain, expert): means over each domain's tokens.

    Args:
        sums: (block, layer, expert), over the block's tokens.
        weights: (draw, block).
    """
    place, domains = tokens.domain_of_block, len(tokens.domains)
    found = np.empty((len(weights), sums.shape[1], domains, sums.shape[2]))
    for d in range(domains):
        inside = weights[:, place == d]
        size = inside @ tokens.block_sizes[place == d]
        found[:, :, d] = np.tensordot(inside, sums[place == d], 1) / size[:, None, None]
    return found


def _within_domains(tokens: FixedTokens, n_boot: int, seed: int) -> Floats:
    """(draw, block): how often each text is drawn among those of its domain."""
    rng = np.random.default_rng(seed)
    weights = np.empty((n_boot, len(tokens.starts)))
    for d in range(len(tokens.domains)):
        inside = tokens.domain_of_block == d
        blocks = int(inside.sum())
        weights[:, inside] = rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=n_boot)
    return weights


def _captions(tokens: FixedTokens, times: float, share: float, experts: int) -> dict[str, Caption]:
    interval = (
        f"95 %, bootstrap over {len(tokens.starts)} {tokens.blocks_are} within domains "
        f"({NOT_OF_MEAN}, nor with a domain of one): other text of these domains, same checkpoint"
    )
    of_draws = "none: a share of bootstrap draws"
    plain = "point estimate: see confidence"
    large = f"a gate of {times:g}/E or more"
    return {
        "gate": Caption("1", "mean weight of the expert in the domain", plain, 1 / experts),
        "coverage": Caption("1", f"share of domains with {large}", plain),
        "member": Caption("1", f"1: {large} in {share:.0%} of domains or more", plain, 0.0),
        "confidence": Caption("1", "share of draws in which it is a member", of_draws),
        "size": Caption("experts", "members of the standing committee", interval, 0.0),
        "mass": Caption("1", "share of all gates that its members hold", interval, 0.0),
    }  # fmt: skip
