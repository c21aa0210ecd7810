"""How many bytes a record takes, found by writing some of it.

Needs   the shape of the routers, tokens of a step, a folder on the disk in question.
Yields  RecordSize, by `weigh`: bytes raw and as stored, by tier, and how long a commit takes.

What is written is made up, but not made easy: loads that differ from expert to expert, counts drawn
from them anew at every step, sums with all their digits. It is written as a run in its middle would
be: after a history, because a commit also rewrites chunks that are not full yet and the list of the
chunks, and both cost more once there are some.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np

from workbench.capture.accumulators import ENTROPY_BINS, Table
from workbench.capture.ring import Sample
from workbench.capture.rows import router_rows, train_rows
from workbench.capture.tap import Note
from workbench.capture.writer import COMMIT_EVERY
from workbench.store.layout import Layout, ProbeTokens
from workbench.store.run_store import RunStore
from workbench.store.writer import StoreWriter

# Shapes: S steps, L routers, E experts, K chosen a token.

HISTORY_BYTES = 32 << 20
"""At most so much is written before what is measured."""
HISTORIES = (4450, 450)
"""Steps of it: chunks of 1,000 and of 50 to 500 steps are then as full as they are on average."""
PROBE_TOKENS = 1000
"""Tokens of the probe set whose checkpoint is weighed."""
SLOW_SAMPLES = 2


@dataclass(frozen=True, kw_only=True)
class Weight:
    """Bytes of one thing."""

    raw: float
    """As arrays."""
    stored: float
    """As files, with checksums, lists of chunks and what rewriting leaves behind."""

    def __mul__(self, times: float) -> Weight:
        return Weight(raw=self.raw * times, stored=self.stored * times)

    def __add__(self, other: Weight) -> Weight:
        return Weight(raw=self.raw + other.raw, stored=self.stored + other.stored)


@dataclass(frozen=True, kw_only=True)
class RecordSize:
    """Bytes of a record."""

    step: Weight
    """Of the routers and the training, every step."""
    coactivation: Weight
    """Of one sample of co-activation and histogram, which not every step has."""
    traced_token: Weight
    """Of one token that is traced."""
    checkpoint: Weight
    """Of the routing of PROBE_TOKENS tokens of the probe set, every checkpoint."""
    slow_table_bytes: int
    """Of one sample of co-activation while it waits in memory."""
    commit_seconds: float
    """Until COMMIT_EVERY steps are durable, on the writer's thread."""

    def per_step(self, *, coactivation_every: int, traced_tokens: float) -> Weight:
        """Bytes of a step, all tiers shared out to steps."""
        return (
            self.step
            + self.coactivation * (1 / coactivation_every)
            + self.traced_token * traced_tokens
        )


def weigh(layout: Layout, *, tokens: int, traced: float, folder: Path, seed: int = 0) -> RecordSize:
    """Writes a record of that shape into a temporary folder, and looks at its files.

    Args:
        layout: layers, experts, k and domains of the record.
        tokens: of a step.
        traced: of them, how many are traced on average.
        folder: on the disk in question; must exist and be writable.
    """
    made_up = _MadeUp(layout, tokens, np.random.default_rng(seed))
    probe = ProbeTokens(tuple(range(PROBE_TOKENS)), ("text",) * PROBE_TOKENS)
    traces = max(1, round(traced * COMMIT_EVERY))
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as made:
        store = RunStore.create(Path(made, "store"), replace(layout, tokens=probe))
        with store.writer("main") as writer:
            # In the history every tier begins: an array's first commit also writes its metadata.
            steps = made_up.history()
            grown = _Growth(writer, store.path)
            grown.by({"router": made_up.router(steps) | made_up.slow(1), "train": made_up.train()})
            grown.by({"traces": made_up.traces(traces)})
            step = grown.by(
                {"router": made_up.router(COMMIT_EVERY), "train": made_up.train()}, whole=True
            )
            seconds = grown.seconds
            slow = grown.by({"router": made_up.slow(SLOW_SAMPLES)})
            trace = grown.by({"traces": made_up.traces(traces)})
            checkpoint = grown.by({"activations": made_up.checkpoint(PROBE_TOKENS)})
    return RecordSize(
        step=step * (1 / COMMIT_EVERY),
        coactivation=slow * (1 / SLOW_SAMPLES),
        traced_token=trace * (1 / traces),
        checkpoint=checkpoint,
        slow_table_bytes=8 * made_up.table.slow_cells,
        commit_seconds=seconds,
    )


