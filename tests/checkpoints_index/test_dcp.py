"""torch.distributed.checkpoint: whole tensors of ranks' parts, and nothing of the files' run."""

from __future__ import annotations

import os
import pickle
import re
import socket
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from checkpoints_index.errors import (
    CheckpointIncomplete,
    CheckpointNotFound,
    PickleRefused,
    RecordError,
)
from checkpoints_index.fingerprint import fingerprint
from checkpoints_index.formats import open_weights, recognise, verify
from checkpoints_index.formats.dcp import DcpWeights
from checkpoints_index.formats.dcp_table import read_table
from checkpoints_index.formats.pieces import Piece, check_cover
from checkpoints_index.formats.place import LocalPlace
from checkpoints_index.formats.saved_state import weight_names

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::FutureWarning")

WEIGHTS = {
    "blocks.0.w": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "blocks.0.router": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16),
    "blocks.1.w": torch.zeros(0, 4),
    "embed": torch.tensor(3.25, dtype=torch.float64),
    "counts": torch.tensor([1, 2, 3]),
    "mask": torch.tensor([True, False]),
}


def saved(folder, state):
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A model and its optimizer's state, saved by one process."""
    optim = {"state": {"embed": {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    folder = tmp_path_factory.mktemp("dcp") / "plain"
    return saved(folder, {"model": WEIGHTS, "optim": optim, "step": 3})


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The worker's model, saved by two ranks; by kind."""
    done = {}

    def of(kind):
        if kind not in done:
            out = tmp_path_factory.mktemp("ranks") / kind
            done[kind] = run_ranks(kind, out)
        return done[kind]

    return of


def run_ranks(kind, out):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    worker = str(HERE / "dcp_worker.py")
    started = [
        subprocess.Popen(
            [sys.executable, worker, kind, str(rank), "2", str(port), str(out)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    return out


def worker_model():
    sys.path.insert(0, str(HERE))
    try:
        from dcp_worker import model
    finally:
        sys.path.remove(str(HERE))
    return model().state_dict()


def test_a_distributed_checkpoint_gives_the_weights_that_were_saved_without_the_optimizer(training):
    assert recognise(training) == "dcp"
    weights = open_weights(training)
    assert list(weights) == sorted(WEIGHTS)
    assert weights.shape("blocks.0.w") == (2, 3)
    assert weights.dtype("blocks.0.router") == "BF16"
    for name, tensor in weights.load().items():
        assert tensor.dtype == WEIGHTS[name].dtype
        assert torch.equal(tensor, WEIGHTS[name])
    assert sorted(weights.load("blocks.0.")) == ["blocks.0.router", "blocks.0.w"]
    assert weights.load("embed", device="meta")["embed"].is_meta
    with pytest.raises(CheckpointNotFound, match=r"no tensor 'blocks\.9\.w'"):
        weights["blocks.9.w"]
    verify(training, deep=True)
    assert "optim.state.embed.exp_avg" in weights.all.tensors


def test_its_fingerprint_is_that_of_the_same_weights_in_safetensors(training, tmp_path):
    save_file(WEIGHTS, tmp_path / "w.safetensors")
    prints = {open_weights(training).fingerprint(), fingerprint(WEIGHTS),
              open_weights(tmp_path / "w.safetensors").fingerprint()}  # fmt: skip
    assert len(prints) == 1


def test_two_ranks_parts_are_one_tensor_again(ranks):
    out, expected = ranks("fsdp2"), worker_model()
    assert len(list(out.glob("*.distcp"))) == 2
    weights = open_weights(out)
    assert set(weights) == set(expected)
    for name, tensor in weights.load().items():
        assert weights.shape(name) == tuple(expected[name].shape)
        assert torch.equal(tensor, expected[name]), name
    assert max(len(t.parts) for t in weights.all.tensors.values()) == 2
    assert weights.fingerprint() == fingerprint(expected)
    verify(out, deep=True)


def test_ranks_that_wrote_safetensors_are_put_together_too(ranks):
    out, expected = ranks("huggingface"), worker_model()
    assert recognise(out) == "safetensors"
    weights = open_weights(out)
    for name, tensor in weights.load().items():
        assert torch.equal(tensor, expected[name]), name
    assert weights.fingerprint() == fingerprint(expected)
    verify(out, deep=True)


def test_a_consolidated_save_of_safetensors_is_read_like_any_model_in_shards(tmp_path):
    writer = dcp.HuggingFaceStorageWriter(path=str(tmp_path), fqn_to_index_mapping={"a": 1, "b": 2})
    held = {"a": torch.ones(3), "b": torch.zeros(2)}
    dcp.save(held, storage_writer=writer, no_dist=True)
    assert torch.equal(open_weights(tmp_path).load("a")["a"], held["a"])
    assert open_weights(tmp_path).fingerprint() == fingerprint(held)


def test_a_tensor_reads_its_own_files_only(tmp_path):
    writer = dcp.FileSystemWriter(tmp_path, single_file_per_rank=False)
    dcp.save({"model": WEIGHTS}, storage_writer=writer, no_dist=True)
    table = open_weights(tmp_path).all
    home = table.tensors["model.blocks.0.w"].parts[0].home.file
    others = [f for f in tmp_path.glob("*.distcp") if f.name != home]
    assert others
    others[0].write_bytes(b"corrupt")
    for file in others[1:]:
        file.unlink()
    weights = open_weights(tmp_path)
    assert torch.equal(weights["blocks.0.w"], WEIGHTS["blocks.0.w"])
    with pytest.raises(CheckpointIncomplete, match=r"\.distcp: (missing|7 bytes), expected"):
        weights.load()
    with pytest.raises(CheckpointIncomplete, match=r"\.distcp: (missing|7 bytes), expected"):
        verify(tmp_path)


def test_a_part_reads_its_own_range_only(training, tmp_path):
    part = open_weights(training).all.tensors["model.embed"].parts[0].home
    whole = (training / part.file).read_bytes()
    kept = bytes(part.begin) + whole[part.begin : part.begin + part.length]
    (tmp_path / part.file).write_bytes(kept + bytes(len(whole) - len(kept)))
    (tmp_path / ".metadata").write_bytes((training / ".metadata").read_bytes())
    weights = open_weights(tmp_path)
    assert weights["embed"].item() == 3.25
    with pytest.raises(CheckpointIncomplete, match="cannot be read"):
        weights["counts"]


def test_a_missing_or_cut_shard_is_named(ranks, tmp_path):
    out = ranks("fsdp2")
    for file in out.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "__1_0.distcp").write_bytes((out / "__1_0.distcp").read_bytes()[:-100])
    with pytest.raises(CheckpointIncomplete, match=r"__1_0\.distcp: \d+ bytes, expected \d+"):
        verify(tmp_path)
    (tmp_path / "__1_0.distcp").unlink()
    with pytest.raises(CheckpointIncomplete, match=r"__1_0\.distcp: missing, expected"):
        open_weights(tmp_path).load()


def test_shards_without_their_table_are_a_checkpoint_that_was_not_finished(tmp_path):
    (tmp_path / "__0_0.distcp").write_bytes(b"x")
    with pytest.raises(CheckpointIncomplete, match=r"without \.metadata, which is written last"):
        open_weights(tmp_path)


def test_olmo_core_and_trainer_keep_theirs_in_a_subfolder(tmp_path):
    for inside in ("model_and_optim", "pytorch_model_fsdp_0"):
        saved(tmp_path / inside[:3] / inside, {"model": WEIGHTS})
        assert open_weights(tmp_path / inside[:3])["embed"].item() == 3.25


def test_the_table_is_read_without_torch(training):
    code = (
        "import sys; from checkpoints_index.formats import open_weights, verify\n"
        "from checkpoints_index import layouts\n"
        "verify(sys.argv[1]); [f] = layouts.find(sys.argv[1])\n"
        "print(len(open_weights(sys.argv[1])), f.complete, f.kind, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(training)], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.strip() == "6 True training False"


def test_a_table_with_its_plan_of_the_save_and_a_path_in_it_is_read(training, tmp_path):
    def change(metadata):
        planner = dcp.DefaultSavePlanner()
        planner.set_up_planner({"model": WEIGHTS, "step": 3}, is_coordinator=True)
        metadata.all_local_plans = [planner.create_local_plan()]
        metadata.storage_meta = dcp.metadata.StorageMeta(checkpoint_id=tmp_path, modules=["x"])
        metadata.state_dict_metadata = OrderedDict(metadata.state_dict_metadata)

    folder = altered(training, tmp_path, change)
    assert open_weights(folder).fingerprint() == open_weights(training).fingerprint()


class Harm:
    def __reduce__(self):
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("where", ["whole", "planner", "storage"])
def test_a_table_that_asks_for_code_is_refused_by_name_and_nothing_runs(
    training, tmp_path, monkeypatch, where
):
    monkeypatch.chdir(tmp_path)
    real = pickle.loads((training / ".metadata").read_bytes())
    if where == "planner":
        real.planner_data = {"x": Harm()}
    elif where == "storage":
        real.storage_data = Harm()
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Harm() if where == "whole" else real))
    with pytest.raises(PickleRefused, match=r"asks for 'posix\.system'"):
        len(open_weights(tmp_path))
    assert not (tmp_path / "harmed").exists()


def test_a_part_that_brings_code_is_refused_and_nothing_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, {"model": {"w": torch.ones(2000)}})
    table = read_table(LocalPlace(tmp_path / ".metadata"))
    part = table.tensors["model.w"].parts[0].home
    torch.save(Harm(), tmp_path / "harm.bin")
    raw = (tmp_path / "harm.bin").read_bytes()
    whole = bytearray((tmp_path / part.file).read_bytes())
    # A zip is read from its end.
    at = part.begin + part.length - len(raw)
    whole[at : at + len(raw)] = raw
    (tmp_path / part.file).write_bytes(whole)
    with pytest.raises(CheckpointIncomplete, match="cannot be read"):
        open_weights(tmp_path)["w"]
    assert not (tmp_path / "harmed").exists()


def altered(training, tmp_path, change):
    real = pickle.loads((training / ".metadata").read_bytes())
    change(real)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(real))
    for file in training.glob("*.distcp"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    "name", ["../secret.distcp", "/etc/passwd", "a/b", "", "..", "x\0y", "x" * 10_000, "<b>x</b>/"]
)
def test_a_table_may_not_point_outside_its_folder(training, tmp_path, name):
    def change(metadata):
        for info in metadata.storage_data.values():
            info.relative_path = name

    with pytest.raises(RecordError, match="expected a file of that folder") as refused:
        open_weights(altered(training, tmp_path, change)).load()
    assert len(str(refused.value)) < 400
    assert str(refused.value).isprintable()


def test_parts_that_overlap_or_leave_a_hole_are_no_tensor(training, tmp_path):
    def hole(metadata):
        metadata.state_dict_metadata["model.blocks.0.w"].size = torch.Size((3, 3))

    with pytest.raises(CheckpointIncomplete, match=r"hold 6 elements and do not make its shape"):
        open_weights(altered(training, tmp_path, hole)).load("blocks.0.w")
    twice = [Piece((0, 0), (1, 2), "a"), Piece((0, 1), (1, 2), "b")]
    with pytest.raises(CheckpointIncomplete, match="do not make its shape"):
        check_cover("w", (1, 4), twice, "demo")
    check_cover("w", (1, 4), [twice[0], Piece((0, 2), (1, 2), "b")], "demo")


def test_a_tensor_of_another_type_than_the_table_says_is_refused(training, tmp_path):
    def change(metadata):
        metadata.state_dict_metadata["model.counts"].properties.dtype = torch.int32

    with pytest.raises(CheckpointIncomplete, match=r"is not the I32 \[3\] that \.metadata expects"):
        open_weights(altered(training, tmp_path, change))["counts"]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), cut=st.booleans())
