"""Essential dynamics: the few directions along which the model's predictions move in training.

Needs   the site next_logprob (token,) at every checkpoint; with `entries`, also logits.
Yields  score (checkpoint, component), nats; explained (component), fraction of the movement, with
        a 95 % interval; loading (component, feature).

Every checkpoint is one point: its log-probabilities on the fixed tokens. The principal components
of all checkpoints of all arms together give one basis, so that arms can be drawn in one plane.
All logits (token x vocab) of every checkpoint would not fit: the point is the log-probability of
the token that follows at each position, and `entries` log-probabilities of other tokens at places
drawn once by `seed`, the same for all checkpoints. What the model thinks of tokens that are neither
is not in it. A component's sign is such that the last checkpoint scores above 0.

The interval of `explained` resamples rows of text. Scores have none: on these tokens they are
exact; their axes would turn with other tokens. Smooth training gives curved paths in the first two
components whatever happens (a line's principal components are cosines): a bend is no event.

It misleads where a bend is read as an event, where the features leave out what moved, and where
arms of different length pull the axes towards the longer one.

Source: Carroll et al. 2024 (after essential dynamics of proteins, Amadei et al. 1993),
arXiv:2402.02364; the caution, Antognini & Sohl-Dickstein 2018, arXiv:1806.08805.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from probes.registry import probe
from probes.statistics.resample import (
    NOT_OF_MEAN,
    Floats,
    bootstrap_weights,
    percentile_interval,
)
from workbench.errors import UsageError

if TYPE_CHECKING:
    from probes.subject import Subject

COMPONENTS = 8
"""Components kept at most."""
DRAWS = 500


def basis(result: xr.Dataset) -> xr.Dataset:
    """The principal components of all checkpoints together; the registry's `finish`.

    Args:
        result: logprob (checkpoint, feature), nats, with the coordinate row (feature); a dim
            `checkpoint` over all arms.

    Returns:
        Dataset: score (checkpoint, component); explained, explained_low, explained_high
        (component); loading (component, feature); centre (feature).

    Raises:
        UsageError: no dim `checkpoint`, or no feature that all checkpoints have.

    Example:
        >>> line = np.outer([0.0, 1.0, 2.0], [3.0, 4.0])
        >>> points = xr.Dataset({"logprob": (("checkpoint", "feature"), line)})
        >>> found = basis(points.assign_coords(row=("feature", [0, 1])))
        >>> found["score"].sel(component=0).values.round(6).tolist()
        [-5.0, 0.0, 5.0]
    """
    if "checkpoint" not in result["logprob"].dims:
        raise UsageError("logprob has no dim 'checkpoint'; put checkpoints together along it.")
    points = result["logprob"].transpose("checkpoint", "feature").values.astype(np.float64)
    kept = np.isfinite(points).all(axis=0)
    if not kept.any():
        raise UsageError("no position has a log-probability at every checkpoint.")
    centre = np.where(kept, points.mean(axis=0, where=np.isfinite(points)), np.nan)
    moved = np.where(kept, points - centre, 0.0)
    left, size, right = np.linalg.svd(moved, full_matrices=False)
    real = size > 1e-9 * max(float(size[0]), 1e-300)
    count = min(COMPONENTS, max(int(real.sum()), 1))
    sign = np.where(left[-1, :count] < 0, -1.0, 1.0)
    score = left[:, :count] * size[:count] * sign
    total = float((size**2).sum())
    shares = size[:count] ** 2 / total if total > 0 else np.full(count, np.nan)
    row = result["row"].transpose(..., "feature").values
    row = row[0] if row.ndim == 2 else row
    low, high, rows = _explained_interval(moved, row, count)
    about = (
        f"95 %, bootstrap over {rows} rows of text ({NOT_OF_MEAN}): other text of this kind, same "
        "checkpoints"
    )
    exact = "exact on these tokens: the axes would turn with others"
    share = {"units": "1", "long_name": "share of the movement along the component",
             "interval": about}  # fmt: skip
    made = xr.Dataset(
        {
            "score": (("checkpoint", "component"), score, {
                "units": "nats", "long_name": "position along the component", "interval": exact}),
            "explained": ("component", shares, share),
            "explained_low": ("component", np.minimum(low, shares), share),
            "explained_high": ("component", np.maximum(high, shares), share),
            "loading": (("component", "feature"), right[:count] * sign[:, None], {
                "units": "1", "long_name": "direction of the component", "interval": exact}),
            "centre": ("feature", centre, {
                "units": "nats", "long_name": "mean over checkpoints", "interval": "exact"}),
        },
        coords={"component": np.arange(count), "row": ("feature", row)},
    )  # fmt: skip
    along = {n: c for n, c in result.coords.items() if c.dims == ("checkpoint",)}
    return made.assign_coords(along).assign_attrs(
        result.attrs | {"features": int(kept.sum()), "interval": about}
    )


def _explained_interval(moved: Floats, row: np.ndarray, count: int) -> tuple[Floats, Floats, int]:
    """Bounds of the explained shares: checkpoints' inner products are sums over rows of text."""
    _, of_feature = np.unique(row, return_inverse=True)
    rows = int(of_feature.max()) + 1
    grams = np.stack([part @ part.T for r in range(rows) for part in [moved[:, of_feature == r]]])
    weights = bootstrap_weights(rows, DRAWS)
    values = np.linalg.eigvalsh(np.tensordot(weights, grams, 1))[:, ::-1].clip(0)
    total = values.sum(axis=1, keepdims=True)
    shares = np.divide(values, total, out=np.full(values.shape, np.nan), where=total > 0)
    low, high = percentile_interval(shares[:, :count], rows, of_mean=False)
    return low, high, rows


