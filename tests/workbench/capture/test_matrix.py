"""Exact counts and a bit-identical loss in every way to train that torch offers on a CPU:
compiled or not, with recomputation or without, accumulated, on one rank or two.

The runs themselves are in matrix_worker.py, one process a rank.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.lm import MoELM

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
WORKER = HERE / "matrix_worker.py"
RANKS = {"single": 1, "ddp": 2, "fsdp2": 2}

spec = importlib.util.spec_from_file_location("matrix_worker", WORKER)
matrix = importlib.util.module_from_spec(spec)
spec.loader.exec_module(matrix)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def run_ranks(parallel, modes, into, backend="aot_eager"):
    """What every rank reports, rank by rank."""
    world, port = RANKS[parallel], free_port()
    env = os.environ | {
        "MATRIX_MODES": ",".join(modes), "MATRIX_BACKEND": backend, "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, WORKER, parallel, str(rank), str(world), port, into / parallel],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    said = [rank.communicate(timeout=500)[0] for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(said)
    return [json.loads((into / f"{parallel}.{rank}").read_text()) for rank in range(world)]


@pytest.fixture(scope="module")
def first_step():
    """Assignments (layer, expert) of the first step, for one rank and for two, found by
    TransformerLens' cache on the bare model.
    """
    lm = MoELM(matrix.CONFIG, seed=0)
    found = {}
    for world in (1, 2):
        counts = torch.zeros(matrix.CONFIG.n_layers, matrix.CONFIG.num_experts, dtype=torch.int64)
        for rank in range(world):
            _, cache = lm.run_with_cache(matrix.batch(1, 0, rank)[0])
            for layer in range(matrix.CONFIG.n_layers):
                ids = cache[f"blocks.{layer}.mlp.router.hook_expert_indices"]
                counts[layer] += torch.bincount(ids.flatten(), minlength=counts.shape[1])
        found[world] = counts.tolist()
    return found


def check(parallel, reports, mode, ac, first_step):
    world = RANKS[parallel]
    for rank, report in enumerate(reports):
        result = report[f"{mode}|{ac}"]
        assert "error" not in result, result.get("error")
        for micro in matrix.MICRO:
            recorded, bare = (result[how][str(micro)] for how in ("with", "without"))
            assert recorded["losses"] == bare["losses"]
            if rank:
                assert not recorded["samples"]
                continue
            assert len(recorded["samples"]) == matrix.STEPS
            expected = world * micro * matrix.ROWS * matrix.LENGTH * matrix.CONFIG.experts_per_token
            for sample in recorded["samples"]:
                assert [sum(layer) for layer in sample["assignments"]] == [expected] * 2
                assert sample["diagonal"] == sample["assignments"]
    assert reports[0][f"{mode}|{ac}"]["with"]["1"]["samples"][0]["assignments"] == first_step[world]


@pytest.fixture(scope="module")
def eager(tmp_path_factory):
    reports = {}

    def of(parallel):
        if parallel not in reports:
            reports[parallel] = run_ranks(parallel, ["eager"], tmp_path_factory.mktemp("eager"))
        return reports[parallel]

    return of


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    reports = {}

    def of(parallel, mode):
        # A process a mode: what torch remembers of one compiled mode must not help or hurt another.
        if (parallel, mode) not in reports:
            into = tmp_path_factory.mktemp("compiled")
            reports[parallel, mode] = run_ranks(parallel, [mode], into)
        return reports[parallel, mode]

    return of


@pytest.mark.parametrize("ac", matrix.AC)
@pytest.mark.parametrize("parallel", RANKS)
def test_eager_training_is_counted_exactly(eager, first_step, parallel, ac):
    check(parallel, eager(parallel), "eager", ac, first_step)


@pytest.mark.slow
@pytest.mark.parametrize("ac", matrix.AC)
@pytest.mark.parametrize("mode", matrix.MODES[1:])
@pytest.mark.parametrize("parallel", RANKS)
def test_compiled_training_is_counted_exactly(compiled, first_step, parallel, mode, ac):
    check(parallel, compiled(parallel, mode), mode, ac, first_step)
