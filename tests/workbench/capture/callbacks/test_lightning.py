"""Lightning's Trainer, run for real."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_training import (
    ACCUMULATED,
    ROWS_A_MICRO_BATCH,
    Rows,
    same_weights,
    tiny_moe,
    weights,
)
from torch.utils.data import DataLoader

from checkpoints_index.formats import open_weights
from checkpoints_index.index import CheckpointIndex
from workbench.capture.callbacks.lightning import RecordLightning

TRAIN, HELD_OUT = Rows(48), Rows(6)
STEPS = 6

pytestmark = [
    # Advice of Lightning's: on workers, and on a folder that a resumed training finds as it was.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*mid-epoch checkpoint"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
]


class Resumable(DataLoader):
    """Says how many batches it has given, so that a resumed training does not see them again."""

    given = skip = 0

    def __iter__(self):
        for i, batch in enumerate(super().__iter__()):
            if i >= self.skip:
                self.given = i + 1
                yield batch
        self.skip = 0

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state):
        self.skip = state["given"]


class Module(pl.LightningModule):
    """A model in a LightningModule, as its manual writes it."""

    def __init__(self):
        super().__init__()
        self.net = tiny_moe()

    def training_step(self, batch, batch_idx):
        return self.net(**batch).loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.net(**batch).loss)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return [optimizer], [{"scheduler": rates, "interval": "step"}]


class ValidatesInTrainingMode(Module):
    def on_validation_model_eval(self):
        pass


class UpdatesByHand(Module):
    """Manual optimisation, two micro-batches a step."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        if batch_idx % 2:
            self.optimizers().step()
            self.optimizers().zero_grad()
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Still(Module):
    """Learns nothing, so that every loss is known."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class SavesTheLatest(pl.Callback):
    """Every micro-batch under the same name."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "latest.ckpt")


class Weights(pl.Callback):
    """What the weights were after every step."""

    def __init__(self):
        self.seen = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen[trainer.global_step] = weights(pl_module.net)


def losses_of_micro_batches(count):
    model = tiny_moe()
    with torch.no_grad():
        batches = DataLoader(TRAIN, batch_size=ROWS_A_MICRO_BATCH)
        return [float(model(**batch).loss) for batch, _ in zip(batches, range(count), strict=False)]


class StopAt(pl.Callback):
    """Raises in the second micro-batch of a step."""

    def __init__(self, step, error):
        self.step, self.error = step, error

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step and batch_idx % ACCUMULATED == 1:
            raise self.error


class NormOfGradients(pl.Callback):
    """What the gradient norm is, computed another way."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        gradients = torch.cat([p.grad.flatten().double() for p in pl_module.parameters()])
        self.seen.append(float(gradients.norm()))


def keep_all(tmp_path, **settings):
    settings = {"save_top_k": -1, "every_n_train_steps": 3} | settings
    return ModelCheckpoint(dirpath=tmp_path / "out", filename="{step}", **settings)


def fit(tmp_path, *callbacks, module=None, ckpt_path=None, accumulated=ACCUMULATED, **settings):
    module = Module() if module is None else module
    settings = {"max_steps": STEPS, "val_check_interval": 10, "num_sanity_val_steps": 1} | settings
    trainer = pl.Trainer(
        accelerator="cpu", accumulate_grad_batches=accumulated, logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=list(callbacks), **settings,
    )  # fmt: skip
    batches = [Resumable(rows, batch_size=ROWS_A_MICRO_BATCH) for rows in (TRAIN, HELD_OUT)]
    trainer.fit(module, *batches, ckpt_path=ckpt_path)
    return module


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A whole training: validation after batches 10 and 20, in the midst of steps 3 and 5."""
    from tiny_training import Record

    path = tmp_path_factory.mktemp("lightning")
    norms = NormOfGradients()
    callback = RecordLightning(path / "run", safetensors=True)
    module = fit(path, callback, keep_all(path), norms)
    return Record(path / "run"), module, norms, path / "out"


