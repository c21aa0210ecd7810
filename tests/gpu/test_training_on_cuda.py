"""On a GPU with everything installed: training in bfloat16 is recorded exactly, and the model is
the one of the CPU.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

for needed in ("transformer_lens", "icechunk", "zarr", "xarray"):
    pytest.importorskip(needed, reason=f"needs {needed}: the whole workbench, not its GPU half")

import workbench as wb  # noqa: E402
from model.config import NANO  # noqa: E402
from model.lm import MoELM  # noqa: E402
from model.training.loop import Training  # noqa: E402
from model.training.plan import TrainingPlan  # noqa: E402
from model.training.schedule import Schedule  # noqa: E402
from workbench.capture.callbacks.native import RecordTraining  # noqa: E402
from workbench.capture.run_folder import RunFolder  # noqa: E402

PLAN = TrainingPlan(
    model=replace(
        NANO, d_model=32, n_layers=2, n_heads=4, n_key_value_heads=2, d_mlp=16, num_experts=8,
        experts_per_token=2, n_ctx=32,
    ),
    schedule=Schedule(steps=12, lr=3e-3, warmup_steps=4), batch_rows=16, row_tokens=32,
    checkpoint_every=4, checkpoint_every_final=2, items_per_task=16, probe_rows=1,
)  # fmt: skip


def test_training_in_bfloat16_is_counted_exactly(cuda, tmp_path):
    RunFolder(tmp_path / "run").create(config=PLAN.to_dict(), phases=PLAN.schedule.phases())
    record = RecordTraining(tmp_path / "run", "main", resume=False)
    Training(
        PLAN, tmp_path / "run" / "checkpoints" / "main", callbacks=[record], device="cuda"
    ).run()
    router = wb.open_run(tmp_path / "run").router
    expected = PLAN.tokens_per_step * PLAN.model.experts_per_token
    assert (router.assignments.sum("expert") == expected).all()


def test_the_model_says_on_cuda_what_it_says_on_a_cpu(cuda):
    lm = MoELM(PLAN.model, seed=0).eval()
    tokens = torch.randint(0, PLAN.model.d_vocab, (2, 16))
    with torch.no_grad():
        here = lm(tokens)
        there = lm.to(cuda)(tokens.to(cuda)).cpu()
    # float32 on both; the order of sums differs, and TF32 is off by default.
    torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-4)
