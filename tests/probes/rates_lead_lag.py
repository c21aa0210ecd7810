"""Error rates of lead_lag: does the interval hold the planted lead, and who is called wrongly?

Needs   the number of draws (200 where none is given); about ten minutes on one core.
Yields  docs/measured/rates-lead-lag.json, a row for each world and question.

    python tests/probes/rates_lead_lag.py 200 --into docs/measured
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from probes.lead_lag import lead_lag
from workbench.planted.signals import PlantedSignal, signals_record
from workbench.testing import PlantedSkill, evaluations_record

STEPS = 1120
WALK = PlantedSignal(noise=0.0, walk=0.05)
NOISY_WALK = PlantedSignal(noise=0.3, memory=0.0, walk=0.05)
NULLS: dict[str, list[PlantedSignal]] = {
    "AR(1) noise": [PlantedSignal(memory=m) for m in (0.0, 0.5, 0.8, 0.95)],
    "random walks": [WALK] * 4,
    "random walks under noise": [NOISY_WALK] * 4,
    "trends that all share, straight and bent": [
        PlantedSignal(trend=10.0),
        PlantedSignal(curve=10.0),
        PlantedSignal(curve=10.0, noise=0.03),
        PlantedSignal(trend=-5.0, curve=10.0, noise=0.1),
    ],
}


@dataclass(frozen=True, kw_only=True)
class World:
    """One kind of run."""

    name: str
    skill: dict[str, Any]
    every: int = 28
    height: float = 2.0
    fork: float = 0.0
    """Height by which every signal changes at step 700, 150 to 250 steps before the onset."""
    options: dict[str, Any] = field(default_factory=dict)


STEP = {"kind": "jump"}
RISE = {"kind": "logistic", "width": 100.0}
LEADS = [
    World(name="jump, checkpoints every 28", skill=STEP),
    World(name="rise over 100 steps, every 28", skill=RISE, height=4.0),
    World(name="jump, every 56", skill=STEP, every=56, options={"max_lag": 112}),
    World(name="jump, sparse: every 112", skill=STEP, every=112, options={"max_lag": 112}),
    World(name="change at the fork, start= after it", skill=STEP, fork=3.0),
]


def drawn(world: World, others: list[PlantedSignal], seed: int) -> tuple[xr.Dataset, float]:
    """What lead_lag says of one draw, and the onset less the middle of the skill's rise."""
    rng = np.random.default_rng([seed, 7])
    # Whole steps, and the same distance to both ends: what depends on the clock is then reused.
    at = float(rng.integers(850, 951) if world.fork else rng.integers(380, 741))
    skill = PlantedSkill(**({"at": at} | world.skill))
    fork = {"jump": world.fork, "jump_at": 700.0}
    moving = {
        name: PlantedSignal(lead=lead, height=world.height, trend=3.0, **fork)
        for name, lead in (("ahead", 40.0), ("behind", -40.0), ("together", 0.0))
    }
    null = {f"null {i}": signal for i, signal in enumerate(others)}
    planted = (moving | null) if world.height else null
    seen = signals_record(planted, skill, steps=STEPS, seed=seed)
    answers = evaluations_record(
        {"code/add": skill}, checkpoints=STEPS // world.every + 1, every=world.every, seed=seed
    )
    options: dict[str, Any] = {"n_perm": 499, "n_boot": 200, "seed": seed} | world.options
    if world.fork:
        options["start"] = 700
    return lead_lag(answers, "code/add", signals=seen, **options), skill.onset() - at


def row(
    world: str, what: str, values: list[bool] | list[float], wanted: str, note: str = ""
) -> Any:
    share = round(float(np.mean(values)), 4)
    if "covers" in what and share > 0.98:
        note = f"{note}; " * bool(note) + "conservative: over the 0.98 wanted"
    return {
        "world": world, "probe": "lead-lag", "what": what, "share": share, "wanted": wanted,
        "note": note,
    }  # fmt: skip


def of_leads(world: World, draws: int) -> list[dict[str, Any]]:
    """Coverage, power and wrong calls where three signals move with the skill and four do not."""
    others = [PlantedSignal(), WALK, NOISY_WALK, PlantedSignal(curve=10.0)]
    held: dict[str, list[bool]] = {name: [] for name in ("ahead", "behind", "together")}
    moved, led, wrong, errors = [], [], [], []
    for seed in range(draws):
        found, late = drawn(world, others, seed)
        for name, lead in (("ahead", 40.0), ("behind", -40.0), ("together", 0.0)):
            one = found.sel(signal=name)
            held[name].append(bool(one["lead_low"] <= lead + late <= one["lead_high"]))
        ahead = found.sel(signal="ahead")
        moved.append(bool(ahead["q"] <= 0.05))
        led.append(bool(ahead["leads"]))
        errors.append(float(ahead["lead"]) - 40 - late)
        called = found["leads"].values
        wrong.append(float(called[1:].sum() / max(called.sum(), 1)))
    width = f"median error {np.median(errors):+.0f} steps; resolution {world.every / 2:.0f}"
    wanted = "0.90 to 0.98"
    return [
        row(world.name, "interval covers a lead of 40", held["ahead"], wanted, width),
        row(world.name, "interval covers a lag of 40", held["behind"], wanted),
        row(world.name, "interval covers a lead of 0", held["together"], wanted),
        row(world.name, "truth found: the leader has moved, q <= 0.05", moved, "power, no bound"),
        row(world.name, "truth found: the leader is called a lead", led, "power, no bound"),
        row(world.name, "wrong calls among the calls (FDR)", wrong, "at most 0.05"),
    ]


def of_nulls(name: str, draws: int) -> list[dict[str, Any]]:
    """Calls among twelve signals that have nothing to do with the skill."""
    world = World(name=f"12 signals: {name}", skill=RISE, height=0.0)
    leads, moved, each = [], [], []
    for seed in range(draws):
        found, _ = drawn(world, NULLS[name] * 3, seed)
        leads.append(bool(found["leads"].any()))
        moved.append(bool((found["q"] <= 0.05).any()))
        each.append(float((found["p"] <= 0.05).mean()))
    return [
        row(world.name, "false alarms: any called a lead", leads, "at most 0.05"),
        row(world.name, "false alarms: any with q <= 0.05", moved, "at most 0.05"),
        row(world.name, "false alarms: one signal, p <= 0.05", each, "at most 0.05"),
    ]


def main(draws: int, into: Path) -> None:
    rows = []
    for world in LEADS:
        rows += of_leads(world, draws)
    for name in NULLS:
        rows += of_nulls(name, draws)
    for one in rows:
        sys.stdout.write(f"{one['world']:48s} {one['what']:48s} {one['share']:.3f} {one['note']}\n")
    report = {"machine": "2 shared CPU cores", "date": "2026-11-23", "draws": draws, "rows": rows}
    (into / "rates-lead-lag.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("draws", type=int, nargs="?", default=200)
    parser.add_argument("--into", type=Path, default=Path("docs/measured"))
    asked = parser.parse_args()
    main(asked.draws, asked.into)
