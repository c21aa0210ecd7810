"""How often the intervals of the representation probes hold the planted truth.

Needs   the number of draws (200), and the folder that the figures go to; about four minutes.
Yields  rates-linear.json. test_linear_rates.py checks fewer draws of the same.

    python tests/probes/rates_linear.py 200 --into docs/measured
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from model.config import MoEConfig
from model.lm import MoELM
from probes.cka import cka
from probes.essential import basis
from probes.exam import Exam
from probes.linear import linear_probes
from probes.logit_lens import logit_lens
from probes.participation import participation
from probes.subject import Subject
from workbench.planted.stream import lexical_stream, readable_stream, shared_streams

SPECTRUM = 1 / np.arange(1, 25)
TINY = MoEConfig(
    d_vocab=40, d_model=16, n_layers=2, n_heads=2, n_key_value_heads=1, d_mlp=16,
    num_experts=4, experts_per_token=2, n_ctx=32, init_range=0.3,
)  # fmt: skip


def read(seed: int, separation: float, method: str) -> xr.Dataset:
    planted = readable_stream(separation=[separation], seed=seed)
    return linear_probes(
        planted, labels=[], given=planted.given, method=method, controls=0, seed=seed
    ).isel(layer=0, label=0)


@cache
def expected_accuracy(method: str) -> float:
    """Of a probe fitted to this much text: the mean over draws that are used for nothing else."""
    found = [read(10_000 + s, 2.0, method)["accuracy"].item() for s in range(100)]
    return float(np.mean(found))


def accuracy_held(seed: int, method: str = "logistic") -> bool:
    row = read(seed, 2.0, method)
    return bool(row["accuracy_low"] <= expected_accuracy(method) <= row["accuracy_high"])


def bayes_found(seed: int) -> bool:
    return abs(read(seed, 2.0, "ridge")["accuracy"].item() - 0.8145) < 0.05


def read_from_nothing(seed: int, method: str) -> bool:
    return bool(read(seed, 0.0, method)["gain_low"] > 0)


def selective(seed: int) -> xr.Dataset:
    planted = lexical_stream(seed=seed)
    return linear_probes(
        planted, labels=[], given=planted.given, method="ridge", controls=4, seed=seed
    ).isel(layer=0, label=0)


def selectivity_held(seed: int) -> bool:
    row = selective(seed)
    return bool(row["selectivity_low"] <= 0 <= row["selectivity_high"])


def selectivity_false_alarm(seed: int) -> bool:
    return bool(selective(seed)["selectivity_low"] > 0)


def cka_held(seed: int, shared: float) -> bool:
    planted = shared_streams(spectrum=SPECTRUM, shared=shared, seed=seed)
    cell = cka(planted).isel(layer=0, other_layer=1)
    return bool(cell["cka_low"] <= shared <= cell["cka_high"])


def cka_false_alarm(seed: int) -> bool:
    planted = shared_streams(spectrum=SPECTRUM, shared=0.0, seed=seed)
    return bool(cka(planted)["cka_low"][0, 1] > 0)


def participation_held(seed: int, row_share: float) -> bool:
    planted = shared_streams(spectrum=SPECTRUM, shared=0.0, row_share=row_share, seed=seed)
    cell = participation(planted).isel(layer=0)
    truth = planted.truth["participation"]
    return bool(cell["participation_low"] <= truth <= cell["participation_high"])


def lens_of(rows: int, seed: int, n_boot: int) -> xr.Dataset:
    """Rows of tokens from a few words each, put to one model of drawn weights."""
    rng = np.random.default_rng([seed, 5])
    words = rng.integers(0, 40, (rows, 6))
    tokens = np.take_along_axis(words, rng.integers(0, 6, (rows, 16)), axis=1)
    subject = Subject(MoELM(TINY, seed=0), Exam(tokens=tokens, domains=("a",) * rows))
    return logit_lens(subject, n_boot=n_boot).isel(layer=0)


@cache
def lens_truth() -> tuple[float, float]:
    row = lens_of(6000, 10_000, 2)
    return row["logprob"].item(), row["agreement"].item()


def lens_held(seed: int, which: int) -> bool:
    row, name = lens_of(28, seed, 1000), ("logprob", "agreement")[which]
    return bool(row[name + "_low"] <= lens_truth()[which] <= row[name + "_high"])


def explained_held(seed: int) -> bool:
    """Movement along three orthogonal paths with shares 0.6, 0.3, 0.1, alike within a row."""
    rng = np.random.default_rng([seed, 9])
    steps = np.arange(20)
    paths = np.stack([np.cos(np.pi * k * (steps + 0.5) / 20) for k in (1, 2, 3)])
    size = np.sqrt([0.6, 0.3, 0.1])
    row = np.repeat(np.arange(28), 63)
    loads = np.sqrt(0.9) * rng.normal(size=(len(row), 3)) + np.sqrt(0.1) * rng.normal(
        size=(28, 3)
    ).repeat(63, axis=0)
    points = xr.Dataset({"logprob": (("checkpoint", "feature"), (loads * size @ paths).T)})
    cell = basis(points.assign_coords(row=("feature", row))).isel(component=0)
    return bool(cell["explained_low"] <= 0.6 <= cell["explained_high"])


COVERAGE, ALARM, FOUND = "interval covers the truth", "false alarms", "truth found"
NEAR = "0.90 to 0.98"
Row = tuple[str, str, str, str, Callable[[int], bool]]
RATES: list[Row] = [
    ("two classes 2 sd apart, 28 rows", "linear, logistic: accuracy", COVERAGE, NEAR,
     accuracy_held),
    ("two classes 2 sd apart, 28 rows", "linear, ridge: accuracy", COVERAGE, NEAR,
     lambda s: accuracy_held(s, "ridge")),
    ("two classes 2 sd apart, 28 rows", "linear, ridge: within 0.05 of the best possible", FOUND,
     "at least 0.95", bayes_found),
    ("labels drawn by a coin", "linear, logistic: gain", ALARM, "at most 0.05",
     lambda s: read_from_nothing(s, "logistic")),
    ("labels drawn by a coin", "linear, ridge: gain", ALARM, "at most 0.05",
     lambda s: read_from_nothing(s, "ridge")),
    ("label of token types", "linear: selectivity, 4 control draws", COVERAGE, "at least 0.90",
     selectivity_held),
    ("label of token types", "linear: selectivity", ALARM, "at most 0.05", selectivity_false_alarm),
    ("layers that share half", "cka", COVERAGE, NEAR, lambda s: cka_held(s, 0.5)),
    ("layers that share 0.95", "cka", COVERAGE, NEAR, lambda s: cka_held(s, 0.95)),
    ("unrelated layers", "cka", ALARM, "at most 0.05", cka_false_alarm),
    ("eigenvalues 1/i, i to 24, rows alike by 0.2", "participation", COVERAGE, NEAR,
     lambda s: participation_held(s, 0.2)),
    ("eigenvalues 1/i, i to 24, tokens independent", "participation", COVERAGE, NEAR,
     lambda s: participation_held(s, 0.0)),
    ("rows of six words each", "logit lens: log-probability", COVERAGE, NEAR,
     lambda s: lens_held(s, 0)),
    ("rows of six words each", "logit lens: agreement", COVERAGE, NEAR, lambda s: lens_held(s, 1)),
    ("three paths, 0.6 of the movement along one", "essential dynamics: explained", COVERAGE, NEAR,
     explained_held),
]  # fmt: skip


def rates(draws: int) -> list[dict[str, object]]:
    found = []
    for world, probe, what, wanted, held in RATES:
        share = float(np.mean([held(seed) for seed in range(draws)]))
        found.append({"world": world, "probe": probe, "what": what, "share": round(share, 4),
                      "wanted": wanted, "note": ""})  # fmt: skip
        sys.stdout.write(f"{world}; {probe}; {what}: {share:.3f} ({wanted})\n")
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("draws", type=int, nargs="?", default=200)
    parser.add_argument("--into", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        "machine": "2 shared CPU cores", "date": "2026-11-23", "draws": asked.draws,
        "rows": rates(asked.draws),
    }  # fmt: skip
    if asked.into:
        (asked.into / "rates-linear.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
