"""Run: a whole run on disk that never ran, with a trunk and two arms, in which the answer is known.

Needs   a folder, a seed.
Yields  `planted_run`, the run's path; PLANTED, what is true of it.

It has a record and no weights: what looks at checkpoints' models finds none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from workbench.planted.evaluations import evaluations_record
from workbench.planted.router import DeadExpert, router_record
from workbench.planted.routing import activations_record
from workbench.planted.skill import PlantedSkill
from workbench.store.layout import Layout, ProbeTokens, Task
from workbench.store.run_store import RunStore

DOMAINS = ("knowledge/capitals", "logic/chain", "code/add", "prose")


@dataclass(frozen=True)
class _Truth:
    """What is true of every planted run."""

    steps: int = 200
    fork: int = 160
    """Step at which the arms "continue" and "curriculum" fork from main."""
    every: int = 10
    """Steps from one checkpoint's measures to the next."""
    dead_layer: int = 1
    dead_expert: int = 3
    """Expert of that layer that receives nothing from `dies_at` on."""
    dies_at: int = 100
    specialist: int = 5
    """Expert, in every layer, that the tokens of "code/add" prefer."""
    early: str = "knowledge/capitals"
    """Task that arrives as a jump at `early_at`, on the trunk."""
    early_at: int = 65
    late: str = "code/add"
    """Task that arrives as a jump at `late_at`, in the arm "curriculum" alone."""
    late_at: int = 175
    frozen_share: float = 0.6
    """Share of the training after which the routing of the fixed tokens has settled."""


PLANTED = _Truth()
"""What is true of every planted run."""

_TOKENS, _LAYERS, _EXPERTS, _K = 256, 2, 8, 2
_ITEMS, _CHANCE, _PROBE, _BEGAN = 100, 0.1, 256, 1.75e9
_IDS = tuple(place % 23 for place in range(_PROBE))
"""Of the fixed tokens: often enough each to be asked about, and nothing to do with the routing."""


def planted_run(folder: str | Path, *, seed: int = 0) -> Path:
    """Writes the run into `folder`, which must not hold one.

    Args:
        folder: of the run; made where it is missing.
        seed: of all that is drawn.

    Returns:
        The run's path, for `workbench.open_run`.

    Raises:
        RunExists: there is a run already.

    Example:
        >>> import tempfile, workbench
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     workbench.open_run(planted_run(folder)).branches
        ['main', 'continue', 'curriculum']
    """
    path, truth = Path(folder), PLANTED
    skills = {
        truth.early: PlantedSkill("jump", at=truth.early_at),
        "logic/chain": PlantedSkill("never"),
        truth.late: PlantedSkill("never"),
    }
    curriculum = skills | {truth.late: PlantedSkill("jump", at=truth.late_at)}
    store = _begin(path, tuple(skills))
    _write(store, "main", _records(skills, seed), 0, truth.fork)
    for number, (arm, own) in enumerate((("continue", skills), ("curriculum", curriculum))):
        store.fork(arm, "main", at_step=truth.fork)
        _write(store, arm, _records(own, seed + number), truth.fork, truth.steps)
    return path


def _begin(path: Path, tasks: tuple[str, ...]) -> RunStore:
    """An empty record, and the file that says what the run is."""
    probe = activations_record(checkpoints=2, tokens=_PROBE, layers=_LAYERS, experts=_EXPERTS, k=_K)
    layout = Layout(
        layers=tuple(range(_LAYERS)), experts=_EXPERTS, k=_K, domains=DOMAINS,
        tasks=tuple(Task(task, _CHANCE, _ITEMS) for task in tasks),
        tokens=ProbeTokens(_IDS, tuple(map(str, probe.domain.values))),
    )  # fmt: skip
    store = RunStore.create(path / "store", layout)
    phases = [
        {"name": "stable", "start": 1, "stop": PLANTED.fork},
        {"name": "final", "start": PLANTED.fork + 1, "stop": PLANTED.steps},
    ]
    about = {"name": "planted", "phases": phases}
    (path / "run.json").write_text(json.dumps(about), encoding="utf-8")
    return store


def _records(skills: dict[str, PlantedSkill], seed: int) -> dict[str, xr.Dataset]:
    """Every group of one branch, from its first step to its last."""
    truth, clock = PLANTED, np.arange(1, PLANTED.steps + 1)
    rng = np.random.default_rng(seed)
    loss = 1 + 4 * np.exp(-clock / 60) + rng.normal(0, 0.05, len(clock))
    train = {
        "loss": ("step", loss.astype(np.float32)),
        "lr": ("step", np.full(len(clock), 3e-3, np.float32)),
        "tokens_seen": ("step", clock * _TOKENS),
        "utc": ("step", _BEGAN + 60.0 * clock),
    }
    dead = DeadExpert(expert=truth.dead_expert, step=truth.dies_at, layer=truth.dead_layer)
    router = router_record(
        steps=truth.steps, layers=_LAYERS, experts=_EXPERTS, k=_K, tokens=_TOKENS, domains=DOMAINS,
        dead=[dead], specialised={truth.late: truth.specialist}, sample_every=truth.every,
        seed=seed,
    )  # fmt: skip
    shape = {"checkpoints": truth.steps // truth.every + 1, "every": truth.every}
    return {
        "router": router,
        "train": xr.Dataset(train, coords={"step": clock}),
        "evaluations": evaluations_record(skills, items=_ITEMS, chance=_CHANCE, **shape),
        "activations": activations_record(
            tokens=_PROBE, layers=_LAYERS, experts=_EXPERTS, k=_K, freeze_at=truth.frozen_share,
            **shape,
        ),
    }  # fmt: skip


def _write(
    store: RunStore, branch: str, records: dict[str, xr.Dataset], after: int, upto: int
) -> None:
    """Steps s with after < s <= upto, a commit and a tag at every checkpoint."""
    with store.writer(branch) as writer:
        for stop in range(after + PLANTED.every, upto + 1, PLANTED.every):
            for group, ds in records.items():
                for rows in _rows(ds, stop):
                    writer.append(group, rows)
            writer.commit(f"step {stop}")
            writer.tag_checkpoint(stop)


def _rows(ds: xr.Dataset, stop: int) -> Iterator[dict[str, np.ndarray]]:
    """The rows of the last steps up to `stop`, a table for each dim that grows."""
    for dim in ("step", "sample", "checkpoint"):
        if dim not in ds.dims:
            continue
        labels = ds[dim].values
        # The checkpoint of step 0 comes with the first.
        first = -1 if stop == PLANTED.every else stop - PLANTED.every
        chosen = ds.isel({dim: (labels > first) & (labels <= stop)})
        grown = {str(n): v.values for n, v in chosen.data_vars.items() if v.dims[0] == dim}
        if dim == "checkpoint":
            grown["tokens_seen"] = chosen[dim].values * _TOKENS
        yield {dim: chosen[dim].values, **grown}
