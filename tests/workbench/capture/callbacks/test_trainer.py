"""transformers' Trainer, run for real."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from tiny_training import (
    ACCUMULATED,
    ROWS_A_MICRO_BATCH,
    Record,
    Rows,
    same_weights,
    tiny_moe,
    weights,
)
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from workbench.capture.callbacks.trainer import RecordTrainer
from workbench.errors import RunExists

TRAIN, HELD_OUT = Rows(48), Rows(6)
STEPS = 6


class InOrder(Trainer):
    def _get_train_sampler(self, *_):
        return SequentialSampler(self.train_dataset)


def trainer(tmp_path, *callbacks, model=None, kind=InOrder, **settings):
    settings = {
        "per_device_train_batch_size": ROWS_A_MICRO_BATCH,
        "gradient_accumulation_steps": ACCUMULATED,
        "max_steps": STEPS, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2,
        "save_steps": 3, "learning_rate": 1e-2, "warmup_steps": 2, "report_to": [],
        "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False,
    } | settings  # fmt: skip
    return kind(
        model=tiny_moe() if model is None else model,
        args=TrainingArguments(output_dir=str(tmp_path / "out"), **settings),
        train_dataset=TRAIN,
        eval_dataset=HELD_OUT,
        callbacks=list(callbacks),
    )


class StopAt(TrainerCallback):
    """Raises in the second micro-batch of a step, or in the evaluation after it."""

    def __init__(self, step, error, event="on_substep_end"):
        self.step, self.error = step, error
        setattr(self, event, self.stop)

    def stop(self, args, state, control, **_):
        if state.global_step == self.step:
            raise self.error


class LogsWithinSteps(InOrder):
    def compute_loss(self, model, inputs, *args, **options):
        if model.training:
            self.log({"aux": 1.0})
        return super().compute_loss(model, inputs, *args, **options)


class OutOfMemoryOnce(InOrder):
    """In the micro-batch of this number, counted from 0."""

    fails_at = 9

    def training_step(self, *args, **options):
        self.fails_at -= 1
        if self.fails_at == -1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().training_step(*args, **options)


class OutOfMemoryAtOnce(OutOfMemoryOnce):
    fails_at = 1


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A whole training, evaluated after every second step; its record and where it saved."""
    path = tmp_path_factory.mktemp("trainer")
    run = trainer(path, RecordTrainer(path / "run"))
    run.train()
    return Record(path / "run"), run, path / "out"


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The same without a callback."""
    run = trainer(tmp_path_factory.mktemp("bare"), save_strategy="no")
    run.train()
    return weights(run.model)


def test_every_step_counts_the_tokens_of_all_its_micro_batches_and_no_padding(recorded):
    assert max(TRAIN.tokens_a_step()) < ACCUMULATED * ROWS_A_MICRO_BATCH * TRAIN.length
    recorded[0].must_hold(TRAIN.tokens_a_step())


def test_the_weights_are_the_same_bit_for_bit_as_without_the_callback(recorded, bare):
    assert same_weights(bare, weights(recorded[1].model))


def test_loss_rate_and_gradient_norm_are_those_that_the_trainer_logs(recorded):
    train = recorded[0].group("train")
    logs = [log for log in recorded[1].state.log_history if "loss" in log]
    for ours, theirs in (("loss", "loss"), ("grad_norm", "grad_norm")):
        np.testing.assert_allclose(train[ours], [log[theirs] for log in logs], rtol=1e-6)
    # Warm-up over two steps, then down to zero at the last; the first update is made with 0.
    expected = [0, 0.5e-2, 1e-2, 0.75e-2, 0.5e-2, 0.25e-2]
    np.testing.assert_allclose(train["lr"], expected, rtol=1e-5)


def test_a_step_that_the_trainer_does_not_log_is_recorded_without_loss(tmp_path, record):
    trainer(tmp_path, RecordTrainer(record.path), logging_steps=3).train()
    record.must_hold(TRAIN.tokens_a_step())
    assert np.isnan(record.group("train")["loss"]).values.tolist() == [1, 1, 0, 1, 1, 0]


def test_what_is_logged_in_the_midst_of_a_step_neither_ends_it_nor_takes_its_loss(
    tmp_path, record, recorded
):
    trainer(tmp_path, RecordTrainer(record.path), kind=LogsWithinSteps).train()
    record.must_hold(TRAIN.tokens_a_step())
    for name in ("loss", "lr", "grad_norm"):
        np.testing.assert_array_equal(
            record.group("train")[name], recorded[0].group("train")[name], name
        )


def test_a_trainer_that_looks_for_its_batch_size_records_the_size_it_found_alone(tmp_path, record):
    run = trainer(
        tmp_path, RecordTrainer(record.path), kind=OutOfMemoryOnce, auto_find_batch_size=True
    )
    with pytest.warns(RuntimeWarning, match="the 2 steps recorded .* are set aside"):
        run.train()
    # Rows a micro-batch: nine tenths of what there was too little memory for, rounded down.
    record.must_hold(TRAIN.tokens_a_step(ACCUMULATED)[:STEPS])
    assert sorted(record.checkpoints()) == [3, 6]


def test_a_batch_too_large_in_the_first_step_sets_nothing_aside(tmp_path, record):
    settings = {"kind": OutOfMemoryAtOnce, "auto_find_batch_size": True}
    trainer(tmp_path, RecordTrainer(record.path), **settings).train()
    record.must_hold(TRAIN.tokens_a_step(ACCUMULATED)[:STEPS])


def test_checkpoints_are_in_the_index_where_the_trainer_saved_them(recorded):
    record, _, out = recorded
    assert record.checkpoints() == {3: out / "checkpoint-3", 6: out / "checkpoint-6"}


def test_a_training_resumed_from_a_checkpoint_goes_on_there_and_no_step_is_there_twice(
    tmp_path, record, bare
):
    # Broken off in step 5, two steps after the checkpoint.
    stop = StopAt(4, RuntimeError("power"))
    broken = trainer(tmp_path, RecordTrainer(record.path), stop)
    with pytest.raises(RuntimeError, match="power"):
        broken.train()
    # Trainer 5.23 saves experts one by one and, when it resumes, finds none of them: it logs a
    # warning and goes on with those that the model was made with. from_pretrained reads them.
    saved = tmp_path / "out" / "checkpoint-3"
    model = type(broken.model).from_pretrained(saved)
    resumed = trainer(tmp_path, RecordTrainer(record.path), model=model)
    resumed.train(resume_from_checkpoint=str(saved))
    record.must_hold(TRAIN.tokens_a_step())
    assert same_weights(bare, weights(resumed.model))
    assert sorted(record.checkpoints()) == [3, 6]


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_what_was_recorded_before_an_error_can_be_read(tmp_path, record, error):
    callback = RecordTrainer(record.path)
    with pytest.raises(type(error)), callback:
        trainer(tmp_path, callback, StopAt(4, error)).train()
    # Step 5 was under way.
    record.must_hold(TRAIN.tokens_a_step()[:4])


def test_a_step_is_not_lost_by_an_error_in_the_evaluation_after_it(tmp_path, record):
    callback = RecordTrainer(record.path)
    with pytest.raises(RuntimeError, match="eval"), callback:
        trainer(tmp_path, callback, StopAt(2, RuntimeError("eval"), "on_prediction_step")).train()
    record.must_hold(TRAIN.tokens_a_step()[:2])


def test_a_callback_that_is_forgotten_frees_the_run(tmp_path, record):
    with pytest.raises(RuntimeError, match="broken"):
        trainer(tmp_path, RecordTrainer(record.path), StopAt(2, RuntimeError("broken"))).train()
    gc.collect()
    record.must_hold(TRAIN.tokens_a_step()[:2])


def test_a_second_training_from_the_start_is_refused_with_the_remedy(tmp_path, record):
    trainer(tmp_path, RecordTrainer(record.path), max_steps=1).train()
    with pytest.raises(RunExists, match="another folder"):
        trainer(tmp_path, RecordTrainer(record.path), max_steps=1).train()


def test_a_limit_on_checkpoints_is_warned_of_once_with_the_setting_that_keeps_all(tmp_path, record):
    run = trainer(
        tmp_path, RecordTrainer(record.path), max_steps=3, save_steps=1, save_total_limit=1
    )
    with pytest.warns(UserWarning, match="save_total_limit=None") as told:
        run.train()
    assert len([w for w in told if "save_total_limit" in str(w.message)]) == 1


def test_nothing_of_capture_is_left_in_the_model(tmp_path, record):
    run = trainer(tmp_path, RecordTrainer(record.path), max_steps=1)
    before = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in run.model.modules())
    run.train()
    after = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in run.model.modules())
    assert before == after