def test_a_table_cut_or_flipped_anywhere_gives_an_answer_or_one_clear_error(
    training, tmp_path, at, byte, cut
):
    raw = bytearray((training / ".metadata").read_bytes())
    place = int(at * len(raw))
    raw[place] = byte
    (tmp_path / ".metadata").write_bytes(raw[:place] if cut else raw)
    said = ""
    try:
        for held in read_table(LocalPlace(tmp_path / ".metadata")).tensors.values():
            assert isinstance(held.shape, tuple)
        verify(tmp_path)
    except (CheckpointIncomplete, PickleRefused, RecordError) as error:
        said = str(error)
    assert said.isprintable()
    assert len(said) < 1000


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        ({"model.w": ("model", "w")}, ["w"]),
        ({"app.model.w": ("app", "model", "w"), "app.optim.w": ("app", "optim", "w")}, ["w"]),
        ({"model.layers.0.w": ("model.layers.0.w",)}, ["model.layers.0.w"]),
        ({"model.model.w": ("model", "model.w")}, ["model.w"]),
        ({"w": ("w",), "optimizer.state.w.m": ("optimizer", "state.w.m")}, ["w"]),
        ({"blocks.0.w": ("blocks", "0", "w")}, ["blocks.0.w"]),
        ({"decoder.w": ("decoder.w",), "optimizer.state.w": ("optimizer.state.w",)}, ["decoder.w"]),
        ({"optimizer.model.w": ("optimizer", "model", "w"), "w": ("w",)}, ["w"]),
    ],
)
def test_weights_are_told_from_the_rest_by_the_keys_they_were_saved_under(paths, names):
    assert list(weight_names(paths)) == names


def test_torchtitan_s_flat_names_and_an_hf_model_s_own_prefix_are_kept(tmp_path):
    flat = {"model.layers.0.w": torch.ones(1), "lm_head.weight": torch.zeros(2)}
    out = saved(tmp_path, {**flat, "optimizer": {"state.lm_head.weight.exp_avg": torch.ones(2)}})
    weights = open_weights(out)
    assert isinstance(weights, DcpWeights)
    assert set(weights) == set(flat)
    assert re.fullmatch("[0-9a-f]{32}", weights.fingerprint())
    assert weights.fingerprint() == fingerprint(flat)