def test_every_step_counts_the_tokens_of_all_its_micro_batches_and_no_padding(recorded):
    recorded[0].must_hold(TRAIN.tokens_a_step())


def test_the_weights_are_the_same_bit_for_bit_as_without_the_callback(tmp_path, recorded):
    bare = fit(tmp_path, keep_all(tmp_path))
    assert same_weights(weights(bare), weights(recorded[1]))


def test_the_loss_is_the_mean_over_micro_batches_the_rate_that_of_the_update(recorded):
    record, _, norms, _ = recorded
    train = record.group("train")
    torch.manual_seed(0)
    with torch.no_grad():
        micro = [TRAIN[i] for i in range(8)]
        model = tiny_moe()
        losses = [
            model(**{n: torch.stack([row[n] for row in micro[i : i + 2]]) for n in micro[0]}).loss
            for i in range(0, 8, ROWS_A_MICRO_BATCH)
        ]
    np.testing.assert_allclose(train["loss"][0], np.mean([float(x) for x in losses]), rtol=1e-6)
    np.testing.assert_allclose(train["lr"], [1e-2 / step for step in range(1, 7)], rtol=1e-6)
    np.testing.assert_allclose(train["grad_norm"], norms.seen, rtol=1e-6)


@pytest.mark.parametrize(("kind", "a_step"), [(Still, 4), (UpdatesByHand, 2)])
def test_the_loss_is_the_mean_also_where_a_step_is_short_or_made_by_hand(
    tmp_path, record, kind, a_step
):
    # Six micro-batches an epoch: in fours the last step has two; by hand in twos.
    fit(
        tmp_path, RecordLightning(record.path), module=kind(), max_steps=-1, max_epochs=1,
        limit_train_batches=6, limit_val_batches=0, enable_checkpointing=False,
        accumulated=ACCUMULATED if kind is Still else 1,
    )  # fmt: skip
    micro = losses_of_micro_batches(6)
    means = [np.mean(micro[i : i + a_step]) for i in range(0, 6, a_step)]
    np.testing.assert_allclose(record.group("train")["loss"], means, rtol=1e-6)


def holds_the_weights_of_every_step(record, seen):
    entries = CheckpointIndex(record.path).list()
    name = "model.embed_tokens.weight"
    for entry in entries:
        held = open_weights(entry.path(record.path))
        assert entry.complete
        assert torch.equal(held[name], seen[entry.step][name]), entry.step
    return [entry.step for entry in entries]


def test_a_name_that_every_step_is_saved_under_holds_each_step_in_a_folder_of_its_own(
    tmp_path, record
):
    seen = Weights()
    callback = RecordLightning(record.path, safetensors=True)
    fit(tmp_path, callback, seen, SavesTheLatest(), enable_checkpointing=False, max_steps=3)
    assert holds_the_weights_of_every_step(record, seen.seen) == [0, 1, 2, 3]
    assert record.checkpoints()[0] == tmp_path / "latest-weights"
    assert record.checkpoints()[3] == tmp_path / "latest-step3-weights"


def test_a_step_that_is_also_the_last_stays_in_the_index_under_its_own_name(tmp_path, record):
    seen = Weights()
    callback = RecordLightning(record.path, safetensors=True)
    saver = keep_all(tmp_path, every_n_train_steps=1, save_last=True)
    fit(tmp_path, callback, seen, saver, max_steps=3)
    assert holds_the_weights_of_every_step(record, seen.seen) == [1, 2, 3]
    out = tmp_path / "out"
    assert record.checkpoints() == {step: out / f"step={step}-weights" for step in (1, 2, 3)}


