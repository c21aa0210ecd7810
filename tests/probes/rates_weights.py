"""Error rates of the probes of structure and representation: does the interval hold the truth?

Needs   the number of draws (200 where none is given) and a folder; about four minutes on one core.
Yields  a table on standard output, and rates-weights.json in that folder.

    python tests/probes/rates_weights.py 200 --into docs/measured
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from model.experts import gated_unit
from probes.attention import prefix_matching
from probes.barrier import barrier
from probes.exam import Exam
from probes.expert_similarity import output_cka
from probes.exposure import exposure
from probes.in_context import in_context
from probes.learning_coefficient import learning_coefficient
from probes.memorisation import memorisation
from probes.subject import Subject
from workbench.planted.scripted import KnownTexts, ScriptedLoss

INTERVAL, COVER = "interval covers the truth", "0.90 to 0.98"
VOCABULARY = 64


def texts(rng: np.random.Generator, rows: int, length: int) -> Exam:
    tokens = rng.integers(0, VOCABULARY, (rows, length))
    return Exam(tokens=tokens, domains=("a",) * rows)


def hardness(tokens: torch.Tensor) -> torch.Tensor:
    """A row's own level, skewed, told by its first token: mean 1 over the vocabulary."""
    level = torch.linspace(-2, 2, VOCABULARY).exp()
    return (level / level.mean())[tokens[:, :1]]


def inside(found: Any, name: str, truth: float) -> bool:
    return bool(found[name + "_low"] <= truth <= found[name + "_high"])


