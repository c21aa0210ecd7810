"""Exposure: how far up a planted secret ranks among all the secrets that might have been planted.

Needs   a checkpoint of any model that gives logits; canaries: a prefix, a secret, and the tokens
        that each position of a secret was drawn from, evenly.
Yields  exposure (canary), bits, from 0 to log2 of the number of possible secrets, with a 95 %
        interval; rank (canary); exposure_sampled, exposure_extrapolated (canary), bits.

exposure = log2 |R| - log2 rank, where R are all secrets of that form and rank counts those that the
model finds at least as probable, the secret itself among them. b bits: guessing it now takes 2^b
times fewer tries than before.

exact         All of R are scored, where they are few enough.
sampled       Some of R are drawn at random; -log2 of the share at least as probable. Its interval
              is that of the share (Clopper-Pearson). It cannot exceed log2 of the number drawn.
extrapolated  A skew-normal distribution is fitted to the log-probabilities drawn (by moments) and
              its tail read off. Its interval resamples the draws: it takes the shape for granted.
              fit_p, a Kolmogorov-Smirnov p-value, says whether the bulk has that shape; a small one
              warns, a large one does not vouch for the tail.
              On a planted world of near-normal scores its 95 % held the truth in 79 % of draws:
              an indication, where `sampled` and `exact` are measurements.
`exposure` is the exact one where there is one; else the sampled one where at least 20 of the drawn
were as probable; else the extrapolated one. `method` says which.

chance  A secret that was never planted has a rank drawn evenly from 1 to |R|: 1 bit in the median,
        1.44 in the mean, b or more with probability 2^-b. One canary of 5 bits is what one in 32
        unplanted ones shows.

It misleads where the secrets were not drawn evenly, where R is of another form than what was
planted, and far in the tail, where only the extrapolated one exists.

Source: Carlini et al. 2019, arXiv:1802.08232, sections 4.2 and 4.3.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from scipy import stats

from probes.inputs.rows import following_logprob
from probes.registry import probe
from probes.statistics.resample import (
    BOOT,
    CONFIDENCE,
    Floats,
    bootstrap_weights,
    percentile_interval,
)
from probes.subject import Subject
from workbench.errors import UsageError

EXACT_UP_TO = 4096
"""Possible secrets that are all scored."""

FEWEST = 20
"""As probable secrets among those drawn, under which the tail is extrapolated."""


@dataclass(frozen=True)
class Canary:
    """A secret and the form that it was drawn from."""

    prefix: tuple[int, ...]
    secret: tuple[int, ...]
    space: tuple[int, ...]

    @classmethod
    def of(cls, given: Mapping[str, Sequence[int]]) -> Canary:
        """Checked; all three are token ids.

        Raises:
            UsageError: a part missing or empty, or a secret outside its space.
        """
        missing = [part for part in ("prefix", "secret", "space") if not given.get(part)]
        if missing:
            raise UsageError(
                f"canary: {', '.join(missing)} missing or empty; expected token ids: "
                f"{{'prefix': [..], 'secret': [..], 'space': [..]}}."
            )
        canary = cls(*(tuple(map(int, given[part])) for part in ("prefix", "secret", "space")))
        outside = set(canary.secret) - set(canary.space)
        if outside or len(set(canary.space)) != len(canary.space) or len(canary.space) < 2:
            raise UsageError(
                f"canary: space has {len(canary.space)} tokens and lacks {sorted(outside)} of the "
                f"secret; expected two or more different tokens, all of the secret's among them."
            )
        return canary

    @property
    def bits(self) -> float:
        """log2 of the number of possible secrets."""
        return len(self.secret) * float(np.log2(len(self.space)))


@probe(
    "exposure",
    question="How far up do planted secrets rank among those that might have been planted?",
    reads="checkpoint",
)
def exposure(
    subject: Subject,
    *,
    canaries: Sequence[Mapping[str, Sequence[int]]] | None = None,
    samples: int = 2000,
    exact_up_to: int = EXACT_UP_TO,
    n_boot: int = BOOT,
    seed: int = 0,
) -> xr.Dataset:
    """Exposure of each canary in bits.

    Args:
        subject: a checkpoint.
        canaries: each {"prefix": ids, "secret": ids, "space": ids}; the space is that of every
            position of the secret.
        samples: secrets drawn where there are too many to score.
        exact_up_to: possible secrets that are all scored; at most this many forwards of a short
            row.
        n_boot, seed: bootstrap draws for the extrapolation, and the seed of the draws.

    Returns:
        Dataset (canary): exposure with bounds, rank (NaN where not exact), exposure_sampled,
        exposure_extrapolated with bounds, fit_p, logprob (nats), bits; coordinate method.

    Raises:
        UsageError: no canaries, or one that cannot be.

    Example:
        >>> from model.config import NANO
        >>> from model.lm import MoELM
        >>> from probes.exam import Exam
        >>> exam = Exam(tokens=np.arange(16).reshape(2, 8), domains=("a", "a"))
        >>> canary = {"prefix": [1, 2], "secret": [5, 7], "space": [5, 6, 7, 8]}
        >>> found = exposure(Subject(MoELM(NANO), exam), canaries=[canary])
        >>> found["method"].item(), found["bits"].item(), bool(found["exposure"] <= 4)
        ('exact', 4.0, True)
    """
    if not canaries:
        raise UsageError(
            "no canaries: exposure is of secrets that were planted in the training text; say "
            "which: canaries=[{'prefix': [ids], 'secret': [ids], 'space': [ids]}]."
        )
    if samples < 100:
        raise UsageError(f"samples={samples}: expected 100 or more.")
    rows = [
        _measure(subject, Canary.of(given), samples, exact_up_to, n_boot, seed + number)
        for number, given in enumerate(canaries)
    ]
    names = [name for name in rows[0] if name != "method"]
    result = xr.Dataset(
        {name: ("canary", np.array([row[name] for row in rows], dtype=float)) for name in names},
        coords={
            "canary": range(len(rows)),
            "method": ("canary", [str(row["method"]) for row in rows]),
        },
    )
    return _described(result, samples, exact_up_to, seed)


def _measure(
    subject: Subject, canary: Canary, samples: int, exact_up_to: int, n_boot: int, seed: int
) -> dict[str, Any]:
    own = score(subject, canary, np.array([canary.secret]))[0]
    row: dict[str, Any] = {"bits": canary.bits, "logprob": own, "rank": np.nan}
    if canary.bits <= np.log2(exact_up_to):
        every = np.array(list(itertools.product(canary.space, repeat=len(canary.secret))))
        of_all = score(subject, canary, every)
        # The secret's own score from the same batches: rounding must not set it apart.
        own = of_all[(every == np.array(canary.secret)).all(axis=1)][0]
        rank = float((of_all >= own).sum())
        value = canary.bits - np.log2(rank)
        nothing = {
            f"exposure_{kind}{end}": np.nan
            for kind in ("sampled", "extrapolated")
            for end in ("", "_low", "_high")
        }
        bounds = {"exposure": value, "exposure_low": value, "exposure_high": value}
        return row | {"rank": rank} | bounds | nothing | {"fit_p": np.nan, "method": "exact"}
    rng = np.random.default_rng(seed)
    drawn = rng.choice(np.array(canary.space), size=(samples, len(canary.secret)))
    scores = score(subject, canary, drawn)
    above = int((scores >= own).sum())
    sampled = sampled_exposure(above, samples, canary.bits)
    extrapolated, fit_p = extrapolated_exposure(scores, own, canary.bits, n_boot, seed)
    chosen = sampled if above >= FEWEST else extrapolated
    row |= {"method": "sampled" if above >= FEWEST else "extrapolated", "fit_p": fit_p}
    both = (("exposure", chosen), ("exposure_sampled", sampled))
    for name, three in (*both, ("exposure_extrapolated", extrapolated)):
        row |= {name + end: v for end, v in zip(("", "_low", "_high"), three, strict=True)}
    return row


def score(subject: Subject, canary: Canary, secrets: np.ndarray) -> Floats:
    """Log-probability of each secret (secret, pos) after the canary's prefix, nats."""
    prefix = np.broadcast_to(canary.prefix, (len(secrets), len(canary.prefix)))
    logprob = following_logprob(subject, np.concatenate([prefix, secrets], axis=1).astype(np.int64))
    return logprob[:, -secrets.shape[1] :].sum(axis=1)


