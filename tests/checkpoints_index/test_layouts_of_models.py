"""Models among what trainers leave are found as what they are, and each file once."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from checkpoints_index.layouts import find

WEIGHTS = {"layers.0.w": torch.ones(3, 2)}


def hugging_face(folder):
    folder.mkdir(parents=True)
    save_file(WEIGHTS, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("name", "step"), [("step1000", 1000), ("step_100", 100), ("checkpoint_0", None)]
)
def test_a_folder_of_model_safetensors_alone_is_the_checkpoint_and_tells_its_step(
    tmp_path, name, step
):
    folder = tmp_path / name
    folder.mkdir()
    save_file(WEIGHTS, folder / "model.safetensors")
    (folder / "optimizer.bin").write_bytes(b"x")
    [found] = find(tmp_path)
    assert (found.path, found.format, found.step) == (folder, "safetensors", step)
    assert found.complete


def test_pickles_beside_a_model_are_found_too(tmp_path):
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    lightning = {"global_step": 3, "pytorch-lightning_version": "2", "state_dict": WEIGHTS}
    torch.save(lightning, tmp_path / "last.ckpt")
    assert [(f.path, f.step) for f in find(tmp_path)] == [
        (tmp_path, None), (tmp_path / "last.ckpt", 3)
    ]  # fmt: skip


def test_a_hugging_face_folder_called_step_n_is_not_torchtitan_s(tmp_path):
    folder = hugging_face(tmp_path / "step-5")
    [found] = find(tmp_path)
    assert (found.path, found.trainer, found.format, found.step) == (
        folder, None, "huggingface", 5
    )  # fmt: skip
    (folder / "config.json").unlink()
    assert [f.trainer for f in find(tmp_path)] == ["torchtitan"]


def test_lightning_s_link_to_its_last_file_does_not_hide_the_file(tmp_path):
    for step in (10, 20):
        state = {"global_step": step, "pytorch-lightning_version": "2", "state_dict": WEIGHTS}
        torch.save(state, tmp_path / f"model-step={step}.ckpt")
    for target in (20, 10):
        (tmp_path / "last.ckpt").unlink(missing_ok=True)
        (tmp_path / "last.ckpt").symlink_to(f"model-step={target}.ckpt")
        assert [(f.path.name, f.step) for f in find(tmp_path)] == [
            ("model-step=10.ckpt", 10), ("model-step=20.ckpt", 20)
        ]  # fmt: skip


@pytest.mark.parametrize("name", ["blobs", "refs"])
def test_a_folder_is_searched_whatever_its_name_but_in_the_hub_s_cache(tmp_path, name):
    folder = hugging_face(tmp_path / "data" / name / "run")
    hugging_face(tmp_path / "models--owner--name" / name / "run")
    assert [f.path for f in find(tmp_path)] == [folder]


def test_a_model_converted_inside_an_iteration_s_folder_is_found(tmp_path):
    folder = hugging_face(tmp_path / "iter_0000200" / "hf")
    assert [(f.path, f.trainer, f.complete) for f in find(tmp_path)] == [(folder, None, True)]
    (tmp_path / "iter_0000300").mkdir()
    assert [f.step for f in find(tmp_path) if f.trainer == "megatron"] == [300]


def test_a_trainer_s_deepspeed_folder_without_its_state_is_incomplete(tmp_path):
    inside = tmp_path / "checkpoint-5" / "global_step5"
    inside.mkdir(parents=True)
    state = json.dumps({"global_step": 5})
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text(state)
    [found] = find(tmp_path)
    assert (found.trainer, found.step, found.complete) == ("transformers", 5, False)
    assert "global_step5: no model_states.pt" in found.why
    (inside / "mp_rank_00_model_states.pt").write_bytes(b"x")
    [found] = find(tmp_path)
    assert (found.complete, found.why) == (True, "")
    (tmp_path / "checkpoint-5" / "model.safetensors").write_bytes(b"cut")
    [found] = find(tmp_path)
    assert not found.complete
