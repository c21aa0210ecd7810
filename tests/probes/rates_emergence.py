"""Error rates of what is said of capabilities: intervals, verdicts, change points, hidden states.

Needs   the number of draws (200 where none is given), and a folder for the result.
Yields  rates-emergence.json in that folder, and the same rows on standard output. The tests check
        fewer draws of the same.

    python tests/probes/rates_emergence.py 200 --into docs/measured
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import xarray as xr

import probes
from probes.answers import answers_of
from probes.change_point import change_point
from probes.phases import phases
from probes.seed_card import SeedCard, seed_card
from probes.statistics.autoregression import noise
from workbench.testing import PlantedSkill, activations_record, evaluations_record, two_arms

WINDOW = 960
"""Steps of the evaluated window: 25 checkpoints, 40 apart."""

COVERED, FEW, MANY = "0.90 to 0.98", "at most 0.05", "at least 0.90"
Row = dict[str, Any]
Planted = tuple[dict[str, Any], dict[str, Any], str | None]

# Shape, sizes, and the verdict that is right, where one is.
SKILLS: dict[str, Planted] = {
    "jump": ({"kind": "jump"}, {}, "jump"),
    "jump to 0.7, 60 items, b = 0.25": (
        {"kind": "jump", "top": 0.7},
        {"items": 60, "chance": 0.25},
        "jump",
    ),
    "jump to 0.55, 60 items": ({"kind": "jump", "top": 0.55}, {"items": 60}, "jump"),
    "jump to 0.52, 60 items": ({"kind": "jump", "top": 0.52}, {"items": 60}, "jump"),
    "jump to 0.5, the level itself, 60 items": (
        {"kind": "jump", "top": 0.5 + 1e-6},
        {"items": 60},
        "jump",
    ),
    "early jump to 0.5, the level itself, 60 items": (
        {"kind": "jump", "top": 0.5 + 1e-6, "at": 100.0},
        {"items": 60},
        "jump",
    ),
    "jump from 0.45, 60 items": ({"kind": "jump", "bottom": 0.45}, {"items": 60}, "jump"),
    "jump after a leap of 5 nats": ({"kind": "jump"}, {"format_nats": 5.0}, "jump"),
    "jump, log-probability ahead": ({"kind": "jump", "logprob": "ahead"}, {}, "smooth"),
    "straight over 0.1 of the window": ({"kind": "linear", "width": 0.1 * WINDOW}, {}, None),
    "straight over 0.5": ({"kind": "linear", "width": 0.5 * WINDOW}, {}, "smooth"),
    "logistic in 0.6, 60 items": (
        {"kind": "logistic", "width": 0.6 * WINDOW},
        {"items": 60},
        "smooth",
    ),
    "logistic in 0.3, items kept": (
        {"kind": "logistic", "width": 0.3 * WINDOW},
        {"persistence": 1.0},
        None,
    ),
    "never": ({"kind": "never"}, {}, None),
}
STEEP = ("straight over 0.1 of the window",)
"""Neither a step nor smooth by the verdict's rule: what it is called is stated, not judged."""

COURSES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "constant": lambda t: 0 * t,
    "straight over 0.3": lambda t: np.clip((t - 0.5) / 0.3 + 0.5, 0, 1),
    "straight over 0.9": lambda t: np.clip((t - 0.5) / 0.9 + 0.5, 0, 1),
    "square root": np.sqrt,
    "two smooth rises": lambda t: (
        np.clip((t - 0.25) / 0.3 + 0.5, 0, 1) / 2 + np.clip((t - 0.75) / 0.3 + 0.5, 0, 1) / 2
    ),
    "step": lambda t: (t > 0.5).astype(float),
    "step on a trend": lambda t: 0.5 * (t > 0.5) + 0.5 * t,
}


NOTES = {
    "two smooth rises": "not reached: two stages as fast as smooth may be, with a rest between"
}


def card_of(name: str, seed: int) -> tuple[SeedCard, PlantedSkill]:
    """One world's card; the middle of the rise falls anywhere in twelve whole gaps."""
    shape, sizes, _ = SKILLS[name]
    at = float(np.random.default_rng([seed, 77]).uniform(240, 720))
    planted = PlantedSkill(**({"at": at} | shape))
    record = evaluations_record({"code/add": planted}, seed=seed, **sizes)
    skill = probes.capability(record, task="code/add", n_boot=2)
    return seed_card(skill, n_boot=200, n_null=99, seed=seed), planted


