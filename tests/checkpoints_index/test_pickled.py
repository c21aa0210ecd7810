"""Pickled weights: refused unless allowed; what they bring runs only where the user says unsafe."""

from __future__ import annotations

import json
import os

import pytest
import torch

from checkpoints_index.errors import CheckpointIncomplete, CheckpointNotFound, PickleRefused
from checkpoints_index.fingerprint import fingerprint
from checkpoints_index.formats import open_weights

WEIGHTS = {
    "blocks.0.w": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "blocks.1.w": torch.ones(2, dtype=torch.bfloat16),
}


class Harm:
    def __reduce__(self):
        return os.system, ("touch harmed",)


class Plain:
    """A class of the trainer's own, harmless and unknown to torch."""


@pytest.mark.parametrize(
    "state",
    [
        WEIGHTS,
        {"state_dict": WEIGHTS, "optimizer_states": [{"state": {0: {"m": torch.ones(2)}}}]},
        {"model": WEIGHTS, "optimizer": {"m": torch.ones(2)}, "iteration": 3},
        {"state": {"model": WEIGHTS, "optimizers": {"Adam": {"m": torch.ones(1)}}}, "rng": []},
    ],
    ids=["plain", "lightning", "megatron", "composer"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_is_allowed_gives_the_weights_alone(tmp_path, state, zipped):
    file = tmp_path / "last.ckpt"
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(PickleRefused, match="allow_pickle=True"):
        open_weights(file)
    weights = open_weights(file, allow_pickle=True)
    assert weights.format == "pickled"
    assert set(weights) == set(WEIGHTS)
    assert torch.equal(weights["blocks.0.w"], WEIGHTS["blocks.0.w"])
    assert weights.dtype("blocks.1.w") == "BF16"
    assert weights.fingerprint() == fingerprint(WEIGHTS)


def test_code_runs_only_where_the_user_says_unsafe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": WEIGHTS, "x": Harm()}, "bad.ckpt")
    for allowed in (False, True):
        with pytest.raises(PickleRefused):
            len(open_weights("bad.ckpt", allow_pickle=allowed))
        assert not (tmp_path / "harmed").exists()
    torch.save({"state_dict": WEIGHTS, "x": Plain()}, "own.ckpt")
    with pytest.raises(PickleRefused, match="allow_pickle='unsafe'") as refused:
        len(open_weights("own.ckpt", allow_pickle=True))
    assert str(refused.value).isprintable()
    assert set(open_weights("own.ckpt", allow_pickle="unsafe")) == set(WEIGHTS)


def test_shards_and_their_index_are_one_model(tmp_path):
    places = {}
    for i, (name, tensor) in enumerate(WEIGHTS.items(), start=1):
        file = f"pytorch_model-{i:05d}-of-00002.bin"
        torch.save({name: tensor}, tmp_path / file)
        places[name] = file
    torch.save({}, tmp_path / "optimizer.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert open_weights(tmp_path, allow_pickle=True).fingerprint() == fingerprint(WEIGHTS)
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(CheckpointIncomplete, match=r"00002-of-00002\.bin: missing"):
        len(open_weights(tmp_path, allow_pickle=True))


def test_several_files_and_nothing_that_says_which_are_asked_about(tmp_path):
    for name in ("a.pt", "b.pt"):
        torch.save(WEIGHTS, tmp_path / name)
    with pytest.raises(CheckpointNotFound, match="name the file"):
        len(open_weights(tmp_path, allow_pickle=True))


@pytest.mark.parametrize("allowed", [True, "unsafe"])
def test_a_pickle_that_is_cut_short_is_told_so(tmp_path, allowed):
    file = tmp_path / "m.pt"
    torch.save(WEIGHTS, file)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises((CheckpointIncomplete, PickleRefused)) as refused:
        len(open_weights(file, allow_pickle=allowed))
    assert str(refused.value).isprintable()
