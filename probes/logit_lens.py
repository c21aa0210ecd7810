"""Logit lens: what the model would predict if it stopped after each layer.

Needs   the site resid_post (layer, token, d); the model's own final normalisation and unembedding.
Yields  logprob (nats) of the token that follows, and agreement (fraction) of the first choice with
        the model's own, (layer), each with a 95 % interval.

Every layer's stream goes through the final normalisation and the unembedding, as TransformerLens'
logit lens does. The last layer reads as the model itself: agreement is 1 there, by definition.
Early layers may hold the answer in a basis that the unembedding does not read: a low value says
"not yet in the output's terms", not "not known".

The intervals resample whole rows of text: other text of this kind, same checkpoint. Chance: a
log-probability of −ln(vocab), uniform; and 1/vocab.

It misleads in early layers, whose stream may lie in another basis, and between models: the final
normalisation is fitted to the last layer's scale alone.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens"; its limits, Belrose et al. 2023,
arXiv:2303.08112.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from model.lm import MoELM
from probes.registry import probe
from probes.statistics.resample import (
    BOOT,
    OF_MEAN,
    Floats,
    bootstrap_weights,
    percentile_interval,
)
from workbench.errors import UsageError

if TYPE_CHECKING:
    from probes.subject import Subject

TOKENS = 1024
"""Tokens read out at once: the logits of all layers and tokens are never held together."""
NORMS = ("norm", "norm_f", "ln_f", "final_layernorm", "final_layer_norm")
"""What the final normalisation is called in Hugging Face's models."""


@probe(
    "logit-lens",
    question="From which layer on is the next token readable?",
    reads="checkpoint",
    needs=("resid_post", "next_logprob"),
    version=2,
)
def logit_lens(subject: Subject, *, n_boot: int = BOOT, seed: int = 0) -> xr.Dataset:
    """Log-probability of the next token and agreement with the last layer, per layer.

    Args:
        subject: a checkpoint after its pass: ours, or a Hugging Face model whose last stream,
            normalised and unembedded, is its output (checked).
        n_boot, seed: bootstrap draws over rows, and their seed.

    Returns:
        Dataset (layer): logprob, agreement, each with _low and _high.

    Raises:
        UsageError: a model whose readout is not to be found or is not the model's own output.

    Example:
        >>> from model.config import NANO
        >>> from probes.exam import Exam
        >>> from probes.subject import Subject
        >>> exam = Exam(tokens=np.arange(64).reshape(8, 8), domains=tuple("aabbaabb"))
        >>> read = logit_lens(Subject(MoELM(NANO), exam))
        >>> read["agreement"].values[-1].item()
        1.0
    """
    read = readout(subject.model)
    streams = subject["resid_post"]
    following = torch.tensor(subject.labels["next_id"].values)
    row = subject.labels["row"].values
    logprob, agrees, vocab = _read_all(subject.model, read, streams, following)
    _same_output(logprob[-1], subject["next_logprob"].numpy())
    rows = int(row.max()) + 1
    weights = bootstrap_weights(rows, n_boot, seed)
    interval = (
        f"95 %, bootstrap over {rows} rows of text ({OF_MEAN}): other text of this kind, same "
        "checkpoint"
    )
    about: dict[str, tuple[Floats, str, str, float]] = {
        "logprob": (logprob, "nats", "log-probability of the next token", -float(np.log(vocab))),
        "agreement": (agrees, "1", "first choice is that of the last layer", 1 / vocab),
    }
    variables: dict[str, Any] = {}
    for name, (values, units, meaning, chance) in about.items():
        attrs = {"units": units, "long_name": meaning, "chance_level": chance, "interval": interval}
        within = (0.0, 1.0) if name == "agreement" else (-np.inf, 0.0)
        bounds = _means(values, row, weights, within)
        for end, found in zip(("", "_low", "_high"), bounds, strict=True):
            variables[name + end] = ("layer", found, attrs)
    attrs = {"n": rows, "n_meaning": "rows of text", "tokens": len(row), "interval": interval}
    return xr.Dataset(variables, {"layer": np.arange(len(streams))}, attrs)


def readout(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """From a residual stream (..., d) to logits (..., vocab), by the model's own last two parts.

    Raises:
        UsageError: they are not to be found.
    """
    norm: nn.Module | None
    unembed: nn.Module | None
    if isinstance(model, MoELM):
        norm, unembed = model.ln_final, model.unembed
    else:
        unembed = getattr(model, "get_output_embeddings", lambda: None)()
        body = getattr(model, "base_model", None)
        norm = next((m for name in NORMS if (m := getattr(body, name, None)) is not None), None)
    if norm is None or unembed is None:
        raise UsageError(
            f"found no final normalisation and unembedding in a {type(model).__name__}; expected "
            f"a model of ours, or a Hugging Face one with one of {', '.join(NORMS)}."
        )
    dtype = next(unembed.parameters()).dtype
    return lambda stream: unembed(norm(stream.to(dtype))).float()


def _read_all(
    model: nn.Module, read: Callable[[Tensor], Tensor], streams: Tensor, following: Tensor
) -> tuple[Floats, Floats, int]:
    """logprob (layer, token), NaN where nothing follows; agreement (layer, token); vocabulary."""
    device = next(model.parameters()).device
    logprob = torch.full(streams.shape[:2], float("nan"), dtype=torch.float64)
    agrees = torch.zeros(streams.shape[:2], dtype=torch.float64)
    vocab = 0
    with torch.no_grad():
        for first in range(0, streams.shape[1], TOKENS):
            part = slice(first, first + TOKENS)
            there = following[part] >= 0
            target = following[part].clamp_min(0).to(device)[:, None]
            last = None
            for layer in reversed(range(len(streams))):
                logits = read(streams[layer, part].to(device))
                chosen = logits.argmax(-1)
                last = chosen if last is None else last
                right = logits.gather(1, target)[:, 0] - logits.logsumexp(-1)
                logprob[layer, part] = torch.where(there, right.double().cpu(), torch.nan)
                agrees[layer, part] = (chosen == last).double().cpu()
                vocab = logits.shape[-1]
    return logprob.numpy(), agrees.numpy(), vocab


def _same_output(read: Floats, model: Floats) -> None:
    """A readout that is not the model's own (a soft cap, a scale) is found out."""
    # What the model has a number for, the lens must have too: NaN is no agreement.
    there = ~np.isnan(model)
    apart = np.abs(read - model)[there].max(initial=0.0)
    if not apart <= 0.05:
        raise UsageError(
            f"the last layer, normalised and unembedded, differs from the model's own output by "
            f"{apart:.3g} nats, expected rounding: this model does more after its last layer than "
            f"the lens knows of."
        )


def _means(
    values: Floats, row: np.ndarray, weights: Floats, within: tuple[float, float]
) -> tuple[Floats, Floats, Floats]:
    """Mean over the tokens that have a value, with the bootstrap over rows."""
    in_row = (row[:, None] == np.arange(weights.shape[1])).astype(np.float64)
    there = ~np.isnan(values)
    mass, sums = there @ in_row, np.where(there, values, 0.0) @ in_row
    mean = sums.sum(1) / mass.sum(1)
    draws = (weights @ sums.T) / (weights @ mass.T)
    low, high = percentile_interval(draws, weights.shape[1], within=within)
    return mean, np.minimum(low, mean), np.maximum(high, mean)
