"""The loop: the same seed gives the same losses, and a stop changes none of them."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace

import pytest
import torch

from model.errors import ConfigError, DataError, TokenizerMismatch, TrainingStateError
from model.training import progress
from model.training.callbacks import Callback
from model.training.checkpoint import checkpoint_path, latest_checkpoint, load_model, read_state
from model.training.loop import Training, pick_device
from model.training.progress import Progress


class Losses(Callback):
    def __init__(self):
        self.of_step = {}
        self.ended = None

    def step_end(self, training, result):
        self.of_step[result.step] = (result.loss, result.grad_norm)

    def train_end(self, training, *, finished):
        self.ended = finished


@pytest.fixture(scope="module")
def tokenizer(tiny_plan, tmp_path_factory):
    return Training(tiny_plan, tmp_path_factory.mktemp("t"), device="cpu").tokenizer


@pytest.fixture(scope="module")
def whole(tiny_plan, tokenizer, tmp_path_factory):
    """A training that nobody stopped: its losses, its checkpoints, its final weights."""
    losses, folder = Losses(), tmp_path_factory.mktemp("whole")
    training = Training(tiny_plan, folder, tokenizer=tokenizer, callbacks=[losses], device="cpu")
    training.run()
    return losses, folder, training


def start(tiny_plan, tokenizer, folder, *callbacks):
    return Training(tiny_plan, folder, tokenizer=tokenizer, callbacks=callbacks, device="cpu")


def test_the_same_seed_gives_the_same_losses_twice(whole, tiny_plan, tokenizer, tmp_path):
    again = Losses()
    start(tiny_plan, tokenizer, tmp_path, again).run()
    assert again.of_step == whole[0].of_step
    assert len(again.of_step) == tiny_plan.schedule.steps


def test_another_seed_gives_others(whole, tiny_plan, tokenizer, tmp_path):
    other = Losses()
    start(replace(tiny_plan, seed=1), tokenizer, tmp_path, other).run(until=3)
    assert other.of_step[3] != whole[0].of_step[3]


@pytest.mark.parametrize("stop", [1, 8, 25])
def test_stop_and_resume_is_bit_identical(whole, tiny_plan, tokenizer, tmp_path, stop):
    before, after = Losses(), Losses()
    start(tiny_plan, tokenizer, tmp_path, before).run(until=stop)
    resumed = start(tiny_plan, tokenizer, tmp_path, after)
    resumed.resume(latest_checkpoint(tmp_path))
    resumed.run()
    assert before.of_step | after.of_step == whole[0].of_step
    assert min(after.of_step) == stop + 1
    for a, b in zip(resumed.model.parameters(), whole[2].model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_learns(whole):
    losses = [loss for loss, _ in whole[0].of_step.values()]
    assert sum(losses[-5:]) / 5 < losses[0] - 1


def test_checkpoints_lie_where_the_plan_says(whole, tiny_plan):
    steps = [int(p.name.removeprefix("step-")) for p in sorted(whole[1].iterdir())]
    assert steps == [s for s in range(31) if tiny_plan.is_checkpoint(s)]
    assert read_state(checkpoint_path(whole[1], 8)).tokens_seen == 8 * tiny_plan.tokens_per_step


def test_a_loaded_model_is_the_one_that_was_saved(whole, tiny_plan):
    loaded = load_model(checkpoint_path(whole[1], tiny_plan.schedule.steps))
    for a, b in zip(loaded.parameters(), whole[2].model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_nothing_is_pickled(whole):
    kinds = {p.suffix for p in checkpoint_path(whole[1], 8).iterdir()}
    assert kinds == {".safetensors", ".json"}


@pytest.mark.parametrize(
    "damage", ["cut", "missing", "no state", "bad state", "other format", "no files"]
)
def test_a_half_written_checkpoint_is_refused_and_passed_over(whole, tmp_path, damage):
    folder = tmp_path / "line"
    shutil.copytree(whole[1], folder)
    path = checkpoint_path(folder, 30)
    if damage == "cut":
        (path / "optimizer.safetensors").write_bytes(
            (path / "optimizer.safetensors").read_bytes()[:-9]
        )
    elif damage == "missing":
        (path / "model.safetensors").unlink()
    elif damage == "no state":
        (path / "state.json").unlink()
    elif damage == "bad state":
        (path / "state.json").write_text('{"format": ')
    elif damage == "no files":
        (path / "state.json").write_text('{"format": "workbench-native-1", "files": []}')
    else:
        state = json.loads((path / "state.json").read_text())
        (path / "state.json").write_text(json.dumps({**state, "format": "other"}))
    with pytest.raises(TrainingStateError, match=r"expected|cannot be read"):
        read_state(path)
    assert latest_checkpoint(folder) == checkpoint_path(folder, 28)


def test_an_altered_checkpoint_is_refused_when_resumed_from(whole, tiny_plan, tokenizer, tmp_path):
    shutil.copytree(whole[1], tmp_path / "line")
    path = checkpoint_path(tmp_path / "line", 8)
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (path / "model.safetensors").write_bytes(data)
    with pytest.raises(TrainingStateError, match="altered after it was saved"):
        start(tiny_plan, tokenizer, tmp_path).resume(path)


def test_other_text_or_another_seed_is_refused_when_resuming(whole, tiny_plan, tokenizer, tmp_path):
    path = checkpoint_path(whole[1], 8)
    with pytest.raises(DataError, match="seed 0, here 1"):
        start(replace(tiny_plan, seed=1), tokenizer, tmp_path).resume(path)
    other = start(tiny_plan, tokenizer, tmp_path)
    other.text = replace(other.text, code=other.text.code[:-1])
    with pytest.raises(DataError, match="resume with the Python whose library"):
        other.resume(path)


def test_what_a_killed_process_left_half_written_is_cleared_away(tiny_plan, tokenizer, tmp_path):
    (tmp_path / ".partial-step-00000008-1").mkdir()
    start(tiny_plan, tokenizer, tmp_path).save()
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000000"]


def test_a_partial_folder_is_no_checkpoint(tmp_path):
    (tmp_path / ".partial-step-00000008-1").mkdir()
    assert latest_checkpoint(tmp_path) is None


def test_a_checkpoint_of_another_model_is_refused(whole, tiny_plan, tokenizer, tmp_path):
    other = replace(tiny_plan, model=replace(tiny_plan.model, n_layers=1))
    training = start(other, tokenizer, tmp_path)
    with pytest.raises(TrainingStateError, match=r"n_layers=2 \(the model: 1\)"):
        training.resume(checkpoint_path(whole[1], 8))


def test_a_tokenizer_that_does_not_fit_is_refused_before_anything_is_written(
    tiny_plan, tokenizer, tmp_path
):
    small = replace(tiny_plan, model=replace(tiny_plan.model, d_vocab=300))
    with pytest.raises(TokenizerMismatch, match="d_vocab=300"):
        start(small, tokenizer, tmp_path / "line")
    assert not (tmp_path / "line").exists()


def test_an_error_in_a_step_ends_the_callbacks_and_keeps_what_was_saved(
    tiny_plan, tokenizer, tmp_path
):
    class Fails(Callback):
        def step_end(self, training, result):
            if result.step == 6:
                raise KeyboardInterrupt

    losses = Losses()
    training = start(tiny_plan, tokenizer, tmp_path, losses, Fails())
    with pytest.raises(KeyboardInterrupt):
        training.run()
    assert losses.ended is False
    assert latest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 4)


def test_progress_off_a_terminal_is_a_line_now_and_then(
    tiny_plan, tokenizer, tmp_path, monkeypatch
):
    stream = io.StringIO()
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    start(tiny_plan, tokenizer, tmp_path, Progress("main", stream)).run(until=2)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3  # one a step, one at the end
    assert lines[0].startswith("main: step 1/2  loss ")
    assert lines[0].endswith("tokens/s")


def test_progress_on_a_terminal_is_a_bar(tiny_plan, tokenizer, tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    start(tiny_plan, tokenizer, tmp_path, Progress("main", stream)).run(until=2)
    last = stream.getvalue().split("\r")[-1]
    assert "main: 100%" in last
    assert "2/2" in last
    assert "loss" in last


def test_an_unknown_device_is_refused():
    with pytest.raises(ConfigError, match="expected auto, cpu, cuda"):
        pick_device("gpu3")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none_is_refused_with_the_remedy():
    with pytest.raises(ConfigError, match="use --device cpu"):
        pick_device("cuda")
    assert pick_device("auto").type == "cpu"
