"""Vocabulary: does a token's own id, whatever its context, decide which experts it takes?

Needs   a checkpoint's expert_ids; token ids of the fixed tokens.
Yields  share P(expert in S | token id) with bounds (layer, token_id, expert) of ids seen
        `min_count` times or more, count (token_id); of the layer: agreement, agreement_chance and
        kappa with bounds, top_share, top_share_null, olmoe.

agreement  two occurrences of one id, in different texts: the share of their k experts in common;
           mean over ids, weighted by count. Unbiased, however rare the ids are.
chance     the same for any two tokens of different texts: 0.25 means nothing for 4 of 16.
kappa      (agreement - chance) / (1 - chance): 0, the id says nothing; 1, it says all.
top_share  share of an id's occurrences that its most frequent first expert takes, by count.
           It is too high for rare ids: a maximum over few draws. top_share_null is what it is after
           the ids were shuffled over the tokens.
olmoe      top_share as OLMoE's script averages it: every id alike, those seen once as 100 %. Beside
           ours, so that published numbers can be compared; not to be read as specialisation.

`of="next"` asks the same of the id that follows (a Subject's rows are known; a record's are not).

Only different texts are compared: repetitions within one share their context, so that agreement
there is not the id's doing. Interval of kappa: jackknife over texts. NaN: one text, or no id that
comes often enough in two. Shares are exact on these tokens; for other text they have Wilson
intervals, with an id's occurrences counted for what they are worth (clustered.py).

It misleads where a token's context is as good as fixed (a closed world's templates), and where
`olmoe` or top_share is compared between tokenizers or amounts of text.

Source: vocabulary specialization, Muennighoff et al. 2024, OLMoE, section 5.4, equation 8,
arXiv:2409.02060, and the averages of its published script.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from probes.caption import Caption, captioned
from probes.inputs.routing import Routing, over_checkpoints
from probes.registry import probe
from probes.source import Source
from probes.statistics.clustered import design_effect, share_interval
from probes.statistics.jackknife import half_width
from workbench.errors import UsageError

if TYPE_CHECKING:
    from probes.subject import Subject

Floats = NDArray[np.float64]
Counts = NDArray[np.floating]

MIN_COUNT = 8
MOST_GROUPS = 30
"""Texts are joined into at most this many groups for the interval."""

SHUFFLES = 20


@probe(
    "vocabulary",
    question="Does a token's own id decide which experts it takes?",
    reads="checkpoint",
    needs=("expert_ids",),
    version=2,
)
def vocabulary(
    source: Source | Subject,
    *,
    min_count: int = MIN_COUNT,
    of: Literal["input", "next"] = "input",
    seed: int = 0,
) -> xr.Dataset:
    """How far experts specialise in single token ids, on the fixed tokens.

    Args:
        source: a Subject; or a record with `.activations` and a token_id a token.
        min_count: ids seen less often are left out of everything but `olmoe`.
        of: "input", the token's own id; "next", the id that follows it in its row.
        seed: of the shuffles behind top_share_null.

    Returns:
        Dataset of share, share_low, share_high (layer, token_id, expert), count (token_id),
        agreement, agreement_chance, kappa, kappa_low, kappa_high, top_share, top_share_null, olmoe
        (layer); of a record with `checkpoint` first. attrs: min_count, ids, ids_left_out, n (tokens
        that count).

    Raises:
        UsageError: no id that often; "next" of a record; token ids that are not known.

    Example:
        >>> from workbench.testing import activations_record
        >>> found = vocabulary(activations_record(checkpoints=1, tokens=2000), min_count=4)
        >>> bool(abs(found["kappa"]).max() < 0.1)
        True
    """
    if of not in ("input", "next"):
        raise UsageError(f"of={of!r}: expected 'input' or 'next'.")

    def measure(routing: Routing) -> xr.Dataset:
        return _of(routing, _ids(routing, of), min_count, seed).assign_attrs(of=of)

    return over_checkpoints(source, measure)


def _ids(routing: Routing, of: str) -> NDArray[np.int64]:
    tokens = routing.tokens
    if of == "next" and tokens.next_id is None:
        raise UsageError(
            "a record does not say where its rows end, and so not which token follows; give a "
            "checkpoint's Subject, or of='input'."
        )
    ids = tokens.token_id if of == "input" or tokens.next_id is None else tokens.next_id
    if (ids < 0).all():
        raise UsageError("found no token ids in these activations; record token_id with them.")
    return ids


def _of(routing: Routing, ids: NDArray[np.int64], min_count: int, seed: int) -> xr.Dataset:
    known, number, count = np.unique(ids, return_inverse=True, return_counts=True)
    often = (count >= min_count) & (known >= 0)
    if not often.any():
        raise UsageError(
            f"found no token id {min_count} times or more among {len(ids)} tokens, expected one at "
            f"least; lower min_count (the most frequent id comes {count.max()} times)."
        )
    place = np.where(often, np.cumsum(often) - 1, -1)[number]
    groups = _by_group(routing, place, int(often.sum()))
    total = groups.sum(axis=0)
    tokens_of = count[often].astype(np.float64)
    first = routing.ids[:, :, 0]
    rng = np.random.default_rng(seed)
    there = place >= 0
    shuffled = [
        _top_share(first[:, there], rng.permutation(place[there]), routing.experts)[0]
        for _ in range(SHUFFLES)
    ]
    everyone = np.where(ids >= 0, number, -1)
    columns = {
        **_agreement(groups, routing.k),
        "top_share": _top_share(first, place, routing.experts)[0],
        "top_share_null": np.mean(shuffled, axis=0),
        "olmoe": _top_share(first, everyone, routing.experts)[1],
    }
    shares = {"share": total / tokens_of[:, None]}
    shares["share_low"], shares["share_high"] = share_interval(
        total, tokens_of[:, None], _effect(groups, place, routing)[:, None, None]
    )
    per_id = ("layer", "token_id", "expert")
    result = routing.result(
        {name: (per_id, column.astype(np.float32)) for name, column in shares.items()}
        | {"count": ("token_id", tokens_of)}
        | {name: ("layer", column) for name, column in columns.items()},
        {"token_id": known[often], "expert": np.arange(routing.experts)},
    )
    result.attrs |= {
        "n": int(tokens_of.sum()),
        "n_meaning": "tokens of the fixed set whose id counts",
        "min_count": min_count,
        "ids": int(often.sum()),
        "ids_left_out": int((~often & (known >= 0)).sum()),
        "seed": seed,
    }
    return captioned(result, _captions(routing, len(groups)))


def _by_group(routing: Routing, place: NDArray[np.intp], ids: int) -> Counts:
    """(group, layer, id, expert): tokens of the group with that id that chose the expert."""
    starts = routing.tokens.groups(MOST_GROUPS)
    group = np.searchsorted(starts, np.arange(routing.tokens.count), side="right") - 1
    there = np.flatnonzero(place >= 0)
    cell = group[there] * ids + place[there]
    order = np.argsort(cell, kind="stable")
    cells, begins = np.unique(cell[order], return_index=True)
    sums = np.add.reduceat(routing.chosen[:, there[order]], begins, axis=1)
    table = np.zeros((len(starts) * ids, *sums.shape[::2]), dtype=np.float32)
    table[cells] = sums.transpose(1, 0, 2)
    layers, experts = sums.shape[::2]
    return table.reshape(len(starts), ids, layers, experts).transpose(0, 2, 1, 3)


def _effect(groups: Counts, place: NDArray[np.intp], routing: Routing) -> Floats:
    """(layer,): how far an id's occurrences in one text are alike; see clustered.design_effect."""
    count, layers, ids, experts = groups.shape
    starts = routing.tokens.groups(MOST_GROUPS)
    group = np.searchsorted(starts, np.arange(routing.tokens.count), side="right") - 1
    there = place >= 0
    sizes = np.bincount(group[there] * ids + place[there], minlength=count * ids)
    # A block is an id within a group of texts, its stratum the id: only like is compared with like.
    blocks = groups.transpose(0, 2, 1, 3).reshape(count * ids, layers, experts)
    seen = sizes > 0
    return design_effect(
        blocks[seen].astype(np.float64), sizes[seen].astype(np.float64),
        np.tile(np.arange(ids), count)[seen],
    )  # fmt: skip


