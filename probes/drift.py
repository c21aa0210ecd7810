"""Drift: did the load of an expert move because the router changed, or because the data did?

Needs   router: domain_assignments (step, layer, domain, expert) of the stream; activations:
        expert_ids on the fixed tokens, with a domain a token that the stream knows by that name.
Yields  change, mix, router, rest (checkpoint, layer, expert), in load, whose sum is exact:
        change = mix + router + rest; router_low, router_high; moved, mix_share, router_share,
        rest_share (checkpoint, layer); covered (checkpoint).

The stream's load is l = sum_d w_d r_d: domain d is the share w_d of its assignments and sends the
share r_d of them to the expert. Between a reference and a checkpoint (Kitagawa's decomposition)

    change = l' - l
    mix    = sum_d (w'_d - w_d) (r_d + r'_d) / 2       other domains, each routed as on average
    router = sum_d (w_d + w'_d) / 2 (f'_d - f_d)       f: r on the fixed tokens, whose text is one
    rest   = change - mix - router                     the stream's routing within domains moved
                                                       otherwise than that of the fixed tokens

`rest` is other text within the same domain names, the share of the mix that the fixed tokens do not
cover (attr covered: domains they lack cannot tell router from text), steps before and after a
checkpoint, and chance. Where it is large, neither part explains the change.

A domain that came at one of the two times only counts as mix: its r is taken from the other time.
The stream around a checkpoint is every step nearer to it than to its neighbours. Shares project the
parts on the change: <part, change> / <change, change> over experts; they sum to 1, may be negative,
and are NaN where the load did not move. moved = half the sum of |change| says by how much.

change and mix are exact counts over every training token. The interval of router is 95 %: from how
the change varies over texts within domains (Student's t), other fixed text of the same domains;
rest inherits it with the opposite sign. NaN where no domain has two texts.

It misleads where `rest` is large, where the fixed tokens lack a domain that came in, and where
domains are coarse: another mix within one domain counts as anything but mix.

Source: Kitagawa 1955, J. Am. Stat. Assoc. 50; fixed tokens against the stream as its own idea.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from probes.caption import Caption, captioned
from probes.inputs.routing import FixedTokens, RecordedRouting
from probes.load import EXACT
from probes.registry import probe
from probes.source import Source, group_of
from probes.statistics.resample import CONFIDENCE
from workbench.errors import UsageError

Floats = NDArray[np.float64]

BLOCK_STEPS = 256
"""Steps of domain counts in memory at a time."""


@probe(
    "drift",
    question="Did the load move because the router changed, or because the data mix did?",
    reads="record",
    needs=("router", "activations"),
)
def drift(source: Source, *, against: Literal["first", "previous"] = "first") -> xr.Dataset:
    """The stream's load drift between checkpoints, split into data mix, router and the rest.

    Args:
        source: Run, Window or anything with `.router` and `.activations`.
        against: "first" measures from the first checkpoint, "previous" from the one before.

    Returns:
        Dataset with a row for every checkpoint from the second on that has training steps around
        it: change, mix, router, router_low, router_high, rest (checkpoint, layer, expert), moved,
        mix_share, router_share, rest_share (checkpoint, layer), covered (checkpoint); coordinate
        `since (checkpoint)`.

    Raises:
        UsageError: fewer than two checkpoints with steps around them, or no domain in common.
        SchemaError: the record lacks domain_assignments or expert_ids.

    Example:
        >>> from workbench.planted.drifting import drifting_run
        >>> found = drift(drifting_run(mix=1.0, steps=20, checkpoints=3))
        >>> bool(abs(found["router"]).max() == 0), bool(found["mix_share"].min() > 0.8)
        (True, True)
    """
    if against not in ("first", "previous"):
        raise UsageError(f"against={against!r}: expected 'first' or 'previous'.")
    router = group_of(source, "router", ["domain_assignments"])
    record = RecordedRouting(source)
    names = list(map(str, router["domain"].values))
    common = [name for name in record.tokens.domains if name in names]
    if not common:
        raise UsageError(
            f"the stream's domains ({', '.join(names[:4])}, ...) and those of the fixed tokens "
            f"({', '.join(record.tokens.domains[:4])}, ...) have no name in common."
        )
    stream = _stream_counts(router, record.steps)
    there = np.flatnonzero(stream.sum(axis=(1, 2, 3)) > 0)
    if len(there) < 2:
        raise UsageError(
            f"found {len(there)} checkpoints with training steps around them, expected 2 or more; "
            "widen the window."
        )
    fixed = _Fixed(record.tokens, names)
    rows: list[dict[str, Floats]] = []
    since = []
    then = there[0]
    then_counts = record.at(int(then)).counts
    for now in there[1:]:
        counts = record.at(int(now)).counts
        rows.append(_split(stream[then], stream[now], then_counts, counts, fixed))
        since.append(int(record.steps[then]))
        if against == "previous":
            then, then_counts = now, counts
    return _described(rows, since, record, there[1:], router, against)


class _Fixed:
    """Which domain of the stream each text of the fixed tokens belongs to."""

    def __init__(self, tokens: FixedTokens, names: list[str]) -> None:
        self.sizes = tokens.block_sizes
        place = [names.index(d) if d in names else -1 for d in tokens.domains]
        self.domain = np.array(place)[tokens.domain_of_block]
        self.hot = (self.domain[:, None] == np.arange(len(names))).astype(np.float64)
        self.texts = self.hot.sum(axis=0)
        self.covered = self.texts > 0


def _stream_counts(router: xr.Dataset, steps: NDArray[np.int64]) -> Floats:
    """(checkpoint, layer, domain, expert): assignments of the steps nearest to each checkpoint."""
    counted = router["domain_assignments"].transpose("step", "layer", "domain", "expert")
    clock = router["step"].values
    middle = (steps[1:] + steps[:-1]) / 2
    nearest = np.searchsorted(middle, clock, side="left")
    counts = np.zeros((len(steps), *counted.shape[1:]))
    for first in range(0, len(clock), BLOCK_STEPS):
        part = slice(first, first + BLOCK_STEPS)
        block = counted[part].values
        begins = np.flatnonzero(np.r_[True, np.diff(nearest[part]) != 0])
        counts[nearest[part][begins]] += np.add.reduceat(block, begins, axis=0, dtype=np.float64)
    return counts


def _split(
    before: Floats, after: Floats, fixed_before: Floats, fixed_after: Floats, fixed: _Fixed
) -> dict[str, Floats]:
    """change, mix, router with bounds and rest of one layer each, from counts (layer, domain,
    expert) of the stream and (block, layer, expert) of the fixed tokens."""
    weight_a, rate_a = _weights_and_rates(before)
    weight_b, rate_b = _weights_and_rates(after)
    # A domain that one of the two never saw: its routing is taken to be that of the other.
    rate_a, rate_b = (
        np.where(np.isnan(rate_a), rate_b, rate_a),
        np.where(np.isnan(rate_b), rate_a, rate_b),
    )
    rate_a, rate_b = np.nan_to_num(rate_a), np.nan_to_num(rate_b)
    change = (weight_b[..., None] * rate_b - weight_a[..., None] * rate_a).sum(axis=1)
    mix = ((weight_b - weight_a)[..., None] * (rate_a + rate_b) / 2).sum(axis=1)
    weight = (weight_a + weight_b) / 2
    router, half = _on_fixed_tokens(fixed_before, fixed_after, weight, fixed)
    covered = (weight * fixed.covered).sum(axis=-1)
    return {
        "change": change,
        "mix": mix,
        "router": router,
        "router_low": router - half,
        "router_high": router + half,
        "rest": change - mix - router,
        "covered": covered.mean(keepdims=True),
    }


def _weights_and_rates(counts: Floats) -> tuple[Floats, Floats]:
    """w (layer, domain) and r (layer, domain, expert), NaN where the domain never came."""
    of_domain = counts.sum(axis=-1)
    total = of_domain.sum(axis=-1, keepdims=True)
    weight = np.divide(of_domain, total, out=np.zeros_like(of_domain), where=total > 0)
    below = of_domain[..., None]
    return weight, np.divide(counts, below, out=np.full_like(counts, np.nan), where=below > 0)


def _on_fixed_tokens(
    before: Floats, after: Floats, weight: Floats, fixed: _Fixed
) -> tuple[Floats, Floats]:
    """(router, half of its interval), (layer, expert) each."""
    shares = []
    for counts in (before, after):
        of_text = counts.sum(axis=-1, keepdims=True)
        shares.append(np.divide(counts, of_text, out=np.zeros_like(counts), where=of_text > 0))
    # Texts weigh by their tokens; each one's change is a draw, for it is the same text twice.
    moved = shares[1] - shares[0]
    size = fixed.hot * fixed.sizes[:, None]
    total = size.sum(axis=0)
    part = np.divide(size, total, out=np.zeros_like(size), where=total > 0)
    of_domain = np.einsum("bd,ble->lde", part, moved)
    router = np.einsum("ld,lde->le", weight, of_domain)
    freedom = fixed.texts - 1
    known = freedom > 0
    if not known.any():
        return router, np.full_like(router, np.nan)
    apart = moved - np.einsum("bd,lde->ble", fixed.hot, of_domain)
    squares = np.einsum("bd,ble->lde", fixed.hot, apart**2)
    variance = squares / np.maximum(freedom, 1)[:, None]
    # A domain with one text cannot tell how texts differ: it is taken to be as the others.
    variance[:, ~known] = variance[:, known].mean(axis=1, keepdims=True)
    worth = weight**2 * (part**2).sum(axis=0)
    error = worth[..., None] * variance
    # Welch and Satterthwaite: as few degrees of freedom as the domains that matter have.
    below = (error[:, known] ** 2 / freedom[known][:, None]).sum(axis=1)
    total = error.sum(axis=1)
    free = np.divide(total**2, below, out=np.ones_like(total), where=below > 0)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, np.maximum(free, 1)) * np.sqrt(total)
    return router, half


def _described(
    rows: list[dict[str, Floats]],
    since: list[int],
    record: RecordedRouting,
    there: NDArray[np.intp],
    router: xr.Dataset,
    against: str,
) -> xr.Dataset:
    stack = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    covered = stack.pop("covered")[:, 0]
    change = stack["change"]
    square = (change**2).sum(axis=-1)
    shares = {
        f"{part}_share": np.divide(
            (stack[part] * change).sum(axis=-1), square,
            out=np.full_like(square, np.nan), where=square > 1e-18,
        )
        for part in ("mix", "router", "rest")
    }  # fmt: skip
    dims = ("checkpoint", "layer", "expert")
    clocks = {name: values[there] for name, values in record.clocks().items()}
    result = xr.Dataset(
        {name: (dims, column) for name, column in stack.items()}
        | {name: (dims[:2], column) for name, column in shares.items()}
        | {
            "moved": (dims[:2], np.abs(change).sum(axis=-1) / 2),
            "covered": ("checkpoint", covered),
        },
        coords={
            **clocks,
            "since": ("checkpoint", since),
            "layer": record.layers,
            "expert": np.arange(change.shape[-1]),
        },
    )
    return captioned(result, _captions()).assign_attrs(
        **record.tokens.about(), against=against, domains=router.sizes["domain"]
    )


def _captions() -> dict[str, Caption]:
    interval = "95 %, over texts within domains: other fixed text of the same domains"
    of_change = "change of the expert's share of the stream's assignments"
    return {
        "change": Caption("1", of_change, EXACT, 0.0),
        "mix": Caption("1", f"{of_change} by other weights of domains", EXACT, 0.0),
        "router": Caption("1", f"{of_change} as on the fixed tokens", interval, 0.0),
        "rest": Caption("1", f"{of_change} by neither", "that of router, mirrored", 0.0),
        "moved": Caption("1", "half the sum of |change|: assignments that moved", EXACT, 0.0),
        "mix_share": Caption("1", "part of the change that the mix explains", EXACT),
        "router_share": Caption("1", "part that the router explains", "of router only"),
        "rest_share": Caption("1", "part that neither explains", "of router only"),
        "covered": Caption("1", "share of the mix whose domains the fixed tokens hold", EXACT),
    }  # fmt: skip
