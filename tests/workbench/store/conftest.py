"""A small run's layout, rows that say which step they belong to, and processes that write them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import workbench
from workbench.store.layout import Layout
from workbench.store.run_store import RunStore

HOME = Path(workbench.__file__).parent.parent
# Processes that are killed lie beside the tests that kill them.
sys.path.insert(0, str(Path(__file__).parent))

PROLOGUE = """
import os, sys
import numpy as np
from workbench.store.run_store import RunStore

def rows(first, last):
    steps = np.arange(first, last + 1)
    whole = np.broadcast_to(steps[:, None, None], (len(steps), 2, 4)).copy()
    router = {"step": steps, "tokens": steps, "assignments": whole}
    return router, {"step": steps, "tokens_seen": steps}

store = RunStore.open(sys.argv[1])
"""


@pytest.fixture
def small_store(tmp_path):
    return RunStore.create(tmp_path / "store", Layout(layers=(0, 1), experts=4, k=2))


@pytest.fixture
def rows():
    """Router and train rows of the steps `first` to `last`; every number is its step."""
    known: dict = {}
    exec(PROLOGUE.partition("store =")[0], known)
    return known["rows"]


@pytest.fixture
def start(small_store):
    """Start a process that runs `code` on the store; it is ended with the test."""
    started: list[subprocess.Popen] = []

    def begin(code: str, *words: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", PROLOGUE + code, str(small_store.path), *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def check_steps():
    """Assert that a branch holds the steps 1 to n in both groups, each row its own."""

    def check(snapshot) -> int:
        if not snapshot.groups:
            return 0
        router, train = snapshot.dataset("router"), snapshot.dataset("train")
        n = router.sizes["step"]
        assert np.array_equal(router.step, np.arange(1, n + 1))
        assert np.array_equal(train.step, router.step)
        assert (router.assignments == router.step).all()
        assert (train.tokens_seen == train.step).all()
        return n

    return check


@pytest.fixture(scope="session")
def s3():
    """A local server that speaks S3; one for all, because moto keeps its buckets for all."""
    pytest.importorskip("obstore", reason="leases on object storage need obstore")
    pytest.importorskip("moto.server", reason="needs the local S3 server of moto")
    from s3_server import serving

    with serving() as server:
        yield server


@pytest.fixture
def place(s3, monkeypatch, tmp_path):
    """URL of a prefix in a fresh bucket, the environment set as a user would set it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL": s3.url,
        "AWS_EC2_METADATA_DISABLED": "true",
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(HOME),
    }.items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3.bucket()}/runs/demo/store"