class _Growth:
    """Commits rows, and says by how much the files grew."""

    def __init__(self, writer: StoreWriter, path: Path) -> None:
        self._writer, self._path = writer, path
        self._before = self._bytes()
        self.seconds = 0.0
        """What the last commit took."""

    def by(self, groups: Mapping[str, Mapping[str, np.ndarray]], *, whole: bool = False) -> Weight:
        """Bytes of these rows; `whole`: with what any commit writes, whatever is in it."""
        for group, rows in groups.items():
            self._writer.append(group, rows)
        began = perf_counter()
        self._writer.commit("doctor")
        self.seconds = perf_counter() - began
        before, self._before = self._before, self._bytes()
        counted = self._before if whole else ("chunks", "manifests")
        stored = sum(self._before[part] - before.get(part, 0) for part in counted)
        raw = sum(array.nbytes for rows in groups.values() for array in rows.values())
        return Weight(raw=raw, stored=stored)

    def _bytes(self) -> dict[str, int]:
        parts: dict[str, int] = {"chunks": 0, "manifests": 0}
        for file in self._path.rglob("*"):
            if file.is_file():
                part = file.relative_to(self._path).parts[0]
                parts[part] = parts.get(part, 0) + file.stat().st_size
        return parts


class _MadeUp:
    """Rows as a model of that shape would give them."""

    def __init__(self, layout: Layout, tokens: int, rng: np.random.Generator) -> None:
        self.layout, self.tokens, self.rng = layout, tokens, rng
        L, E = len(layout.layers), layout.experts
        self.table = Table(L, max(len(layout.domains), 1), E)
        self.load_LE = rng.dirichlet(np.full(E, 5.0), size=L)
        self._steps: list[Sample] = []
        self._last = 0

    def history(self) -> int:
        """Steps that are written before what is measured."""
        width = 8 * self.table.cells
        return next((n for n in HISTORIES if n * width <= HISTORY_BYTES), COMMIT_EVERY)

    def router(self, steps: int) -> dict[str, np.ndarray]:
        """Rows of the next steps."""
        tables = np.zeros((steps, self.table.cells), np.int64)
        # In place, through views; a part of several tables would be a copy.
        for row in tables:
            self._fill(row)
        first, self._last = self._last + 1, self._last + steps
        self._steps = [
            Sample(self._note(first + place), row, None, None) for place, row in enumerate(tables)
        ]
        return router_rows(self.table, self._steps, with_domains=bool(self.layout.domains))

    def _fill(self, row: np.ndarray) -> None:
        rng, tokens, k = self.rng, self.tokens, self.layout.k
        parts = self.table.parts(row)
        D = self.table.domains
        parts.counts_LDE[:] = rng.multinomial(
            tokens * k // D, self.load_LE[:, None], (len(self.load_LE), D)
        )
        parts.tallies_L2[:] = tokens
        parts.masses_L2E[:] = (
            tokens * self.load_LE[:, None] * rng.uniform(0.9, 1.1, parts.masses_L2E.shape)
        )
        parts.sums_L4[:] = tokens * rng.uniform(1, 2, parts.sums_L4.shape)

    def _note(self, step: int) -> Note:
        values = dict(zip(("loss", "lr", "grad_norm"), self.rng.uniform(1, 2, 3), strict=True))
        spent = float(self.rng.uniform(1e-4, 1e-3))
        return Note(step, self.tokens, True, 1.7e9 + step, spent, 1.0, 1, values)

    def train(self) -> dict[str, np.ndarray]:
        """Rows of the training for the steps that `router` gave last."""
        return train_rows(self._steps, [s.note.step * self.tokens for s in self._steps])

    def slow(self, samples: int) -> dict[str, np.ndarray]:
        """Rows of co-activation, of the last steps."""
        pairs = self.tokens * self.layout.k**2 * np.einsum("le,lf->lef", self.load_LE, self.load_LE)
        self._last += 25 * samples
        return {
            "sample": self._last - np.arange(samples)[::-1],
            "coactivation": self.rng.poisson(pairs, (samples, *pairs.shape)),
            "entropy_histogram": self.rng.poisson(
                self.tokens / 32, (samples, len(pairs), ENTROPY_BINS)
            ),
        }

    def traces(self, tokens: int) -> dict[str, np.ndarray]:
        """Rows of traced tokens."""
        rng, shape = self.rng, (tokens, len(self.layout.layers), self.layout.k)
        return {
            "step": np.sort(self._last + rng.integers(0, COMMIT_EVERY, tokens)),
            "token": rng.zipf(1.2, tokens).clip(max=50_000).astype(np.int32),
            "document": np.sort(rng.integers(0, 2**40, tokens)),
            "position": rng.integers(0, 4096, tokens, np.int32),
            "domain": rng.integers(0, 4, tokens).astype(np.int16),
            "expert_ids": rng.integers(0, self.layout.experts, shape).astype(np.int16),
            "gates": rng.uniform(0, 1, shape).astype(np.float32),
        }

    def checkpoint(self, tokens: int) -> dict[str, np.ndarray]:
        """Rows of a checkpoint's probe set."""
        L, E, k = len(self.layout.layers), self.layout.experts, self.layout.k
        logits = self.rng.normal(size=(1, tokens, L, E)).astype(np.float32)
        exp = np.exp(logits)
        return {
            "checkpoint": np.array([self._last]),
            "tokens_seen": np.array([self._last * self.tokens]),
            "expert_ids": np.argsort(-logits)[..., :k].astype(np.int16),
            "router_probs": exp / exp.sum(-1, keepdims=True),
        }
