"""Divergence: how far the routers' probabilities moved between two checkpoints.

Needs   router_probs of the fixed tokens at two checkpoints.
Yields  divergence (layer), bits, with bounds; chance; relative = divergence / chance, with bounds.

Of one token, p now and q then, weight w of the present: the weighted Jensen-Shannon divergence
H(w p + (1-w) q) - w H(p) - (1-w) H(q), mean over tokens. 0: nothing moved; with w = 1/2
at most 1 bit.
Churn counts a swap of two experts that were level as it does a change of mind; this weighs by how
much probability moved, and moves before any choice changes.

chance is the divergence from the other checkpoint's routing of other tokens (the text shifted
against itself, mean of 4 shifts): relative near 1 says that nothing of the token's own routing is
left. It is NaN where chance is 0, a router that treats all tokens alike. Expert numbers are taken
to mean the same in both checkpoints, as they do in one run.

Interval: 95 %, bootstrap over blocks of text.

It misleads where probabilities move among experts that are never chosen, which changes no output,
and across runs whose experts have other numbers.

Source: Lin 1991, IEEE Trans. Inf. Theory 37(1), with its weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from probes.caption import Caption, captioned
from probes.inputs.routing import RecordedRouting, Routing, is_subject, routing_of, stacked
from probes.registry import probe
from probes.source import Source
from probes.statistics.resample import BOOT, OF_MEAN, bootstrap_weights, percentile_interval
from workbench.errors import SchemaError, UsageError

if TYPE_CHECKING:
    from probes.subject import Subject

Floats = NDArray[np.float64]
Probs = NDArray[np.float32]

SHIFTS = 4
TINY = np.float32(1e-38)


@probe(
    "divergence",
    question="How far did the routers' probabilities move since another checkpoint?",
    reads="pair",
    needs=("router_probs", "expert_ids"),
    version=2,
)
def divergence(
    source: Source | Subject,
    reference: Subject | None = None,
    *,
    against: Literal["previous", "first", "final"] = "previous",
    weight: float = 0.5,
    n_boot: int = BOOT,
    seed: int = 0,
) -> xr.Dataset:
    """Weighted Jensen-Shannon divergence of the routing probabilities from another checkpoint's.

    Args:
        source: a Subject, with another as `reference`; or a record with `.activations`, every
            checkpoint of it, without.
        reference: the checkpoint to compare with.
        against: of a record: what each checkpoint is compared with.
        weight: of the present checkpoint's probabilities, between 0 and 1.
        n_boot, seed: bootstrap draws over blocks of text, and their seed.

    Returns:
        Dataset (layer): divergence, chance, relative, each with bounds but chance; of a record with
        `checkpoint` first and `since (checkpoint)`, without a row for a checkpoint that has none
        before it ("previous").

    Raises:
        UsageError: one checkpoint alone; a weight out of range; two models of different shape.
        SchemaError: router_probs were not recorded.

    Example:
        >>> from workbench.testing import activations_record
        >>> found = divergence(activations_record(checkpoints=3, tokens=400, freeze_at=None))
        >>> bool((abs(found["relative"] - 1) < 0.1).all())
        True
    """
    if not 0 < weight < 1:
        raise UsageError(f"weight={weight}: expected a number between 0 and 1, both excluded.")
    if is_subject(source):
        if reference is None:
            raise UsageError("found one checkpoint, expected another as reference.")
        now, then = routing_of(source, probs=True), routing_of(reference, probs=True)
        return _between(now, then, weight, n_boot, seed)
    return _along(RecordedRouting(source, probs=True), against, weight, n_boot, seed)


def _along(
    record: RecordedRouting, against: str, weight: float, n_boot: int, seed: int
) -> xr.Dataset:
    """Every checkpoint of a record; two of them in memory at a time."""
    count = len(record.steps)
    if count < 2:
        raise UsageError(
            f"divergence compares checkpoints and found {count}, expected 2 or more; widen the "
            "window."
        )
    if against not in ("previous", "first", "final"):
        raise UsageError(f"against={against!r}: expected 'previous', 'first' or 'final'.")
    then = record.at(count - 1 if against == "final" else 0)
    since, parts = [], []
    positions = range(1, count) if against == "previous" else range(count)
    for position in positions:
        now = record.at(position)
        parts.append(_between(now, then, weight, n_boot, seed))
        since.append(then.step)
        if against == "previous":
            then = now
    clocks = {n: v[positions.start :] for n, v in record.clocks().items()}
    result = stacked(parts, clocks)
    return result.assign_coords(since=("checkpoint", since)).assign_attrs(against=against)


def _between(now: Routing, then: Routing, weight: float, n_boot: int, seed: int) -> xr.Dataset:
    p, q = now.probabilities(), then.probabilities()
    if p.shape != q.shape:
        raise UsageError(
            f"found routing of shape {p.shape} and {q.shape} (layer, token, expert), expected the "
            "same model and the same tokens."
        )
    if not (np.isfinite(p).all() and np.isfinite(q).all()):
        raise SchemaError("router_probs hold values that are no numbers: was it all captured?")
    own, far = _per_token(p, q, weight)
    tokens = now.tokens
    sums = np.stack(
        [np.add.reduceat(x, tokens.starts, axis=1, dtype=np.float64).T for x in (own, far)]
    )
    blocks = len(tokens.starts)
    point, chance, relative = _measures(sums, tokens.block_sizes, np.ones((1, blocks)))
    columns = {"divergence": point[0], "relative": relative[0]}
    ends: dict[str, Floats] = {"chance": chance[0]}
    draws = _measures(sums, tokens.block_sizes, bootstrap_weights(blocks, n_boot, seed))
    for name, drawn in (("divergence", draws[0]), ("relative", draws[2])):
        low, high = percentile_interval(drawn, blocks, within=(0, np.inf))
        ends[f"{name}_low"] = np.minimum(low, columns[name])
        ends[f"{name}_high"] = np.maximum(high, columns[name])
    interval = (
        f"95 %, bootstrap over {blocks} {tokens.blocks_are} ({OF_MEAN}): other text of "
        "the same kind, same checkpoints"
    )
    what = "weighted Jensen-Shannon divergence of p from the reference checkpoint's"
    captions = {
        "divergence": Caption("bits", f"{what}, mean over tokens", interval, "chance"),
        "chance": Caption("bits", f"{what}, of other tokens", "of relative only"),
        "relative": Caption("1", "divergence over chance: 0 nothing moved", interval, 1.0),
    }
    result = now.result({n: ("layer", v) for n, v in (columns | ends).items()}, {})
    return captioned(result, captions).assign_attrs(weight=weight, shifts=SHIFTS)


def _measures(sums: Floats, sizes: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """divergence, chance, relative (draw, layer) of sums (own or far, block, layer)."""
    tokens = (weights @ sizes)[:, None]
    own, far = weights @ sums[0] / tokens, weights @ sums[1] / tokens
    relative = np.divide(own, far, out=np.full_like(own, np.nan), where=far > 1e-9)
    return own, far, relative


def _per_token(p: Probs, q: Probs, weight: float) -> tuple[Probs, Probs]:
    """Divergence (layer, token), bits: of p from q, and of p from q of other tokens (mean)."""
    of_p, of_q = _entropy(p), _entropy(q)
    own = _divergence(p, q, of_p, of_q, weight)
    tokens = p.shape[1]
    far = np.zeros_like(own)
    # Spread over the text, none of them back to the token itself.
    shifts = np.unique(np.linspace(0, tokens, SHIFTS + 2)[1:-1].astype(int))
    shifts = shifts[(shifts > 0) & (shifts < tokens)]
    for by in shifts:
        far += _divergence(p, np.roll(q, by, 1), of_p, np.roll(of_q, by, 1), weight)
    return own, far / np.float32(max(len(shifts), 1))


def _divergence(p: Probs, q: Probs, of_p: Probs, of_q: Probs, weight: float) -> Probs:
    w = np.float32(weight)
    found = _entropy(w * p + (1 - w) * q) - w * of_p - (1 - w) * of_q
    bits: Probs = np.maximum(found, 0)
    return bits


def _entropy(p: Probs) -> Probs:
    """(layer, token), bits."""
    found: Probs = -np.einsum("lte,lte->lt", p, np.log2(np.maximum(p, TINY)))
    return found