def late_less_early(seed: int, gain: float, rows: int) -> Any:
    """Losses fall by `gain` from the early to the late window, by more in harder rows, in noise."""
    rng = np.random.default_rng(seed)
    noise = torch.from_numpy(np.random.default_rng(5).gamma(2.0, 0.25, VOCABULARY)).float()

    def loss(tokens: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        falling = torch.linspace(0, 1, tokens.shape[1] - 1)
        return w + noise[tokens[:, 1:]] + gain * hardness(tokens) * (1 - falling)

    subject = Subject(ScriptedLoss(loss, torch.ones(1) * 0.5, VOCABULARY), texts(rng, rows, 33))
    return in_context(subject, early=1, late=32, width=1, seed=seed)


def in_context_held(seed: int, rows: int) -> bool:
    return inside(late_less_early(seed, 0.5, rows), "in_context", -0.5)


def in_context_false_alarm(seed: int) -> bool:
    return not inside(late_less_early(seed, 0.0, 28), "in_context", 0.0)


def memorised_held(seed: int) -> bool:
    rng = np.random.default_rng(seed)
    exam = texts(rng, 28, 16)
    known = exam.tokens[rng.random(28) < 0.3]
    model = KnownTexts(known.tolist(), least=8, vocabulary=VOCABULARY)
    return inside(memorisation(Subject(model, exam), n_boot=2), "memorised", 0.3)


def match_held(seed: int) -> bool:
    """Each row is known for a number of tokens drawn evenly from 0 to 8."""
    rng = np.random.default_rng(seed)
    exam = texts(rng, 28, 16)
    lasts = rng.integers(0, 9, 28)
    known = [row[: 8 + last].tolist() for row, last in zip(exam.tokens, lasts, strict=True)]
    model = KnownTexts(known, least=8, vocabulary=VOCABULARY)
    found = memorisation(Subject(model, exam), seed=seed)
    # After its end a known text is continued by counting: right by chance, 1 in 64.
    return inside(found, "match", 0.5 + 0.5 / VOCABULARY)


def hill(seed: int, height: float, slope: float = 0.0) -> Any:
    def loss(tokens: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return hardness(tokens) * (1 + height * (1 - w**2) + slope * w)

    exam = texts(np.random.default_rng(seed), 28, 4)
    ends = [Subject(ScriptedLoss(loss, torch.tensor([e]), VOCABULARY), exam) for e in (1.0, -1.0)]
    return barrier(*ends, seed=seed)


def barrier_held(seed: int) -> bool:
    return inside(hill(seed, 0.5), "barrier", 0.5)


def chord_held(seed: int) -> bool:
    # The hill's excess over the chord is the same whatever the slope between its ends.
    return inside(hill(seed, 0.5, slope=0.3), "above_chord", 0.5)


def barrier_false_alarm(seed: int) -> bool:
    return bool(hill(seed, 0.0, slope=-0.5)["above_chord_low"] > 1e-4)


class NoisyHead(nn.Module):
    """One head whose attention to each earlier token is drawn from the tokens that meet there."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(strength))
        attention = nn.Module()
        attention.hook_pattern = nn.Identity()
        block = nn.Module()
        block.attn = attention
        self.blocks = nn.ModuleList([block])
        generator = torch.Generator().manual_seed(0)
        self.liking = 1.5 * torch.randn(VOCABULARY, VOCABULARY, generator=generator)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        before = torch.cat([tokens[:, :1], tokens[:, :-1]], dim=1)
        scores = self.liking[tokens[:, :, None], tokens[:, None, :]]
        scores = scores + self.strength * (tokens[:, :, None] == before[:, None, :])
        future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        self.blocks[0].attn.hook_pattern(
            scores.masked_fill(future, -torch.inf).softmax(-1)[:, None]
        )
        return torch.zeros(*tokens.shape, VOCABULARY)


ALL_TOKENS = Exam(tokens=np.arange(VOCABULARY).reshape(4, 16), domains=("a",) * 4)


@cache
def true_prefix_matching() -> float:
    found = prefix_matching(Subject(NoisyHead(2.0), ALL_TOKENS), sequences=20_000, n_boot=2, seed=9)
    return found["prefix_matching"].item()


def prefix_matching_held(seed: int) -> bool:
    found = prefix_matching(Subject(NoisyHead(2.0), ALL_TOKENS), seed=seed + 100)
    return inside(found.squeeze(), "prefix_matching", true_prefix_matching())


def cka_of(seed: int, rows: int, shared: bool) -> tuple[float, float, float]:
    """Four experts on rows of 16 tokens whose hidden states lean each row its own way."""
    weights = np.random.default_rng(3)
    W = torch.from_numpy(weights.normal(0, 0.6, (4, 8, 16)))
    out = torch.from_numpy(weights.normal(0, 1, (4, 8, 8)))
    rng = np.random.default_rng(seed)
    lean = rng.normal(0, 0.7, (4 if not shared else 1, rows, 1, 8))
    x = torch.from_numpy(lean + rng.normal(0, 1, (len(lean), rows, 16, 8))).flatten(1, 2)
    gate, up = (x @ W).chunk(2, dim=-1)
    return output_cka(gated_unit(gate, up) @ out, rows)[1:]


@cache
def true_cka() -> float:
    return float(np.mean([cka_of(10_000 + seed, 60, True)[0] for seed in range(60)]))


def cka_held(seed: int, rows: int) -> bool:
    _, low, high = cka_of(seed, rows, True)
    return low <= true_cka() <= high


def cka_false_alarm(seed: int) -> bool:
    """Each expert reads text of its own: nothing is shared."""
    _, low, high = cka_of(seed, 16, False)
    return not low <= 0 <= high


def cka_of_leaning_rows(seed: int) -> bool:
    """Each expert's outputs lean each row their own way, by as much as tokens differ."""
    draw = torch.Generator().manual_seed(seed)
    outputs = torch.randn(3, 16, 1, 8, generator=draw) + torch.randn(3, 16, 16, 8, generator=draw)
    _, low, high = output_cka(outputs.flatten(1, 2), 16)[1:]
    return not low <= 0 <= high


@cache
def bigram(seed: int) -> nn.Embedding:
    rng = np.random.default_rng(seed)
    table = torch.from_numpy(rng.normal(0, 1, (24, 24))).float()
    return nn.Embedding.from_pretrained(table, freeze=False)


@cache
def all_scores(length: int) -> np.ndarray:
    """Of every secret of that length over 20 tokens, by the table alone."""
    rows = bigram(0).weight.detach().double().log_softmax(-1).numpy()[:, 4:]
    total = rows[1]
    for _ in range(length - 1):
        total = (total[..., None] + rows[4:]).reshape(-1, 20)
    return np.sort(total.ravel())


def exposed(seed: int, length: int, rank: int) -> tuple[Any, float]:
    """A secret of about that rank among all, and its true exposure."""
    scores = all_scores(length)
    wanted = scores[-rank]
    rng = np.random.default_rng(seed)
    rows = bigram(0).weight.detach().double().log_softmax(-1).numpy()[:, 4:]
    tries = rng.integers(0, 20, (20_000, length))
    own = rows[1, tries[:, 0]]
    for a, b in zip(tries.T, tries.T[1:], strict=False):
        own = own + rows[4 + a, b]
    secret = tries[np.abs(own - wanted).argmin()]
    score = own[np.abs(own - wanted).argmin()]
    truth = len(scores) / (len(scores) - np.searchsorted(scores, score - 1e-9))
    canary = {"prefix": [1], "secret": (4 + secret).tolist(), "space": list(range(4, 24))}
    subject = Subject(bigram(0), Exam(tokens=np.zeros((2, 4), int), domains=("a", "a")))
    return exposure(subject, canaries=[canary], seed=1000 * seed).isel(canary=0), float(
        np.log2(truth)
    )


def sampled_held(seed: int) -> bool:
    found, truth = exposed(seed, 4, rank=8000)
    return inside(found, "exposure_sampled", truth)


def extrapolated_held(seed: int, rank: int) -> bool:
    found, truth = exposed(seed, 4, rank)
    return inside(found, "exposure_extrapolated", truth)


def unplanted_at_5_bits(seed: int) -> bool:
    rng = np.random.default_rng(seed)
    canary = {"prefix": [1], "secret": rng.integers(4, 24, 2).tolist(), "space": list(range(4, 24))}
    subject = Subject(bigram(seed), Exam(tokens=np.zeros((2, 4), int), domains=("a", "a")))
    return bool(exposure(subject, canaries=[canary])["exposure"] >= np.log2(20))


def coefficient(seed: int) -> Any:
    exam = Exam(tokens=np.zeros((2, 61), int), domains=("a", "a"))
    bowl = ScriptedLoss(lambda t, w: 1 + (w**2).sum() / 2, torch.zeros(20))
    return learning_coefficient(
        Subject(bowl, exam), lr=1e-2, n_beta=25.0, localization=0.0, chains=4, draws=60,
        burn_in=30, seed=10 * seed,
    )  # fmt: skip


def coefficient_held(seed: int) -> bool:
    # Half the dimensions, times what a step of this size adds.
    return inside(coefficient(seed), "llc", 10 / (1 - 1e-2 * 25 / 4))


class Rate(NamedTuple):
    """One row of the table."""

    world: str
    probe: str
    what: str
    wanted: str
    held: Callable[[int], bool]
    draws: int = 1_000_000
    note: str = ""


RATES = (
    Rate("late tokens half a nat easier, 28 skewed rows", "in-context", INTERVAL, COVER,
         lambda s: in_context_held(s, 28)),
    Rate("the same, 4 rows (Student's t)", "in-context", INTERVAL, COVER,
         lambda s: in_context_held(s, 4)),
    Rate("no use of context", "in-context", "false alarms", "at most 0.05",
         in_context_false_alarm),
    Rate("each of 28 texts known with chance 0.3", "memorisation", INTERVAL, COVER, memorised_held),
    Rate("texts known in part: mean match", "memorisation", INTERVAL, COVER, match_held),
    Rate("a hill of 0.5 nats, 28 skewed rows", "barrier", INTERVAL, COVER, barrier_held),
    Rate("the same on a slope: above the chord", "barrier", INTERVAL, COVER, chord_held),
    Rate("a slope without a hill", "barrier", "false alarms", "at most 0.05", barrier_false_alarm),
    Rate("a noisy head that leans to matches", "prefix-matching", INTERVAL, COVER,
         prefix_matching_held),
    Rate("four random experts, 28 rows", "expert-similarity", INTERVAL, COVER,
         lambda s: cka_held(s, 28)),
    Rate("the same, 10 rows", "expert-similarity", INTERVAL, COVER, lambda s: cka_held(s, 10)),
    Rate("experts that read nothing in common", "expert-similarity", "false alarms",
         "at most 0.05", cka_false_alarm),
    Rate("outputs that lean each row their own way", "expert-similarity", "false alarms",
         "at most 0.05", cka_of_leaning_rows),
    Rate("4.3 bits of 160,000 secrets", "exposure", INTERVAL, COVER, sampled_held, 100),
    Rate("about 10 bits, extrapolated", "exposure", INTERVAL, COVER,
         lambda s: extrapolated_held(s, 160), 100,
         "The interval takes the fitted shape for granted; the shape is only near the true one."),
    Rate("unplanted, at log2(20) bits or more", "exposure", "false alarms", "at most 0.05",
         unplanted_at_5_bits),
    Rate("a bowl of 20 dimensions", "learning-coefficient", INTERVAL, COVER, coefficient_held, 100),
)  # fmt: skip


def main(draws: int, into: Path | None) -> None:
    # devinterp collects garbage for every chain, over all that torch and others have loaded.
    gc.freeze()
    rows = []
    for rate in RATES:
        n = min(draws, rate.draws)
        share = float(np.mean([rate.held(seed) for seed in range(n)]))
        note = rate.note + (f" {n} draws." if n < draws else "")
        rows.append(
            {
                "world": rate.world, "probe": rate.probe, "what": rate.what,
                "share": round(share, 4), "wanted": rate.wanted, "note": note.strip(),
            }
        )  # fmt: skip
        sys.stdout.write(f"{rate.probe:22} {rate.world:48} {share:.3f}  {rate.wanted}\n")
        sys.stdout.flush()
    if into is not None:
        table = {
            "machine": "2 shared CPU cores", "date": "2026-11-23", "draws": draws, "rows": rows,
        }  # fmt: skip
        (into / "rates-weights.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("draws", nargs="?", type=int, default=200)
    parser.add_argument("--into", type=Path)
    given = parser.parse_args()
    main(given.draws, given.into)
