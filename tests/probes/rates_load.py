"""Error rates of the load's probes: planted dead experts, ramps and specialists, 200 draws.

    python tests/probes/rates_load.py 200 --into docs/measured

The counts are exact, so nothing has an interval; what can go wrong is when and where.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import probes
from workbench.testing import DeadExpert, activations_record, router_record

STEPS, DIES, TOKENS, EXPERTS, K = 260, 200, 256, 8, 2
WINDOW = 1000 * EXPERTS // K
"""Tokens without work after which an expert counts as dead: the probe's own default."""


def dead_expert(seed: int) -> bool:
    """Whether the expert that dies at step 200 is told at the first step that can know it."""
    record = router_record(
        steps=STEPS, tokens=TOKENS, dead=[DeadExpert(expert=3, step=DIES, layer=1)], seed=seed
    )
    dead = probes.balance(record)["dead_experts"].fillna(0)
    told = DIES + -(-WINDOW // TOKENS) - 1
    first = dead.step.values[(dead.sel(layer=1) > 0).values][:1]
    return bool((dead.sel(layer=0) == 0).all() and first.tolist() == [told])


def nobody_dead(seed: int) -> bool:
    """Whether a fair router is said to have a dead expert anywhere."""
    record = router_record(steps=STEPS, tokens=TOKENS, seed=seed)
    return bool((probes.balance(record)["dead_experts"].fillna(0) > 0).any())


def specialist(seed: int) -> bool:
    """Whether the domain's own expert has the greatest share of it, in both layers."""
    record = router_record(steps=40, tokens=TOKENS, specialised={"code/add": 5}, seed=seed)
    share = probes.domains(record)["share"].isel(step=-1).sel(domain="code/add")
    return bool((share.argmax("expert") == 5).all())


def frozen(seed: int) -> bool:
    """Whether routing that freezes at 60 % of the run has kappa 1 from there on, and under 1
    before.
    """
    record = activations_record(checkpoints=21, freeze_at=0.6, seed=seed)
    kappa = probes.saturation(record, n_boot=2)["kappa"].min("layer")
    settled = kappa.checkpoint.values >= 0.6 * kappa.checkpoint.values[-1]
    return bool((kappa.values[settled] > 1 - 1e-9).all() and (kappa.values[~settled] < 1).all())


def rows(draws: int) -> list[dict[str, Any]]:
    worlds = (
        ("an expert that dies at step 200 of 260", "balance", "truth found", dead_expert,
         "at least 0.98", f"told at the first step that has {WINDOW} tokens without it"),
        ("a fair router, 260 steps", "balance", "false alarms", nobody_dead, "at most 0.05",
         "any layer, expert and step"),
        ("a domain that prefers one expert", "domains", "truth found", specialist,
         "at least 0.98", "both layers"),
        ("routing that freezes at 60 % of the run", "saturation", "truth found", frozen,
         "at least 0.98", "kappa 1 from there on and under 1 before"),
    )  # fmt: skip
    return [
        {"world": world, "probe": name, "what": what,
         "share": round(float(np.mean([test(seed) for seed in range(draws)])), 4),
         "wanted": wanted, "note": note}
        for world, name, what, test, wanted, note in worlds
    ]  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("draws", type=int, nargs="?", default=200)
    parser.add_argument("--into", type=Path)
    asked = parser.parse_args()
    table = {
        "machine": "2 shared CPU cores", "date": datetime.now(UTC).date().isoformat(),
        "draws": asked.draws, "rows": rows(asked.draws),
    }  # fmt: skip
    print(json.dumps(table, indent=1))
    if asked.into is not None:
        (asked.into / "rates-load.json").write_text(json.dumps(table, indent=1) + "\n")
