"""Trainers' checkpoints are found where trainers leave them, and told whole from half-written.

Trainer's, Lightning's and torch's are written by themselves; the others are laid out as their
source code lays them out.
"""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import lightning
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from checkpoints_index.errors import CheckpointNotFound
from checkpoints_index.formats import open_weights
from checkpoints_index.layouts import Found, find

pytestmark = [
    # torch says, of every save without ranks, that there are none.
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Lightning asks torch in a way that torch is about to change.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning"),
]

WEIGHTS = {"layers.0.w": torch.ones(3, 2), "layers.1.w": torch.zeros(4)}
OPTIM = {"state": {"layers.0.w": {"exp_avg": torch.ones(3, 2)}}}


def distributed(folder, state):
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


def torchtitan(root, step):
    flat = {"optimizer.state.layers.0.w.exp_avg": torch.ones(3, 2)}
    return distributed(root / "checkpoint" / f"step-{step}", {**WEIGHTS, "optimizer": flat})


def olmo_core(root, step, tokens):
    folder = root / f"step{step}"
    distributed(folder / "model_and_optim", {"model": WEIGHTS, "optim": OPTIM})
    (folder / "train").mkdir()
    state = {"global_step": step, "global_train_tokens_seen": tokens, "epoch": 1}
    for rank in range(2):
        torch.save(state, folder / "train" / f"rank{rank}.pt")
    (folder / "config.json").write_text("{}")
    (folder / ".metadata.json").write_text('{"version": "2.0.0"}')
    return folder


def megatron_torch(root, step, ranks=2):
    folder = root / f"iter_{step:07d}"
    for rank in range(ranks):
        (folder / f"mp_rank_{rank:02d}").mkdir(parents=True)
        state = {"model": WEIGHTS, "iteration": step, "optimizer": OPTIM}
        torch.save(state, folder / f"mp_rank_{rank:02d}" / "model_optim_rng.pt")
    return folder


def megatron_dist(root, step):
    folder = root / f"iter_{step:07d}"
    flat = {f"decoder.{name}": tensor for name, tensor in WEIGHTS.items()}
    optim = {"optimizer.state.exp_avg.decoder.layers.0.w": torch.ones(3, 2)}
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False)
    dcp.save({**flat, **optim}, checkpoint_id=folder, planner=planner, no_dist=True)
    torch.save({"iteration": step}, folder / "common.pt")
    backend = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    (folder / "metadata.json").write_text(json.dumps(backend))
    return folder


def tracker(root, text):
    (root / "latest_checkpointed_iteration.txt").write_text(text)


def composer_file(root, epoch, batch):
    state = {"state": {"model": WEIGHTS, "optimizers": {"Adam": OPTIM}}, "rng": []}
    file = root / f"ep{epoch}-ba{batch}-rank0.pt"
    root.mkdir(exist_ok=True, parents=True)
    torch.save(state, file)
    latest = root / "latest-rank0.pt"
    latest.unlink(missing_ok=True)
    latest.symlink_to(file.name)
    return file


def composer_folder(root, epoch, batch):
    folder = root / f"ep{epoch}-ba{batch}"
    distributed(folder, {"state": {"model": WEIGHTS, "optimizers": {"Adam": OPTIM}}})
    latest = root / "latest-rank0.pt"
    latest.unlink(missing_ok=True)
    latest.symlink_to(folder.name)
    return folder


def one(root) -> Found:
    [found] = find(root)
    return found