class _Agreement:
    """agreement, its chance and kappa (layer,) of counts (group, layer, id, expert), of all groups
    or of all but one."""

    def __init__(self, groups: Counts, k: int) -> None:
        self.groups, self.k = groups, k
        # Tokens behind every cell, from the assignments kept: with drops a token weighs what it
        # kept.
        self.tokens = groups.sum(axis=-1, dtype=np.float64) / k
        self.of_group = groups.sum(axis=2, dtype=np.float64)
        # Pairs within a group, which are not to be compared.
        self.same = np.einsum("glve,glve->glv", groups, groups).astype(np.float64)
        self.same_any = np.einsum("gle,gle->gl", self.of_group, self.of_group)
        self.pairs, self.pairs_any = self.tokens**2, self.tokens.sum(axis=2) ** 2
        self.total = groups.sum(axis=0, dtype=np.float64)

    def measure(self, left_out: int | None = None) -> tuple[Floats, Floats, Floats]:
        kept = np.arange(len(self.groups)) != (-1 if left_out is None else left_out)
        table = self.total if left_out is None else self.total - self.groups[left_out]
        n = self.tokens[kept].sum(axis=0)
        pairs = n**2 - self.pairs[kept].sum(axis=0)
        shared = np.einsum("lve,lve->lv", table, table) - self.same[kept].sum(axis=0)
        of_id = _over(shared, pairs * self.k, 0.0)
        # Ids that come in one text only say nothing, and so do not weigh.
        weight = np.where(pairs > 1e-9, n, 0.0)
        agreed = _over((weight * of_id).sum(axis=-1), weight.sum(axis=-1))
        pairs_any = n.sum(axis=-1) ** 2 - self.pairs_any[kept].sum(axis=0)
        anyone = self.of_group[kept].sum(axis=0)
        shared_any = (anyone**2).sum(axis=-1) - self.same_any[kept].sum(axis=0)
        chance = _over(shared_any, pairs_any * self.k)
        return agreed, chance, _over(agreed - chance, 1 - chance)