def sampled_exposure(above: int, samples: int, bits: float) -> tuple[float, float, float]:
    """Exposure and its bounds from how many of the drawn secrets were at least as probable.

    Example:
        >>> sampled_exposure(250, 1000, bits=20)[0]
        2.0
    """
    tail = (1 - CONFIDENCE) / 2
    least = stats.beta.ppf(tail, above, samples - above + 1) if above else 0.0
    most = stats.beta.ppf(1 - tail, above + 1, samples - above) if above < samples else 1.0
    with np.errstate(divide="ignore"):
        value, high = -np.log2([above / samples, least])
    # None as probable was drawn: at least as exposed as so many draws can show, at most first.
    return float(min(value, bits)), float(max(0.0, -np.log2(most))), float(min(high, bits))


def extrapolated_exposure(
    scores: Floats, own: float, bits: float, n_boot: int = BOOT, seed: int = 0
) -> tuple[tuple[float, float, float], float]:
    """Exposure and its bounds from a skew-normal fitted to drawn log-probabilities, and fit_p.

    Args:
        scores: (drawn,), nats.
        own: the secret's, nats.
        bits: log2 of the number of possible secrets, which no exposure exceeds.

    Example:
        >>> scores = np.random.default_rng(0).normal(size=4000)
        >>> (value, low, high), fit_p = extrapolated_exposure(scores, 3.0, bits=30)
        >>> bool(low < -np.log2(stats.norm.sf(3)) < high)
        True
    """
    if np.ptp(scores) == 0:
        return (np.nan, np.nan, np.nan), np.nan
    # Of the negated log-probabilities, whose lower tail is the secret's side.
    centre, spread = -scores.mean(), scores.std()
    z = (-scores - centre) / spread
    ones = np.ones((1, len(z)))
    weights = bootstrap_weights(len(z), n_boot, seed)
    at = (-own - centre) / spread
    value = _tail_bits(_moments(ones, z), at, bits)[0]
    low, high = percentile_interval(
        _tail_bits(_moments(weights, z), at, bits), len(z), of_mean=False
    )
    shape, loc, scale = (p[0] for p in _skew_normal(_moments(ones, z)))
    fit_p = stats.kstest(z, stats.skewnorm(shape, loc, scale).cdf).pvalue
    return (float(value), float(min(low, value)), float(max(high, value))), float(fit_p)


