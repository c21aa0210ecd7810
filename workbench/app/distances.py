"""How far the checkpoints of all arms are from each other, in how they route the fixed tokens.

Needs   runs or windows by arm, with activations (router_probs).
Yields  `routing_distances`: distance (checkpoint, other), for `figures.trajectory`.

The distance is the root of the divergence (probes/divergence.py: Jensen-Shannon, mean over tokens
and layers), in the root of bits: 0 where two checkpoints route alike, 1 at most. The root, because
that and not the divergence itself is a distance: no way is shorter by a detour, and points can be
placed by it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

import probes
from workbench.errors import RunNotFound, UsageError
from workbench.run import Run
from workbench.window import Window

NEEDED = ["router_probs", "expert_ids"]
AT_MOST = 24
"""Checkpoints, evenly spaced along each arm, where there are more."""
CELLS = 200_000
"""Probabilities of one checkpoint that are compared at most; of more, evenly spaced tokens."""


def routing_distances(arms: Mapping[str, Run | Window], *, at_most: int = AT_MOST) -> xr.Dataset:
    """Distances between the checkpoints of several arms, each from each.

    Args:
        arms: name -> run or window; what they share before their first fork counts once.
        at_most: checkpoints in all, about.

    Returns:
        Dataset: distance (checkpoint, other); coordinates checkpoint (steps), branch ("" for the
        shared history), tokens_seen. attrs: n (tokens compared), run.

    Raises:
        UsageError: no arm, or fewer than two checkpoints.
        RunNotFound: an arm has no activations.

    Example:
        >>> run = workbench.open_run("runs/demo")                           # doctest: +SKIP
        >>> routing_distances({"continue": run.arm("continue")})            # doctest: +SKIP
        <xarray.Dataset> ...
    """
    if not arms or at_most < 2:
        raise UsageError(f"{len(arms)} arms and at_most={at_most}; expected 1 or more, and 2.")
    read = {name: _probabilities(source) for name, source in arms.items()}
    fork = _fork(arms) if len(arms) > 1 else None
    rows = _chosen(read, fork, at_most)
    if len(rows) < 2:
        raise UsageError(f"found {len(rows)} checkpoints, expected 2 or more; widen the stretch.")
    parts = [read[arm][NEEDED].sel(checkpoint=step).load() for arm, _, step in rows]
    distance = np.zeros((len(rows), len(rows)))
    for i, one in enumerate(parts):
        for j in range(i):
            distance[i, j] = distance[j, i] = _apart(parts[j], one)
    tokens = parts[0].sizes["token"]
    steps = [step for _, _, step in rows]
    coords: dict[str, object] = {
        "checkpoint": steps, "branch": ("checkpoint", [branch for _, branch, _ in rows]),
    }  # fmt: skip
    if all("tokens_seen" in part.coords for part in parts):
        coords["tokens_seen"] = ("checkpoint", [int(part["tokens_seen"]) for part in parts])
    attrs = {
        "units": "√bit", "long_name": "how they route the fixed tokens",
        "interval": "exact on these tokens: root of the mean Jensen-Shannon divergence of the "
                    "routers' probabilities, 1 at most",
    }  # fmt: skip
    named = {k: v for k, v in next(iter(read.values())).attrs.items() if k == "run"}
    return xr.Dataset(
        {"distance": (("checkpoint", "other"), distance, attrs)}, coords=coords,
        attrs={**named, "branch": ", ".join(arms), "n": tokens,
               "n_meaning": "tokens of the fixed set"},
    )  # fmt: skip


def _probabilities(source: Run | Window) -> xr.Dataset:
    """The fixed tokens' routing, not more of it than is compared."""
    read = source.activations
    if "router_probs" not in read:
        raise RunNotFound("the record holds no router_probs of fixed tokens, only choices.")
    cells = int(np.prod([read.sizes[d] for d in ("token", "layer", "expert")]))
    return read.isel(token=slice(None, None, max(1, -(-cells // CELLS))))


def _fork(arms: Mapping[str, Run | Window]) -> int | None:
    runs = [source.run if isinstance(source, Window) else source for source in arms.values()]
    return min((run.fork_step for run in runs if run.fork_step), default=None)


def _chosen(
    read: Mapping[str, xr.Dataset], fork: int | None, at_most: int
) -> list[tuple[str, str, int]]:
    """Arm to read from, branch that it is drawn as, and step."""
    strands: list[tuple[str, str, np.ndarray]] = []
    for k, (arm, ds) in enumerate(read.items()):
        steps = ds["checkpoint"].values
        if fork is None:
            strands.append((arm, arm, steps))
            continue
        if k == 0:
            strands.append((arm, "", steps[steps <= fork]))
        strands.append((arm, arm, steps[steps > fork]))
    total = sum(len(steps) for _, _, steps in strands)
    found = []
    for arm, branch, steps in strands:
        # The ends of every strand are kept: the fork is one.
        n = len(steps) if total <= at_most else max(2, round(at_most * len(steps) / total))
        at = np.unique(np.linspace(0, len(steps) - 1, min(n, len(steps))).round().astype(int))
        found += [(arm, branch, int(steps[i])) for i in (at if len(steps) else [])]
    return found


def _apart(then: xr.Dataset, now: xr.Dataset) -> float:
    pair = xr.concat(
        [then.assign_coords(checkpoint=0), now.assign_coords(checkpoint=1)], dim="checkpoint",
        coords="minimal", compat="override",
    )  # fmt: skip
    # Its intervals are not asked for: two draws cost nothing.
    return float(np.sqrt(probes.divergence(pair, n_boot=2)["divergence"].mean()))
