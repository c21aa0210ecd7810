"""A process that writes steps into a branch as it is told to, until it is ended.

Needs   python live_writer.py RUN BRANCH; on stdin a line for each deed: `steps N`, `commit`.
Yields  on stdout `at STEP` after each, when the rows can be read.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from workbench.store.run_store import RunStore
from workbench.testing import router_record

TOKENS, LAYERS, EXPERTS, K = 64, 2, 8, 2


def main(path: str, branch: str) -> None:
    with RunStore.open(f"{path}/store").writer(branch) as writer:
        at = writer.last("train") or 0
        say(at)
        for line in sys.stdin:
            deed, _, n = line.partition(" ")
            if deed == "steps":
                append(writer, at, int(n))
                at += int(n)
                writer.seal()
            else:
                writer.commit(f"step {at}")
            say(at)


def say(at: int) -> None:
    sys.stdout.write(f"at {at}\n")
    sys.stdout.flush()


def append(writer, at: int, n: int) -> None:
    domains = writer.layout.domains
    record = router_record(
        steps=n, layers=LAYERS, experts=EXPERTS, k=K, tokens=TOKENS, domains=domains, seed=at
    )
    step = np.arange(at + 1, at + n + 1)
    rows = record.drop_dims("sample", errors="ignore")
    writer.append("router", {"step": step, **{str(v): rows[v].values for v in rows.data_vars}})
    train = {"loss": np.full(n, 1.0, "float32"), "lr": np.full(n, 1e-3, "float32")}
    clocks = {"tokens_seen": step * TOKENS, "utc": time.time() - 0.01 * np.arange(n)[::-1]}
    writer.append("train", {"step": step, **train, **clocks})
    rng = np.random.default_rng(at)
    many = 40 * n
    ids = np.argsort(rng.random((many, LAYERS, EXPERTS)), axis=-1)[..., :K]
    writer.append(
        "traces",
        {
            "step": np.repeat(step, 40),
            "expert_ids": ids.astype("int16"),
            "gates": np.full((many, LAYERS, K), 0.5, "float32"),
            "token": rng.integers(0, 5, many).astype("int32"),
            "position": np.zeros(many, "int32"),
            "document": np.zeros(many, "int64"),
            "domain": np.zeros(many, "int16"),
        },
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