@probe(
    "essential-dynamics",
    question="Along which few directions did the predictions move, and when did they turn?",
    reads="checkpoint",
    needs=("next_logprob",),
    finish=basis,
    version=2,
)
def essential(subject: Subject, *, entries: int = 0, seed: int = 0) -> xr.Dataset:
    """One checkpoint's point: its log-probabilities on the fixed tokens. `basis` fits the rest.

    Args:
        subject: a checkpoint after its pass.
        entries: further log-probabilities, of tokens drawn at positions drawn; 0: none. More than
            0 reads all logits of this one checkpoint in a pass of its own.
        seed: of what is drawn; the same for all checkpoints.

    Returns:
        Dataset: logprob (feature), float32, nats; row (feature).

    Example:
        >>> from model.config import NANO
        >>> from model.lm import MoELM
        >>> from probes.exam import Exam
        >>> from probes.subject import Subject
        >>> exam = Exam(tokens=np.arange(64).reshape(8, 8), domains=tuple("aabbaabb"))
        >>> essential(Subject(MoELM(NANO), exam))["logprob"].sizes["feature"]
        56
    """
    if entries < 0:
        raise UsageError(f"entries={entries}: expected 0 or more.")
    row = subject.labels["row"].values
    there = subject.labels["next_id"].values >= 0
    point = subject["next_logprob"].numpy()[there]
    rows = row[there]
    if entries:
        logits = subject["logits"]
        rng = np.random.default_rng(seed)
        token = rng.integers(0, logits.shape[0], entries)
        word = rng.integers(0, logits.shape[1], entries)
        drawn = logits[token, word] - logits.logsumexp(-1)[token]
        point, rows = np.concatenate([point, drawn.numpy()]), np.concatenate([rows, row[token]])
    attrs = {
        "units": "nats", "long_name": "log-probabilities that make up the checkpoint's point",
        "interval": "exact: of these tokens",
    }  # fmt: skip
    return xr.Dataset(
        {"logprob": ("feature", point.astype(np.float32), attrs)},
        {"row": ("feature", rows)},
        {"n": len(point), "n_meaning": "log-probabilities", "entries": entries, "seed": seed},
    )
