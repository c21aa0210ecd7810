"""The whole routing set over 100 checkpoints, against a script that goes token by token.

Needs   nothing; a few hundred MB on the disk for a synthetic record. `rounds(n)` from elsewhere, or
        python tests/benchmarks/probes_routing.py 3
Yields  `rounds`: median CPU seconds a checkpoint and spread of both, ratio, peak memory of ours.

The script does what published analysis scripts do (sets, counters, a loop over tokens), on the same
arrays, without intervals, nulls or chance levels; its numbers are asserted equal to ours. Ours is
timed twice: as a user gets it, intervals and nulls included, and with those left out. The script is
timed on a few of the checkpoints, for all of them would take an hour; each costs it the same.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import xarray as xr

from probes.coactivation import coactivation_fixed
from probes.confidence import confidence_fixed
from probes.divergence import divergence
from probes.domains import domains_fixed
from probes.flow import flow
from probes.stability import churn, saturation
from probes.vocabulary import vocabulary

DOMAINS, ROW, MIN_COUNT = 14, 64, 8

# Shapes: C checkpoints, T tokens, L layers, K chosen, E experts.


def record(
    folder: Path, checkpoints: int, tokens: int, layers: int, experts: int, k: int
) -> xr.Dataset:
    """Routing that drifts and depends on domain and token id, on the disk and read as asked."""
    rng = np.random.default_rng(0)
    domain = np.arange(tokens) * DOMAINS // tokens
    token_id = np.minimum(rng.zipf(1.3, tokens), 400)
    shape = (checkpoints, tokens, layers)
    probs = np.memmap(folder / "probs", np.float32, "w+", shape=(*shape, experts))
    ids = np.memmap(folder / "ids", np.int16, "w+", shape=(*shape, k))
    of_domain = rng.normal(0, 0.7, (DOMAINS, layers, experts))
    of_id = rng.normal(0, 0.7, (401, layers, experts))
    own = rng.normal(0, 1, (tokens, layers, experts))
    for c in range(checkpoints):
        own += rng.normal(0, 0.3, own.shape)
        own *= 0.96
        z = own + of_domain[domain] + of_id[token_id]
        p = np.exp(z - z.max(-1, keepdims=True))
        probs[c] = p / p.sum(-1, keepdims=True)
        ids[c] = np.argsort(-probs[c], axis=-1)[..., :k]
    dims = ("checkpoint", "token", "layer")
    return xr.Dataset(
        {"expert_ids": ((*dims, "k"), ids), "router_probs": ((*dims, "expert"), probs)},
        coords={
            "checkpoint": np.arange(checkpoints) * 10,
            "layer": np.arange(layers),
            "expert": np.arange(experts),
            "token_id": ("token", token_id),
            "domain": ("token", np.array([f"domain {d:02}" for d in domain])),
        },
    )


FULL: dict[str, Callable[[xr.Dataset], xr.Dataset]] = {
    "saturation": saturation,
    "churn": churn,
    "coactivation": coactivation_fixed,
    "flow": flow,
    "domains": domains_fixed,
    "vocabulary": lambda r: vocabulary(r, min_count=MIN_COUNT),
    "divergence": divergence,
    "confidence": confidence_fixed,
}
"""Ours as a user gets it."""

PLAIN: dict[str, Callable[[xr.Dataset], xr.Dataset]] = FULL | {
    "saturation": lambda r: saturation(r, n_boot=2),
    "churn": lambda r: churn(r, n_boot=2),
    "flow": lambda r: flow(r, deals=0),
    "domains": lambda r: domains_fixed(r, deals=0),
    "divergence": lambda r: divergence(r, n_boot=2),
    "confidence": lambda r: confidence_fixed(r, n_boot=2),
}
"""Ours without draws and deals."""


def script(found: xr.Dataset, c: int) -> list[dict[str, Any]]:
    """Every measure of checkpoint `c`, a dict a layer, token by token."""
    ids = found["expert_ids"].values
    now, before, last = (np.asarray(ids[i]).tolist() for i in (c, c - 1, len(ids) - 1))
    p_now, p_before = (found["router_probs"].values[i].tolist() for i in (c, c - 1))
    names, words = found["domain"].values.tolist(), found["token_id"].values.tolist()
    layers, experts, k = found.sizes["layer"], found.sizes["expert"], found.sizes["k"]
    rows = []
    for layer in range(layers):
        shared_last = shared_before = entropy = margin = mass = ties = moved = 0.0
        one, both, step, domain, of_domain = Counter(), Counter(), Counter(), Counter(), Counter()
        word, of_word, first = Counter(), Counter(), defaultdict(list)
        for t in range(len(now)):
            chosen = now[t][layer]
            shared_last += len(set(chosen) & set(last[t][layer])) / k
            shared_before += len(set(chosen) & set(before[t][layer])) / k
            for i in chosen:
                one[i] += 1
                domain[names[t], i] += 1
                word[words[t], i] += 1
                for j in chosen:
                    both[i, j] += 1
                if layer + 1 < layers:
                    for j in now[t][layer + 1]:
                        step[i, j] += 1
            of_domain[names[t]] += 1
            of_word[words[t]] += 1
            first[words[t]].append(chosen[0])
            p, q = p_now[t][layer], p_before[t][layer]
            h = -sum(x * math.log(x) for x in p if x > 0)
            entropy += h
            ranked = sorted(p, reverse=True)
            mass += sum(ranked[:k])
            gap = math.log(ranked[k - 1]) - math.log(ranked[k])
            margin += gap
            ties += gap < 0.1
            mixed = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
            h_mixed = -sum(x * math.log(x) for x in mixed if x > 0)
            h_before = -sum(x * math.log(x) for x in q if x > 0)
            moved += (h_mixed - (h + h_before) / 2) / math.log(2)
        n = len(now)
        often = [w for w in of_word if of_word[w] >= MIN_COUNT]
        rows.append(
            {
                "saturation": shared_last / n, "churn": 1 - shared_before / n,
                "entropy": entropy / n, "margin": margin / n, "topk_mass": mass / n,
                "near_tie": ties / n, "divergence": moved / n,
                "conditional": {(i, j): both[i, j] / one[i] for i, j in both},
                "transition": {(i, j): step[i, j] / (k * one[i]) for i, j in step},
                "flow": information(step), "domains": information(domain),
                "domain_share": {(d, i): domain[d, i] / of_domain[d] for d, i in domain},
                "word_share": {
                    (w, i): word[w, i] / of_word[w]
                    for w in often for i in range(experts)
                },
                "olmoe": sum(
                    Counter(e).most_common(1)[0][1] / len(e) for e in first.values()
                ) / len(first),
            }
        )  # fmt: skip
    return rows


def information(joint: Counter) -> float:
    """Bits, of counts by pair."""
    total, rows, columns = sum(joint.values()), Counter(), Counter()
    for (a, b), count in joint.items():
        rows[a] += count
        columns[b] += count
    return sum(
        count / total * math.log2(count * total / (rows[a] * columns[b]))
        for (a, b), count in joint.items()
    )


def assert_equal(ours: dict[str, xr.Dataset], theirs: list[dict[str, Any]], c: int) -> None:
    """Both say the same of checkpoint `c` (it has one before it)."""
    at = {name: found.isel(checkpoint=c) for name, found in ours.items()}
    for pair in ("churn", "divergence"):
        at[pair] = ours[pair].isel(checkpoint=c - 1)
    sure = ("entropy", "margin", "topk_mass", "near_tie")
    columns = {
        "saturation": at["saturation"]["overlap"], "churn": at["churn"]["churn"],
        "divergence": at["divergence"]["divergence"], "domains": at["domains"]["plug_in"],
        "olmoe": at["vocabulary"]["olmoe"],
    } | {name: at["confidence"][name] for name in sure}  # fmt: skip
    for name, column in columns.items():
        want = [row[name] for row in theirs]
        np.testing.assert_allclose(column.values, want, rtol=2e-5, atol=2e-6, err_msg=name)
    want = [row["flow"] for row in theirs[:-1]]
    np.testing.assert_allclose(at["flow"]["plug_in"].values, want, rtol=1e-6, err_msg="flow")
    tables = {
        "conditional": at["coactivation"]["conditional"], "transition": at["flow"]["transition"],
        "domain_share": at["domains"]["share"], "word_share": at["vocabulary"]["share"],
    }  # fmt: skip
    for name, table in tables.items():
        labels = [{v: i for i, v in enumerate(table[dim].values.tolist())} for dim in table.dims]
        for layer, values in enumerate(table.values):
            wanted = np.zeros_like(values)
            for (a, b), value in theirs[layer][name].items():
                wanted[labels[1][a], labels[2][b]] = value
            np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-7, err_msg=name)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    # Seconds of this process: others on a shared machine do not count.
    began = time.process_time()
    found = run()
    return time.process_time() - began, found


def rounds(
    n: int = 3,
    *,
    checkpoints: int = 100,
    scripted: int = 2,
    tokens: int = 1792,
    layers: int = 16,
    experts: int = 16,
    k: int = 4,
) -> dict[str, Any]:
    """Both, interleaved, `n` times; CPU seconds a checkpoint.

    Returns:
        script, full, plain: median, lowest, highest seconds a checkpoint; full_ratio, plain_ratio:
        script over ours, of medians; probes: median seconds a checkpoint of each probe (full);
        peak_mib: of ours, by tracemalloc, over a quarter and over all of the checkpoints.
    """
    sizes = {"tokens": tokens, "layers": layers, "experts": experts, "k": k}
    seconds: dict[str, list[float]] = {"script": [], "full": [], "plain": []}
    each: dict[str, list[float]] = {name: [] for name in FULL}
    with tempfile.TemporaryDirectory() as folder:
        found = record(Path(folder), checkpoints, **sizes)
        looked_at = np.linspace(1, checkpoints - 2, scripted).astype(int)
        for _ in range(n):
            spent, theirs = timed(lambda: [script(found, int(c)) for c in looked_at])
            seconds["script"].append(spent / scripted)
            total, ours = 0.0, {}
            for name, probe in FULL.items():
                spent, ours[name] = timed(lambda probe=probe: probe(found))
                each[name].append(spent / checkpoints)
                total += spent
            seconds["full"].append(total / checkpoints)
            spent, _ = timed(lambda: [probe(found) for probe in PLAIN.values()])
            seconds["plain"].append(spent / checkpoints)
            for c, rows in zip(looked_at, theirs, strict=True):
                assert_equal(ours, rows, int(c))
        peaks = {
            count: _peak_mib(found.isel(checkpoint=slice(0, count)))
            for count in (max(2, checkpoints // 4), checkpoints)
        }
    middle = {name: median(values) for name, values in seconds.items()}
    return {
        "rounds": n,
        "checkpoints": checkpoints,
        "scripted": scripted,
        **sizes,
        **{
            name: {"median": middle[name], "lowest": min(values), "highest": max(values)}
            for name, values in seconds.items()
        },
        "full_ratio": middle["script"] / middle["full"],
        "plain_ratio": middle["script"] / middle["plain"],
        "probes": {name: median(values) for name, values in each.items()},
        "peak_mib": peaks,
    }


def _peak_mib(found: xr.Dataset) -> dict[str, float]:
    """Of each probe: memory at its highest less that of its result, in MiB."""
    peaks = {}
    for name, probe in PLAIN.items():
        tracemalloc.start()
        result = probe(found)
        peaks[name] = round((tracemalloc.get_traced_memory()[1] - result.nbytes) / 2**20, 1)
        tracemalloc.stop()
    return peaks


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    for experts, k in ((16, 4), (64, 8)):
        print(json.dumps(rounds(count, experts=experts, k=k), indent=1))
