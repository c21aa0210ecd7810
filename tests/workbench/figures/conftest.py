"""Small datasets with the dims of the record, for figures; nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import xarray as xr


@pytest.fixture
def make_load():
    """Load (step, layer, expert) of a router that is fair but for what `change` does to counts."""

    def make(steps=10, layers=2, experts=4, change=None):
        counts = np.full((steps, layers, experts), 100.0)
        if change is not None:
            change(counts)
        load = counts / counts.sum(-1, keepdims=True)
        clock = np.arange(1, steps + 1)
        return xr.DataArray(
            load,
            dims=("step", "layer", "expert"),
            coords={
                "step": clock, "layer": np.arange(layers), "expert": np.arange(experts),
                "tokens_seen": ("step", clock * 1000),
            },
            attrs={"run": "demo", "branch": "main"},
        )  # fmt: skip

    return make


@pytest.fixture
def make_skill():
    """Capability (checkpoint, task) from accuracy curves by task."""

    def make(curves, chance=0.1, every=10):
        accuracy = np.array(list(curves.values())).T
        steps = np.arange(accuracy.shape[0]) * every
        dims = ("checkpoint", "task")
        return xr.Dataset(
            {
                "accuracy": (dims, accuracy),
                "accuracy_low": (dims, accuracy - 0.05),
                "accuracy_high": (dims, accuracy + 0.05),
                "logprob": (dims, np.log(np.clip(accuracy, 0.01, 1))),
                "logprob_low": (dims, np.log(np.clip(accuracy, 0.01, 1)) - 0.1),
                "logprob_high": (dims, np.log(np.clip(accuracy, 0.01, 1)) + 0.1),
                "n": (dims, np.full(accuracy.shape, 60)),
            },
            coords={
                "checkpoint": steps, "task": list(curves), "tokens_seen": ("checkpoint", steps * 9),
                "chance": ("task", np.full(len(curves), chance)),
            },
        )  # fmt: skip

    return make


@dataclass(frozen=True)
class Arrived:
    """What a figure reads of an onset."""

    step: float = 25.0
    low: float = 20.0
    high: float = 30.0
    level: float = 0.5
    reached: bool = True
    verdict: str = "jump"


@pytest.fixture
def arrived():
    return Arrived
