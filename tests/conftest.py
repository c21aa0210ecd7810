"""What many tests stand on: a really trained tiny run; property tests that repeat exactly."""

from __future__ import annotations

import os
import sys

# Before torch is loaded: threads that spin while they wait starve each other on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from model.config import NANO
from model.training.plan import TrainingPlan
from model.training.schedule import Schedule

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or min(2, os.cpu_count() or 1)))
settings.register_profile("workbench", deadline=None, derandomize=True)
settings.load_profile("workbench")

TINY_MODEL = replace(
    NANO, d_model=32, n_layers=2, n_heads=4, n_key_value_heads=2, d_mlp=16, num_experts=8,
    experts_per_token=2, n_ctx=32,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_probe_of_one_test_is_known_to_the_next() -> Iterator[None]:
    """What a docstring's example or a test marks as a probe is gone with it."""
    yield
    registry = sys.modules.get("probes.registry")
    if registry is not None:
        for name, known in list(registry._KNOWN.items()):
            home, function = sys.modules.get(known.module), known.function
            if getattr(home, function.__name__, None) is not function:
                del registry._KNOWN[name]


@pytest.fixture(scope="session")
def tiny_plan() -> TrainingPlan:
    """A plan of thirty small steps, checkpoints every four and, in the final phase, every two."""
    return TrainingPlan(
        model=TINY_MODEL, schedule=Schedule(steps=30, lr=3e-3, warmup_steps=4),
        batch_rows=16, row_tokens=32, checkpoint_every=4, checkpoint_every_final=2,
        items_per_task=16, probe_rows=1,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_plan: TrainingPlan) -> Path:
    """A run trained from nothing: main to the fork, then two arms. Do not change it."""
    from workbench.app.experiment import Experiment

    path = tmp_path_factory.mktemp("runs") / "tiny"
    experiment = Experiment(path, say=lambda _: None, device="cpu")
    experiment.begin(tiny_plan)
    fork = tiny_plan.schedule.fork_step
    experiment.train_main(until=fork)
    for arm in ("continue", "curriculum"):
        experiment.train_arm(arm, fork)
    return path
