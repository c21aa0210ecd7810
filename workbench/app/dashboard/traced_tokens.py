"""Traced tokens: which token ids an expert took, among the training tokens that were traced.

Needs   traces of a stretch: token (trace), expert_ids (trace, layer, k).
Yields  `traced_vocabulary`, in the form of probes.vocabulary, of one layer.

A traced token is one of the stream, so ids come as often as they do in the training text. An id's
share has a Wilson interval, its occurrences counted as independent: repetitions within a document
make it too narrow where documents are few.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from workbench.errors import RunNotFound

MOST = 50_000
"""Traced tokens that are looked at, the last ones."""
MIN_COUNT = 5
"""Ids seen less often are left out."""
_Z = 1.959964


def traced_vocabulary(traces: xr.Dataset, *, layer: int, experts: int) -> xr.Dataset:
    """How often each expert of a layer takes each token id.

    Args:
        traces: token (trace), expert_ids (trace, layer, k); -1 is no expert.
        layer: place, from 0.
        experts: of the layer.

    Returns:
        share, share_low, share_high (layer, token_id, expert), count (token_id); attrs n, the
        tokens looked at, and min_count.

    Raises:
        RunNotFound: no traced token, or no id that comes often enough.

    Example:
        >>> ids = np.array([[0], [0], [0], [0], [1]]).reshape(5, 1, 1)
        >>> traces = xr.Dataset({"token": ("trace", [7] * 5),
        ...                      "expert_ids": (("trace", "layer", "k"), ids)})
        >>> traced_vocabulary(traces, layer=0, experts=2).share.values
        array([[[0.8, 0.2]]])
    """
    traces = traces.isel(trace=slice(-MOST, None))
    chosen = traces["expert_ids"].isel(layer=layer).transpose("trace", "k").values
    seen = (chosen >= 0).any(axis=1)
    tokens, chosen = traces["token"].values[seen], chosen[seen]
    if not len(tokens):
        raise RunNotFound(
            "no token was traced in these steps: give the recorder traces=1e-3 to trace some."
        )
    ids, place, count = np.unique(tokens, return_inverse=True, return_counts=True)
    table = np.zeros((len(ids), experts))
    rows = np.repeat(place, chosen.shape[1])
    there = chosen.ravel() >= 0
    np.add.at(table, (rows[there], chosen.ravel()[there]), 1)
    often = count >= MIN_COUNT
    if not often.any():
        raise RunNotFound(
            f"{len(tokens):,} traced tokens in these steps, none {MIN_COUNT} times: "
            f"show more steps."
        )
    n = count[often][:, None].astype("float64")
    share = np.minimum(table[often] / n, 1.0)
    low, high = _wilson(share, n)
    dims = ("layer", "token_id", "expert")
    where = traces["layer"].values[layer] if "layer" in traces.coords else layer
    return xr.Dataset(
        {
            "share": (dims, share[None]),
            "share_low": (dims, low[None]),
            "share_high": (dims, high[None]),
            "count": ("token_id", count[often].astype("float64")),
        },
        coords={"layer": [int(where)], "token_id": ids[often], "expert": np.arange(experts)},
        attrs={"n": len(tokens), "min_count": MIN_COUNT},
    )


def _wilson(share: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % bounds of a share of n."""
    middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z * np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)
