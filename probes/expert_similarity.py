"""Expert similarity: do the experts of a layer hold the same weights, or give the same answers?

Needs   a checkpoint of our own model; the hidden states that its experts read on the fixed tokens.
Yields  weight_cosine (layer, expert, expert2), in [-1, 1]: cosine of (gate, in, out) flattened;
        output_cka (layer, expert, expert2), at most 1: linear CKA of the experts' outputs, every
        expert run on the same tokens whether it was chosen or not;
        mean_weight_cosine, mean_output_cka (layer): over pairs of different experts, the latter
        with a 95 % interval; random_output_cka (layer): the same of experts drawn at random.

CKA     HSIC(e, f) / sqrt(HSIC(e, e) HSIC(f, f)) with linear kernels and the unbiased estimator of
        HSIC over pairs of tokens of different rows (cross_rows.py): tokens of one row share their
        text, and counted as pairs they would make any two experts look alike. Unrelated outputs
        give 0 in the mean however few the rows; single values may fall below 0. It does not change
        when outputs are rotated, shifted or scaled.
chance  Of the cosine: 0, within +-1.96 / sqrt(parameters of an expert) for weights drawn
        independently. Of the CKA there are two: 0 for outputs that have nothing to do with one
        another (which the unbiased estimator gives by itself), and random_output_cka, for experts
        drawn with the same spread of weights: they read the same input and are alike in that alone.
        Read output_cka against the latter.

The interval leaves out one row of text at a time (jackknife, Student's t): other texts like these,
same checkpoint. Weights are exact. Where it misleads: two experts that compute the same function
with their hidden units in another order have a cosine near 0 and a CKA of 1; an expert is asked
about tokens that its router would never send it.

Sources: Kornblith et al. 2019, arXiv:1905.00414; the unbiased HSIC of Song et al. 2012, JMLR 13;
jackknife after Tukey 1958.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from model.experts import Experts
from probes.registry import probe
from probes.statistics.cross_rows import FEWEST_ROWS, cross_rows
from probes.statistics.resample import CONFIDENCE
from probes.subject import Subject
from probes.surgery.expert_outputs import EXPERT_INPUT, all_outputs, expert_output, experts_of

Floats = NDArray[np.float64]

RANDOM_EXPERTS = 8
"""Experts drawn for the chance level, at most: 28 pairs."""

JACKKNIFE = "95 %, jackknife over rows (Student's t): other texts like these, same checkpoint"

# Shapes: E experts, T tokens, D d_model, R rows.


@probe(
    "expert-similarity",
    question="Do the experts of a layer hold the same weights, or give the same answers?",
    reads="checkpoint",
    needs=(EXPERT_INPUT,),
    version=2,
)
def expert_similarity(subject: Subject, *, tokens: int = 1024, seed: int = 0) -> xr.Dataset:
    """Cosine of weights and CKA of outputs of every pair of experts, with their chance levels.

    Args:
        subject: a checkpoint of model.lm.MoELM.
        tokens: of the fixed tokens that the experts are run on, at most; whole rows, spread over
            the set. Memory grows with it times the tokens of a row times experts.
        seed: of the experts drawn at random.

    Returns:
        Dataset as the head of this file says. NaN: pairs of one expert alone, an expert whose
        output never changes, every CKA from fewer than five rows.

    Raises:
        UsageError: another kind of model.

    Example:
        >>> from model.config import NANO
        >>> from model.lm import MoELM
        >>> from probes.exam import Exam
        >>> exam = Exam(tokens=np.arange(64).reshape(8, 8), domains=("a",) * 8)
        >>> found = expert_similarity(Subject(MoELM(NANO), exam))
        >>> found["output_cka"].dims, bool((abs(found["mean_weight_cosine"]) < 0.1).all())
        (('layer', 'expert', 'expert2'), True)
    """
    layers = experts_of(subject)
    inputs_LTD = subject[EXPERT_INPUT]
    rows, length = subject.exam.tokens.shape
    taken = np.unique(np.linspace(0, rows - 1, min(rows, max(1, tokens // length))).round())
    at = (taken[:, None] * length + np.arange(length)).astype(np.int64).ravel()
    found: dict[str, list[Floats]] = {}
    for layer, experts in enumerate(layers):
        x_TD = inputs_LTD[layer, at]
        drawn = random_outputs(experts, x_TD, seed)
        cka, mean, low, high = output_cka(all_outputs(experts, x_TD), len(taken))
        random = output_cka(drawn, len(taken))[1] if len(drawn) > 1 else np.float64("nan")
        cosine = weight_cosine(experts)
        columns = (cosine, pair_mean(cosine), cka, mean, low, high, random)
        for name, value in zip(MEANING, columns, strict=True):
            found.setdefault(name, []).append(np.asarray(value, dtype=np.float64))
    parameters = sum(weight[0].numel() for weight in layers[0].parameters())
    return _described(found, len(taken), at.size, parameters)


def weight_cosine(experts: Experts) -> Floats:
    """Cosine of every pair of experts' weights, (E, E)."""
    # Per tensor, so that no copy of all weights side by side is made.
    with torch.no_grad():
        flat = [weight.flatten(1).double() for weight in experts.parameters()]
        dots_EE = sum((f @ f.T for f in flat), torch.zeros(()).to(flat[0])).cpu().numpy()
    norms_E = np.sqrt(np.diag(dots_EE))
    scale_EE = np.outer(norms_E, norms_E)
    return np.divide(dots_EE, scale_EE, out=np.full(dots_EE.shape, np.nan), where=scale_EE > 0)


