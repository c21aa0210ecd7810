"""Rerouting: to which experts did the tokens of an expert go since the checkpoint before?

Needs   activations: expert_ids (checkpoint, token, layer, k), on one fixed set of tokens.
Yields  moved (checkpoint, layer, expert, expert2): share of the choices that `expert` had at
        `since` and `expert2` has now, rows sum to 1; load (checkpoint, layer, expert) at `since`;
        kept (checkpoint, layer), the share of all choices that stayed, which is 1 - churn.

Between two checkpoints an expert's number means the same expert, so that the diagonal of `moved`
is what it kept. A token that keeps some of its k experts keeps them; the choices that it gave up
are dealt evenly to those it took up: with one given up and one taken up, from the one to the other.
(All k x k pairs, as between two layers, would show moves among experts that a token keeps.)

The counts are exact on these tokens. Whether the routing moved at all, and by more than chance, is
said by `churn`, with an interval.

It misleads where experts of the greatest load are taken for attractors (most moves end there by
chance: hold a column against the load), where the row of an expert with few tokens is read as a
habit, and where near-ties swap to and fro without effect.

Source: a quantity of this house, churn (stability.py) told by where it goes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from probes.caption import Caption, captioned
from probes.inputs.routing import RecordedRouting, Routing
from probes.registry import probe
from probes.source import Source
from workbench.errors import UsageError

Floats = NDArray[np.float64]

EXACT = "point estimate: on these tokens exact; see churn"


@probe(
    "rerouting",
    question="To which experts did the tokens of an expert go since the checkpoint before?",
    reads="record",
    needs=("activations",),
)
def rerouting(source: Source, *, against: Literal["first", "previous"] = "previous") -> xr.Dataset:
    """Where the choices of every expert went between two checkpoints.

    Args:
        source: activations dataset, Run, Window or anything with `.activations`.
        against: "previous" measures from the checkpoint before, "first" from the first.

    Returns:
        Dataset, from the second checkpoint on: moved (checkpoint, layer, expert, expert2), load
        (checkpoint, layer, expert), kept (checkpoint, layer); coordinate `since (checkpoint)`. NaN
        for an expert without a token at `since`.

    Raises:
        UsageError: fewer than two checkpoints.
        SchemaError: `expert_ids` missing, or a token that chose an expert twice.

    Example:
        >>> ids = np.array([[[[0, 1]], [[2, 3]]], [[[0, 2]], [[3, 2]]]])
        >>> dims = ("checkpoint", "token", "layer", "k")
        >>> routing = xr.Dataset({"expert_ids": (dims, ids)}, coords={"checkpoint": [10, 20]})
        >>> rerouting(routing)["moved"].sel(expert=1).values.tolist()
        [[[0.0, 0.0, 1.0, 0.0]]]
    """
    if against not in ("first", "previous"):
        raise UsageError(f"against={against!r}: expected 'first' or 'previous'.")
    record = RecordedRouting(source)
    if len(record.steps) < 2:
        raise UsageError(
            f"rerouting compares checkpoints and found {len(record.steps)}, expected 2 or more; "
            "widen the window."
        )
    rows, since = [], []
    then = record.at(0)
    for c in range(1, len(record.steps)):
        now = record.at(c)
        rows.append(transport(then, now))
        since.append(then.step)
        then = now if against == "previous" else then
    return _described(np.stack(rows), record, since, against)


def transport(then: Routing, now: Routing) -> Floats:
    """(layer, expert, expert2): choices that moved from one to the other, in tokens.

    Where a token dropped assignments, only as many choices move as it had at both times.
    """
    a, b = then.chosen, now.chosen
    kept = a * b
    lost, gained = a - kept, b - kept
    # Every choice given up is dealt evenly to those taken up; where there are fewer of these, what
    # has nowhere to go is left out.
    more = np.maximum(lost.sum(axis=-1), gained.sum(axis=-1))[..., None]
    dealt = np.divide(gained, more, out=np.zeros_like(gained), where=more > 0)
    moved = np.matmul(lost.transpose(0, 2, 1), dealt).astype(np.float64)
    experts = np.arange(moved.shape[-1])
    moved[:, experts, experts] += kept.sum(axis=1, dtype=np.float64)
    return moved


def _described(
    counts: Floats, record: RecordedRouting, since: list[int], against: str
) -> xr.Dataset:
    had = counts.sum(axis=-1)
    total = had.sum(axis=-1, keepdims=True)

    def over(above: Floats, below: Floats) -> Floats:
        return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)

    stayed = np.einsum("clee->cl", counts)
    experts = np.arange(record.experts)
    clocks = {
        name: clock[1:] if name != "checkpoint" else record.steps[1:]
        for name, clock in record.clocks().items()
    }
    result = xr.Dataset(
        {
            "moved": (
                ("checkpoint", "layer", "expert", "expert2"),
                over(counts, had[..., None]).astype(np.float32),
            ),
            "load": (("checkpoint", "layer", "expert"), over(had, total)),
            "kept": (("checkpoint", "layer"), over(stayed, total[..., 0])),
        },
        coords={
            **clocks, "since": ("checkpoint", since), "layer": record.layers, "expert": experts,
            "expert2": experts,
        },
    )  # fmt: skip
    captions = {
        "moved": Caption(
            "1", "share of the choices of expert that expert2 has now", EXACT, "load of expert2"
        ),
        "load": Caption("1", "share of the choices at `since`", EXACT, 1 / record.experts),
        "kept": Caption("1", "share of the choices that stayed", EXACT, "chance of churn"),
    }
    return captioned(result, captions).assign_attrs(
        **record.tokens.about(), k=record.ids.sizes["k"], experts=record.experts, against=against
    )