def of_skills(draws: int) -> Iterator[Row]:
    for name, (shape, _, right) in SKILLS.items():
        cards, planted = zip(*(card_of(name, seed) for seed in range(draws)), strict=True)
        verdict = {v: share(c.verdict == v for c in cards) for v in ("jump", "smooth")}
        if shape["kind"] != "never":
            held = share(
                c.onset.low <= p.onset() <= c.onset.high
                for c, p in zip(cards, planted, strict=True)
            )
            width = np.median([c.onset.high - c.onset.low for c in cards])
            note = f"median width {width:.0f} steps; gaps are 40"
            if held < 0.9:
                note += "; short of it: chance carries a long plateau over the level"
            yield row(name, "onset", "interval covers the truth", held, COVERED, note)
            given = [
                (c, p) for c, p in zip(cards, planted, strict=True) if not c.acquisition.reason
            ]
            if given:
                held = share(c.acquisition.low <= p.at <= c.acquisition.high for c, p in given)
                yield row(name, "age of acquisition", "interval covers the truth", held,
                          COVERED if shape["kind"] in ("logistic", "jump") else "stated",
                          f"given in {len(given) / draws:.3f}")  # fmt: skip
            else:
                yield row(name, "age of acquisition", "refused", 1.0, MANY,
                          "it began half learned")  # fmt: skip
        else:
            given = share(not c.acquisition.reason for c in cards)
            yield row(name, "age of acquisition", "false alarms", given, FEW)
            yield row(name, "onset", "false alarms", share(c.onset.reached for c in cards), FEW)
        if shape["kind"] == "jump":
            here = (c.changes["accuracy"] for c in cards)
            held = share(
                h.low <= p.at <= h.high for h, p in zip(here, planted, strict=True) if h is not None
            )
            yield row(name, "change point", "interval covers the truth", held, "at least 0.90",
                      "whole gaps: interval-censored")  # fmt: skip
        if right == "jump":
            yield row(name, "verdict", "jump called smooth", verdict["smooth"], FEW)
            yield row(name, "verdict", "truth found", verdict["jump"], "stated")
        else:
            wanted = "stated" if name in STEEP else FEW
            yield row(name, "verdict", "smooth called jump", verdict["jump"], wanted)
        if right == "smooth":
            yield row(name, "verdict", "truth found", verdict["smooth"], "stated")


def found_in(course: str, phi: float, sd: float, seed: int, checkpoints: int = 25) -> bool:
    clock = np.linspace(0, 1, checkpoints)
    values = COURSES[course](clock) + sd * noise(phi, checkpoints, 1, seed)[0]
    curve = xr.DataArray(values, coords={"step": clock * WINDOW})
    return change_point(curve, n_boot=1, n_null=99, seed=seed).found


def of_change_points(draws: int) -> Iterator[Row]:
    for course in COURSES:
        null = "step" not in course
        for phi in (0.0, 0.5, 0.8, 0.9) if course == "constant" else (0.0, 0.6):
            found = share(found_in(course, phi, 0.05, 1000 + seed) for seed in range(draws))
            yield row(f"{course}, AR(1) noise, phi = {phi}, sd 0.05 of the rise", "change point",
                      "false alarms" if null else "truth found", found,
                      FEW if null else MANY, NOTES.get(course, ""))  # fmt: skip


def states_of(phi: float, regimes: bool, seed: int) -> int:
    signals = np.stack([noise(phi, 60, 1, 10 * seed + j)[0] for j in range(3)], axis=1)
    if regimes:
        signals += 3.0 * np.repeat([0.0, 1.0, 0.0], 20)[:, None] * [1, -1, 1]
    found = phases(xr.DataArray(signals, dims=("step", "signal")), most=3, surrogates=19, seed=seed)
    return int(found.attrs["states"])


def of_phases(draws: int) -> Iterator[Row]:
    for phi in (0.0, 0.5):
        alone = share(states_of(phi, False, seed) == 1 for seed in range(draws))
        yield row(f"stationary noise, phi = {phi}, 60 points, 3 signals", "phases",
                  "one state chosen", alone, "at least 0.95")  # fmt: skip
        two = share(states_of(phi, True, seed) == 2 for seed in range(draws))
        yield row(f"two regimes 3 sd apart, phi = {phi}", "phases", "truth found", two, "stated")


