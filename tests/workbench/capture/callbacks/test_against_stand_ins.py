"""Composer, OLMo-core, torchtitan and Megatron, each against a stand-in with its events' names."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from stand_ins import (
    ComposerTrainer,
    MegatronModel,
    MoERouter,
    OLMoTrainer,
    TitanTrainer,
    TokenChoiceTopKRouter,
    TopKRouter,
    Training,
    megatron_config,
    megatron_train_step,
    micro_batches,
)
from tiny_training import K, Rows, same_weights, weights

from workbench.capture.adapters.router_site import Scores
from workbench.capture.callbacks.composer import RecordComposer
from workbench.capture.callbacks.megatron import MegatronRouters, RecordMegatron
from workbench.capture.callbacks.olmo_core import OLMoRouters, RecordOLMo
from workbench.capture.callbacks.torchtitan import RecordTorchTitan, TorchTitanRouters
from workbench.errors import CaptureError, UsageError

TRAIN = Rows(48)
TOKENS = TRAIN.tokens_a_step()


@pytest.fixture(autouse=True)
def libraries(monkeypatch):
    """Modules that hold the callbacks' base classes."""
    for name in ("composer", "olmo_core", "olmo_core.train", "olmo_core.train.callbacks"):
        module = ModuleType(name)
        module.Callback = type("Callback", (), {"post_train": lambda self: None})
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture(scope="module")
def bare():
    """The weights after six steps that nothing watched."""
    training = Training(TRAIN)
    for step in range(1, 7):
        training.forward_backward(step)
        training.update()
    return weights(training.model)


# Composer


def test_composer_counts_every_batch_once_and_knows_where_its_checkpoints_lie(
    tmp_path, record, bare
):
    training = Training(TRAIN)
    callback = RecordComposer(record.path, safetensors=True)
    ComposerTrainer(training, callback, tmp_path / "out").fit(6)
    record.must_hold(TOKENS)
    out = tmp_path / "out"
    assert record.checkpoints() == {
        3: out / "ep0-ba3-rank0-weights", 6: out / "ep0-ba6-rank0-weights"
    }  # fmt: skip
    assert same_weights(bare, weights(training.model))
    assert not np.isnan(record.group("train")[["loss", "lr", "grad_norm"]].to_array()).any()
    callback.close(None, None)


