"""Error rates of the routing probes: how often an interval holds the planted truth, and how often a
finding is made where there is nothing.

Needs   the number of draws (200 where none is given), and `--into FOLDER`; minutes on one core.
Yields  FOLDER/rates-routing.json; the tests check fewer draws of the same.

    python tests/probes/rates_routing.py 200 --into docs/measured
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from probes.coactivation import coactivation, coactivation_fixed
from probes.committee import committee
from probes.confidence import confidence_fixed
from probes.divergence import divergence
from probes.domains import domains, domains_fixed
from probes.drift import drift
from probes.flow import flow
from probes.stability import saturation
from probes.vocabulary import vocabulary
from workbench.planted.drifting import drifting_run
from workbench.planted.patterns import Patterns
from workbench.testing import TASKS, activations_record, router_record

COVERS = "interval covers the truth"
ALARMS = "false alarms"
FOUND = "truth found"
HOLDS = "0.90 to 0.98"
AT_MOST = "at most 0.05"

LINKED = Patterns(
    sets=[[0, 1], [2, 3], [0, 2], [1, 3], [4, 5], [0, 4], [3, 5]],
    mix=[[0.3, 0.25, 0.1, 0.1, 0.1, 0.1, 0.05]] * 2,
    experts=6,
)
SPECIAL = Patterns(
    sets=[[e] for e in range(6)],
    mix=[
        [0.5, 0.1, 0.1, 0.1, 0.1, 0.1],
        [0.1, 0.5, 0.1, 0.1, 0.1, 0.1],
        [0.1, 0.1, 0.5, 0.1, 0.1, 0.1],
        [0.1, 0.1, 0.1, 0.5, 0.1, 0.1],
    ],
    experts=6,
)
ALIKE = Patterns(sets=[[e] for e in range(6)], mix=[[0.3, 0.2, 0.2, 0.1, 0.1, 0.1]] * 4, experts=6)
FLOWING = Patterns(sets=ALIKE.sets, mix=ALIKE.mix, experts=6, stay=0.4)
WORDS = Patterns(
    sets=[[0, 1], [2, 3], [4, 5]],
    mix=[[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.05, 0.05, 0.9]] * 4,
    experts=6,
    by_id=True,
)
HELD = Patterns(
    sets=[[0, 1], [0, 2], [0, 3], [0, 4], [0, 5]],
    mix=[[0.6, 0.1, 0.1, 0.1, 0.1], [0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.6, 0.1, 0.1]],
    experts=6,
)


def inside(low: object, truth: object, high: object) -> float:
    """Share of intervals that hold the truth, over what has an interval."""
    low, truth, high = np.broadcast_arrays(low, truth, high)
    there = ~np.isnan(low) & ~np.isnan(truth)
    return float(((low <= truth) & (truth <= high))[there].mean())


def bounds(found: object, name: str) -> tuple[object, object]:
    return found[f"{name}_low"].values, found[f"{name}_high"].values


def lift_held(seed: int, like: float | None) -> float:
    row = coactivation_fixed(LINKED.record(rows=14, like=like, seed=seed)).isel(checkpoint=0)
    low, high = bounds(row, "lift")
    return inside(low[0], LINKED.lift, high[0])


def stream_lift_held(seed: int) -> float:
    record = router_record(steps=60, sample_every=3, layers=1, tokens=256, experts=6, seed=seed)
    low, high = bounds(coactivation(record), "lift")
    return inside(low, 6 / (2 * 5), high)


def pairs_alarmed(seed: int) -> float:
    """Pairs of a router whose loads differ and that links none, found apart from chance."""
    from probes.statistics.fixed_size import _weights

    loads = np.array([0.6, 0.5, 0.3, 0.3, 0.2, 0.1])
    sets = [[i, j] for i in range(6) for j in range(i + 1, 6)]
    w = _weights(loads[None], 2)[0]
    often = np.array([w[i] * w[j] for i, j in sets])
    unlinked = Patterns(sets=sets, mix=[(often / often.sum()).tolist()] * 2, experts=6)
    row = coactivation_fixed(unlinked.record(rows=14, like=40, seed=seed)).isel(checkpoint=0)
    upper = np.triu_indices(6, 1)
    low, high = (row[f"lift_{end}"].values[0][upper] for end in ("low", "high"))
    chance = row["chance"].values[0][upper]
    return float(((low > chance) | (high < chance)).mean())


def flow_held(seed: int, like: float | None) -> float:
    record = FLOWING.record(rows=8, layers=2, like=like, seed=seed)
    row = flow(record, deals=0).isel(checkpoint=0)
    return inside(*(row[f"information_{e}"].values for e in ("low",)), FLOWING.flow(like), row[
        "information_high"
    ].values)  # fmt: skip


def flow_alarmed(seed: int) -> float:
    record = ALIKE.record(rows=8, layers=2, like=10, rows_by_layer=True, seed=seed)
    return float(flow(record, deals=99, seed=seed)["p"].values.item() <= 0.05)


def flow_found(seed: int) -> float:
    record = FLOWING.record(rows=8, layers=2, like=10, seed=seed)
    return float(flow(record, deals=99, seed=seed)["p"].values.item() <= 0.05)


def share_held(seed: int, like: float | None) -> float:
    row = domains_fixed(SPECIAL.record(rows=6, like=like, seed=seed), deals=0).isel(checkpoint=0)
    low, high = bounds(row, "share")
    return inside(low[0], SPECIAL.share, high[0])


def information_held(seed: int, like: float | None) -> float:
    row = domains_fixed(SPECIAL.record(rows=8, like=like, seed=seed), deals=0).isel(checkpoint=0)
    low, high = bounds(row, "information")
    return inside(low, SPECIAL.information, high)


def domains_alarmed(seed: int) -> float:
    record = ALIKE.record(rows=4, like=10, seed=seed)
    return float(domains_fixed(record, seed=seed)["p"].values.item() <= 0.05)


def domains_found(seed: int) -> float:
    record = SPECIAL.record(rows=4, like=10, seed=seed)
    return float(domains_fixed(record, seed=seed)["p"].values.item() <= 0.05)


def stream_domains_alarmed(seed: int) -> float:
    record = router_record(steps=20, layers=1, tokens=200, seed=seed)
    return float(domains(record, window=20, seed=seed)["p"].values.item() <= 0.05)


def stream_information_held(seed: int) -> float:
    special = {TASKS[0]: 0, TASKS[1]: 1}
    record = router_record(
        steps=20, layers=1, tokens=200, k=1, experts=6, specialised=special, seed=seed
    )
    low, high = bounds(domains(record, window=20, deals=0), "information")
    bias = np.zeros((4, 6))
    bias[0, 0] = bias[1, 1] = 3.0
    joint = np.exp(bias) / np.exp(bias).sum(axis=1, keepdims=True) / 4
    outer = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    return inside(low, float((joint * np.log2(joint / outer)).sum()), high)


def kappa_of_ids_held(seed: int) -> float:
    row = vocabulary(WORDS.record(rows=6, like=10, seed=seed)).isel(checkpoint=0)
    agreed = float((WORDS.share**2).sum(axis=1).mean() / 2)
    chance = float((WORDS.share.mean(axis=0) ** 2).sum() / 2)
    low, high = bounds(row, "kappa")
    return inside(low, (agreed - chance) / (1 - chance), high)


def vocabulary_alarmed(seed: int) -> float:
    row = vocabulary(ALIKE.record(rows=6, like=10, seed=seed), min_count=4).isel(checkpoint=0)
    return float(row["kappa_low"].item() > 0 or row["kappa_high"].item() < 0)


def committee_found(seed: int) -> float:
    row = committee(HELD.record(rows=5, like=10, seed=seed)).isel(checkpoint=0, layer=0)
    return float(row["member"].values.tolist() == [1, 0, 0, 0, 0, 0])


def committee_alarmed(seed: int) -> float:
    fair = Patterns(sets=SPECIAL.sets, mix=[[1 / 6] * 6] * 3, experts=6)
    row = committee(fair.record(rows=5, like=30, seed=seed), n_boot=0).isel(checkpoint=0)
    return float(row["size"].values.item() > 0)


def mass_held(seed: int) -> float:
    row = committee(HELD.record(rows=8, like=10, seed=seed)).isel(checkpoint=0)
    low, high = bounds(row, "mass")
    # The member comes first in every pattern: a gate of 1.2 of 2.2 for every token, exactly.
    return inside(low - 1e-6, 1.2 / 2.2, high + 1e-6)


def router_part_held(seed: int, alike: float) -> float:
    run = drifting_run(
        router=0.6, mix=0.5, steps=6, checkpoints=2, layers=1, alike=alike, seed=seed
    )
    low, high = bounds(drift(run), "router")
    return inside(low[0, 0], run.true_router[1], high[0, 0])


def mix_alone_found(seed: int) -> float:
    run = drifting_run(mix=0.6, steps=20, checkpoints=2, layers=1, seed=seed)
    row = drift(run).isel(checkpoint=0, layer=0)
    return float(abs(row["mix_share"] - 1) < 0.1 and abs(row["router_share"]) < 0.1)


def router_alone_found(seed: int) -> float:
    run = drifting_run(router=0.6, steps=20, checkpoints=2, layers=1, seed=seed)
    row = drift(run).isel(checkpoint=0, layer=0)
    return float(abs(row["mix_share"]) < 0.1 and abs(row["router_share"] - 1) < 0.1)


def drift_alarmed(seed: int) -> float:
    """Routers that did not move, in a stream whose mix did: is the router's part called real?"""
    run = drifting_run(mix=0.8, steps=6, checkpoints=2, layers=1, seed=seed)
    low, high = bounds(drift(run), "router")
    return float(((low > 0) | (high < 0)).any())