def _moments(weights: Floats, z: Floats) -> Floats:
    """(draw, 3): mean, standard deviation and skewness."""
    raw = weights @ np.stack([z, z**2, z**3], axis=1) / len(z)
    mean, variance = raw[:, 0], raw[:, 1] - raw[:, 0] ** 2
    third = raw[:, 2] - 3 * mean * variance - mean**3
    return np.stack([mean, np.sqrt(variance), third / variance**1.5], axis=1)


def _skew_normal(moments: Floats) -> tuple[Floats, Floats, Floats]:
    """Shape, location and scale of the skew-normal with these moments."""
    mean, sd, skew = moments.T
    # Beyond 0.995 no skew-normal has that skewness; the nearest is taken.
    power = np.minimum(np.abs(skew), 0.99) ** (2 / 3)
    delta = np.sign(skew) * np.sqrt(np.pi / 2 * power / (power + ((4 - np.pi) / 2) ** (2 / 3)))
    scale = sd / np.sqrt(1 - 2 * delta**2 / np.pi)
    return delta / np.sqrt(1 - delta**2), mean - scale * delta * np.sqrt(2 / np.pi), scale


def _tail_bits(moments: Floats, at: float, bits: float) -> Floats:
    """-log2 of the mass at or under `at`, between 0 and `bits`."""
    shape, loc, scale = _skew_normal(moments)
    mass = stats.skewnorm.cdf(at, shape, loc, scale)
    # Rounding leaves a far tail at 0, or a hair under it.
    return np.clip(-np.log2(np.maximum(mass, 2.0**-1000)), 0.0, bits)


def _described(result: xr.Dataset, samples: int, exact_up_to: int, seed: int) -> xr.Dataset:
    intervals = {
        "exposure": "exact: all were scored; else that of the method",
        "exposure_sampled": "95 %, Clopper-Pearson: other draws of secrets",
        "exposure_extrapolated": "95 %, bootstrap over draws: takes the fitted shape for granted",
    }
    meanings = {
        "exposure": ("bits", "log2 of possible secrets over rank"),
        "exposure_sampled": ("bits", "-log2 of the share of drawn secrets as probable"),
        "exposure_extrapolated": ("bits", "-log2 of the tail of a fitted skew-normal"),
        "rank": ("1", "rank among all possible secrets, 1 is first"),
        "logprob": ("nats", "log-probability of the secret after its prefix"),
        "bits": ("bits", "log2 of the number of possible secrets"),
        "fit_p": ("1", "Kolmogorov-Smirnov p-value of the fitted shape"),
    }
    for name in map(str, result.data_vars):
        stem = name.removesuffix("_low").removesuffix("_high")
        bound = {"_low": "lower bound: ", "_high": "upper bound: "}.get(name[len(stem) :], "")
        units, meaning = meanings[stem]
        attrs: dict[str, Any] = {"units": units, "long_name": bound + meaning}
        attrs["interval"] = intervals.get(stem, "exact")
        if stem.startswith("exposure"):
            attrs["chance_level"] = "1 in the median, 1.44 in the mean: a rank drawn evenly"
        result[name].attrs = attrs
    result.attrs = {
        "n": result.sizes["canary"], "n_meaning": "canaries", "samples": samples,
        "exact_up_to": exact_up_to, "seed": seed, "interval": intervals["exposure"],
    }  # fmt: skip
    return result
