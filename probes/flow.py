"""Flow: does the expert that a token took in one layer say which it takes in the next?

Needs   a checkpoint's expert_ids on the fixed tokens, two layers or more.
Yields  information (layer), bits, with bounds; plug_in, null, p, attainable; transition
        (layer, expert, expert2); load (layer, expert) of the lower layer. `layer` is the lower of
        the two, `next_layer` the other.

A token that takes k experts in each layer is k x k pairs of weight 1/k^2: pick one of its experts
in either layer at random. With k = 1 it is the mutual information of two labels. `attainable` is
the smaller of the two entropies: what it would be if one layer followed from the other, k = 1.
transition is P(j in the next layer | i): N_ij / (k N_i), rows sum to 1 where nothing is dropped.

Chance. Labels that have nothing to do with each other still share information by accident. `null`
is what is left when the texts of one layer are dealt anew against those of the other, whole and
place by place: both layers keep their loads, the likeness of a text's tokens and what follows from
a token's place in its text, and only their meeting is undone. (Shifting the text against itself
would not do: both layers change where a text ends.) p is the share of deals at least as
informative; at the 99 of the default it is 0.01 or more. NaN with one text.

The interval and the bias taken off plug_in to give information: jackknife over blocks of text (rows
where known). NaN where there are fewer than 10 token pairs for each of the E x E cells: the bias of
so thin a table cannot be taken off, and p alone has a meaning. Expect information where the same
token always goes the same way in both layers: flow is not by itself a path that was learnt. It can
come out slightly below 0 where there is none.

It misleads where the same token always goes the same way in both layers, and where two layers are
compared by it that have different loads: hold it against `attainable`.

Sources: mutual information, Shannon 1948; the bias, Panzeri & Treves 1996, and jackknife.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from probes.caption import Caption, captioned
from probes.inputs.routing import Routing, over_checkpoints
from probes.registry import probe
from probes.source import Source
from probes.statistics.information import entropy, mutual_information, p_value, too_thin
from probes.statistics.jackknife import jackknife
from workbench.errors import UsageError

if TYPE_CHECKING:
    from probes.subject import Subject

Floats = NDArray[np.float64]

DEALS = 99
MOST_GROUPS = 40
"""Blocks are joined into at most this many, so that memory does not grow with the text."""


@probe(
    "flow",
    question="Does a token's expert in one layer say which it takes in the next?",
    reads="checkpoint",
    needs=("expert_ids",),
    version=2,
)
def flow(source: Source | Subject, *, deals: int = DEALS, seed: int = 0) -> xr.Dataset:
    """How much the routing of each layer says about that of the next.

    Args:
        source: a Subject; or a record with `.activations` (every checkpoint of it).
        deals: of texts anew, for the null; 0 leaves null and p undefined.
        seed: of the deals.

    Returns:
        Dataset (layer), of a record with `checkpoint` first: information, information_low,
        information_high, plug_in, null, p, attainable; transition (layer, expert, expert2), load
        (layer, expert), whose product is the share of all pairs of choices on each way.

    Raises:
        UsageError: fewer than two layers.

    Example:
        >>> ids = np.arange(120).reshape(1, 120, 1, 1) % 4
        >>> ids = np.concatenate([ids, 3 - ids], axis=2)
        >>> record = xr.Dataset(
        ...     {"expert_ids": (("checkpoint", "token", "layer", "k"), ids)},
        ...     coords={"checkpoint": [0]},
        ... )
        >>> flow(record, deals=0)["plug_in"].values.tolist()
        [[2.0]]
    """

    def measure(routing: Routing) -> xr.Dataset:
        return _of(routing, deals, seed)

    return over_checkpoints(source, measure)


def _of(routing: Routing, deals: int, seed: int) -> xr.Dataset:
    chosen = routing.chosen
    if len(chosen) < 2:
        raise UsageError("flow goes from layer to layer and found 1, expected 2 or more.")
    here, there = chosen[:-1], chosen[1:]
    starts = routing.tokens.groups(MOST_GROUPS)
    ends = [*starts[1:], routing.tokens.count]
    groups = np.stack(
        [_meetings(here[:, a:b], there[:, a:b]) for a, b in zip(starts, ends, strict=True)]
    )
    joint = groups.sum(axis=0)
    thin = too_thin(joint)
    found, low, high = (np.where(thin, np.nan, x) for x in jackknife(groups, mutual_information))
    plug_in = mutual_information(joint)
    null = dealt_information(here, there, routing.tokens.starts, deals, seed)
    undefined = np.full_like(plug_in, np.nan)
    outgoing = joint.sum(axis=-1, keepdims=True)
    columns = {
        "information": found,
        "information_low": low,
        "information_high": high,
        "plug_in": plug_in,
        "null": null.mean(axis=0) if len(null) else undefined,
        "p": p_value(plug_in, null) if len(null) else undefined,
        "attainable": np.minimum(entropy(joint.sum(axis=-1)), entropy(joint.sum(axis=-2))),
    }
    total = outgoing.sum(axis=-2)
    load = np.divide(
        outgoing[..., 0], total, out=np.full_like(outgoing[..., 0], np.nan), where=total > 0
    )
    transition = np.divide(joint, outgoing, out=np.full_like(joint, np.nan), where=outgoing > 0)
    experts = np.arange(routing.experts)
    result = xr.Dataset(
        {name: ("layer", column) for name, column in columns.items()}
        | {
            "transition": (("layer", "expert", "expert2"), transition.astype(np.float32)),
            "load": (("layer", "expert"), load),
        },
        coords={
            "layer": routing.layers[:-1],
            "next_layer": ("layer", routing.layers[1:]),
            "expert": experts,
            "expert2": experts,
        },
    )
    about = {**routing.tokens.about(), "k": routing.k, "experts": routing.experts}
    return captioned(result, _captions(len(starts), routing, deals)).assign_attrs(
        **about, deals=deals, seed=seed
    )


def _captions(groups: int, routing: Routing, deals: int) -> dict[str, Caption]:
    interval = (
        f"95 %, jackknife over {groups} groups of {routing.tokens.blocks_are}: other text of the "
        "same kind, same checkpoint"
    )
    plain = "point estimate: see information"
    dealt = f"of {deals} deals of one layer's texts to the other's"
    return {
        "information": Caption(
            "bits", "information that a layer's expert has of the next layer's", interval, 0.0
        ),
        "plug_in": Caption("bits", "the same, its bias not taken off", plain, "null"),
        "null": Caption("bits", f"mean plug-in information {dealt}", "none: mean over deals"),
        "p": Caption("1", f"share {dealt} as informative as the text", "none: a p-value"),
        "attainable": Caption("bits", "the smaller entropy of the two layers' experts", plain),
        "transition": Caption(
            "1", "share of expert2 (next layer) in what the tokens of expert take there",
            "point estimate: on these tokens exact", "load of expert2 in the next layer",
        ),
        "load": Caption(
            "1", "share of the lower layer's choices that went to expert",
            "point estimate: on these tokens exact", 1 / routing.experts,
        ),
    }  # fmt: skip


def _meetings(here: NDArray[np.float32], there: NDArray[np.float32]) -> Floats:
    """Tokens (layer, expert, expert2) that chose both, from (layer, token, expert) each."""
    return np.matmul(here.transpose(0, 2, 1), there).astype(np.float64)


def dealt_information(
    here: NDArray[np.float32],
    there: NDArray[np.float32],
    starts: NDArray[np.intp],
    deals: int,
    seed: int,
) -> Floats:
    """(deal, layer), bits: plug-in information with the texts of `there` dealt anew to those of
    `here`; (0, layer) where there is one text.

    A shorter text is read again from its start until the longer one is full.
    """
    if len(starts) < 2:
        return np.empty((0, len(here)))
    rng = np.random.default_rng(seed)
    sizes = np.diff([*starts, here.shape[1]])
    block = np.repeat(np.arange(len(starts)), sizes)
    place = np.arange(here.shape[1]) - starts[block]
    null = np.empty((deals, len(here)))
    for row in null:
        other = rng.permutation(len(starts))[block]
        dealt = np.take(there, starts[other] + place % sizes[other], axis=1)
        row[:] = mutual_information(_meetings(here, dealt))
    return null