def test_weights_that_cannot_be_written_do_not_end_the_training(tmp_path, record, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    module = Module()
    monkeypatch.setattr(module.net, "save_pretrained", full)
    with pytest.warns(RuntimeWarning) as told:
        fit(tmp_path, RecordLightning(record.path, safetensors=True), keep_all(tmp_path),
            module=module, max_steps=3)  # fmt: skip
    assert any("No space left" in str(w.message) for w in told)
    record.must_hold(TRAIN.tokens_a_step()[:3])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["step=3.ckpt"]


def test_checkpoints_are_in_the_index_with_readable_weights_beside_lightnings_own(recorded):
    record, module, _, out = recorded
    assert record.checkpoints() == {3: out / "step=3-weights", 6: out / "step=6-weights"}
    last = open_weights(out / "step=6-weights")
    name = "model.embed_tokens.weight"
    assert torch.equal(last[name], module.net.state_dict()[name])
    assert (out / "step=6.ckpt").exists()


def test_validation_in_training_mode_does_not_count(tmp_path, record):
    module = ValidatesInTrainingMode()
    fit(tmp_path, RecordLightning(record.path), module=module, enable_checkpointing=False)
    record.must_hold(TRAIN.tokens_a_step())


def test_a_training_resumed_from_a_checkpoint_goes_on_there_and_no_step_is_there_twice(
    tmp_path, record, recorded
):
    def callbacks():
        return RecordLightning(record.path, safetensors=True), keep_all(tmp_path)

    with pytest.raises(RuntimeError, match="power"):
        fit(tmp_path, *callbacks(), StopAt(4, RuntimeError("power")))
    assert record.steps() == [1, 2, 3, 4]
    module = fit(tmp_path, *callbacks(), ckpt_path=tmp_path / "out" / "step=3.ckpt")
    record.must_hold(TRAIN.tokens_a_step())
    assert same_weights(weights(module), weights(recorded[1]))


def test_a_checkpoint_in_the_midst_of_a_step_marks_the_steps_before_it(tmp_path, record):
    saver = keep_all(tmp_path, every_n_train_steps=None, monitor="val_loss")
    fit(tmp_path, RecordLightning(record.path, safetensors=True), saver, max_steps=3)
    # After batch 10: two steps, and half of the third.
    assert sorted(record.checkpoints()) == [2]
    record.must_hold(TRAIN.tokens_a_step()[:3])


@pytest.mark.parametrize(
    ("error", "raised"), [(RuntimeError("broken"), RuntimeError), (KeyboardInterrupt(), SystemExit)]
)
def test_what_was_recorded_before_an_error_can_be_read(tmp_path, record, error, raised):
    stop = StopAt(2, error)
    with pytest.raises(raised):
        fit(tmp_path, RecordLightning(record.path), stop, enable_checkpointing=False)
    record.must_hold(TRAIN.tokens_a_step()[:2])


def test_keeping_one_checkpoint_is_warned_of_with_the_setting_that_keeps_all(tmp_path, record):
    with pytest.warns() as told:
        fit(tmp_path, RecordLightning(record.path), keep_all(tmp_path, save_top_k=1), max_steps=3)
    texts = [str(w.message) for w in told]
    assert len([text for text in texts if "save_top_k=-1" in text]) == 1
    # Lightning's own checkpoint is marked in the record, though it cannot be in the index.
    assert any("unpickling" in text for text in texts)
    assert not record.checkpoints()


def test_a_fit_without_validation_is_recorded_from_the_first_step(tmp_path, record):
    settings = {"limit_val_batches": 0, "enable_checkpointing": False, "max_steps": 2}
    fit(tmp_path, RecordLightning(record.path), **settings)
    record.must_hold(TRAIN.tokens_a_step()[:2])


def test_nothing_is_left_on_the_trainer_or_in_the_model(tmp_path, record):
    module = Module()
    fit(tmp_path, RecordLightning(record.path), module=module, max_steps=1,
        enable_checkpointing=False)  # fmt: skip
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert "save_checkpoint" not in vars(module.trainer)
