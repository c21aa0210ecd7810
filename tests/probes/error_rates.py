"""Error rates: how often each probe's interval holds the planted truth, and each verdict is right.

Needs   the number of draws as an argument (200 where none is given); ten minutes on one core.
Yields  two tables in Markdown on standard output. The tests check fewer draws of the same.

    python tests/probes/error_rates.py 200
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

import probes
from workbench.testing import PlantedSkill, activations_record, evaluations_record, two_arms

WINDOW = 960
"""Steps of the evaluated window: 25 checkpoints, 40 apart."""

Planted = tuple[dict[str, Any], dict[str, Any]]

SKILLS: dict[str, Planted] = {
    "jump": ({"kind": "jump"}, {}),
    "jump, 60 items": ({"kind": "jump"}, {"items": 60}),
    "jump to 0.7, 60 items, b = 0.25": (
        {"kind": "jump", "top": 0.7},
        {"items": 60, "chance": 0.25},
    ),
    "jump to 0.55, 60 items": ({"kind": "jump", "top": 0.55}, {"items": 60}),
    "jump from 0.45, 60 items": ({"kind": "jump", "bottom": 0.45}, {"items": 60}),
    "jump after a leap of 5 nats": ({"kind": "jump"}, {"format_nats": 5.0}),
    "jump, 12 checkpoints": ({"kind": "jump"}, {"checkpoints": 12, "every": 87}),
    "jump, 5 checkpoints": ({"kind": "jump"}, {"checkpoints": 5, "every": 240}),
    "jump, log-probability ahead": ({"kind": "jump", "logprob": "ahead"}, {}),
    "jump, ahead, 60 items": ({"kind": "jump", "logprob": "ahead"}, {"items": 60}),
    "straight over 0.1 of the window": ({"kind": "linear", "width": 0.1 * WINDOW}, {}),
    "straight over 0.2": ({"kind": "linear", "width": 0.2 * WINDOW}, {}),
    "straight over 0.3": ({"kind": "linear", "width": 0.3 * WINDOW}, {}),
    "straight over 0.4": ({"kind": "linear", "width": 0.4 * WINDOW}, {}),
    "straight over 0.5": ({"kind": "linear", "width": 0.5 * WINDOW}, {}),
    "straight over 0.9": ({"kind": "linear", "width": 0.9 * WINDOW, "at": 480.0}, {}),
    "straight over 0.9, 60 items": (
        {"kind": "linear", "width": 0.9 * WINDOW, "at": 480.0},
        {"items": 60},
    ),
    "straight over 0.9, 49 checkpoints": (
        {"kind": "linear", "width": 0.9 * WINDOW, "at": 480.0},
        {"checkpoints": 49, "every": 20},
    ),
    "logistic, 10-90 % in 0.3": ({"kind": "logistic", "width": 0.3 * WINDOW}, {}),
    "logistic, 10-90 % in 0.6": ({"kind": "logistic", "width": 0.6 * WINDOW}, {}),
    "logistic in 0.6, 60 items": ({"kind": "logistic", "width": 0.6 * WINDOW}, {"items": 60}),
    "logistic in 0.6, items kept": (
        {"kind": "logistic", "width": 0.6 * WINDOW},
        {"persistence": 1.0},
    ),
    "logistic in 0.6, b = 0.5": ({"kind": "logistic", "width": 0.6 * WINDOW}, {"chance": 0.5}),
    "never": ({"kind": "never"}, {}),
    "never, 60 items, b = 0.5": ({"kind": "never"}, {"items": 60, "chance": 0.5}),
    "always": ({"kind": "always"}, {}),
}


def one_onset(shape: dict[str, Any], sizes: dict[str, Any], seed: int) -> tuple[Any, float]:
    """The onset found, and the true one; the middle of the rise falls anywhere in the window."""
    at = float(np.random.default_rng([seed, 77]).uniform(250, 710))
    planted = PlantedSkill(**({"at": at} | shape))
    record = evaluations_record({"code/add": planted}, seed=seed, **sizes)
    skill = probes.capability(record, task="code/add", n_boot=2)
    return probes.onset(skill, seed=seed), planted.onset()


def onset_row(name: str, draws: int) -> str:
    found, truth = zip(*(one_onset(*SKILLS[name], seed) for seed in range(draws)), strict=True)
    true = np.array(truth)
    low, high = (np.array([getattr(o, end) for o in found]) for end in ("low", "high"))
    reached = np.array([o.reached for o in found])
    counts = [np.mean([o.verdict == v for o in found]) for v in ("jump", "smooth", "cannot tell")]
    if np.isnan(true).all():
        numbers = ["", "", ""]
    else:
        error = np.array([o.step for o in found])[reached] - true[reached]
        covered = np.mean((low <= true) & (true <= high))
        numbers = [f"{covered:.3f}", f"{np.median(high - low):.0f}", f"{np.median(error):+.0f}"]
    cells = [name, f"{reached.mean():.3f}", *numbers, *(f"{c:.3f}" for c in counts)]
    return "| " + " | ".join(cells) + " |\n"


def kappa_held(seed: int) -> bool:
    record = activations_record(
        checkpoints=3, freeze_at=0.8, tokens=1280, layers=1, document_tokens=16, seed=seed
    )
    row = probes.saturation(record).isel(checkpoint=1, layer=0)
    return bool(row["kappa_low"] <= 0.5 / 0.8 <= row["kappa_high"])


def logprob_held(seed: int) -> bool:
    record = evaluations_record(
        {"code/add": PlantedSkill("never")}, checkpoints=1, items=60, seed=seed
    )
    row = probes.capability(record, task="code/add").isel(checkpoint=0)
    truth = -(np.log(10) + 0.02)
    return bool(row["logprob_low"] <= truth <= row["logprob_high"])


def accuracy_held(seed: int) -> bool:
    planted = PlantedSkill("always", top=0.9)
    record = evaluations_record({"code/add": planted}, checkpoints=1, items=60, seed=seed)
    row = probes.capability(record, task="code/add", n_boot=2).isel(checkpoint=0)
    return bool(row["normalized_low"] <= 0.9 <= row["normalized_high"])


def arms(seed: int, gain: float) -> Any:
    a, b = two_arms(gain={"code/add": gain}, items=150, fork=0, checkpoints=2, seed=seed)
    return probes.arm_difference(a, b).isel(checkpoint=-1)


def accuracy_gain_held(seed: int) -> bool:
    row = arms(seed, 0.1).sel(task="code/add")
    return bool(row["accuracy_low"] <= 0.1 <= row["accuracy_high"])


def logprob_gain_held(seed: int) -> bool:
    row = arms(seed, 0.1).sel(task="code/add")
    return bool(row["logprob_low"] <= 0.1 * np.log(10) <= row["logprob_high"])


def false_alarm(seed: int) -> bool:
    row = arms(seed, 0.0)
    return bool(row["accuracy_real"].any())


def logprob_false_alarm(seed: int) -> bool:
    return bool(arms(seed, 0.0)["logprob_real"].any())


RATES: dict[str, tuple[Callable[[int], bool], str]] = {
    "kappa, tokens in documents of 16": (kappa_held, "0.95"),
    "accuracy, 60 items, true 0.91": (accuracy_held, "0.95"),
    "mean log-probability, 60 items, skewed": (logprob_held, "0.95"),
    "arms: accuracy gain of 0.1, 150 items": (accuracy_gain_held, "0.95"),
    "arms: log-probability gain, 150 items": (logprob_gain_held, "0.95"),
    "arms: any of 4 equal tasks called real (accuracy)": (false_alarm, "at most 0.05"),
    "arms: the same (log-probability)": (logprob_false_alarm, "at most 0.05"),
}


def main(draws: int) -> None:
    out = sys.stdout
    out.write(f"Onsets, {draws} draws each; 200 items, 25 checkpoints, chance 0.1 if not said.\n\n")
    out.write("| planted | reached | interval holds | median width | median error ")
    out.write("| jump | smooth | cannot tell |\n|---|---|---|---|---|---|---|---|\n")
    for name in SKILLS:
        out.write(onset_row(name, draws))
        out.flush()
    out.write("\n| interval or test | measured | stated |\n|---|---|---|\n")
    for name, (held, stated) in RATES.items():
        out.write(f"| {name} | {np.mean([held(s) for s in range(draws)]):.3f} | {stated} |\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