def seen(found):
    return found.path, found.format, found.trainer, found.step, found.tokens, found.kind


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        tokens = torch.arange(6) + i
        return {"input_ids": tokens, "labels": tokens}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What Trainer leaves of two steps: checkpoint-1, checkpoint-2 and the finished model."""
    out = tmp_path_factory.mktemp("trainer") / "out"
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1,
    )  # fmt: skip
    arguments = TrainingArguments(
        str(out), max_steps=2, save_steps=1, report_to=[], use_cpu=True, disable_tqdm=True,
        per_device_train_batch_size=2, include_num_input_tokens_seen="all",
    )  # fmt: skip
    trainer = Trainer(LlamaForCausalLM(config), arguments, train_dataset=Rows())
    trainer.train()
    trainer.save_model()
    return out


def test_trainer_s_checkpoints_and_its_finished_model_are_found(trained):
    assert [seen(f) for f in find(trained)] == [
        (trained, "huggingface", None, None, None, "weights"),
        (trained / "checkpoint-1", "huggingface", "transformers", 1, 12, "training"),
        (trained / "checkpoint-2", "huggingface", "transformers", 2, 24, "training"),
    ]
    assert all(f.complete and not f.why for f in find(trained))
    assert "lm_head.weight" in open_weights(trained / "checkpoint-2")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: (f / "trainer_state.json").unlink(), "which Trainer writes last, is missing"),
        (lambda f: (f / "trainer_state.json").write_text('{"glo'), "not a JSON object"),
        (lambda f: cut(f / "model.safetensors"), r"model\.safetensors: \d+ bytes where"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights in it"),
        (lambda f: f.rename(f.with_name("tmp-checkpoint-2")), "before it renames it"),
    ],
)
def test_a_half_written_checkpoint_of_trainer_is_told_so(trained, tmp_path, harm, says):
    shutil.copytree(trained / "checkpoint-2", tmp_path / "checkpoint-2")
    harm(tmp_path / "checkpoint-2")
    found = one(tmp_path)
    assert (found.trainer, found.step, found.complete) == ("transformers", 2, False)
    assert_says(found, says)


def cut(file):
    file.write_bytes(file.read_bytes()[:-40])


def assert_says(found, says):
    import re

    assert re.search(says, found.why), found.why
    assert found.why.isprintable()


class Fits(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, index):
        return self.layer(batch).mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


def test_lightning_s_own_file_tells_its_step_unopened(tmp_path):
    trainer = lightning.Trainer(
        max_steps=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(Fits(), torch.utils.data.DataLoader(torch.ones(8, 2), batch_size=2))
    file = tmp_path / "last.ckpt"
    trainer.save_checkpoint(file)
    assert seen(one(tmp_path)) == (file, "pickled", "lightning", 3, None, "training")
    assert one(tmp_path).complete
    assert set(open_weights(file, allow_pickle=True)) == {"layer.weight", "layer.bias"}
    cut(file)
    assert not one(tmp_path).complete
    assert_says(one(tmp_path), r"last\.ckpt: not a whole file of torch\.save")


def test_a_large_step_of_lightning_is_read_whole(tmp_path):
    for step in (5, 300, 70_000, 2**40):
        state = {"epoch": 0, "global_step": step, "pytorch-lightning_version": "2.6.6"}
        torch.save({**state, "state_dict": WEIGHTS}, tmp_path / "x.ckpt")
        found = one(tmp_path)
        assert (found.step, found.kind, found.trainer) == (step, "weights", "lightning")


def test_lightning_s_sharded_folder_is_found(tmp_path):
    folder = distributed(tmp_path / "epoch=0-step=12.ckpt", {"state_dict": WEIGHTS})
    assert_says(one(tmp_path), "meta.pt, which Lightning writes last")
    torch.save({"epoch": 0, "global_step": 12}, folder / "meta.pt")
    assert seen(one(tmp_path)) == (folder, "dcp", "lightning", 12, None, "training")
    assert one(tmp_path).complete


def test_torchtitan_s_steps_are_found_and_one_without_metadata_is_half_written(tmp_path):
    whole, half = torchtitan(tmp_path, 1000), torchtitan(tmp_path, 2000)
    (half / ".metadata").unlink()
    (tmp_path / "checkpoint" / "step-3000").mkdir()
    first, second, third = find(tmp_path)
    assert seen(first) == (whole, "dcp", "torchtitan", 1000, None, "training")
    assert first.complete
    assert (second.path, second.step, second.complete) == (half, 2000, False)
    assert_says(second, r"neither \.metadata nor")
    assert (third.step, third.complete) == (3000, False)
    assert set(open_weights(whole)) == set(WEIGHTS)


def test_a_distributed_checkpoint_that_lost_a_shard_is_not_whole(tmp_path):
    folder = torchtitan(tmp_path, 10)
    (folder / "__0_0.distcp").unlink()
    assert_says(one(tmp_path), r"__0_0\.distcp: missing, expected")
    plain = distributed(tmp_path / "elsewhere", {"model": WEIGHTS})
    found = next(f for f in find(tmp_path) if f.trainer is None)
    assert (found.path, found.complete, found.kind) == (plain, True, "weights")


def test_olmo_core_s_step_tells_its_tokens(tmp_path):
    folder = olmo_core(tmp_path, 1000, 4_194_304_000)
    assert seen(one(tmp_path)) == (folder, "dcp", "olmo-core", 1000, 4_194_304_000, "training")
    assert one(tmp_path).complete
    assert set(open_weights(folder)) == set(WEIGHTS)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: (f / ".metadata.json").unlink(), r"\.metadata\.json, which OLMo-core writes"),
        (lambda f: (f / "train" / "rank0.pt").unlink(), r"train/rank0\.pt is missing"),
        (lambda f: cut(f / "train" / "rank0.pt"), r"rank0\.pt: not a whole file"),
        (lambda f: (f / "model_and_optim" / ".metadata").unlink(), r"no checkpoint format|shards"),
        (lambda f: f.rename(f.with_name("step1000-tmp")), "before it renames it"),
        (lambda f: cut(next((f / "model_and_optim").glob("*.distcp"))), r"\.distcp: \d+ bytes"),
    ],
)
def test_a_half_written_step_of_olmo_core_is_told_so(tmp_path, harm, says):
    harm(olmo_core(tmp_path, 1000, 5))
    found = one(tmp_path)
    assert (found.trainer, found.step, found.complete) == ("olmo-core", 1000, False)
    assert_says(found, says)


@pytest.mark.parametrize("make", [megatron_torch, megatron_dist], ids=["torch", "torch_dist"])
def test_megatron_s_iterations_are_whole_up_to_the_one_its_tracker_names(tmp_path, make):
    first, second = make(tmp_path, 500), make(tmp_path, 1000)
    tracker(tmp_path, "500")
    whole, begun = find(tmp_path)
    format = "pickled" if make is megatron_torch else "dcp"
    assert seen(whole) == (first, format, "megatron", 500, None, "training")
    assert whole.complete
    assert (begun.path, begun.complete) == (second, False)
    assert_says(begun, "names 500 as the last iteration saved whole")
    tracker(tmp_path, "1000\n")
    assert all(f.complete for f in find(tmp_path))


def test_a_tracker_that_points_elsewhere_names_what_is_lost(tmp_path):
    megatron_dist(tmp_path, 500)
    tracker(tmp_path, "1500")
    lost, there = sorted(find(tmp_path), key=lambda f: f.complete)
    assert (lost.path, lost.step) == (tmp_path / "iter_0001500", 1500)
    assert_says(lost, "names iteration 1500, and there is no iter_0001500")
    assert there.complete
    for nonsense in ("../../etc", "9" * 400, "\0", "<b>1</b>", ""):
        tracker(tmp_path, nonsense)
        assert [f.complete for f in find(tmp_path)] == [True]
    tracker(tmp_path, "release")
    (tmp_path / "iter_0000500").rename(tmp_path / "release")
    assert (one(tmp_path).step, one(tmp_path).complete) == (None, True)


@pytest.mark.parametrize(
    ("make", "harm", "says"),
    [
        (megatron_torch, lambda f: shutil.rmtree(f / "mp_rank_00"), "folders of 1 ranks"),
        (megatron_torch, lambda f: (f / "mp_rank_01" / "model_optim_rng.pt").unlink(), "missing"),
        (megatron_torch, lambda f: cut(f / "mp_rank_01" / "model_optim_rng.pt"), "not a whole"),
        (megatron_dist, lambda f: (f / ".metadata").unlink(), r"\.metadata is missing"),
        (megatron_dist, lambda f: (f / "metadata.json").unlink(), "which Megatron writes last"),
        (megatron_dist, lambda f: (f / "__0_0.distcp").unlink(), r"__0_0\.distcp: missing"),
    ],
)
def test_a_half_written_iteration_of_megatron_is_told_so(tmp_path, make, harm, says):
    harm(make(tmp_path, 500))
    tracker(tmp_path, "500")
    assert (one(tmp_path).trainer, one(tmp_path).complete) == ("megatron", False)
    assert_says(one(tmp_path), says)


def test_megatron_s_distributed_weights_are_read_without_its_optimizer(tmp_path):
    weights = open_weights(megatron_dist(tmp_path, 500))
    assert set(weights) == {f"decoder.{name}" for name in WEIGHTS}


def test_composer_s_files_and_folders_are_found_and_its_links_counted_once(tmp_path):
    file = composer_file(tmp_path / "whole", 0, 100)
    folder = composer_folder(tmp_path / "sharded", 1, 200)
    sharded, whole = find(tmp_path)
    assert seen(whole) == (file, "pickled", "composer", 100, None, "training")
    assert seen(sharded) == (folder, "dcp", "composer", 200, None, "training")
    assert whole.complete
    assert sharded.complete
    assert set(open_weights(folder)) == set(WEIGHTS)
    cut(file)
    (folder / ".metadata").unlink()
    sharded, whole = find(tmp_path)
    assert_says(whole, "not a whole file")
    assert_says(sharded, r"shards without \.metadata")


def test_our_own_and_plain_models_are_found_with_what_is_wrong_with_them(tmp_path):
    ours = tmp_path / "run" / "step-00000040"
    ours.mkdir(parents=True)
    save_file(WEIGHTS, ours / "model.safetensors")
    size = (ours / "model.safetensors").stat().st_size
    state = {"format": "workbench-native-1", "step": 40, "tokens_seen": 2560}
    state["files"] = {"model.safetensors": {"bytes": size}}
    (ours / "state.json").write_text(json.dumps(state))
    shutil.copytree(ours, tmp_path / "run" / ".partial-step-00000080-1")
    (tmp_path / "hf").mkdir()
    index = {"weight_map": {"layers.0.w": "model-00001-of-00002.safetensors"}}
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "hf" / "config.json").write_text("{}")
    save_file(WEIGHTS, tmp_path / "step-7.safetensors")
    lone, hf, partial, native = find(tmp_path)
    assert seen(native) == (ours, "native", "workbench", 40, 2560, "weights")
    assert native.complete
    assert_says(partial, "its writer ended before it was whole")
    assert (hf.format, hf.complete) == ("huggingface", False)
    assert_says(hf, r"model-00001-of-00002\.safetensors is missing")
    assert (lone.path, lone.format, lone.step) == (
        tmp_path / "step-7.safetensors", "safetensors", 7
    )  # fmt: skip


def test_a_folder_that_is_not_there_is_said_so(tmp_path):
    for name in ("nowhere", "a\0b", "x" * 5000):
        with pytest.raises(CheckpointNotFound, match="no folder"):
            list(find(tmp_path / name))


def test_links_lead_neither_out_nor_round(tmp_path):
    outside, root = tmp_path / "outside", tmp_path / "root"
    torchtitan(outside, 1)
    save_file(WEIGHTS, outside / "w.safetensors")
    root.mkdir()
    (root / "away").symlink_to(outside)
    (root / "round").symlink_to(root)
    (root / "broken.safetensors").symlink_to(tmp_path / "nothing")
    (root / "out.safetensors").symlink_to(outside / "w.safetensors")
    (root / "step-5").mkdir()
    (root / "step-5" / "round").symlink_to(root)
    assert [f.step for f in find(root)] == [5] or list(find(root)) == []
    for file in (outside / "checkpoint" / "step-1").iterdir():
        target = root / "step-6" / file.name
        target.parent.mkdir(exist_ok=True)
        if file.name == ".metadata":
            shutil.copy(file, target)
        else:
            target.symlink_to(file)
    found = next(f for f in find(root) if f.step == 6)
    assert not found.complete
    assert_says(found, "is a link that leads out of the folder")


def test_hostile_names_are_told_in_one_plain_line(tmp_path):
    for name in ("<script>alert(1)</script>"[:-10], "a\nb", "\x1b[31m", "x" * 255, "ü\udcff"):
        folder = tmp_path / name / "step-3"
        folder.mkdir(parents=True)
        (folder / "__0_0.distcp").write_bytes(b"")
    found = list(find(tmp_path))
    assert len(found) == 5
    for one_found in found:
        assert not one_found.complete
        assert one_found.why.isprintable()
        assert len(one_found.why) <= 400


@pytest.fixture(scope="module")
def everyone(tmp_path_factory, trained):
    """One checkpoint of every layout, and all their small files."""
    root = tmp_path_factory.mktemp("everyone")
    shutil.copytree(trained / "checkpoint-2", root / "trainer" / "checkpoint-2")
    torchtitan(root / "titan", 10)
    olmo_core(root / "olmo", 20, 5)
    megatron_torch(root / "mega", 30)
    megatron_dist(root / "mega-dist", 40)
    tracker(root / "mega-dist", "40")
    composer_file(root / "composer", 0, 50)
    state = {"global_step": 60, "pytorch-lightning_version": "2"}
    torch.save({**state, "state_dict": WEIGHTS}, root / "last.ckpt")
    return root, [f for f in sorted(root.rglob("*")) if f.is_file() and not f.is_symlink()]


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_whatever_stands_in_a_file_each_checkpoint_is_told_of_in_one_plain_line(everyone, data):
    root, files = everyone
    file = data.draw(st.sampled_from(files))
    raw = file.read_bytes()
    at = data.draw(st.integers(0, max(len(raw) - 1, 0)))
    junk = data.draw(st.binary(min_size=1, max_size=16))
    cut_here = data.draw(st.booleans())
    try:
        file.write_bytes(raw[:at] + junk + (b"" if cut_here else raw[at + len(junk) :]))
        for found in find(root):
            assert found.complete == (not found.why)
            assert found.why.isprintable()
            assert len(found.why) <= 400
            assert found.step is None or 0 <= found.step < 2**63
    finally:
        file.write_bytes(raw)
    assert [f.complete for f in find(root)] == [True] * 7


def test_nothing_is_read_of_the_tensors_themselves(tmp_path, monkeypatch):
    from checkpoints_index.formats.place import LocalPlace

    torchtitan(tmp_path, 10)
    save_file({"w": torch.ones(100_000)}, tmp_path / "step-7.safetensors")
    read = SimpleNamespace(bytes=0)
    whole = LocalPlace.ranges

    def counted(self, wanted):
        read.bytes += sum(end - begin for begin, end in wanted)
        return whole(self, wanted)

    monkeypatch.setattr(LocalPlace, "ranges", counted)
    assert len(list(find(tmp_path))) == 2
    assert read.bytes < 10_000
