"""Checkpoints behind URLs: read by ranges, never copied whole."""

from __future__ import annotations

import json
import pathlib

import fsspec
import pytest
import torch
import torch.distributed.checkpoint as dcp
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import save, save_file

from checkpoints_index.errors import CheckpointIncomplete, CheckpointNotFound, PickleRefused
from checkpoints_index.fingerprint import fingerprint
from checkpoints_index.formats import open_weights, recognise, size_bytes, verify

# torch says, of every save without ranks, that there are none.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

WEIGHTS = {
    "blocks.0.w": torch.arange(200_000, dtype=torch.float32).reshape(400, 500),
    "blocks.1.w": torch.ones(300, 300, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 3),
    "embed": torch.tensor(2.5),
}


@pytest.fixture
def store():
    """An empty object store in memory, and the bytes that were read of it."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()


@pytest.fixture
def read(monkeypatch):
    """Bytes read, by the file's name."""
    seen: dict[str, int] = {}
    whole = MemoryFileSystem.cat_file

    def counted(self, path, start=None, end=None, **more):
        raw = whole(self, path, start=start, end=end, **more)
        name = path.rsplit("/", 1)[-1]
        seen[name] = seen.get(name, 0) + len(raw)
        return raw

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    return seen


def test_one_tensor_of_a_url_costs_the_header_and_its_own_bytes(store, read):
    raw = save(WEIGHTS)
    store.pipe_file("/bucket/model.safetensors", raw)
    weights = open_weights("memory://bucket/model.safetensors")
    assert weights.shape("blocks.0.w") == (400, 500)
    header = read["model.safetensors"]
    assert header < 1000
    assert torch.equal(weights["blocks.1.w"], WEIGHTS["blocks.1.w"])
    assert read["model.safetensors"] == header + 300 * 300 * 2
    assert read["model.safetensors"] < len(raw) / 4


def test_a_folder_of_shards_behind_a_url_reads_the_shards_that_are_asked_for(store, read):
    names = list(WEIGHTS)
    places = {}
    for i, part in enumerate((names[:1], names[1:]), start=1):
        file = f"model-{i:05d}-of-00002.safetensors"
        store.pipe_file(f"/run/{file}", save({n: WEIGHTS[n] for n in part}))
        places |= dict.fromkeys(part, file)
    index = json.dumps({"weight_map": places}).encode()
    store.pipe_file("/run/model.safetensors.index.json", index)
    store.pipe_file("/run/config.json", b"{}")
    assert recognise("memory://run") == "huggingface"
    weights = open_weights("memory://run/")
    assert torch.equal(weights["embed"], WEIGHTS["embed"])
    assert read["model-00001-of-00002.safetensors"] < 200
    assert weights["empty"].shape == (0, 3)
    assert weights.fingerprint() == fingerprint(WEIGHTS)
    verify("memory://run", deep=True)
    assert size_bytes("memory://run") == sum(len(store.cat_file(p)) for p in store.find("/run"))
    assert weights.path == "memory://run"
    store.rm_file("/run/model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointIncomplete, match=r"model-00002-of-00002\.safetensors is missing"):
        len(open_weights("memory://run"))


def test_a_distributed_checkpoint_behind_a_url_reads_the_ranges_of_its_parts(store, read, tmp_path):
    dcp.save({"model": WEIGHTS}, checkpoint_id=tmp_path, no_dist=True)
    for file in tmp_path.iterdir():
        store.pipe_file(f"/run/step-5/{file.name}", file.read_bytes())
    weights = open_weights("memory://run/step-5")
    assert torch.equal(weights.load("blocks.1.")["blocks.1.w"], WEIGHTS["blocks.1.w"])
    assert read["__0_0.distcp"] < 300 * 300 * 2 + 4000
    assert weights.fingerprint() == fingerprint(WEIGHTS)


def test_a_file_url_is_a_path(tmp_path):
    save_file(WEIGHTS, tmp_path / "w.safetensors")
    assert open_weights(f"file://{tmp_path}/w.safetensors")["embed"].item() == 2.5


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("memory://nothing/here", "no checkpoint at memory://nothing/here"),
        ("nosuchprotocol://x/y", "nosuchprotocol"),
        ("file:///nowhere/at/all", "no checkpoint at"),
    ],
)
def test_a_url_with_nothing_behind_it_is_said_so(store, url, says):
    with pytest.raises(CheckpointNotFound, match=says):
        open_weights(url)


def test_a_file_cut_while_it_is_read_is_refused(store):
    store.pipe_file("/w.safetensors", save(WEIGHTS))
    weights = open_weights("memory://w.safetensors")
    len(weights)
    store.pipe_file("/w.safetensors", save(WEIGHTS)[:-1000])
    with pytest.raises(CheckpointIncomplete, match="cut short"):
        weights.load()


def test_pickled_weights_behind_a_url_are_refused_even_where_pickles_are_allowed(store):
    store.pipe_file("/m.pt", b"x")
    with pytest.raises(PickleRefused, match="unpickling"):
        open_weights("memory://m.pt")
    with pytest.raises(PickleRefused, match="copy the file here first"):
        open_weights("memory://m.pt", allow_pickle=True)


def test_a_path_is_a_path_whatever_it_looks_like(tmp_path):
    with pytest.raises(CheckpointNotFound):
        open_weights(pathlib.Path("memory://x"))
    for name in ("x" * 10_000, "a\0b", "<script>", "../" * 50 + "nowhere"):
        with pytest.raises(CheckpointNotFound, match="no checkpoint at"):
            open_weights(str(tmp_path / name))


def test_a_password_in_a_url_is_not_printed(store):
    weights = {"w": torch.ones(2)}
    store.pipe_file("/me:secret@bucket/model.safetensors", save(weights))
    there = open_weights("memory://me:secret@bucket/model.safetensors")
    assert torch.equal(there["w"], weights["w"])
    with pytest.raises(CheckpointNotFound, match=r"memory://me:\*\*\*@bucket") as missing:
        there["v"]
    assert "secret" not in str(missing.value)
    for url in ("memory://me:secret@bucket/none", "nosuch://me:secret@host/x"):
        with pytest.raises(CheckpointNotFound) as missing:
            open_weights(url)
        assert "secret" not in str(missing.value)
