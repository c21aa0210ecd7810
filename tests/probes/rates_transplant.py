"""Error rates of the transplant: do intervals cover the true shares of the parts?

Needs   the number of draws (200), `--into FOLDER` to keep the table; some minutes on one core.
Yields  rates-transplant.json: how often intervals cover, whether sampling errors are right, whether
        values sum to the gap. The tests check fewer draws of the same.

The truth is known twice over. Planted: hand-built models in which the parts' shares follow from how
they were made; a pool of 1,000 questions is the population, its mean the truth, and each draw is
put 64 of them. Measured: every coalition of the pool is measured once, so that any draw of items
and of orders costs no forward.

    python tests/probes/rates_transplant.py 200 --into docs/measured
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from probes.inputs.items import all_values_of
from probes.statistics.shapley import shapley
from probes.surgery.hybrid import Hybrid
from probes.surgery.parts import parts_of
from workbench.planted.model import planted_model

POOL = 1000
"""Questions of the population."""
DRAWN = 64
"""Items that one measurement is made with."""


@cache
def answers_of_hybrids(learned: str) -> list[dict[str, np.ndarray]]:
    """What every hybrid answers, over the kinds of parts; bit m of the place: part m."""
    world = planted_model(learned, items=POOL, noise=1.0)  # type: ignore[arg-type]
    parts = parts_of(world.before, "kind")
    hybrid = Hybrid(world.before, world.after, parts)
    found = []
    for code in range(2 ** len(parts)):
        hybrid.take(code >> np.arange(len(parts)) & 1 == 1)
        found.append(all_values_of(hybrid.model, world.items))
    return found


@cache
def crossed(measure: str) -> np.ndarray:
    """(coalition, item) of 9 parts with interactions of two and three, for sampled orders.

    An item's value is a smooth function of what the parts bring it, so that nothing is additive.
    """
    rng = np.random.default_rng(5)
    brings = rng.gamma(1.0, 0.4, (9, POOL)) * rng.choice([1, 1, 1, -0.3], (9, 1))
    members = np.arange(2**9)[:, None] >> np.arange(9) & 1
    needs = members[:, 0] * members[:, 1] * 1.0 + members[:, 2] * members[:, 3] * members[:, 4]
    inside = members @ brings + needs[:, None] * rng.gamma(2.0, 0.4, POOL) - 2.0
    if measure == "accuracy":
        return (inside > rng.normal(0, 0.5, POOL)).astype(float)
    return -np.logaddexp(0, -inside)


def value_of(table: np.ndarray, drawn: np.ndarray | None = None) -> Any:
    shown = table if drawn is None else table[:, drawn]
    return lambda members: shown[int((members << np.arange(len(members))).sum())]


def covered(
    table: np.ndarray, truth: np.ndarray, measure: str, draw: int, n_permutations: int | None
) -> np.ndarray:
    """(part + 1,): whether each interval holds its truth; the gap's last."""
    parts = int(np.log2(len(table)))
    drawn = np.random.default_rng([17, draw]).integers(table.shape[1], size=DRAWN)
    found = shapley(value_of(table, drawn), parts, n_permutations=n_permutations, seed=draw)
    answers = measure == "accuracy"
    low, high = found.interval(answers=answers, seed=draw)
    gap_low, gap_high = found.gap_interval(answers=answers, seed=draw)
    held = (low <= truth + 1e-9) & (truth <= high + 1e-9)
    return np.append(held, gap_low <= truth.sum() <= gap_high)


COVERAGE = {
    "capability in one expert": ("expert", None),
    "router and expert need each other": ("both", None),
    "capability in the embeddings": ("embeddings", None),
    "9 parts that interact, 32 of all orders": ("crossed", 32),
    "9 parts that interact, 8 of all orders": ("crossed", 8),
    "9 parts that interact, all coalitions": ("crossed", None),
}


def table_of(world: str, measure: str) -> np.ndarray:
    if world == "crossed":
        return crossed(measure)
    return np.stack([answers[measure] for answers in answers_of_hybrids(world)])


def coverage_rows(draws: int) -> list[dict[str, Any]]:
    rows = []
    for name, (world, n_permutations) in COVERAGE.items():
        for measure in ("logprob", "accuracy"):
            table = table_of(world, measure)
            every = shapley(value_of(table), int(np.log2(len(table))), n_permutations=None)
            held = np.stack(
                [covered(table, every.values, measure, d, n_permutations) for d in range(draws)]
            )
            # Parts whose share is 0 on every item are for false alarms.
            which = np.abs(every.by_item).max(1) > 1e-9
            shares = held[:, :-1][:, which]
            note = f"{DRAWN} items; parts that matter: {which.sum()}"
            note += f"; worst part {shares.mean(0).min():.3f}"
            rows.append(row(name, measure, "interval covers the truth", shares.mean(),
                            "0.90 to 0.98", note))  # fmt: skip
            rows.append(row(name, measure, "interval of the gap covers the truth",
                            held[:, -1].mean(), "0.90 to 0.98", f"{DRAWN} items"))  # fmt: skip
            still = held[:, :-1][:, ~which]
            if still.size:
                rows.append(row(name, measure, "false alarms", 1 - still.mean(), "at most 0.05",
                                "parts that change weights and no answer"))  # fmt: skip
    return rows


def sampling_rows(draws: int) -> list[dict[str, Any]]:
    """Sampling alone, the items given: is an interval of 1.96 (t) standard errors one of 95 %?"""
    from scipy import stats

    rows = []
    for n_permutations in (16, 48):
        table = crossed("logprob")[:, :DRAWN]
        truth = shapley(value_of(table), 9, n_permutations=None).values
        reach = stats.t.ppf(0.975, n_permutations // 2 - 1)
        held, summed = [], []
        for draw in range(draws):
            found = shapley(value_of(table), 9, n_permutations=n_permutations, seed=draw)
            held.append(np.abs(found.values - truth) <= reach * found.standard_error)
            summed.append(abs(found.values.sum() - truth.sum()) < 1e-9)
        name = f"9 parts that interact, {n_permutations} orders, items given"
        rows.append(row(name, "logprob", "standard error covers all coalitions' value",
                        np.mean(held), "0.90 to 0.98", "t of the pairs of orders"))  # fmt: skip
        rows.append(row(name, "logprob", "values sum to the gap", np.mean(summed), "1",
                        "to 1e-9: every order telescopes"))  # fmt: skip
    return rows


def row(
    world: str, measure: str, what: str, share: float, wanted: str, note: str
) -> dict[str, Any]:  # fmt: skip
    return {
        "world": world, "probe": f"transplant, {measure}", "what": what,
        "share": round(float(share), 4), "wanted": wanted, "note": note,
    }  # fmt: skip


def main(draws: int, into: str | None) -> None:
    rows = coverage_rows(draws) + sampling_rows(draws)
    for one in rows:
        sys.stdout.write(f"{one['share']:.3f}  {one['wanted']:14} {one['world']}: {one['probe']}, ")
        sys.stdout.write(f"{one['what']} ({one['note']})\n")
    if into is not None:
        table = {
            "machine": "2 shared CPU cores", "date": datetime.now(UTC).date().isoformat(),
            "draws": draws, "rows": rows,
        }  # fmt: skip
        path = Path(into) / "rates-transplant.json"
        path.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    arguments = [a for a in sys.argv[1:] if a != "--into"]
    folder = arguments.pop() if "--into" in sys.argv else None
    main(int(arguments[0]) if arguments else 200, folder)