def test_composer_goes_on_where_readable_weights_cannot_be_written(tmp_path, record, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    training = Training(TRAIN)
    monkeypatch.setattr(training.model, "save_pretrained", full)
    callback = RecordComposer(record.path, safetensors=True)
    with callback, pytest.warns(RuntimeWarning) as told:
        ComposerTrainer(training, callback, tmp_path / "out").fit(4)
    assert any("No space left" in str(w.message) for w in told)
    record.must_hold(TOKENS[:4])


def test_a_composer_batch_tried_again_with_smaller_microbatches_counts_once(tmp_path, record):
    callback = RecordComposer(record.path)
    trainer = ComposerTrainer(Training(TRAIN), callback, tmp_path, save_every=9, retries=[1, 4])
    trainer.fit(6)
    callback.close()
    record.must_hold(TOKENS)


def test_composer_resumes_where_its_checkpoint_was(tmp_path, record):
    with RecordComposer(record.path, safetensors=True) as broken, pytest.raises(RuntimeError):
        ComposerTrainer(Training(TRAIN), broken, tmp_path).fit(6, fail_at=5)
    assert record.steps() == [1, 2, 3, 4]
    with RecordComposer(record.path, safetensors=True) as resumed:
        ComposerTrainer(Training(TRAIN), resumed, tmp_path, done=3).fit(6)
    record.must_hold(TOKENS)


def test_composer_that_keeps_few_checkpoints_is_warned_of(tmp_path, record):
    callback = RecordComposer(record.path)
    trainer = ComposerTrainer(Training(TRAIN), callback, tmp_path)
    trainer.saver.num_checkpoints_to_keep = 2
    with callback, pytest.warns(UserWarning, match="save_num_checkpoints_to_keep=-1"):
        trainer.fit(1)


# OLMo-core


@pytest.fixture
def unlimited(monkeypatch):
    """An OLMo-core trainer that keeps all checkpoints, as is advised."""
    made = OLMoTrainer.__init__

    def init(self, *args, **settings):
        made(self, *args, **settings)
        self.saver.max_checkpoints = None

    monkeypatch.setattr(OLMoTrainer, "__init__", init)


@pytest.mark.usefixtures("unlimited")
@pytest.mark.parametrize("behind", [False, True])
def test_olmo_core_is_recorded_whether_it_saves_in_the_background_or_not(
    tmp_path, record, bare, behind
):
    training = Training(TRAIN)
    trainer = OLMoTrainer(training, RecordOLMo(record.path), tmp_path / "out", behind=behind)
    trainer.fit(6 if not behind else 5)
    record.must_hold(TOKENS[: 6 if not behind else 5])
    # Saved in the background, the record is marked at step 3 and the index told at step 4.
    saved = [3, 6] if not behind else [3]
    assert record.checkpoints() == {step: tmp_path / "out" / f"step{step}" for step in saved}
    assert behind or same_weights(bare, weights(training.model))
    assert not np.isnan(record.group("train")[["loss", "lr", "grad_norm"]].to_array()).any()


@pytest.mark.usefixtures("unlimited")
@pytest.mark.parametrize("behind", [False, True])
def test_olmo_core_resumes_where_its_checkpoint_was(tmp_path, record, behind):
    trainer = OLMoTrainer(Training(TRAIN), RecordOLMo(record.path), tmp_path, behind=behind)
    with pytest.raises(RuntimeError, match="power"):
        trainer.fit(6, fail_at=5)
    assert record.steps() == [1, 2, 3, 4]
    OLMoTrainer(Training(TRAIN), RecordOLMo(record.path), tmp_path, done=3).fit(6)
    record.must_hold(TOKENS)


@pytest.mark.usefixtures("unlimited")
def test_a_step_that_olmo_core_skips_is_left_out(tmp_path, record):
    trainer = OLMoTrainer(
        Training(TRAIN), RecordOLMo(record.path), tmp_path, skip=[2], save_every=9
    )
    trainer.fit(4)
    assert record.steps() == [1, 3, 4]
    assert record.tokens() == [TOKENS[0], TOKENS[2], TOKENS[3]]


def test_olmo_cores_three_checkpoints_are_warned_of(tmp_path, record):
    with pytest.warns(UserWarning, match="max_checkpoints=None"):
        OLMoTrainer(Training(TRAIN), RecordOLMo(record.path), tmp_path).fit(1)


# torchtitan


@pytest.mark.parametrize("behind", [False, True])
def test_torchtitan_is_recorded_whether_it_saves_in_the_background_or_not(
    tmp_path, record, bare, behind
):
    training = Training(TRAIN)
    trainer = TitanTrainer(training, tmp_path / "out", behind=behind)
    with RecordTorchTitan(record.path) as callback:
        callback.watch(trainer)
        trainer.train(6)
    record.must_hold(TOKENS)
    assert record.checkpoints() == {step: tmp_path / "out" / f"step-{step}" for step in (3, 6)}
    assert same_weights(bare, weights(training.model))
    train = record.group("train")
    # It logs every second step here; the rate is known at all.
    assert np.isnan(train["loss"]).values.tolist() == [1, 0, 1, 0, 1, 0]
    assert np.isnan(train["grad_norm"]).values.tolist() == [1, 0, 1, 0, 1, 0]
    np.testing.assert_allclose(train["lr"], 1e-2)


@pytest.mark.parametrize("behind", [False, True])
def test_torchtitan_resumes_where_its_checkpoint_was(tmp_path, record, behind):
    for done, fail_at in ((0, 5), (3, None)):
        trainer = TitanTrainer(Training(TRAIN), tmp_path, done=done, behind=behind)
        callback = RecordTorchTitan(record.path)
        callback.watch(trainer)
        if fail_at:
            with callback, pytest.raises(RuntimeError, match="power"):
                trainer.train(6, fail_at=fail_at)
            assert record.steps() == [1, 2, 3, 4]
        else:
            with callback:
                trainer.train(6)
    record.must_hold(TOKENS)


def test_the_hook_of_a_model_spec_records_without_the_trainer(tmp_path, record, bare):
    training = Training(TRAIN)
    trainer = TitanTrainer(training, tmp_path)
    called = []
    with RecordTorchTitan(record.path) as callback:
        built = callback.after_optimizers(lambda *given: called.append(given))
        built(trainer.optimizers, trainer.model_parts, trainer.parallel_dims)
        trainer.train(6)
    record.must_hold(TOKENS)
    assert called == [(trainer.optimizers, trainer.model_parts, trainer.parallel_dims)]
    assert same_weights(bare, weights(training.model))


def test_torchtitans_ten_checkpoints_are_warned_of(tmp_path, record):
    trainer = TitanTrainer(Training(TRAIN), tmp_path, keep=10)
    with pytest.warns(UserWarning, match="keep_latest_k 0"):
        RecordTorchTitan(record.path).watch(trainer)


def test_pipeline_stages_are_refused_with_the_reason(tmp_path, record):
    trainer = TitanTrainer(Training(TRAIN), tmp_path)
    trainer.parallel_dims.pp_enabled = True
    with pytest.raises(CaptureError, match="different layers"):
        RecordTorchTitan(record.path).watch(trainer)


# Megatron


def megatron(record, *, run_again=(), leave=(), padding=True, **changes):
    """Six iterations; returns the model and the true count of each."""
    model = MegatronModel(**changes).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    config = SimpleNamespace(run_again=set(run_again), leave=set(leave))

    def forward_backward(forward_step_func, data_iterator, model):
        losses = []
        for batch in micro_batches(TRAIN, forward_step_func):
            tokens, pad = batch["input_ids"].T, batch["attention_mask"].T == 0
            logits = model[0](tokens, pad if padding else None)
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), tokens.masked_fill(pad, -100).flatten()
            )
            loss.backward()
            losses.append(loss.detach())
        return losses

    train_step = record.around(megatron_train_step) if record else megatron_train_step
    for iteration in range(6):
        train_step(
            iteration + 1, None, [model], optimizer, None, config, forward_backward,
            iteration=iteration,
        )  # fmt: skip
    return model


