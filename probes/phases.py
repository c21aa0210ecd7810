"""Phases: hidden states of training, from several signals at once.

Needs   signals (step or checkpoint, signal), any units; or a dataset of curves on one clock.
Yields  state (clock): number of the state, in order of first appearance; probability (clock,
        state); mean (state, signal), in standard deviations of the signal; transition (state,
        state_to); bic (states); p.

A hidden Markov model with Gaussian emissions, independent over signals within a state (library
hmmlearn: statsmodels' Markov switching takes one signal only), of z-scored signals; fitted from
TRIES starts, the likeliest kept. The number of states is the one with the least BIC (nats x 2).

BIC alone is fooled by noise with memory: a wandering signal dwells, and dwelling is what states
are. So more than one state is believed only where BIC gains more from them than in ALPHA = 5 % of
surrogates: Gaussian signals with the same correlations and the same memory (AR(1), a phi for each
signal) but without states. On stationary noise of 60 points, phi 0 and 0.5, one state is chosen in
99 % of cases (tests/probes/rates_emergence.py). With phi = 0.8 and 100 points BIC alone chose one
state in none of 20 cases, the surrogates in all. There is no interval: `probability` says how sure
the model is of each state, if there are states.

It misleads on signals that drift: a smooth fall, as of the loss, is cut into states that are stages
of one motion. Give it differences, or a window in which nothing drifts. Points with a NaN in any
signal are left out.

Sources: Hu, Chen, Saphra & Cho 2023, arXiv:2308.09543; surrogates, Theiler et al. 1992, Physica D.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import xarray as xr

from probes.registry import probe
from probes.signals import signals as captured_signals
from probes.source import Source
from probes.statistics.autoregression import memory
from probes.statistics.resample import Floats
from workbench.errors import SchemaError, UsageError

TRIES = 5
"""Starts from which the chosen number of states is fitted."""

SURROGATES = 59
"""Stateless signals behind p; the smallest p is 1 / (SURROGATES + 1)."""

ALPHA = 0.05
"""The p at or under which more than one state is believed."""

CLOSE = 0.05
"""Gain in log-likelihood, nats, under which a fit is done; BIC differs by tens of them."""

ROUNDS = 100
"""Rounds of expectation maximisation at most."""


def phases(
    signals: xr.Dataset | xr.DataArray,
    *,
    most: int = 5,
    surrogates: int = SURROGATES,
    seed: int = 0,
) -> xr.Dataset:
    """The hidden states through which several signals went; model and null in the file's head.

    Args:
        signals: (clock, signal) with a clock named step or checkpoint; or a Dataset whose variables
            have that one dim each. At least 20 points.
        most: states that are considered at most.
        surrogates: stateless signals behind p; 0 trusts BIC alone, and p is NaN.
        seed: of the starts and the surrogates; the same seed gives the same states.

    Returns:
        Dataset: state (clock), probability (clock, state), mean (state, signal), transition (state,
        state_to), bic (states), p (). attrs: states, n (points), by_bic: states that BIC alone
        would have chosen.

    Raises:
        UsageError: fewer than 20 points, no signal that varies, or hmmlearn not installed.
        SchemaError: no clock, or further dims.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> regime = np.repeat([0.0, 3.0, 0.0], 30)
        >>> noisy = regime[:, None] * [1, -1, 1] + rng.normal(size=(90, 3))
        >>> found = phases(xr.DataArray(noisy, dims=("step", "signal")), surrogates=19)
        >>> found.attrs["states"], found["state"].values[[0, 45, 89]].tolist()
        (2, [0, 1, 0])
    """
    clock, names, values = _read(signals)
    scaled = (values - values.mean(axis=0)) / values.std(axis=0)
    counts = np.arange(1, max(1, min(most, len(scaled) // 10)) + 1)
    bic = np.array([_fit(scaled, int(k), 1, seed).bic(scaled) for k in counts])
    by_bic = int(counts[bic.argmin()])
    gain = bic[0] - bic.min()
    null = [
        _gain(surrogate, counts, seed)
        for surrogate in _stateless(scaled, surrogates if by_bic > 1 else 0, seed)
    ]
    p = 1.0 if by_bic == 1 else float("nan")
    if null:
        p = (1 + np.count_nonzero(np.array(null) >= gain)) / (len(null) + 1)
    chosen = by_bic if np.isnan(p) or p <= ALPHA else 1
    model = _fit(scaled, chosen, TRIES, seed)
    return _described(model, scaled, clock, names, counts, bic, p, by_bic)


def _read(signals: Any) -> tuple[xr.DataArray, list[str], Floats]:
    """(clock, names, values (clock, signal)) of the points and signals that can be used."""
    if isinstance(signals, xr.Dataset):
        signals = signals.to_array("signal")
    dims = getattr(signals, "dims", ())
    clock = next((dim for dim in ("step", "checkpoint") if dim in dims), None)
    if clock is None or set(dims) - {clock, "signal"}:
        raise SchemaError(
            f"found {dims or type(signals).__name__}, expected (step, signal) or (checkpoint, "
            "signal); select the others, or stack them: ds.stack(signal=('layer', 'expert'))."
        )
    if "signal" not in dims:
        signals = signals.expand_dims("signal")
    signals = signals.transpose(clock, "signal")
    values = signals.values.astype(np.float64)
    there = np.isfinite(values).all(axis=1)
    if there.sum() < 20:
        raise UsageError(
            f"found {there.sum()} points with every signal; hidden states need 20. Use the samples "
            "of every step in place of the checkpoints, or leave out signals with gaps."
        )
    varies = np.ptp(values[there], axis=0) > 0
    if not varies.any():
        raise UsageError("no signal varies; there are no states to be told apart.")
    where = (
        signals[clock]
        if clock in signals.coords
        else xr.DataArray(np.arange(len(values)), dims=clock)
    )
    names = signals["signal"].values if "signal" in signals.coords else np.arange(len(varies))
    return where[there], [str(name) for name in names[varies]], values[there][:, varies]


def _fit(scaled: Floats, states: int, tries: int, seed: int) -> Any:
    try:
        from hmmlearn.hmm import GaussianHMM
    except ImportError as error:
        raise UsageError(
            "hidden states need the library hmmlearn, which is not installed: pip install hmmlearn."
        ) from error
    best, likeliest = None, -np.inf
    with _quiet():
        for attempt in range(tries):
            model = GaussianHMM(
                states,
                covariance_type="diag",
                n_iter=ROUNDS,
                tol=CLOSE,
                random_state=seed + attempt,
            ).fit(scaled)
            likelihood = model.score(scaled)
            if likelihood > likeliest:
                best, likeliest = model, likelihood
    return best


@contextmanager
def _quiet() -> Iterator[None]:
    """hmmlearn logs each fit that ends in a rounding error below its last likelihood."""
    log = logging.getLogger("hmmlearn.base")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _gain(scaled: Floats, counts: np.ndarray, seed: int) -> float:
    """BIC of one state less the least BIC."""
    bic = [_fit(scaled, int(k), 1, seed).bic(scaled) for k in counts]
    return float(bic[0] - min(bic))


def _stateless(scaled: Floats, draws: int, seed: int) -> Iterator[Floats]:
    """Signals with the same memory and correlations, from one Gaussian state."""
    n, signals = scaled.shape
    seen = memory(scaled.T)
    # A short series remembers less than its process; Kendall's first-order correction.
    phi = np.clip(seen + (1 + 3 * seen) / n, 0.0, 0.97)
    innovation = scaled[1:] - phi * scaled[:-1]
    covariance = np.atleast_2d(np.cov(innovation.T))
    rng = np.random.default_rng(seed)
    warm = 100
    for _ in range(draws):
        pushes = rng.multivariate_normal(np.zeros(signals), covariance, size=warm + n)
        series = np.zeros_like(pushes)
        for now in range(1, len(pushes)):
            series[now] = phi * series[now - 1] + pushes[now]
        kept = series[warm:]
        yield (kept - kept.mean(axis=0)) / kept.std(axis=0)


def _described(
    model: Any,
    scaled: Floats,
    clock: xr.DataArray,
    names: list[str],
    counts: np.ndarray,
    bic: Floats,
    p: float,
    by_bic: int,
) -> xr.Dataset:
    path = model.predict(scaled)
    # Numbered as they come; a state that is never visited comes last.
    visited = list(dict.fromkeys(path.tolist()))
    order = np.array([*visited, *(k for k in range(model.n_components) if k not in visited)])
    rank = np.argsort(order)
    dim = str(clock.dims[0])
    result = xr.Dataset(
        {
            "state": (dim, rank[path]),
            "probability": ((dim, "state_number"), model.predict_proba(scaled)[:, order]),
            "mean": (("state_number", "signal"), model.means_[order]),
            "transition": (
                ("state_number", "state_to"),
                model.transmat_[np.ix_(order, order)],
            ),
            "bic": ("states", bic),
            "p": ((), p),
        },
        coords={
            dim: clock.values,
            "signal": names,
            "state_number": np.arange(len(order)),
            "state_to": np.arange(len(order)),
            "states": counts,
        },
    )
    fit = "point estimate: of the likeliest of several fits; `probability` says how sure it is"
    for name, units, meaning in (
        ("state", "1", "hidden state, numbered in the order in which they came"),
        ("probability", "1", "probability of each state, given all signals"),
        ("mean", "standard deviations", "mean of each signal in each state, z-scored"),
        ("transition", "1", "probability of going to a state from one point to the next"),
        ("bic", "nats x 2", "Bayesian information criterion; the least is the best"),
        ("p", "1", "share of stateless signals with the same memory that gain as much by states"),
    ):
        result[name].attrs = {"units": units, "long_name": meaning, "interval": fit}
    result["probability"].attrs["chance_level"] = 1 / len(order)
    return result.assign_attrs(
        n=len(scaled), n_meaning="points of the clock", states=len(order), by_bic=by_bic
    )


@probe(
    "phases",
    question="Through which hidden states did training go, by what was captured of it?",
    reads="record",
    needs=("router", "train"),
)
def phases_of_run(
    source: Source,
    kinds: Sequence[str] = ("loss", "entropy", "margin", "max_violation"),
    *,
    most: int = 5,
    points: int = 200,
    surrogates: int = SURROGATES,
    seed: int = 0,
) -> xr.Dataset:
    """`phases` of a run's captured signals, in about `points` bins.

    Args:
        source: Run, Window or anything that `signals` takes.
        kinds: of signals; those that were not recorded are left out.
        most, surrogates, seed: as of `phases`.
        points: bins along training.
    """
    captured = captured_signals(source, kinds=kinds, points=points)["value"]
    # A state belongs to a moment: signals that are known at fewer moments cannot tell it.
    known = captured.notnull().mean("step") > 0.5
    return phases(
        captured.isel(signal=known.values).dropna("step"),
        most=most, surrogates=surrogates, seed=seed,
    )  # fmt: skip
