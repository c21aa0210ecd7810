"""A run on disk whose truth is planted: a trunk, two arms, one skill that only an arm learns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from workbench.store.layout import Layout, ProbeTokens, Task
from workbench.store.run_store import RunStore
from workbench.testing import (
    DeadExpert,
    PlantedSkill,
    activations_record,
    evaluations_record,
    router_record,
)

STEPS, FORK, EVERY, TOKENS = 100, 80, 10, 64
LAYERS, EXPERTS, K = 2, 8, 2
SKILLS = {
    "knowledge/capitals": PlantedSkill("jump", at=35),
    "logic/chain": PlantedSkill("never"),
    "code/add": PlantedSkill("never"),
}
LEARNED_LATE = {**SKILLS, "code/add": PlantedSkill("jump", at=85)}


class Planted:
    """Writes the planted records into a run's folder."""

    def __init__(self, folder: Path, names: dict[str, str], parts: set[str]) -> None:
        self.folder = folder
        self.names = names
        self.parts = parts
        self.tasks = [names.get(task, task) for task in SKILLS]
        self.domains = (*self.tasks, "prose")
        probe = activations_record(checkpoints=2, tokens=64, layers=LAYERS, experts=EXPERTS, k=K)
        layout = Layout(
            layers=tuple(range(LAYERS)),
            experts=EXPERTS,
            k=K,
            domains=self.domains,
            tasks=tuple(Task(task, 0.1, 60) for task in self.tasks),
            tokens=ProbeTokens(
                tuple(map(int, probe.token_id)), tuple(map(str, probe.domain.values))
            ),
        )
        self.store = RunStore.create(folder / "store", layout)

    def records(self, skills: dict[str, PlantedSkill], seed: int) -> dict[str, xr.Dataset]:
        steps = np.arange(1, STEPS + 1)
        rng = np.random.default_rng(seed)
        train = {
            "loss": ("step", np.float32(1 + 4 * np.exp(-steps / 30) + rng.normal(0, 0.05, STEPS))),
            "lr": ("step", np.full(STEPS, 3e-3, "float32")),
            "tokens_seen": ("step", steps * TOKENS),
            "utc": ("step", 1.75e9 + 60.0 * steps),
        }
        router = router_record(
            steps=STEPS, layers=LAYERS, experts=EXPERTS, k=K, tokens=TOKENS, domains=self.domains,
            dead=[DeadExpert(expert=3, step=50, layer=1)], seed=seed,
        )  # fmt: skip
        shape = {"checkpoints": STEPS // EVERY + 1, "every": EVERY}
        named = {self.names.get(task, task): skill for task, skill in skills.items()}
        routing = {"tokens": 64, "layers": LAYERS, "experts": EXPERTS, "k": K}
        made = {
            "router": router.drop_dims("sample"),
            "train": xr.Dataset(train, coords={"step": steps}),
            "evaluations": evaluations_record(named, items=60, **shape),
            "activations": activations_record(seed=seed, **routing, **shape),
        }
        return {group: made[group] for group in made if group in self.parts}

    def write(self, branch: str, records: dict[str, xr.Dataset], after: int, upto: int) -> None:
        with self.store.writer(branch) as writer:
            for begin in range(after, upto, EVERY):
                for group, ds in records.items():
                    dim = "checkpoint" if "checkpoint" in ds.dims else "step"
                    first = begin + 1 if begin or dim == "step" else 0
                    rows = ds.sel({dim: slice(first, begin + EVERY)})
                    values = {str(n): v.values for n, v in rows.data_vars.items()}
                    if dim == "checkpoint":
                        values["tokens_seen"] = rows[dim].values * TOKENS
                    writer.append(group, {dim: rows[dim].values, **values})
                writer.commit(f"step {begin + EVERY}")
                writer.tag_checkpoint(begin + EVERY)


@pytest.fixture(scope="session")
def planted_run(tmp_path_factory) -> Callable[..., Path]:
    """Makes a run: `planted_run("name", arms=True, parts={...}, names={old: new}, about={...})`."""

    def make(
        folder: str,
        *,
        arms: bool = True,
        parts: set[str] | None = None,
        names: dict[str, str] | None = None,
        about: dict[str, object] | None = None,
    ) -> Path:
        path = tmp_path_factory.mktemp("runs") / folder
        parts = {"router", "train", "evaluations", "activations"} if parts is None else parts
        planted = Planted(path, names or {}, parts)
        phases = [
            {"name": "warm-up", "start": 1, "stop": 20},
            {"name": "stable", "start": 21, "stop": FORK},
            {"name": "final", "start": FORK + 1, "stop": STEPS},
        ]
        (path / "run.json").write_text(json.dumps({"phases": phases, **(about or {})}))
        trunk = planted.records(SKILLS, seed=0)
        planted.write("main", trunk, 0, FORK if arms else STEPS)
        if arms:
            for branch, skills in (("continue", SKILLS), ("curriculum", LEARNED_LATE)):
                planted.store.fork(branch, "main", at_step=FORK)
                late = planted.records(skills, seed=0 if branch == "continue" else 1)
                planted.write(branch, late, FORK, STEPS)
        return path

    return make


@pytest.fixture(scope="session")
def two_arm_run(planted_run) -> Path:
    return planted_run("demo", about={"name": "demo"})
