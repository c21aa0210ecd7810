"""Stream: residual streams in which it is known what is linearly there.

Needs   sizes, a seed, and what is to be true.
Yields  PlantedSubject: stands in for one checkpoint after its pass, for checkpoint and pair probes.

    readable_stream   a label whose best linear accuracy is known, in every layer
    lexical_stream    a label that token identity decides, and nothing else
    shared_streams    two streams whose CKA and participation ratio are known

Rows of text resemble themselves: a share of every variance is common to the tokens of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PlantedSubject:
    """What a checkpoint probe is given: sites and labels, no model worth the name.

    Example:
        >>> planted = readable_stream(rows=4, length=8, separation=[2.0], seed=0)
        >>> tuple(planted["resid_post"].shape), planted.labels["row"].values[-1]
        ((1, 32, 16), np.int64(3))
    """

    tokens: NDArray[np.int64]
    """(row, pos)."""
    domains: tuple[str, ...]
    sites: Mapping[str, NDArray]
    """By name, as a Subject's: resid_post (layer, token, d_model)."""
    given: Mapping[str, list[int]] = field(default_factory=dict)
    """Planted labels, one value a token."""
    truth: Mapping[str, Any] = field(default_factory=dict)
    """What a probe should find, by name."""
    step: int = 0
    branch: str = "main"

    def __getitem__(self, site: str) -> Tensor:
        import torch

        return torch.from_numpy(self.sites[site])

    @property
    def exam(self) -> SimpleNamespace:
        return SimpleNamespace(tokens=self.tokens, domains=self.domains)

    @property
    def model(self) -> Any:
        """Only there to say on which device to compute."""
        import torch

        return torch.nn.Linear(1, 1)

    @property
    def labels(self) -> xr.Dataset:
        rows, length = self.tokens.shape
        following = np.full((rows, length), -1)
        following[:, :-1] = self.tokens[:, 1:]
        columns = {
            "token_id": self.tokens.ravel(),
            "next_id": following.ravel(),
            "row": np.repeat(np.arange(rows), length),
            "position": np.tile(np.arange(length), rows),
            "domain": np.repeat(np.array(self.domains), length),
        }
        return xr.Dataset({name: ("token", column) for name, column in columns.items()})


def readable_stream(
    *,
    separation: Sequence[float],
    rows: int = 28,
    length: int = 64,
    width: int = 16,
    row_spread: float = 0.5,
    seed: int = 0,
) -> PlantedSubject:
    """A label of two even classes whose best linear accuracy is known in every layer.

    The classes' means are `separation` apart along one direction, with noise of sd 1 and an offset
    of sd `row_spread` common to a row. truth["accuracy"] (layer,) is that of the best linear
    classifier, Φ(s / (2 sqrt(1 + row_spread²))); one fitted to few tokens does a little worse.
    given: "planted".

    Args:
        separation: a value for each layer; 0: unlearnable.
    """
    rng = np.random.default_rng(seed)
    n = rows * length
    label = rng.integers(0, 2, n)
    streams = np.empty((len(separation), n, width), dtype=np.float32)
    for layer, apart in enumerate(separation):
        direction = rng.normal(size=width)
        direction /= np.linalg.norm(direction)
        offset = row_spread * rng.normal(size=(rows, width)).repeat(length, axis=0)
        noise = rng.normal(size=(n, width)) + offset
        streams[layer] = noise + apart * (label - 0.5)[:, None] * direction
    best = stats.norm.cdf(np.asarray(separation) / (2 * np.hypot(1, row_spread)))
    return PlantedSubject(
        tokens=rng.integers(0, 50, (rows, length)),
        domains=tuple("ab"[r % 2] for r in range(rows)),
        sites={"resid_post": streams},
        given={"planted": label.tolist()},
        truth={"accuracy": best},
    )


def lexical_stream(
    *,
    rows: int = 28,
    length: int = 64,
    types: int = 150,
    classes: int = 4,
    width: int = 48,
    noise: float = 0.5,
    seed: int = 0,
) -> PlantedSubject:
    """A label drawn once for each token type, in a stream that holds the type and noise.

    A probe reads it well, and reads random labels of the types as well: selectivity is 0 on
    average. given: "lexical".
    """
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, types, (rows, length))
    of_type = rng.integers(0, classes, types)
    vectors = rng.normal(size=(types, width))
    stream = vectors[tokens.ravel()] + noise * rng.normal(size=(rows * length, width))
    return PlantedSubject(
        tokens=tokens,
        domains=tuple("ab"[r % 2] for r in range(rows)),
        sites={"resid_post": stream[None].astype(np.float32)},
        given={"lexical": of_type[tokens.ravel()].tolist()},
        truth={"selectivity": 0.0},
    )


def shared_streams(
    *,
    spectrum: Sequence[float],
    shared: float,
    rows: int = 28,
    length: int = 64,
    row_share: float = 0.2,
    seed: int = 0,
) -> PlantedSubject:
    """Two layers of one spectrum, the second a turned mixture of the first with something new.

    The covariance of each has the eigenvalues `spectrum`; `shared` of the second's variance is the
    first's, `row_share` of every variance is common to a row. truth: "cka", shared; and
    "participation", (sum λ)² / sum λ².
    """
    rng = np.random.default_rng(seed)
    values = np.asarray(spectrum, dtype=np.float64)
    width = len(values)

    def drawn() -> Floats:
        token = rng.normal(size=(rows * length, width)) * np.sqrt(1 - row_share)
        row = rng.normal(size=(rows, width)) * np.sqrt(row_share)
        return (token + row.repeat(length, axis=0)) * np.sqrt(values)

    first, new = drawn(), drawn()
    turn = np.linalg.qr(rng.normal(size=(width, width)))[0]
    second = (np.sqrt(shared) * first + np.sqrt(1 - shared) * new) @ turn
    return PlantedSubject(
        tokens=rng.integers(0, 50, (rows, length)),
        domains=tuple("ab"[r % 2] for r in range(rows)),
        sites={"resid_post": np.stack([first, second]).astype(np.float32)},
        truth={"cka": shared, "participation": values.sum() ** 2 / (values**2).sum()},
    )
