"""A part of a model is never taken for the whole of it, whatever its file is called."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from checkpoints_index.errors import CheckpointIncomplete
from checkpoints_index.fingerprint import fingerprint
from checkpoints_index.formats import open_weights, recognise
from checkpoints_index.formats.recognition import lost_shards
from checkpoints_index.layouts import find

WEIGHTS = {"layers.0.w": torch.ones(3, 2), "layers.1.w": torch.zeros(4)}


def folder_of(folder, *names, config=True):
    folder.mkdir()
    for name in names:
        save_file(WEIGHTS, folder / name)
    if config:
        (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "model-00001-of-00004.safetensors",
        "model-00002-of-00002.safetensors",
        "model-00002-of-00001.safetensors",
        "shard-00001-model-00001-of-00002.safetensors",
        "model-1-of-999999999999999.safetensors",
    ],
)
def test_a_lone_shard_of_several_is_an_incomplete_model(tmp_path, name, config):
    folder = folder_of(tmp_path / "quarter", name, config=config)
    for reads in (recognise, open_weights):
        with pytest.raises(CheckpointIncomplete, match="lacks shard"):
            reads(folder)
    [found] = find(tmp_path)
    assert (found.path, found.complete) == (folder, False)
    assert "lacks shard" in found.why


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize(
    "name",
    ["model-00001-of-00001.safetensors", "shard-00001-model-00001-of-00001.safetensors"],
)
def test_a_lone_shard_of_one_is_the_whole_model(tmp_path, name, config):
    folder = folder_of(tmp_path / "whole", name, config=config)
    assert open_weights(folder).fingerprint() == fingerprint(WEIGHTS)
    [found] = find(tmp_path)
    assert (found.path, found.format, found.complete) == (folder, "safetensors", True)


def test_ranks_parts_that_lack_a_whole_file_s_number_are_incomplete(tmp_path):
    names = [f"shard-0000{rank}-model-00001-of-00002.safetensors" for rank in (1, 2)]
    with pytest.raises(CheckpointIncomplete, match="lacks shard 2"):
        open_weights(folder_of(tmp_path / "parts", *names))


def test_the_numbers_that_names_lack_are_told():
    files = ["model-00003-of-00004.safetensors", "model-00001-of-00004.safetensors"]
    assert lost_shards(files) == [2, 4]
    assert lost_shards(["model.safetensors", "a-of-b.safetensors"]) == []


@pytest.mark.parametrize("foreign", ["[1]", "nothing of JSON", '{"format": "theirs"}'])
def test_a_model_beside_a_state_json_of_somebody_else_s_is_read(tmp_path, foreign):
    folder = folder_of(tmp_path / "hf", "model.safetensors")
    (folder / "state.json").write_text(foreign)
    assert open_weights(folder).format == "huggingface"
    [found] = find(tmp_path)
    assert (found.format, found.complete, found.why) == ("huggingface", True, "")


def test_our_own_folder_with_a_broken_state_json_is_still_ours_and_incomplete(tmp_path):
    folder = folder_of(tmp_path / "ours", "model.safetensors", config=False)
    (folder / "state.json").write_text(json.dumps([1]))
    with pytest.raises(CheckpointIncomplete, match=r"state\.json: not a JSON object"):
        recognise(folder)
