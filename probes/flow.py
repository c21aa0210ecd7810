"""Flow: does the expert that a token took in one layer say which it takes in the next?

Needs   a checkpoint's expert_ids on the fixed tokens, two layers or more.
Yields  information (layer), bits, with bounds; plug_in, null, p, attainable; transition
        (layer, expert, expert2). `layer` is the lower of the two, `next_layer` the other.

A token that takes k experts in each layer is k x k pairs of weight 1/k^2: pick one of its experts
in either layer at random. With k = 1 it is the mutual information of two labels. `attainable` is
the smaller of the two entropies: what it would be if one layer followed from the other, k = 1.
transition is P(j in the next layer | i): N_ij / (k N_i), rows sum to 1 where nothing is dropped.

Chance. Labels that have nothing to do with each other still share information by accident. `null`
is what is left when one layer is shifted against the other along the text by random lengths: both
keep their loads and the likeness of neighbouring tokens, and only their meeting is undone. p is the
share of shifts at least as informative; at the 99 of the default it is 0.01 or more.

The interval and the bias taken off plug_in to give information: jackknife over blocks of text (rows
where known). Expect information where the same token always goes the same way in both layers: flow
is not by itself a path that was learnt. It can come out slightly below 0 where there is none.

Sources: mutual information, Shannon 1948; shifts as a null for series that depend on their
own past, Harris 2020, "Nonsense correlations in neuroscience", bioRxiv; the bias, jackknife.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from probes.caption import Caption, captioned
from probes.information import entropy, mutual_information, p_value
from probes.jackknife import jackknife
from probes.registry import probe
from probes.routing import Routing, over_checkpoints
from probes.source import Source
from workbench.errors import UsageError

if TYPE_CHECKING:
    from probes.subject import Subject

Floats = NDArray[np.float64]

SHIFTS = 99
MOST_GROUPS = 40
"""Blocks are joined into at most this many, so that memory does not grow with the text."""


@probe(
    "flow",
    question="Does a token's expert in one layer say which it takes in the next?",
    reads="checkpoint",
    needs=("expert_ids",),
)
def flow(source: Source | Subject, *, shifts: int = SHIFTS, seed: int = 0) -> xr.Dataset:
    """How much the routing of each layer says about that of the next.

    Args:
        source: a Subject; or a record with `.activations` (every checkpoint of it).
        shifts: random shifts of the null; 0 leaves null and p undefined.
        seed: of the shifts.

    Returns:
        Dataset (layer), of a record with `checkpoint` first: information, information_low,
        information_high, plug_in, null, p, attainable; transition (layer, expert, expert2).

    Raises:
        UsageError: fewer than two layers.

    Example:
        >>> ids = np.arange(120).reshape(1, 120, 1, 1) % 4
        >>> ids = np.concatenate([ids, 3 - ids], axis=2)
        >>> record = xr.Dataset(
        ...     {"expert_ids": (("checkpoint", "token", "layer", "k"), ids)},
        ...     coords={"checkpoint": [0]},
        ... )
        >>> flow(record, shifts=0)["plug_in"].values.tolist()
        [[2.0]]
    """

    def measure(routing: Routing) -> xr.Dataset:
        return _of(routing, shifts, seed)

    return over_checkpoints(source, measure)


def _of(routing: Routing, shifts: int, seed: int) -> xr.Dataset:
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
    found, low, high = jackknife(groups, mutual_information)
    plug_in = mutual_information(joint)
    null = shifted_information(here, there, shifts, seed)
    undefined = np.full_like(plug_in, np.nan)
    outgoing = joint.sum(axis=-1, keepdims=True)
    columns = {
        "information": found,
        "information_low": low,
        "information_high": high,
        "plug_in": plug_in,
        "null": null.mean(axis=0) if shifts else undefined,
        "p": p_value(plug_in, null) if shifts else undefined,
        "attainable": np.minimum(entropy(joint.sum(axis=-1)), entropy(joint.sum(axis=-2))),
    }
    transition = np.divide(joint, outgoing, out=np.full_like(joint, np.nan), where=outgoing > 0)
    experts = np.arange(routing.experts)
    result = xr.Dataset(
        {name: ("layer", column) for name, column in columns.items()}
        | {"transition": (("layer", "expert", "expert2"), transition.astype(np.float32))},
        coords={
            "layer": routing.layers[:-1],
            "next_layer": ("layer", routing.layers[1:]),
            "expert": experts,
            "expert2": experts,
        },
    )
    about = {**routing.tokens.about(), "k": routing.k, "experts": routing.experts}
    return captioned(result, _captions(len(starts), routing, shifts)).assign_attrs(
        **about, shifts=shifts, seed=seed
    )


def _captions(groups: int, routing: Routing, shifts: int) -> dict[str, Caption]:
    interval = (
        f"95 %, jackknife over {groups} groups of {routing.tokens.blocks_are}: other text of the "
        "same kind, same checkpoint"
    )
    plain = "point estimate: see information"
    shifted = f"of {shifts} circular shifts of one layer against the other"
    return {
        "information": Caption(
            "bits", "information that a layer's expert has of the next layer's", interval, 0.0
        ),
        "plug_in": Caption("bits", "the same, its bias not taken off", plain, "null"),
        "null": Caption("bits", f"mean plug-in information {shifted}", "none: mean over shifts"),
        "p": Caption("1", f"share {shifted} as informative as the text", "none: a p-value"),
        "attainable": Caption("bits", "the smaller entropy of the two layers' experts", plain),
        "transition": Caption(
            "1", "share of expert2 (next layer) in what the tokens of expert take there",
            "point estimate: on these tokens exact", "load of expert2 in the next layer",
        ),
    }  # fmt: skip


def _meetings(here: NDArray[np.float32], there: NDArray[np.float32]) -> Floats:
    """Tokens (layer, expert, expert2) that chose both, from (layer, token, expert) each."""
    return np.matmul(here.transpose(0, 2, 1), there).astype(np.float64)


def shifted_information(
    here: NDArray[np.float32], there: NDArray[np.float32], shifts: int, seed: int
) -> Floats:
    """(shift, layer), bits: plug-in information with `there` shifted along the text.

    Lengths are drawn evenly from all that move each token by a block's worth or more (less where
    the text is short), either way round.
    """
    tokens = here.shape[1]
    near = max(1, min(64, tokens // 4))
    rng = np.random.default_rng(seed)
    null = np.empty((shifts, len(here)))
    for row, by in zip(null, rng.integers(near, tokens - near + 1, shifts), strict=True):
        row[:] = mutual_information(
            _meetings(here[:, by:], there[:, :-by]) + _meetings(here[:, :by], there[:, -by:])
        )
    return null