def _agreement(groups: Counts, k: int) -> dict[str, Floats]:
    measured = _Agreement(groups, k)
    agreed, chance, kappa = measured.measure()
    half = half_width(np.stack([measured.measure(g)[2] for g in range(len(groups))]))
    return {
        "agreement": agreed,
        "agreement_chance": chance,
        "kappa": kappa,
        "kappa_low": kappa - half,
        "kappa_high": kappa + half,
    }


def _over(above: Floats, below: Floats, otherwise: float = np.nan) -> Floats:
    return np.divide(above, below, out=np.full_like(below, otherwise), where=below > 1e-9)


def _top_share(
    first: NDArray[np.int64], place: NDArray[np.intp], experts: int
) -> tuple[Floats, Floats]:
    """(weighted by count, every id alike), (layer,) each: share of an id's occurrences that its
    most frequent first expert takes. `place` (token,) numbers the ids; -1 is left out, and drops.
    """
    layers, ids = len(first), int(place.max(initial=-1)) + 1
    there = (place >= 0) & (first >= 0)
    cell = (np.arange(layers)[:, None] * ids + place) * experts + first
    counts = np.bincount(cell[there], minlength=layers * ids * experts)
    counts = counts.reshape(layers, ids, experts)
    n, top = counts.sum(axis=-1), counts.max(axis=-1)
    share = np.divide(top, n, out=np.zeros(n.shape), where=n > 0)
    seen = (n > 0).sum(axis=-1)
    alike = np.divide(share.sum(axis=-1), seen, out=np.full(layers, np.nan), where=seen > 0)
    total = n.sum(axis=-1)
    weighted = np.divide(top.sum(axis=-1), total, out=np.full(layers, np.nan), where=total > 0)
    return weighted, alike


def _captions(routing: Routing, groups: int) -> dict[str, Caption]:
    kind = routing.tokens.blocks_are
    interval = (
        f"95 %, jackknife over {groups} groups of {kind}: other text of the same kind, same "
        "checkpoint"
    )
    plain, fair = "point estimate: see kappa", routing.k / routing.experts
    return {
        "share": Caption(
            "1", "share of the id's occurrences that chose the expert",
            "95 %, Wilson with occurrences counted for what they are worth: other text of the same "
            "kind. No correction for many ids", fair,
        ),
        "count": Caption("tokens", "occurrences of the id", "none: a count"),
        "agreement": Caption(
            "1", f"experts in common of two occurrences of an id in different {kind}", plain,
            "agreement_chance",
        ),
        "agreement_chance": Caption("1", f"the same of any two tokens of different {kind}", plain),
        "kappa": Caption("1", "agreement of an id's occurrences, beyond chance", interval, 0.0),
        "top_share": Caption(
            "1", "share of its most frequent first expert, ids weighted by count", plain,
            "top_share_null",
        ),
        "top_share_null": Caption("1", "top_share of shuffled ids, mean", "none: mean of shuffles"),
        "olmoe": Caption("1", "top_share as OLMoE averages it, every id alike", plain),
    }  # fmt: skip