def output_cka(outputs_ETD: Tensor, rows: int) -> tuple[Floats, float, float, float]:
    """Debiased linear CKA of every pair of outputs on the same tokens, and its mean over pairs.

    Args:
        outputs_ETD: (expert, token, d_model), the tokens row by row.
        rows: of equal length, that the tokens fall into.

    Returns:
        (E, E); mean over pairs of different experts, lower and upper bound of that mean. NaN from
        fewer than five rows.

    Example:
        >>> outputs = torch.randn(1, 40, 4).expand(2, -1, -1)
        >>> round(output_cka(outputs, rows=8)[1], 6)
        1.0
    """
    count = len(outputs_ETD)
    if rows < FEWEST_ROWS:
        return np.full((count, count), np.nan), np.nan, np.nan, np.nan
    row = np.repeat(np.arange(rows), outputs_ETD.shape[1] // rows)
    sums = cross_rows(list(outputs_ETD), row)
    whole = _cka(sums.shared)
    mean = pair_mean(whole)
    if np.isnan(mean):
        return whole, mean, np.nan, np.nan
    left_out = np.array([pair_mean(_cka(part)) for part in sums.shared_without])
    se = np.sqrt((rows - 1) / rows * ((left_out - left_out.mean()) ** 2).sum())
    half = stats.t.ppf((1 + CONFIDENCE) / 2, rows - 1) * se
    # CKA is at most 1: no text could show more.
    return whole, mean, mean - half, max(mean, min(1.0, mean + half))


def pair_mean(table_EE: Floats) -> float:
    """Mean over pairs of different experts, undefined pairs left out; NaN where there is none."""
    pairs = table_EE[np.triu_indices(len(table_EE), 1)]
    pairs = pairs[~np.isnan(pairs)]
    return float(pairs.mean()) if len(pairs) else float("nan")


def random_outputs(experts: Experts, x_TD: Tensor, seed: int) -> Tensor:
    """Outputs of experts drawn from normal distributions with the layer's own spread of weights."""
    generator = torch.Generator("cpu").manual_seed(seed)
    x_TD = x_TD.to(experts.W_out.device)
    drawn = []
    with torch.no_grad():
        for _ in range(min(experts.num_experts, RANDOM_EXPERTS)):
            weights = [
                torch.randn(w.shape[1:], generator=generator).to(x_TD) * w.float().std().item()
                for w in (experts.W_gate_in, experts.W_out)
            ]
            drawn.append(expert_output(x_TD, *weights))
    return torch.stack(drawn)


def _cka(shared: Floats) -> Floats:
    """(..., E, E) from the squared norms of covariances; NaN for an output that never changes."""
    own = np.diagonal(shared, axis1=-2, axis2=-1)
    own = np.where(own > 0, own, np.nan)
    return shared / np.sqrt(own[..., :, None] * own[..., None, :])


MEANING = {
    "weight_cosine": ("cosine of two experts' weights", "exact"),
    "mean_weight_cosine": ("cosine of weights, mean over pairs of different experts", "exact"),
    "output_cka": ("linear CKA of two experts' outputs on the same tokens", "of the mean only"),
    "mean_output_cka": ("linear CKA of outputs, mean over pairs of experts", JACKKNIFE),
    "mean_output_cka_low": ("lower bound of the mean CKA", JACKKNIFE),
    "mean_output_cka_high": ("upper bound of the mean CKA", JACKKNIFE),
    "random_output_cka": (
        "linear CKA of the outputs of experts drawn at random, mean over pairs",
        "point estimate: one draw of at most 8 experts",
    ),
}


def _described(
    found: dict[str, list[Floats]], rows: int, tokens: int, parameters: int
) -> xr.Dataset:
    dims = {2: ("layer", "expert", "expert2"), 0: ("layer",)}
    result = xr.Dataset(
        {name: (dims[values[0].ndim], np.stack(values)) for name, values in found.items()}
    )
    spread = 1.96 / parameters**0.5
    for name, (meaning, interval) in MEANING.items():
        chance = "random_output_cka, per layer; 0 for outputs that have nothing in common"
        if "cosine" in name:
            chance = f"0, within {spread:.2g} for 95 % of independent pairs"
        result[name].attrs = {
            "units": "1", "long_name": meaning, "chance_level": chance, "interval": interval,
        }  # fmt: skip
    result.attrs = {
        "n": rows, "n_meaning": "rows of fixed text", "tokens": tokens,
        "parameters_per_expert": parameters, "interval": JACKKNIFE,
    }  # fmt: skip
    sizes = result.sizes
    return result.assign_coords(
        layer=range(sizes["layer"]), expert=range(sizes["expert"]),
        expert2=range(sizes["expert2"]),
    )  # fmt: skip
