"""On a GPU: probes of a checkpoint give the numbers that they give on a CPU."""

from __future__ import annotations

import pytest
import torch

for needed in ("xarray", "transformer_lens", "scipy"):
    pytest.importorskip(needed, reason=f"needs {needed}: the whole workbench, not its GPU half")

import numpy as np  # noqa: E402

from model.config import NANO  # noqa: E402
from model.lm import MoELM  # noqa: E402
from probes.exam import Exam  # noqa: E402
from probes.registry import find  # noqa: E402
from probes.subject import Subject  # noqa: E402

PROBES = (
    "participation", "cka", "logit-lens", "linear", "confidence-fixed", "coactivation-fixed",
    "expert-similarity", "super-experts", "in-context", "memorisation",
)  # fmt: skip


@pytest.fixture(scope="module")
def exam():
    rng = np.random.default_rng(0)
    return Exam(tokens=rng.integers(0, NANO.d_vocab, (12, 32)), domains=("a",) * 6 + ("b",) * 6)


def found(name, exam, device):
    subject = Subject(MoELM(NANO, seed=0).to(device), exam, step=100)
    return find(name).function(subject)


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_gives_the_same_numbers_as_on_a_cpu(device, exam, name):
    there, here = found(name, exam, device), found(name, exam, torch.device("cpu"))
    for variable in here.data_vars:
        if here[variable].dtype.kind != "f":
            continue
        # Products of float32 in another order; a near tie may send a token to another expert.
        np.testing.assert_allclose(
            there[variable].values, here[variable].values, rtol=2e-2, atol=2e-2,
            err_msg=f"{name}: {variable}",
        )  # fmt: skip
