"""What the index holds of checkpoints that are saved twice, or over one another."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from checkpoints_index.errors import RecordError
from checkpoints_index.index import CheckpointIndex
from workbench.capture.checkpoint_entry import enter_checkpoint


@pytest.fixture
def enter(tmp_path):
    """Saves weights of one value at a path and enters them."""

    def save_and_enter(step, name, value, branch="main"):
        path = tmp_path / name
        path.mkdir(exist_ok=True)
        save_file({"w": torch.full((2, 2), float(value))}, str(path / "model.safetensors"))
        enter_checkpoint(
            tmp_path, path, branch=branch, step=step, tokens_seen=step * 10, parent=None, about={}
        )

    return save_and_enter


def entries(tmp_path):
    return {r.step: (r.uri, r.complete) for r in CheckpointIndex(tmp_path).list()}


def test_a_checkpoint_saved_over_that_of_another_step_marks_it_with_a_warning(tmp_path, enter):
    enter(1, "last", 1)
    with pytest.warns(RuntimeWarning, match="step 1 .* overwritten by that of step 2"):
        enter(2, "last", 2)
    assert entries(tmp_path) == {1: ("last", False), 2: ("last", True)}


def test_the_same_weights_saved_twice_stay_where_they_were_entered_first(tmp_path, enter):
    enter(1, "step-1", 1)
    enter(1, "last", 1)
    enter(2, "last", 2)
    assert entries(tmp_path) == {1: ("step-1", True), 2: ("last", True)}


def test_other_weights_of_the_same_step_made_again_after_a_resume_take_its_place(tmp_path, enter):
    enter(1, "before", 1)
    enter(1, "after", 2)
    assert entries(tmp_path) == {1: ("after", True)}


def test_the_second_path_is_entered_where_the_first_holds_the_weights_no_longer(tmp_path, enter):
    enter(1, "first", 1)
    (tmp_path / "first" / "model.safetensors").unlink()
    enter(1, "second", 1)
    assert entries(tmp_path) == {1: ("second", True)}


def enter_at(tmp_path, path, **about):
    return enter_checkpoint(
        tmp_path, path, branch="main", step=7, tokens_seen=70, parent=None, about=about
    )


def test_a_distributed_checkpoint_is_entered_with_the_fingerprint_of_its_weights(tmp_path):
    import torch.distributed.checkpoint as dcp

    weights = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3)}
    plain, parts = tmp_path / "plain.safetensors", tmp_path / "step-7"
    save_file(weights, str(plain))
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(weights, checkpoint_id=str(parts), no_dist=True)
    one = enter_at(tmp_path, parts)
    assert (one.format, one.uri, one.dtype) == ("dcp", "step-7", "F32")
    assert (one.trainer, one.kind) == ("torchtitan", "weights")
    assert one.fingerprint == enter_at(tmp_path, plain).fingerprint
    assert one.size_bytes > 36


def test_a_folder_of_transformers_tells_architecture_tokenizer_rate_and_kind(tmp_path):
    folder = tmp_path / "checkpoint-7"
    folder.mkdir()
    save_file({"w": torch.ones(2, 2)}, str(folder / "model.safetensors"))
    (folder / "config.json").write_text('{"model_type": "olmoe"}')
    (folder / "tokenizer.json").write_text('{"model": {}}')
    state = {"global_step": 7, "log_history": [{"learning_rate": 0.5}]}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    torch.save({}, folder / "optimizer.pt")
    one = enter_at(tmp_path, folder)
    assert one.architecture_hash is not None
    assert one.tokenizer_hash is not None
    assert (one.lr, one.kind, one.format) == (0.5, "training", "huggingface")
    assert one.trainer == "transformers"
    # The caller knows better.
    assert enter_at(tmp_path, folder, lr=0.25).lr == 0.25


def test_what_the_caller_says_is_entered_and_what_no_record_holds_is_refused(tmp_path):
    (tmp_path / "one").mkdir()
    save_file({"w": torch.ones(2, 2)}, str(tmp_path / "one" / "model.safetensors"))
    one = enter_at(
        tmp_path, tmp_path / "one", phase="final", mixture={"code": 1}, merged_from=(("main", 1),)
    )
    assert (one.phase, one.merged_from) == ("final", (("main", 1),))
    assert (
        one.mixture_hash == enter_at(tmp_path, tmp_path / "one", mixture={"code": 1}).mixture_hash
    )
    with pytest.raises(RecordError, match="has no colour; it takes mixture"):
        enter_at(tmp_path, tmp_path / "one", colour="red")


def test_what_a_checkpoint_says_of_itself_and_cannot_be_is_left_out_with_a_warning(tmp_path):
    folder = tmp_path / "step-7"
    folder.mkdir()
    save_file({"w": torch.ones(2, 2)}, str(folder / "model.safetensors"))
    state = {"model_config": {}, "extra": {"lr": "fast", "phase": "final"}}
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.warns(RuntimeWarning, match="left out of the record: .*lr='fast'"):
        one = enter_at(tmp_path, folder)
    assert (one.lr, one.phase) == (None, "final")


def test_a_checkpoint_at_a_url_is_entered_as_such(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    file = tmp_path / "w.safetensors"
    save_file({"w": torch.ones(2, 2)}, str(file))
    with fsspec.open("memory://bucket/step-7/model.safetensors", "wb") as out:
        out.write(file.read_bytes())
    one = enter_at(tmp_path, "memory://bucket/step-7")
    assert (one.uri, one.is_remote) == ("memory://bucket/step-7", True)
    assert one.fingerprint == enter_at(tmp_path, file).fingerprint


def test_weights_too_large_to_be_read_while_a_training_waits_are_entered_without_a_fingerprint(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("workbench.capture.checkpoint_entry.FINGERPRINT_AT_MOST", 10)
    for name in ("a", "b"):
        save_file({"w": torch.ones(2, 2)}, str(tmp_path / f"{name}.safetensors"))
        one = enter_at(tmp_path, tmp_path / f"{name}.safetensors")
        # Without one, nobody can say that two are the same: the later one counts.
        assert (one.uri, one.fingerprint) == (f"{name}.safetensors", None)
