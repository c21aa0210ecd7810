"""On a GPU: training in bfloat16 is recorded exactly, and the model is the one of the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import workbench as wb
from model.lm import MoELM
from model.training.loop import Training
from workbench.capture.callbacks.native import RecordTraining
from workbench.capture.run_folder import RunFolder

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device; this machine has none"
)


def test_training_in_bfloat16_is_counted_exactly(tmp_path, tiny_plan):
    plan = replace(tiny_plan, schedule=replace(tiny_plan.schedule, steps=12))
    RunFolder(tmp_path / "run").create(config=plan.to_dict(), phases=plan.schedule.phases())
    record = RecordTraining(tmp_path / "run", "main", resume=False)
    Training(
        plan, tmp_path / "run" / "checkpoints" / "main", callbacks=[record], device="cuda"
    ).run()
    router = wb.open_run(tmp_path / "run").router
    expected = plan.tokens_per_step * plan.model.experts_per_token
    assert (router.assignments.sum("expert") == expected).all()


def test_the_model_says_on_cuda_what_it_says_on_a_cpu(tiny_plan):
    lm = MoELM(tiny_plan.model, seed=0).eval()
    tokens = torch.randint(0, tiny_plan.model.d_vocab, (2, 16))
    with torch.no_grad():
        here = lm(tokens)
        there = lm.cuda()(tokens.cuda()).cpu()
    # float32 on both; the order of sums differs, and TF32 is off by default.
    torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-4)