def test_megatron_counts_what_its_routers_map_without_padding(tmp_path, record):
    with RecordMegatron(record.path) as callback:
        watched = megatron(callback)
    record.must_hold(TOKENS)
    assert same_weights(weights(megatron(None)), weights(watched))
    assert not np.isnan(record.group("train")[["loss", "lr", "grad_norm"]].to_array()).any()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in watched.modules())
    assert all("gating" not in vars(router) for router in watched.layers)


def test_a_megatron_iteration_that_is_run_again_counts_once(record):
    with RecordMegatron(record.path) as callback:
        megatron(callback, run_again=[0, 3])
    record.must_hold(TOKENS)


def test_a_megatron_iteration_that_leaves_before_its_update_is_left_out(record):
    with RecordMegatron(record.path) as callback:
        megatron(callback, leave=[5])
    record.must_hold(TOKENS[:5])


def test_assignments_that_megatron_drops_are_counted_nowhere(record):
    with RecordMegatron(record.path) as callback:
        megatron(callback, padding=False, moe_expert_capacity_factor=0.5)
    router = record.group("router")
    tokens = 2 * 4 * TRAIN.length
    assert record.tokens() == [tokens] * 6
    # Four micro-batches, four experts, each with room for half of its fair share.
    room = 4 * 4 * int(0.5 * 2 * TRAIN.length * K / 4)
    assert (router["assignments"].sum("expert") <= room).all()
    assert (router["assignments"].sum("expert") > 0).all()


def test_megatrons_checkpoints_are_in_the_index(tmp_path, record):
    model = MegatronModel()

    def save_checkpoint(iteration, model, non_persistent_ckpt=False):
        from safetensors.torch import save_file

        folder = tmp_path / f"iter_{iteration:07d}"
        folder.mkdir()
        save_file(model.state_dict(), folder / "model.safetensors")

    with RecordMegatron(record.path) as callback:
        save = callback.after_saving(save_checkpoint, folder=tmp_path)
        megatron(callback)
        save(6, model)
    assert record.checkpoints() == {6: tmp_path / "iter_0000006"}


def test_megatrons_retention_interval_is_warned_of(tmp_path, record):
    with pytest.warns(UserWarning, match="save-retain-interval"):
        RecordMegatron(record.path).after_saving(print, folder=tmp_path, retain_interval=1000)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pipeline_model_parallel_size": 2}, "its ranks"),
        ({"moe_pad_expert_input_to_capacity": True}, "did not choose"),
        ({"moe_router_score_function": "sqrtsoftplus"}, "sigmoid"),
    ],
)
def test_what_cannot_be_counted_in_megatron_is_refused_with_the_reason(record, changes, reason):
    with pytest.raises(CaptureError, match=reason):
        megatron(RecordMegatron(record.path), **changes)


# Readings of their routers


@pytest.mark.parametrize(
    ("router", "adapter", "scores"),
    [
        (TokenChoiceTopKRouter(score_func="sigmoid"), TorchTitanRouters(), Scores.SIGMOID),
        (TokenChoiceTopKRouter(score_func="softmax"), TorchTitanRouters(), Scores.LOGITS),
        (MoERouter(), OLMoRouters(), Scores.LOGITS),
        (MoERouter(gating_function="sigmoid"), OLMoRouters(), Scores.SIGMOID),
        (TopKRouter(megatron_config()), MegatronRouters(), Scores.LOGITS),
    ],
)
def test_a_reading_has_the_logits_from_inside_and_the_ids_that_top_them(router, adapter, scores):
    torch.manual_seed(0)
    readings = []
    (site,) = adapter.find(torch.nn.ModuleDict({"router": router}))
    handles = site.attach(readings.append)
    x = torch.randn(5, 2, 8)
    router(x)
    ((logits_TE, ids_TK, gates_TK),) = readings
    weight = router.gate.weight if hasattr(router, "gate") else router.weight
    assert (site.name, site.num_experts, site.experts_per_token) == ("router", 4, K)
    assert site.scores == scores
    torch.testing.assert_close(logits_TE, (x @ weight.T).flatten(0, 1))
    assert not logits_TE.requires_grad
    best = logits_TE.topk(K).indices
    assert torch.equal(ids_TK.sort(-1).values, best.sort(-1).values)
    assert gates_TK.shape == (10, K)
    assert (gates_TK > 0).all()
    for handle in handles:
        handle.remove()
    router(x)
    assert len(readings) == 1


# What is not installed


def test_a_library_that_is_not_installed_is_named_with_what_to_type(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "composer", None)
    with pytest.raises(UsageError, match="pip install mosaicml"):
        RecordComposer(tmp_path)


def test_asking_for_the_recorder_before_the_training_says_when_there_is_one(tmp_path):
    with pytest.raises(UsageError, match="when the training begins"):
        _ = RecordMegatron(tmp_path).recorder
