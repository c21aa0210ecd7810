"""Checkpoints in the formats people have, whole, broken and hostile."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

import checkpoints_index
from checkpoints_index.errors import (
    CheckpointIncomplete,
    CheckpointNotFound,
    PickleRefused,
    RecordError,
)
from checkpoints_index.formats import open_weights, recognise, size_bytes, verify
from checkpoints_index.safetensors_file import SafetensorsFile

WEIGHTS = {
    "blocks.0.attn.w": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "blocks.0.router.w": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16),
    "blocks.1.attn.w": torch.zeros(0, 4),
    "embed": torch.tensor(3.25),
}


def native(folder, weights=WEIGHTS):
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors")
    save_file({"embed|exp_avg": torch.ones(2)}, folder / "optimizer.safetensors")
    files = {
        p.name: {"bytes": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
        for p in folder.iterdir()
    }
    state = {"format": "workbench-native-1", "step": 40, "tokens_seen": 2560, "files": files}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def sharded(folder, weights=WEIGHTS, config=False):
    folder.mkdir(parents=True)
    places = {}
    names = list(weights)
    for i, part in enumerate((names[:2], names[2:]), start=1):
        file = f"model-{i:05d}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if config:
        (folder / "config.json").write_text("{}")
    return folder


def single(folder):
    folder.mkdir(parents=True)
    save_file(WEIGHTS, folder / "weights.safetensors")
    return folder / "weights.safetensors"


@pytest.mark.parametrize(
    ("make", "format"),
    [
        (native, "native"),
        (sharded, "safetensors"),
        (lambda f: sharded(f, config=True), "huggingface"),
        (single, "safetensors"),
        (lambda f: single(f).parent, "safetensors"),
    ],
    ids=["native", "sharded", "huggingface", "file", "folder of one file"],
)
def test_every_format_gives_the_same_tensors_and_the_same_fingerprint(tmp_path, make, format):
    path = make(tmp_path / "checkpoint")
    assert recognise(path) == format
    verify(path, deep=True)
    weights = open_weights(path)
    assert list(weights) == sorted(WEIGHTS)
    assert weights.dtype("blocks.0.router.w") == "BF16"
    for name, tensor in weights.load().items():
        assert tensor.dtype == WEIGHTS[name].dtype
        assert torch.equal(tensor, WEIGHTS[name])
    assert weights.fingerprint() == open_weights(native(tmp_path / "other")).fingerprint()


def test_a_module_is_loaded_by_the_beginning_of_its_name(tmp_path):
    weights = open_weights(native(tmp_path / "c"))
    assert sorted(weights.load("blocks.0.")) == ["blocks.0.attn.w", "blocks.0.router.w"]
    assert sorted(weights.load(["embed", "blocks.1."])) == ["blocks.1.attn.w", "embed"]
    assert weights["embed"].item() == 3.25
    assert "embed" in weights
    assert "nothing" not in weights
    with pytest.raises(CheckpointNotFound, match=r"no tensor 'blocks\.7\.'"):
        weights.load("blocks.7.")


def test_only_the_tensors_asked_for_are_read(tmp_path, monkeypatch):
    path = sharded(tmp_path / "c")
    read = []
    whole = SafetensorsFile.tensors
    monkeypatch.setattr(
        SafetensorsFile,
        "tensors",
        lambda self, names, device: read.append((self.place.name, names)) or whole(self, names),
    )
    weights = open_weights(path)
    assert weights.shape("embed") == ()
    assert read == []
    weights.load("embed")
    assert read == [("model-00002-of-00002.safetensors", ["embed"])]


def test_headers_are_read_without_torch(tmp_path):
    path = native(tmp_path / "c")
    code = (
        "import sys; from checkpoints_index.formats import open_weights, verify\n"
        "w = open_weights(sys.argv[1]); verify(sys.argv[1], deep=True); w.fingerprint()\n"
        "print(len(w), w.shape('blocks.0.attn.w'), 'torch' in sys.modules)"
    )
    home = str(Path(checkpoints_index.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": home},
    )  # fmt: skip
    assert done.stdout.strip() == "4 (2, 3) False"


def test_size_counts_every_file(tmp_path):
    path = native(tmp_path / "c")
    assert size_bytes(path) == sum(p.stat().st_size for p in path.iterdir())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt", "x.pth", "y.pkl"])
def test_what_only_pickle_reads_is_refused_unopened(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    for path in (file, tmp_path):
        with pytest.raises(PickleRefused, match="unpickling"):
            open_weights(path)


def test_what_is_not_there_or_not_a_checkpoint_is_said_so(tmp_path):
    with pytest.raises(CheckpointNotFound, match="no checkpoint at"):
        recognise(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointNotFound, match="no checkpoint format that is known"):
        recognise(tmp_path)


def cut(file):
    file.write_bytes(file.read_bytes()[:-3])


def flip(file):
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: cut(f / "model.safetensors"), r"model\.safetensors: \d+ bytes, expected \d+"),
        (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors: missing, expected"),
        (lambda f: (f / "optimizer.safetensors").unlink(), r"optimizer\.safetensors: missing"),
        (lambda f: (f / "state.json").write_text("{"), "not a JSON object"),
        (lambda f: cut(f / "state.json"), "not a JSON object"),
    ],
)
def test_a_native_checkpoint_with_a_harmed_file_is_refused_by_name_of_the_file(
    tmp_path, harm, says
):
    path = native(tmp_path / "c")
    harm(path)
    with pytest.raises(CheckpointIncomplete, match=says) as refused:
        len(open_weights(path))
    assert "\n" not in str(refused.value)


def test_a_flipped_bit_is_found_by_the_deep_check_only(tmp_path):
    path = native(tmp_path / "c")
    flip(path / "optimizer.safetensors")
    verify(path)
    with pytest.raises(CheckpointIncomplete, match="sha256"):
        verify(path, deep=True)


def test_a_folder_that_was_being_written_is_no_checkpoint(tmp_path):
    path = native(tmp_path / ".partial-step-00000040-123")
    with pytest.raises(CheckpointIncomplete, match="its writer ended before it was whole"):
        open_weights(path)


def test_a_missing_shard_or_a_shard_of_another_model_is_named(tmp_path):
    path = sharded(tmp_path / "c")
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointIncomplete, match=r"model-00002-of-00002\.safetensors is missing"):
        len(open_weights(path))
    save_file({"stranger": torch.ones(1)}, path / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointIncomplete, match=r"lacks 'blocks\.1\.attn\.w'"):
        len(open_weights(path))
    (path / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointIncomplete, match="shards without model"):
        len(open_weights(path))


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "a/b", "", "..", "x\0y"])
def test_a_manifest_may_not_point_outside_its_folder(tmp_path, name):
    path = sharded(tmp_path / "s")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises((RecordError, CheckpointIncomplete)):
        len(open_weights(path))
    path = native(tmp_path / "n")
    state = json.loads((path / "state.json").read_text())
    state["files"][name] = {"bytes": 0}
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises((RecordError, CheckpointIncomplete)):
        verify(path)


WHOLE = save(WEIGHTS)


@settings(deadline=None)
@given(st.integers(0, len(WHOLE) - 1))
def test_a_safetensors_file_cut_anywhere_is_refused(tmp_path_factory, length):
    file = tmp_path_factory.getbasetemp() / "cut.safetensors"
    file.write_bytes(WHOLE[:length])
    with pytest.raises(CheckpointIncomplete, match="Save or copy it again"):
        SafetensorsFile(file)


@settings(deadline=None)
@given(st.binary(max_size=120).filter(lambda junk: not junk.lstrip().startswith(b"{")))
def test_a_header_of_junk_is_refused(tmp_path_factory, junk):
    file = tmp_path_factory.getbasetemp() / "junk.safetensors"
    file.write_bytes(struct.pack("<Q", len(junk)) + junk)
    with pytest.raises(CheckpointIncomplete):
        SafetensorsFile(file)


@pytest.mark.parametrize(
    "header",
    [
        {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}},
        {"w": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}},
        {"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
        {"w": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}},
        {"w": [1, 2]},
        {"__metadata__": "x", "w": {}},
    ],
)
def test_a_header_that_does_not_add_up_is_refused(tmp_path, header):
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(CheckpointIncomplete):
        SafetensorsFile(tmp_path / "x.safetensors")
