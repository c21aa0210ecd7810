"""Local learning coefficient: how many directions of the loss are tight around a checkpoint.

Needs   a checkpoint of any model that gives logits; rows of text; the library devinterp
        (pip install 'training-dynamics-workbench[probes]').
Yields  llc, dimensionless, with a 95 % interval over chains; llc_of_chain (chain); rhat, drift,
        healthy; init_loss, nats; trace (chain, draw), nats.

llc = n_beta (mean loss over draws from a tempered posterior around the checkpoint - loss at the
checkpoint). A chain of stochastic gradient Langevin dynamics draws: gradient of n_beta times the
loss, a pull of strength `localization` back to the checkpoint, noise. For a regular minimum of d
parameters it is d / 2; a smaller one tells of directions in which the loss is flatter than a
parabola, or flat.

The interval is over chains (Student's t): other noise and another order of batches, on the same
text with the same settings. It does not hold the error that the settings make, which is the larger
one: `localization` bounds flat directions, a step size too large adds to every direction. Compare
checkpoints that were measured with the same settings; do not read a single number as a dimension.

healthy = all chains ran to their end, rhat (split, Gelman-Rubin) is at most 1.1, the draws do not
drift (second half less first half, in units of llc: within a tenth of it or not told from 0 over
chains) and llc is above 0. Below 0 the checkpoint is not at the bottom of anything: the chain found
lower losses nearby, as it does early in training. NaN: chains that left the finite numbers, or
bounds from a single chain.
Short chains may be called unwell though nothing is wrong: rhat needs some
hundred draws of chains that forget in ten steps. Ask for more draws before giving a setting up.

It misleads where settings differ, early in training, and where a chain that has not yet left its
start looks like a small coefficient.

Sources: Lau et al. 2023, arXiv:2308.12108; computed by devinterp (Timaeus); Gelman & Rubin 1992.
"""

from __future__ import annotations

import functools
import importlib
import math
import random
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy import stats
from torch import Tensor, nn

from probes.inputs.rows import text_rows
from probes.registry import probe
from probes.statistics.resample import CONFIDENCE, Floats
from probes.subject import Subject
from workbench.errors import UsageError

INTERVAL = "95 %, Student's t over chains: other noise and batch order, same text and settings"
RHAT_AT_MOST = 1.1
DRIFT_AT_MOST = 0.1
"""Of the coefficient."""

_ALONE = threading.Lock()
"""devinterp seeds the process's random numbers: one estimate at a time."""


