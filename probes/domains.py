"""Domains: do experts take the text of some domains rather than of others?

Needs   of the stream: router: domain_assignments (step, layer, domain, expert).
        of the fixed tokens: a checkpoint's expert_ids; a domain for every token.
Yields  share P(expert in S | domain) (layer, domain, expert), chance k/E; information I(expert;
        domain) (layer), bits, with bounds, plug_in, miller_madow, null and p; of the stream with
        `step` first.

I is taken over assignments: pick a token, then one of its experts at random. Three estimates:
plug_in       from the counts as they are; too high.
miller_madow  plug_in less (E-1)(D-1)/(2N ln 2), N assignments: right where tokens are independent.
information   plug_in less its bias by the jackknife over blocks of text (rows, documents; groups of
              steps of the stream). Tokens of one text are alike, and a text belongs to one domain:
              where a domain has few texts, their peculiarities look like specialisation, which
              miller_madow does not see. This is the one with bounds, and it can come out below 0;
              NaN where there are fewer than 10 assignments for each of the E x D cells.
null          mean plug_in after domains were dealt anew to whole texts, never to single tokens; of
              the stream, to the domains' counts within each group of steps.
p             share of such deals at least as informative. NaN where a deal changes nothing: one
              domain, or one text a domain; one step.

Shares of the fixed tokens have Wilson intervals with tokens counted for what they are worth
(clustered.py): other text of that domain. NaN where no domain has two texts. Shares of the stream
are exact. Their deviation from k/E also holds unequal loads; `load` (layer, expert) is beside it.

It misleads where domains differ in their tokens alone (digits, brackets): then it is vocabulary
that is divided, see vocabulary.py; and where unequal loads are read as specialisation.

Sources: domain specialisation, Muennighoff et al. 2024, OLMoE, section 5.3, arXiv:2409.02060;
Miller 1955.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from probes.caption import Caption, captioned
from probes.inputs.routing import Routing, over_checkpoints
from probes.load import EXACT
from probes.registry import probe
from probes.source import Source, group_of
from probes.statistics.clustered import design_effect, share_interval
from probes.statistics.information import miller_madow, mutual_information, p_value, too_thin
from probes.statistics.jackknife import jackknife
from workbench.errors import UsageError

if TYPE_CHECKING:
    from probes.subject import Subject

Floats = NDArray[np.float64]

DEALS = 199
MOST_GROUPS = 30
"""Steps of a window are joined into at most this many groups."""

WINDOWS = 20
"""Windows that the record is cut into where no width is asked for."""


def _captions(interval: str, share: str, chance: float, p: str) -> dict[str, Caption]:
    of = "information that a token's domain has of its expert"
    plain = "point estimate: see information"
    return {
        "share": Caption(
            "1", "share of the domain's tokens that chose the expert", share, chance
        ),
        "load": Caption("1", "share of all tokens that chose the expert", plain, chance),
        "information": Caption("bits", of, interval, 0.0),
        "miller_madow": Caption("bits", f"{of}, if tokens were independent", plain, 0.0),
        "plug_in": Caption("bits", f"{of}, its bias not taken off", plain, "null"),
        "null": Caption("bits", f"mean plug-in information after {p}", "none: mean over deals"),
        "p": Caption("1", f"share as informative after {p}", "none: a p-value"),
    }  # fmt: skip


@probe(
    "domains-fixed",
    question="Do experts of each checkpoint take some domains rather than others (fixed tokens)?",
    reads="checkpoint",
    needs=("expert_ids",),
)
def domains_fixed(source: Source | Subject, *, deals: int = DEALS, seed: int = 0) -> xr.Dataset:
    """How far experts specialise in domains, on the fixed tokens.

    Args:
        source: a Subject; or a record with `.activations` and a domain a token.
        deals: permutations of domains over texts; 0 leaves null and p undefined.
        seed: of the permutations.

    Returns:
        Dataset of share with bounds (layer, domain, expert), load (layer, expert), information with
        bounds, miller_madow, plug_in, null, p (layer); of a record with `checkpoint` first.

    Example:
        >>> from workbench.testing import activations_record
        >>> found = domains_fixed(activations_record(checkpoints=2, tokens=400), deals=19)
        >>> dict(found["share"].sizes)
        {'checkpoint': 2, 'layer': 2, 'domain': 4, 'expert': 16}
    """

    def measure(routing: Routing) -> xr.Dataset:
        return _of(routing, deals, seed)

    return over_checkpoints(source, measure)


def _of(routing: Routing, deals: int, seed: int) -> xr.Dataset:
    tokens = routing.tokens
    place, count = tokens.domain_of_block, len(tokens.domains)
    sizes = np.bincount(place, weights=tokens.block_sizes).astype(np.float64)
    by_domain = routing.domain_counts.swapaxes(0, 1)
    effect = design_effect(routing.counts, tokens.block_sizes, place)
    tokens_of = sizes[None, :, None]
    low, high = share_interval(by_domain, tokens_of, effect[:, None, None])
    columns = {
        "share": by_domain / tokens_of,
        "share_low": low,
        "share_high": high,
    }
    found: dict[str, object] = {
        name: (("layer", "domain", "expert"), column.astype(np.float32))
        for name, column in columns.items()
    }
    found["load"] = (("layer", "expert"), by_domain.sum(axis=1) / tokens.count)
    hot = np.eye(count)[place]
    blocks = np.einsum("bd,ble->blde", hot, routing.counts)
    null = dealt_information(routing.counts, place, count, deals, seed)
    found |= {n: ("layer", v) for n, v in _informed(blocks, null).items()}
    interval = (
        f"95 %, jackknife over {len(tokens.starts)} {tokens.blocks_are}: other text of the same "
        "kind, same checkpoint"
    )
    of_share = "95 %, Wilson with tokens counted for what they are worth: other text of that domain"
    labels = {"domain": tokens.domains, "expert": np.arange(routing.experts)}
    result = routing.result(found, labels).assign_attrs(deals=deals, seed=seed)
    p = f"domains were dealt anew to {tokens.blocks_are}"
    return captioned(result, _captions(interval, of_share, routing.k / routing.experts, p))


def _informed(blocks: Floats, null: Floats) -> dict[str, Floats]:
    """The estimates of I (layer,) from joint counts (block, layer, domain, expert)."""
    joint = blocks.sum(axis=0)
    plug_in = mutual_information(joint)
    thin = too_thin(joint)
    found, low, high = (np.where(thin, np.nan, x) for x in jackknife(blocks, mutual_information))
    undefined = np.full_like(plug_in, np.nan)
    return {
        "information": found,
        "information_low": low,
        "information_high": high,
        "miller_madow": plug_in - miller_madow(joint),
        "plug_in": plug_in,
        "null": null.mean(axis=0) if len(null) else undefined,
        "p": p_value(plug_in, null) if len(null) else undefined,
    }


def dealt_information(
    counts: Floats, place: NDArray[np.intp], domains: int, deals: int, seed: int
) -> Floats:
    """(deal, layer), bits: plug-in information with domains dealt anew to blocks; (0, layer) where
    every deal is the same.

    Args:
        counts: (block, layer, expert); place: (block,), the domain of each block.
    """
    blocks, layers, experts = counts.shape
    if domains < 2 or domains >= blocks:
        return np.empty((0, layers))
    rng = np.random.default_rng(seed)
    flat = counts.reshape(blocks, layers * experts)
    null = np.empty((deals, layers))
    for row in null:
        hot = np.eye(domains)[rng.permutation(place)]
        row[:] = mutual_information(
            (hot.T @ flat).reshape(domains, layers, experts).transpose(1, 0, 2)
        )
    return null


@probe(
    "domains",
    question="Do experts take some domains rather than others, over the training stream?",
    reads="record",
    needs=("router",),
)
def domains(
    source: Source, *, window: int | None = None, deals: int = DEALS, seed: int = 0
) -> xr.Dataset:
    """How far experts specialise in domains, over every training token.

    Args:
        source: router dataset, Run, Window or anything with `.router`.
        window: steps to pool; None cuts the record into 20 windows (fewer where it is short). Steps
            after the last full window are left out.
        deals: permutations of domains within groups of steps; 0 leaves null and p undefined.
        seed: of the permutations.

    Returns:
        Dataset of share (step, layer, domain, expert), load (step, layer, expert), information with
        bounds, miller_madow, plug_in, null, p (step, layer); windows are labelled by their last
        step. attrs: n (assignments), window_steps, k.

    Raises:
        UsageError: a window that does not fit the record.
        SchemaError: the record lacks `domain_assignments`.

    Example:
        >>> from workbench.testing import TASKS, router_record
        >>> record = router_record(steps=20, specialised={TASKS[0]: 3})
        >>> found = domains(record, window=20, deals=19)
        >>> bool(found["share"].sel(domain=TASKS[0], expert=3).min() > 0.8)
        True
    """
    router = group_of(source, "router", ["domain_assignments"])
    steps = router.sizes["step"]
    width = max(1, steps // WINDOWS) if window is None else window
    if not 0 < width <= steps:
        raise UsageError(f"window={width} steps: the record holds {steps}; ask for fewer.")
    k = int(router.attrs.get("k", 1))
    counted = router["domain_assignments"].transpose("step", "layer", "domain", "expert")
    rows, n = [], 0
    for first in range(0, steps - width + 1, width):
        counts = counted[first : first + width].values
        cuts = np.linspace(0, width, min(MOST_GROUPS, width) + 1).astype(np.intp)[:-1]
        groups = np.add.reduceat(counts, cuts, axis=0, dtype=np.float64)
        n += int(counts.sum())
        rows.append(_of_stream(groups, k, deals, seed))
    ends = np.arange(width - 1, steps, width)[: len(rows)]
    dims = {"share": ("layer", "domain", "expert"), "load": ("layer", "expert")}
    result = xr.Dataset(
        {
            name: (("step", *dims.get(name, ("layer",))), np.stack([row[name] for row in rows]))
            for name in rows[0]
        },
        coords={
            str(name): coord.isel(step=ends) if "step" in coord.dims else coord
            for name, coord in router.coords.items()
            if set(coord.dims) <= {"step", "layer", "domain", "expert"}
        },
    )
    interval = (
        f"95 %, jackknife over {min(MOST_GROUPS, width)} groups of the window's steps: other text "
        "of the same stream"
    )
    p = "domains were dealt anew to the counts of each group of steps"
    found = _captions(interval, EXACT, k / router.sizes["expert"], p)
    return captioned(result, found).assign_attrs(
        n=n, n_meaning="assignments counted", window_steps=width, k=k, deals=deals, seed=seed,
    )  # fmt: skip


def _of_stream(groups: Floats, k: int, deals: int, seed: int) -> dict[str, Floats]:
    """One window's measures from counts (group, layer, domain, expert)."""
    joint = groups.sum(axis=0)
    of_domain = joint.sum(axis=-1, keepdims=True)
    share = np.divide(joint * k, of_domain, out=np.full_like(joint, np.nan), where=of_domain > 0)
    of_layer = of_domain.sum(axis=1)
    taken = joint.sum(axis=1)
    load = np.divide(taken * k, of_layer, out=np.full_like(taken, np.nan), where=of_layer > 0)
    null = _dealt_within(groups, deals, seed)
    return {"share": share.astype(np.float32), "load": load, **_informed(groups, null)}


def _dealt_within(groups: Floats, deals: int, seed: int) -> Floats:
    """(deal, layer): information with domains dealt anew within each group; see the head."""
    count, layers, domains, _ = groups.shape
    if domains < 2 or count < 2:
        return np.empty((0, layers))
    rng = np.random.default_rng(seed)
    by_domain = np.ascontiguousarray(groups.transpose(0, 2, 1, 3))
    own = np.arange(count)[:, None]
    null = np.empty((deals, layers))
    # A domain without a token in a group is not dealt to others there: it would gain peculiarities.
    there = by_domain.sum(axis=(2, 3)) > 0
    for row in null:
        order = np.tile(np.arange(domains), (count, 1))
        for of_group, present in zip(order, there, strict=True):
            of_group[present] = rng.permutation(np.flatnonzero(present))
        row[:] = mutual_information(by_domain[own, order].sum(axis=0).transpose(1, 0, 2))
    return null
