"""Super experts: few experts whose outputs reach magnitudes far beyond all others'.

Needs   a checkpoint of our own model; routing, expert inputs and residual stream on fixed tokens.
Yields  peak (layer, expert): largest |output| of the expert before the gate, over the tokens that
        it was given and all dimensions, activation units; NaN where it was given none;
        outlier (layer, expert): peak above the percentile of all peaks of the model and above
        `share` of the largest;
        massive (layer): largest over median magnitude of the residual stream after the block;
        forms (layer): whether massive activations form in this block;
        super_expert (layer, expert): outlier and forms.

The definition has three conditions: a_le > the 99.5th percentile of A, a_le > 0.1 max A, l in L,
where a_le is the peak, A all peaks of the model, and L the layers in which massive activations
form. What it means for them to form is made exact here: after the block the stream's largest
magnitude is at least `massive_least` and `massive_ratio` times its median (both from Sun et al.),
and at least `growth` times what it was before the block (ours).

Chance: none forms in a model without massive activations, and there is then no super expert. The
first two conditions alone always name one: in a model of fewer than 200 experts the 99.5th
percentile lies between the largest two, so that `outlier` is little more than "the largest". That
is why the third matters, and why `outlier` should be read with the peaks themselves.

No interval: a maximum over these tokens is a lower bound for other text, and resampling the same
tokens cannot show a larger one. The outlier often sits on a row's first token or on a delimiter:
rows cut in mid-document may miss it.

It misleads where the fixed tokens lack the row starts and delimiters on which massive activations
sit, and where `outlier` is read without the other conditions.

Sources: Su et al. 2025, arXiv:2507.23279; massive activations, Sun et al. 2024, arXiv:2402.17762.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from probes.registry import probe
from probes.subject import Subject
from probes.surgery.expert_outputs import EXPERT_INPUT, expert_output, experts_of

BEFORE = "blocks.{layer}.hook_resid_pre"
POINT = "point estimate: a maximum over the fixed tokens, a lower bound for other text"


@probe(
    "super-experts",
    question="Which experts produce outliers that flood the residual stream?",
    reads="checkpoint",
    needs=("expert_ids", "resid_post", EXPERT_INPUT, BEFORE),
)
def super_experts(
    subject: Subject,
    *,
    percentile: float = 99.5,
    share: float = 0.1,
    massive_ratio: float = 1000.0,
    massive_least: float = 100.0,
    growth: float = 2.0,
) -> xr.Dataset:
    """Peak output of each expert, massive activations of each layer, and who causes them.

    Args:
        subject: a checkpoint of model.lm.MoELM.
        percentile: of all peaks of the model, that an outlier exceeds, %.
        share: of the largest peak, that an outlier exceeds.
        massive_ratio, massive_least: largest magnitude of the stream over its median, and itself.
        growth: largest magnitude after the block over that before it.

    Returns:
        Dataset (layer, expert): peak, outlier, super_expert; (layer): massive, forms.

    Raises:
        UsageError: another kind of model.

    Example:
        >>> from model.config import NANO
        >>> from model.lm import MoELM
        >>> from probes.exam import Exam
        >>> exam = Exam(tokens=np.arange(64).reshape(4, 16), domains=("a",) * 4)
        >>> int(super_experts(Subject(MoELM(NANO), exam))["super_expert"].sum())
        0
    """
    layers = experts_of(subject)
    inputs_LTD, ids_LTK = subject[EXPERT_INPUT], subject["expert_ids"]
    peaks = np.full((len(layers), layers[0].num_experts), np.nan)
    for layer, experts in enumerate(layers):
        for expert in range(experts.num_experts):
            x_TD = inputs_LTD[layer, (ids_LTK[layer] == expert).any(-1)].to(experts.W_out)
            if len(x_TD):
                weights = experts.W_gate_in[expert], experts.W_out[expert]
                with torch.no_grad():
                    peaks[layer, expert] = expert_output(x_TD, *weights).abs().max().item()
    there = ~np.isnan(peaks)
    above = float("nan")
    if there.any():
        seen = peaks[there]
        above = max(float(np.percentile(seen, percentile)), share * float(seen.max()))
    outlier = np.greater(peaks, above, where=there, out=np.zeros(peaks.shape, bool))

    after = subject["resid_post"].float().abs().flatten(1)
    before = subject[BEFORE].float().abs().flatten(1).amax(1)
    largest = after.amax(1)
    massive = largest / after.median(1).values.clamp_min(torch.finfo(torch.float32).tiny)
    forms = (massive >= massive_ratio) & (largest >= massive_least) & (largest >= growth * before)
    result = xr.Dataset(
        {
            "peak": (("layer", "expert"), peaks),
            "outlier": (("layer", "expert"), outlier),
            "super_expert": (("layer", "expert"), outlier & forms.numpy()[:, None]),
            "massive": ("layer", massive.double().numpy()),
            "forms": ("layer", forms.numpy()),
        },
        coords={"layer": range(len(layers)), "expert": range(peaks.shape[1])},
    )
    meanings = {
        "peak": ("activation", "largest magnitude of the expert's output, before its gate"),
        "outlier": ("1", "peak above the percentile and the share of the largest peak"),
        "super_expert": ("1", "an outlier in a layer in which massive activations form"),
        "massive": ("1", "largest over median magnitude of the stream after the block"),
        "forms": ("1", "whether massive activations form in this block"),
    }
    for name, (units, meaning) in meanings.items():
        result[name].attrs = {"units": units, "long_name": meaning, "interval": POINT}
    return result.assign_attrs(
        n=int(inputs_LTD.shape[1]), n_meaning="fixed tokens", threshold=above,
        percentile=percentile, share=share, massive_ratio=massive_ratio,
        massive_least=massive_least, growth=growth, interval=POINT,
    )  # fmt: skip