def frozen_divergence_held(seed: int) -> float:
    """Documents that have frozen do not move: the divergence is that of the others alone."""
    record = activations_record(
        checkpoints=3, freeze_at=0.8, tokens=1280, layers=1, document_tokens=16, seed=seed
    )
    row = divergence(record, against="final").isel(checkpoint=1)
    low, high = bounds(row, "relative")
    # Half of training, frozen by 0.8: 0.375 of the documents are routed afresh.
    return inside(low, 0.375, high)


def entropy_held(seed: int) -> float:
    """Rows mix a sure and an unsure way of routing in shares of their own."""
    rng = np.random.default_rng(seed)
    record = ALIKE.record(rows=7, like=None, seed=seed)
    sure = (rng.uniform(size=28 * 64) < rng.beta(3, 3, 28).repeat(64))[None, :, None, None]
    p = np.where(sure, np.array([0.95] + [0.01] * 5), np.full(6, 1 / 6)).astype(np.float32)
    record["router_probs"] = (record["router_probs"].dims, p)
    low, high = bounds(confidence_fixed(record), "entropy")
    certain = -(0.95 * np.log(0.95) + 5 * 0.01 * np.log(0.01))
    return inside(low, (certain + np.log(6)) / 2, high)


def saturation_held(seed: int) -> float:
    record = activations_record(
        checkpoints=3, freeze_at=0.6, tokens=1280, layers=1, document_tokens=16, seed=seed
    )
    low, high = bounds(saturation(record).isel(checkpoint=1), "kappa")
    return inside(low, 0.5 / 0.6, high)