def answered(seed: int) -> dict[str, bool]:
    """150 items of four choices with log-odds for the right one; truths of the population."""
    rng = np.random.default_rng(seed)
    pool = np.random.default_rng(0).normal([1.0, 0, 0, 0], 1.0, (200_000, 4))

    def scores(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return ((p - [1, 0, 0, 0]) ** 2).sum(axis=1), np.log(p[:, 0])

    logits = rng.normal([1.0, 0, 0, 0], 1.0, (150, 4))
    items = SimpleNamespace(
        tasks=("t",), items_per_task=150, item_of=np.repeat(np.arange(150), 4),
        is_right=np.tile([True, False, False, False], 150),
        continuation=[[int(c)] for _ in range(150) for c in rng.permutation(4)],
    )  # fmt: skip
    found = answers_of(items, logits.ravel(), {"t": 0.25}, n_boot=400, seed=seed).isel(task=0)
    brier, choice = (float(x.mean()) for x in scores(pool))
    # Every answer is right as often as any other, and mistaken for any other alike.
    accuracy = float((pool.argmax(axis=1) == 0).mean())
    truths = {"accuracy": accuracy, "f1": accuracy, "brier": brier, "choice_logprob": choice}
    return {k: bool(found[f"{k}_low"] <= t <= found[f"{k}_high"]) for k, t in truths.items()}


def of_answers(draws: int) -> Iterator[Row]:
    held = [answered(seed) for seed in range(draws)]
    for name in held[0]:
        yield row("150 items of 4 choices", f"answers: {name}", "interval covers the truth",
                  share(h[name] for h in held), COVERED)  # fmt: skip


def kappa_held(seed: int) -> bool:
    record = activations_record(
        checkpoints=3, freeze_at=0.8, tokens=1280, layers=1, document_tokens=16, seed=seed
    )
    found = probes.saturation(record, n_boot=400).isel(checkpoint=1, layer=0)
    return bool(found["kappa_low"] <= 0.5 / 0.8 <= found["kappa_high"])


def capability_held(name: str, planted: PlantedSkill, truth: float, seed: int) -> bool:
    record = evaluations_record({"code/add": planted}, checkpoints=1, items=60, seed=seed)
    found = probes.capability(record, task="code/add", n_boot=400).isel(checkpoint=0)
    return bool(found[f"{name}_low"] <= truth <= found[f"{name}_high"])


def arms(seed: int, gain: float) -> Any:
    a, b = two_arms(gain={"code/add": gain}, items=150, fork=0, checkpoints=2, seed=seed)
    return probes.arm_difference(a, b).isel(checkpoint=-1)


def gain_held(name: str, truth: float, seed: int) -> bool:
    found = arms(seed, 0.1).sel(task="code/add")
    return bool(found[f"{name}_low"] <= truth <= found[f"{name}_high"])


def of_capabilities(draws: int) -> Iterator[Row]:
    covered: dict[tuple[str, str], Callable[[int], bool]] = {
        ("tokens in documents of 16", "saturation: kappa"): kappa_held,
        ("60 items, true 0.9", "capability: normalized"): lambda s: capability_held(
            "normalized", PlantedSkill("always", top=0.9), 0.9, s
        ),
        ("60 items, skewed", "capability: logprob"): lambda s: capability_held(
            "logprob", PlantedSkill("never"), -(np.log(10) + 0.02), s
        ),
        ("gain of 0.1, 150 items", "arms: accuracy"): lambda s: gain_held("accuracy", 0.1, s),
        ("gain of 0.1, 150 items", "arms: logprob"): lambda s: gain_held(
            "logprob", 0.1 * float(np.log(10)), s
        ),
    }
    for (world, name), held in covered.items():
        found = share(held(seed) for seed in range(draws))
        yield row(world, name, "interval covers the truth", found, COVERED)
    for name in ("accuracy", "logprob"):
        found = share(bool(arms(seed, 0.0)[f"{name}_real"].any()) for seed in range(draws))
        yield row("4 tasks, no gain", f"arms: {name}", "false alarms", found, FEW)


def share(events: Any) -> float:
    return round(float(np.mean(list(events))), 4)


def row(world: str, name: str, what: str, found: float, wanted: str, note: str = "") -> Row:
    return {
        "world": world, "probe": name, "what": what, "share": found, "wanted": wanted,
        "note": note,
    }  # fmt: skip


GROUPS = (of_skills, of_change_points, of_phases, of_answers, of_capabilities)


def main(draws: int, into: Path | None) -> None:
    rows = []
    for group in GROUPS:
        for found in group(draws):
            sys.stdout.write(json.dumps(found) + "\n")
            sys.stdout.flush()
            rows.append(found)
    if into is not None:
        whole = {
            "machine": "2 shared CPU cores", "date": str(datetime.date.today()), "draws": draws,
            "rows": rows,
        }  # fmt: skip
        into.mkdir(parents=True, exist_ok=True)
        (into / "rates-emergence.json").write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("draws", type=int, nargs="?", default=200)
    parser.add_argument("--into", type=Path)
    given = parser.parse_args(sys.argv[1:])
    main(given.draws, given.into)