@probe(
    "learning-coefficient",
    question="How many directions of the loss are tight around this checkpoint?",
    reads="checkpoint",
)
def learning_coefficient(
    subject: Subject,
    *,
    lr: float = 1e-4,
    n_beta: float | None = None,
    localization: float = 1000.0,
    chains: int = 4,
    draws: int = 200,
    burn_in: int = 100,
    batch_rows: int | None = None,
    rows: Sequence[Sequence[int]] | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """The local learning coefficient at a checkpoint, by devinterp's sampler.

    Args:
        subject: a checkpoint; its weights are left alone.
        lr: step size of the sampler. In flat directions it takes about 2 / (lr x localization)
            steps to forget where it began; draws and burn_in should be several times that.
        n_beta: inverse temperature times samples; None: n / ln n with n the tokens predicted in a
            batch, devinterp's rule by tokens.
        localization: strength of the pull back to the checkpoint; flat directions wander about
            1 / sqrt(localization) away, which should be little beside the weights themselves.
        chains: independent chains.
        draws, burn_in: steps that count, and steps before them that do not.
        batch_rows: rows of a step; None: all, at most 32. With all of them the loss at the
            checkpoint and on the way are of the same text.
        rows: texts, (row, pos); None: the exam's.
        seed: of the first chain's noise; the next chains count on.

    Returns:
        Dataset: llc with bounds, rhat, drift, healthy, init_loss; (chain): llc_of_chain; (chain,
        draw): trace.

    Raises:
        UsageError: devinterp is not installed, or sizes that cannot be.

    Example:
        learning_coefficient(subject, chains=2, draws=50)  # 150 forwards and backwards a chain
    """
    texts = text_rows(subject, rows)
    batch_rows = min(len(texts), 32) if batch_rows is None else batch_rows
    if not 1 <= batch_rows <= len(texts) or chains < 1 or draws < 4 or burn_in < 0:
        raise UsageError(
            f"batch_rows={batch_rows} of {len(texts)} rows, chains={chains}, draws={draws}, "
            f"burn_in={burn_in}: expected 1 to all rows, 1 or more chains, 4 or more draws."
        )
    n = batch_rows * (texts.shape[1] - 1)
    n_beta = n / math.log(n) if n_beta is None and n > 1 else n_beta
    settings = {
        "lr": lr, "n_beta": n_beta, "localization": localization, "num_chains": chains,
        "num_draws": draws, "num_burnin_steps": burn_in, "batch_size": batch_rows,
        "num_init_loss_batches": len(texts) // batch_rows, "init_seed": seed,
    }  # fmt: skip
    loss_at, trace_CS = loss_trace(subject, texts, settings)
    assert n_beta is not None
    return _described(_summed(trace_CS[:, burn_in:], loss_at, n_beta), settings, len(texts))


def loss_trace(
    subject: Subject, texts: np.ndarray, settings: dict[str, Any]
) -> tuple[float, Floats]:
    """Loss at the checkpoint, and of every step of every chain (chain, step), nats.

    Steps that a chain did not live to see are NaN.

    Raises:
        UsageError: devinterp is not installed.
    """
    try:
        sampling: Any = importlib.import_module("devinterp.slt.sampling")
    except ImportError as error:
        raise UsageError(
            f"the learning coefficient is computed by devinterp, which is not installed ({error}): "
            f"pip install 'training-dynamics-workbench[probes]'."
        ) from error

    dataset = [{"input_ids": torch.from_numpy(row.copy())} for row in texts]
    steps = settings["num_draws"] + settings["num_burnin_steps"]
    with _ALONE, _quiet(), tempfile.TemporaryDirectory() as folder:
        try:
            tree = sampling.sample(
                model=_Sampled(subject.copy()),
                dataset=dataset,
                observables={},
                match_sampling_input_ids_across_chains=False,
                device=str(next(subject.model.parameters()).device),
                output_path=Path(folder) / "samples",
                **settings,
            )
        except ValueError as error:
            if "finite" not in str(error).lower():
                raise
            # Already at the checkpoint: there is nothing around it to sample.
            return float("nan"), np.full((settings["num_chains"], steps), np.nan)
        found = tree.dataset[["init_loss", "sampling_loss_micro"]].load()
        tree.close()
    # Not skipping NaN: a chain that failed would pass for a short one.
    trace = found["sampling_loss_micro"].mean(["batch_sampling", "token_pos"], skipna=False)
    return float(found["init_loss"].mean()), trace.values.astype(np.float64)


class _Sampled(nn.Module):
    """The model as devinterp calls it, always in evaluation mode: dropout is no part of the loss.

    It also hides that our model has a TransformerLens configuration, on which devinterp calls
    `.to` with arguments that ours does not take.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        output = self.model(tokens)
        return getattr(output, "logits", output)

    def train(self, mode: bool = True) -> _Sampled:
        return super().train(False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves the process's random numbers as they were; no progress bars; no warnings of chains
    that failed, which are NaN.
    """
    sampler: Any = importlib.import_module("devinterp.slt.sampler")
    bar, drawn, plain = sampler.trange, np.random.get_state(), random.getstate()  # noqa: NPY002
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Chain failed")
        sampler.trange = functools.partial(bar, disable=True)
        try:
            yield
        finally:
            sampler.trange = bar
            np.random.set_state(drawn)  # noqa: NPY002
            random.setstate(plain)


def _summed(trace_CD: Floats, loss_at: float, n_beta: float) -> xr.Dataset:
    """Coefficient, interval and health from the draws' losses (chain, draw)."""
    excess_CD = n_beta * (trace_CD - loss_at)
    of_chain = excess_CD.mean(axis=1)
    llc, half = _mean_over_chains(of_chain)
    first, second = np.array_split(excess_CD, 2, axis=1)
    drift, drift_half = _mean_over_chains(second.mean(axis=1) - first.mean(axis=1))
    rhat = split_rhat(trace_CD)
    steady = abs(drift) <= max(
        DRIFT_AT_MOST * abs(llc), 0.0 if math.isnan(drift_half) else drift_half
    )
    healthy = bool(np.isfinite(llc) and llc > 0 and rhat <= RHAT_AT_MOST and steady)
    return xr.Dataset(
        {
            "llc": ((), llc),
            "llc_low": ((), llc - half),
            "llc_high": ((), llc + half),
            "rhat": ((), rhat),
            "drift": ((), drift),
            "healthy": ((), healthy),
            "init_loss": ((), loss_at),
            "llc_of_chain": ("chain", of_chain),
            "trace": (("chain", "draw"), trace_CD),
        },
        coords={"chain": range(len(trace_CD)), "draw": range(trace_CD.shape[1])},
    )


def _mean_over_chains(values: Floats) -> tuple[float, float]:
    """Mean and half the width of its interval; NaN where a chain failed or there is only one."""
    if len(values) < 2:
        return float(values.mean()), float("nan")
    se = values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * se)


def split_rhat(trace_CD: Floats) -> float:
    """Gelman-Rubin's statistic of chains (chain, draw) cut in halves: 1 where all agree.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(4, 500))
        >>> bool(split_rhat(draws) < 1.02), bool(split_rhat(draws + np.arange(4)[:, None]) > 1.3)
        (True, True)
    """
    n = trace_CD.shape[1] // 2
    halves = np.concatenate([trace_CD[:, :n], trace_CD[:, -n:]])
    within, between = halves.var(axis=1, ddof=1).mean(), halves.mean(axis=1).var(ddof=1)
    if within == 0:
        return 1.0 if between == 0 else float("inf")
    return float(np.sqrt((n - 1) / n + between / within))


def _described(result: xr.Dataset, settings: dict[str, Any], n: int) -> xr.Dataset:
    meanings = {
        "llc": ("1", "local learning coefficient", INTERVAL),
        "llc_low": ("1", "lower bound of the coefficient", INTERVAL),
        "llc_high": ("1", "upper bound of the coefficient", INTERVAL),
        "llc_of_chain": ("1", "coefficient of one chain", "point estimate: one chain"),
        "rhat": ("1", "split R-hat of the losses over chains; 1: they agree", "exact"),
        "drift": ("1", "coefficient of the second half of the draws less the first's", "exact"),
        "healthy": ("1", "chains whole, agreeing, steady, and the coefficient above 0", "exact"),
        "init_loss": ("nats", "loss at the checkpoint", "exact on these rows"),
        "trace": ("nats", "loss at every draw", "exact on these rows"),
    }
    for name, (units, meaning, interval) in meanings.items():
        result[name].attrs = {"units": units, "long_name": meaning, "interval": interval}
    result["llc"].attrs["chance_level"] = (
        "none; half the number of parameters at a regular minimum without localization"
    )
    return result.assign_attrs(
        n=settings["num_chains"], n_meaning="chains", rows=n, interval=INTERVAL, **settings
    )