@dataclass(frozen=True)
class Rate:
    """One line of the table."""

    world: str
    probe: str
    what: str
    wanted: str
    draw: Callable[[int], float]
    note: str = ""


DEPENDENT = "tokens of a row dependent"
RATES = [
    Rate("7 linked pairs, 28 rows, tokens independent", "coactivation-fixed", COVERS, HOLDS,
         lambda s: lift_held(s, None)),
    Rate(f"7 linked pairs, 28 rows, {DEPENDENT}", "coactivation-fixed", COVERS, HOLDS,
         lambda s: lift_held(s, 10)),
    Rate("unlinked pairs, unequal loads", "coactivation-fixed", ALARMS, AT_MOST, pairs_alarmed,
         "of single pairs, as stated: no correction for many"),
    Rate("fair stream, 20 samples", "coactivation", COVERS, HOLDS, stream_lift_held),
    Rate("40 % stay on their path, independent", "flow", COVERS, HOLDS,
         lambda s: flow_held(s, None)),
    Rate(f"40 % stay on their path, {DEPENDENT}", "flow", COVERS, HOLDS,
         lambda s: flow_held(s, 10)),
    Rate(f"no flow, {DEPENDENT} within each layer", "flow", ALARMS, AT_MOST, flow_alarmed),
    Rate("40 % stay on their path", "flow", FOUND, "at least 0.95", flow_found),
    Rate("4 specialised domains, 6 rows each, independent", "domains-fixed (share)", COVERS, HOLDS,
         lambda s: share_held(s, None)),
    Rate(f"4 specialised domains, 6 rows each, {DEPENDENT}", "domains-fixed (share)", COVERS, HOLDS,
         lambda s: share_held(s, 10)),
    Rate("4 specialised domains, 8 rows each, independent", "domains-fixed (information)", COVERS,
         HOLDS, lambda s: information_held(s, None)),
    Rate(f"4 specialised domains, 8 rows each, {DEPENDENT}", "domains-fixed (information)", COVERS,
         HOLDS, lambda s: information_held(s, 10)),
    Rate(f"no specialisation, 4 rows a domain, {DEPENDENT}", "domains-fixed", ALARMS, AT_MOST,
         domains_alarmed),
    Rate("4 specialised domains, 4 rows each", "domains-fixed", FOUND, "at least 0.95",
         domains_found),
    Rate("no specialisation, 20 steps", "domains", ALARMS, AT_MOST, stream_domains_alarmed),
    Rate("2 of 4 domains specialised, 20 steps", "domains", COVERS, HOLDS, stream_information_held),
    Rate("16 ids with ways of their own", "vocabulary", COVERS, HOLDS, kappa_of_ids_held),
    Rate("ids that mean nothing", "vocabulary", ALARMS, AT_MOST, vocabulary_alarmed),
    Rate("one expert in every pattern", "committee", FOUND, "at least 0.95", committee_found),
    Rate("a fair router", "committee", ALARMS, AT_MOST, committee_alarmed),
    Rate("one expert in every pattern", "committee (mass)", COVERS, "1: no token differs",
         mass_held),
    Rate("router and mix drift, independent", "drift", COVERS, HOLDS,
         lambda s: router_part_held(s, 0.0)),
    Rate("router and mix drift, a third of a row alike", "drift", COVERS, HOLDS,
         lambda s: router_part_held(s, 0.33)),
    Rate("drift by the mix alone", "drift", FOUND, "at least 0.95", mix_alone_found),
    Rate("drift by the router alone", "drift", FOUND, "at least 0.95", router_alone_found),
    Rate("drift by the mix alone: the router's part", "drift", ALARMS, AT_MOST, drift_alarmed),
    Rate("documents of 16 that freeze", "divergence (relative)", COVERS, HOLDS,
         frozen_divergence_held),
    Rate("documents of 16 that freeze by 60 %", "saturation", COVERS, HOLDS, saturation_held),
    Rate("rows sure of themselves in shares of their own", "confidence-fixed (entropy)", COVERS,
         HOLDS, entropy_held),
]  # fmt: skip


def main(draws: int, into: Path | None) -> None:
    rows = []
    for rate in RATES:
        share = float(np.mean([rate.draw(seed) for seed in range(draws)]))
        rows.append(
            {
                "world": rate.world, "probe": rate.probe, "what": rate.what,
                "share": round(share, 4), "wanted": rate.wanted, "note": rate.note,
            }
        )  # fmt: skip
        sys.stdout.write(f"{share:.3f}  {rate.wanted}  {rate.what}: {rate.probe}, {rate.world}\n")
    if into is not None:
        into.mkdir(parents=True, exist_ok=True)
        table = {
            "machine": "2 shared CPU cores",
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "draws": draws,
            "rows": rows,
        }
        path = into / "rates-routing.json"
        path.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("draws", type=int, nargs="?", default=200)
    parser.add_argument("--into", type=Path)
    main(**vars(parser.parse_args()))
