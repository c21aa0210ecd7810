"""Drop rate: the share of assignments that a router with limited room threw away.

Needs   router: assignments (step, layer, expert), tokens (step); k, as an attribute or argument.
Yields  drop_rate (step, layer), fraction in [0, 1]: 1 - kept / (tokens x k).

The record counts an assignment only where it was kept (dropped ones carry the id -1), so that what
is missing from tokens x k was dropped. A dropless router has 0. Exact counts over every training
token: no interval belongs to them. It says how many, not which tokens; a traced token's -1 does.

It misleads where a trainer drops after the record was taken (it says 0 then), and where padding
fills the room: the tokens that were dropped may be ones that nobody misses.

Source: capacity and dropped tokens, Fedus et al. 2022, section 2.2, arXiv:2101.03961.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from probes.caption import Caption, captioned
from probes.inputs.pool import pooled_blocks
from probes.load import EXACT
from probes.registry import probe
from probes.source import Source, group_of
from workbench.errors import SchemaError, UsageError

CAPTION = Caption("1", "share of assignments that were dropped", EXACT, 0.0)


@probe(
    "drop-rate",
    question="Which share of assignments did the routers drop?",
    reads="record",
    needs=("router",),
)
def drop_rate(source: Source, *, window: int | None = None, k: int | None = None) -> xr.Dataset:
    """The share of assignments that were dropped, layer by layer.

    Args:
        source: router dataset, Run, Window or anything with `.router`.
        window: tokens to pool before measuring; None measures every step.
        k: experts a token asks for; None takes the record's attribute.

    Returns:
        Dataset (step, layer): drop_rate; NaN where no token was routed. attrs: n (tokens), k.

    Raises:
        UsageError: k is not known, or a window that does not fit the record.
        SchemaError: more assignments than tokens x k.

    Example:
        >>> counts = xr.DataArray([[[6, 2]]], dims=("step", "layer", "expert"))
        >>> router = xr.Dataset({"assignments": counts, "tokens": ("step", [5])})
        >>> drop_rate(router, k=2)["drop_rate"].values.round(6).tolist()
        [[0.2]]
    """
    router = group_of(source, "router", ["assignments", "tokens"])
    found = router.attrs.get("k", k) if k is None else k
    if found is None:
        raise UsageError(
            "this record does not say how many experts a token asks for, and dropped assignments "
            "hide it; say k=...."
        )
    parts = []
    for _, pools in pooled_blocks(router, ["assignments", "tokens"], window):
        kept = pools["assignments"].sum("expert")
        asked = pools["tokens"] * int(found)
        parts.append((1 - kept / asked.where(asked > 0)).transpose("step", "layer"))
    rate = xr.concat(parts, dim="step")
    if float(rate.min()) < -1e-9:
        raise SchemaError(
            f"found more assignments than tokens x k with k={int(found)}; was `tokens` counted on "
            "fewer ranks, or is k another?"
        )
    result = xr.Dataset({"drop_rate": rate.clip(min=0)})
    result.attrs = {
        "n": int(np.sum(router["tokens"].values)),
        "n_meaning": "training tokens counted",
        "k": int(found),
        "window_tokens": window if window is not None else "each step",
    }
    return captioned(result, {"drop_rate": CAPTION})
