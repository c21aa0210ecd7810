"""Prefix matching: does a head look back to what followed the same token before?

Needs   any model that shows its attention patterns: ours, a TransformerLens model, or a Hugging
        Face model with an "eager" attention.
Yields  prefix_matching (layer, head), in [0, 1], with a 95 % interval; best (layer): the highest.

A block of random tokens, no two the same, is repeated. At a token that has occurred before, a head
that completes prefixes attends to the tokens that came right after those earlier occurrences; the
score is the attention it puts there, summed over them and averaged over all tokens from the first
repeat on. Random tokens leave nothing else to predict by.

chance  The same average of a head that attends evenly to all it can see: attr chance_level,
        about 2 / (3 x length) for one repeat. A head that looks at its own or the previous token
        alone scores 0.

The interval resamples the random sequences: other random sequences of this length, same checkpoint.
`best` is the maximum over heads and so leans upward; compare it with an untrained model's, not with
the chance level. A high score is the attention half of induction: whether the head then copies the
token is another question.

It misleads where a high score is taken for induction (a head may look and not copy), where a model
of another position scheme cannot look that far back, and on the maximum over many heads.

Source: Olsson et al. 2022, arXiv:2209.11895, appendix; theirs repeats 25 tokens four times.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from probes.inputs.finite import check_logits
from probes.inputs.rows import mean_over_rows
from probes.registry import probe
from probes.statistics.resample import BOOT
from probes.subject import Subject
from workbench.errors import UsageError

INTERVAL = (
    "95 %, bootstrap over random sequences (expanded percentile): other random sequences, same "
    "checkpoint"
)

# Shapes: B sequences, P positions, H heads.


@probe(
    "prefix-matching",
    question="Which attention heads look back to what followed the same token before?",
    reads="checkpoint",
)
def prefix_matching(
    subject: Subject,
    *,
    length: int | None = None,
    repeats: int = 2,
    sequences: int = 32,
    n_boot: int = BOOT,
    seed: int = 0,
) -> xr.Dataset:
    """Prefix-matching score of each head on repeated random tokens.

    Args:
        subject: a checkpoint.
        length: tokens of the block; None: as many as `repeats` of it fit into a row of the exam,
            because positions beyond those trained on would be another question. At most the number
            of different tokens in the exam, which the blocks are drawn from.
        repeats: times that the block stands in a sequence, 2 or more.
        sequences: random sequences.
        n_boot, seed: bootstrap draws, and the seed of the sequences.

    Returns:
        Dataset (layer, head): prefix_matching and its bounds; (layer): best; attr chance_level.

    Raises:
        UsageError: sizes that cannot be, or a model that does not show its patterns.

    Example:
        >>> from model.config import NANO
        >>> from model.lm import MoELM
        >>> from probes.exam import Exam
        >>> exam = Exam(tokens=np.arange(64).reshape(4, 16), domains=("a",) * 4)
        >>> found = prefix_matching(Subject(MoELM(NANO), exam), sequences=4)
        >>> found["prefix_matching"].dims, found.attrs["length"]
        (('layer', 'head'), 8)
    """
    vocabulary = np.unique(subject.exam.tokens)
    if length is None:
        length = min(subject.exam.tokens.shape[1] // max(repeats, 1), len(vocabulary))
    if repeats < 2 or length < 2 or sequences < 1:
        raise UsageError(
            f"repeats={repeats}, length={length}, sequences={sequences}: expected 2 or more "
            f"repeats of 2 or more tokens; rows of the exam may be too short: give a length."
        )
    if length > len(vocabulary):
        raise UsageError(
            f"length={length}: the exam has {len(vocabulary)} different tokens to draw from; "
            f"choose at most that many."
        )
    tokens_BP = repeated_tokens(vocabulary, length, repeats, sequences, seed)
    wanted_PP = targets(length, repeats)
    scores = []
    for pattern_BHPP in patterns(subject, tokens_BP):
        kept = pattern_BHPP[:, :, length:].double() * wanted_PP[length:].to(pattern_BHPP.device)
        scores.append(kept.sum(-1).mean(-1).cpu().numpy())
    of_sequence = np.stack(scores, axis=1)
    mean, low, high = (b.clip(0, 1) for b in mean_over_rows(of_sequence, n_boot, seed))
    result = xr.Dataset(
        {
            "prefix_matching": (("layer", "head"), mean),
            "prefix_matching_low": (("layer", "head"), low),
            "prefix_matching_high": (("layer", "head"), high),
            "best": ("layer", mean.max(axis=1)),
        },
        coords={"layer": range(mean.shape[0]), "head": range(mean.shape[1])},
    )
    return _described(result, length, repeats, sequences, seed)


def repeated_tokens(
    vocabulary: np.ndarray, length: int, repeats: int, sequences: int, seed: int
) -> Tensor:
    """Blocks of different random tokens, each repeated, (sequence, length x repeats) int64.

    Example:
        >>> repeated_tokens(np.arange(9), 3, 2, 1, seed=0).view(2, 3).unique(dim=0).shape[0]
        1
    """
    rng = np.random.default_rng(seed)
    blocks = [rng.permutation(vocabulary)[:length] for _ in range(sequences)]
    return torch.from_numpy(np.tile(np.stack(blocks).astype(np.int64), (1, repeats)))


def targets(length: int, repeats: int) -> Tensor:
    """(query, key): 1 at each token that came right after an earlier occurrence of the query's.

    Example:
        >>> targets(2, 2).nonzero().tolist()
        [[2, 1], [3, 2]]
    """
    P = length * repeats
    query, key = torch.arange(P)[:, None], torch.arange(P)[None, :]
    return (
        ((query - key + 1) % length == 0) & (key <= query) & (key > 0) & (query >= length)
    ).float()


def chance(length: int, repeats: int) -> float:
    """Score of a head that attends evenly to all that it can see.

    Example:
        >>> round(chance(2, 2), 4)  # (1/3 + 1/4) / 2
        0.2917
    """
    even = targets(length, repeats).sum(1) / torch.arange(1, length * repeats + 1)
    return float(even[length:].double().mean())


def patterns(subject: Subject, tokens_BP: Tensor) -> Iterator[Tensor]:
    """Attention patterns (sequence, head, query, key), layer by layer.

    Raises:
        UsageError: a model whose patterns cannot be read.
    """
    model = subject.model
    names = getattr(model, "mod_dict", None) or dict(model.named_modules())
    points: list[nn.Module] = []
    while (name := f"blocks.{len(points)}.attn.hook_pattern") in names:
        points.append(names[name])
    if points:
        return _hooked(subject, points, tokens_BP)
    if hasattr(model, "set_attn_implementation"):
        return _asked(subject, tokens_BP)
    raise UsageError(
        f"found a {type(model).__name__}, expected a model with the sites "
        f"blocks.<layer>.attn.hook_pattern (ours, TransformerLens) or a Hugging Face model: "
        f"attention patterns of other models cannot be read."
    )


def _hooked(subject: Subject, points: list[nn.Module], tokens_BP: Tensor) -> Iterator[Tensor]:
    # One layer at a time: all patterns together would be the largest thing in memory.
    for point in points:
        seen: list[Tensor] = []

        def keep(_module: Any, _inputs: Any, output: Tensor, seen: list[Tensor] = seen) -> None:
            seen.append(output.detach())

        handle = point.register_forward_hook(keep)
        try:
            subject.logits(tokens_BP)
        finally:
            handle.remove()
        yield seen[0]


def _asked(subject: Subject, tokens_BP: Tensor) -> Iterator[Tensor]:
    # On a copy: the fused kernels that the subject may use do not form a pattern.
    model: Any = subject.copy()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(tokens_BP.to(next(model.parameters()).device), output_attentions=True)
    check_logits(output.logits, subject, model)
    found = [a for a in output.attentions or () if a is not None]
    if not found:
        raise UsageError(f"{type(model).__name__} gives no attention patterns, even when asked.")
    yield from found


def _described(
    result: xr.Dataset, length: int, repeats: int, sequences: int, seed: int
) -> xr.Dataset:
    level = chance(length, repeats)
    meanings = {
        "prefix_matching": "attention to what followed earlier occurrences of the same token",
        "prefix_matching_low": "lower bound of the score",
        "prefix_matching_high": "upper bound of the score",
        "best": "highest score of the layer's heads",
    }
    for name, meaning in meanings.items():
        result[name].attrs = {
            "units": "1",
            "long_name": meaning,
            "chance_level": level,
            "interval": INTERVAL
            if name != "best"
            else "point estimate: a maximum over heads leans upward",
        }
    result.attrs = {
        "n": sequences, "n_meaning": "random sequences", "length": length, "repeats": repeats,
        "chance_level": level, "seed": seed, "interval": INTERVAL,
    }  # fmt: skip
    return result
