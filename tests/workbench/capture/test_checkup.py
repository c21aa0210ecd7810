"""The checkup: planted faults are found and named, a healthy model is not slandered, and what it
says of bytes and routers is so.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from model.config import NANO
from model.lm import MoELM
from workbench.capture.checkup.checkup import TELLING_STEP, Plan, check_up
from workbench.capture.checkup.faults import Retention, find_faults
from workbench.capture.checkup.machine import file_system, look
from workbench.capture.checkup.overhead import Trial, median_interval
from workbench.capture.checkup.record_size import RecordSize, Weight, weigh
from workbench.capture.checkup.routers import examine
from workbench.capture.recorder import Recorder
from workbench.errors import UsageError
from workbench.store.layout import Layout

TINY = replace(
    NANO, d_model=32, n_layers=2, n_heads=4, n_key_value_heads=2, d_mlp=16, num_experts=8,
    experts_per_token=2, n_ctx=32,
)  # fmt: skip


def plan(folder, **changes):
    wanted = {"rows": 4, "length": 16, "step_seconds": 1.0, "into": folder, "traces": 0.1}
    return Plan(**wanted | {"omp_wait_policy": "PASSIVE"} | changes)


def names(checkup):
    return [fault.name for fault in checkup.faults]


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A folder of which only its own faults are told, whatever disk the tests run on."""
    monkeypatch.setattr("workbench.capture.checkup.machine.file_system", lambda folder: "ext4")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return tmp_path


@pytest.fixture
def machine(disk):
    found = look(disk, torch.device("cpu"), "PASSIVE")
    return replace(found, free_bytes=10**12, cores=8, threads=2, load=0.0)


@pytest.fixture(scope="module")
def seen():
    return examine(MoELM(TINY))


def found(machine, seen, **more):
    return {fault.name: fault for fault in find_faults(machine=machine, seen=seen, **more)}


# What is captured


def test_a_healthy_model_is_run_and_has_no_fault(disk):
    checkup = check_up(MoELM(TINY), plan(disk), seconds=0.2)
    assert (names(checkup), checkup.healthy) == ([], True)
    cost = checkup.trial.overhead
    assert cost.loss_unchanged is True
    assert cost.rounds >= 1
    assert 0 < cost.inside_p50 <= cost.inside_p99 < cost.bare.median
    assert cost.capture.low <= cost.capture.median <= cost.capture.high
    assert cost.with_traces is not None
    assert list(disk.iterdir()) == []


def test_routers_and_embedding_are_named_as_the_record_will_have_them(seen):
    assert [router.name for router in seen.routers] == [
        "blocks.0.mlp.router",
        "blocks.1.mlp.router",
    ]
    first = seen.routers[0]
    assert (first.kind, first.experts, first.k, first.scores) == ("Router", 8, 2, "logits")
    assert (seen.embedding, seen.vocabulary, seen.refusal) == ("embed", TINY.d_vocab, None)


def test_a_model_without_weights_is_weighed_and_not_run(disk):
    with torch.device("meta"):
        model = MoELM(TINY)
    checkup = check_up(model, plan(disk, step_seconds=None))
    assert checkup.trial is None
    assert "shapes alone" in checkup.not_run
    assert checkup.per_step.stored > 0
    assert (checkup.per_day, checkup.days_until_full) == (None, None)
    assert checkup.healthy


def test_the_model_is_left_without_hooks_and_in_its_mode(disk):
    model = MoELM(TINY)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    check_up(model, plan(disk), seconds=0.1)
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert all(module.training for module in model.modules())


# Planted faults of models


def test_a_model_without_routers_is_refused_with_the_adapters_reason(disk):
    checkup = check_up(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4)), plan(disk))
    assert names(checkup) == ["routers-refused"]
    assert not checkup.healthy
    assert "found no router in Sequential" in checkup.faults[0].found
    assert checkup.size is None


def test_layers_of_different_shape_are_refused(disk):
    model = MoELM(TINY)
    model.blocks[1].mlp = MoELM(replace(TINY, num_experts=4)).blocks[0].mlp
    checkup = check_up(model, plan(disk))
    assert names(checkup) == ["routers-refused"]
    assert "routers differ in (experts, k)" in checkup.faults[0].found


def test_routers_in_evaluation_mode_are_found_though_the_model_trains(disk):
    model = MoELM(TINY)
    model.blocks[1].eval()
    checkup = check_up(model, plan(disk))
    assert names(checkup) == ["evaluation-mode"]
    assert checkup.faults[0].found.startswith("blocks.1.mlp.router in evaluation mode")
    assert not checkup.healthy


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own compiler
@pytest.mark.parametrize("way", ["wrapped", "in place", "a block"])
def test_a_model_compiled_before_the_recorder_is_found_however_it_was_compiled(way, disk):
    model = MoELM(TINY)
    if way == "wrapped":
        model = torch.compile(model)
    elif way == "in place":
        model.compile()
    else:
        model.blocks[1].compile()
    checkup = check_up(model, plan(disk), seconds=0.1)
    assert names(checkup) == ["compiled"]
    place = "blocks.1" if way == "a block" else "the model"
    assert checkup.faults[0].found == f"{place} compiled already"
    assert checkup.trial.overhead is not None
    assert checkup.healthy


def mixtral(jitter):
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(
        MixtralConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, num_local_experts=4, vocab_size=64, router_jitter_noise=jitter,
            max_position_embeddings=32,
        )
    ).train()  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_noise_in_place_is_a_fault_only_where_activations_are_recomputed(disk):
    noisy = mixtral(0.1)
    assert names(check_up(noisy, plan(disk), seconds=0.1)) == []
    noisy.gradient_checkpointing_enable()
    checkup = check_up(noisy, plan(disk), seconds=0.1)
    assert names(checkup) == ["input-altered-and-recomputed"]
    assert "model.layers.0.mlp" in checkup.faults[0].found
    quiet = mixtral(0.0)
    quiet.gradient_checkpointing_enable()
    assert names(check_up(quiet, plan(disk), seconds=0.1)) == []


def test_traces_need_an_embedding_that_can_be_told(disk):
    model = MoELM(TINY)
    model.second = nn.Embedding(3, 3)
    checkup = check_up(model, plan(disk), seconds=0.1)
    assert names(checkup) == ["no-embedding"]
    assert names(check_up(model, plan(disk, traces=0.0), seconds=0.1)) == []


def test_a_model_that_cannot_be_run_says_why_and_is_weighed_all_the_same(disk):
    class Picky(MoELM):
        def forward(self, *args, **kwargs):
            raise RuntimeError("needs pictures\nand more")

    checkup = check_up(Picky(TINY), plan(disk))
    assert checkup.not_run == "RuntimeError: needs pictures"
    assert checkup.trial.overhead is None
    assert checkup.size is not None


def test_a_router_that_runs_twice_a_forward_is_a_miscount(disk):
    class Twice(MoELM):
        def forward(self, tokens, *args, **kwargs):
            self.blocks[0].mlp(self.embed(tokens))
            return super().forward(tokens, *args, **kwargs)

    checkup = check_up(Twice(TINY), plan(disk), seconds=0.1)
    assert names(checkup) == ["miscount"]
    assert "blocks.1.mlp.router" in checkup.faults[0].found


def test_ids_beyond_int16_are_told(machine, seen):
    wide = replace(seen, routers=(replace(seen.routers[0], experts=40_000),))
    assert "40000 experts" in found(machine, wide)["beyond-int16"].found
    assert "beyond-int16" in found(machine, seen, domains=40_000)
    assert "beyond-int16" not in found(machine, seen, domains=32_767)


def test_a_loss_that_changes_is_a_fault_that_loses(machine, seen, disk):
    trial = check_up(MoELM(TINY), plan(disk), seconds=0.1).trial
    assert found(machine, seen, trial=trial) == {}
    changed = replace(trial, overhead=replace(trial.overhead, loss_unchanged=False))
    assert found(machine, seen, trial=changed)["loss-changed"].loses
    unknown = replace(trial, overhead=replace(trial.overhead, loss_unchanged=None))
    assert found(machine, seen, trial=unknown) == {}
    assert found(machine, seen, trial=Trial(failure="x")) == {}


# Planted faults of machines and plans


@pytest.mark.parametrize(
    ("change", "name", "loses"),
    [
        ({"file_system": "tmpfs"}, "in-memory", True),
        ({"file_system": "nfs4"}, "network-folder", False),
        ({"file_system": "fuse.sshfs"}, "network-folder", False),
        ({"file_system": "overlay"}, "in-container", False),
        ({"locks": False}, "no-locks", True),
        ({"writable": False}, "not-writable", True),
        ({"writable": False, "file_system": "tmpfs", "locks": None}, "not-writable", True),
        ({"blocked_by": "/some/file"}, "not-a-folder", True),
        ({"blocked_by": "/some/file", "writable": False}, "not-a-folder", True),
        ({"world_size": 8}, "ranks-not-joined", True),
        ({"omp_wait_policy": None, "load": 7.0}, "threads-spin", False),
        ({"device": "cuda:0", "triton": False}, "no-triton", False),
    ],
)
def test_each_fault_of_a_machine_is_found_and_no_other(machine, seen, change, name, loses):
    faults = found(replace(machine, **change), seen)
    assert list(faults) == [name]
    assert faults[name].loses is loses


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"omp_wait_policy": None},
        {"omp_wait_policy": None, "load": 7.0, "threads": 1},
        {"world_size": 8, "joined": True},
        {"device": "cuda:0", "triton": True},
        {"triton": False},
        {"file_system": "unknown"},
    ],
)
def test_a_machine_that_is_well_has_no_fault(machine, seen, change):
    assert found(replace(machine, **change), seen) == {}


def test_the_retention_of_the_trainer_is_weighed_against_its_checkpoints(machine, seen):
    kept = found(machine, seen, retention=Retention(saved=400, kept=3))
    assert kept["checkpoints-deleted"].found == "the trainer keeps 3 of 400 checkpoints"
    assert kept["checkpoints-deleted"].loses
    assert found(machine, seen, retention=Retention(saved=400, kept=400)) == {}
    assert found(machine, seen, retention=Retention(saved=400)) == {}


def test_a_disk_that_fills_within_a_week_is_told(machine, seen):
    assert "disk-full-soon" in found(machine, seen, days_until_full=6.9)
    assert found(machine, seen, days_until_full=7.1) == {}
    # Nowhere to write is one fault, not two.
    nowhere = replace(machine, writable=False, free_bytes=0)
    assert list(found(nowhere, seen, days_until_full=0.0)) == ["not-writable"]


def test_a_disk_is_not_said_to_fill_from_the_trial_of_a_toy(disk, monkeypatch):
    usage = shutil._ntuple_diskusage(10**12, 10**12, 1000)
    monkeypatch.setattr("workbench.capture.checkup.machine.shutil.disk_usage", lambda p: usage)
    toy = check_up(MoELM(TINY), plan(disk, step_seconds=None), seconds=0.1)
    assert toy.step_seconds < TELLING_STEP
    assert toy.days_until_full < 1
    assert names(toy) == []
    said = check_up(MoELM(TINY), plan(disk, step_seconds=0.01), seconds=0.1)
    assert names(said) == ["disk-full-soon"]
    monkeypatch.setattr("workbench.capture.checkup.checkup.TELLING_STEP", 1e-9)
    assert names(check_up(MoELM(TINY), plan(disk, step_seconds=None), seconds=0.1)) == [
        "disk-full-soon"
    ]


def test_a_file_where_the_folder_should_be_is_told(disk):
    file = disk / "file"
    file.write_text("mine")
    for into in (file, file / "below"):
        checkup = check_up(MoELM(TINY), plan(into), seconds=0.1)
        assert names(checkup) == ["not-a-folder"]
        assert checkup.faults[0].found == f"{file} is a file"
        assert not checkup.healthy
    assert file.read_text() == "mine"


def weight(size):
    return Weight(raw=size, stored=size)


def test_wide_coactivation_gets_the_cadence_at_which_it_weighs_as_much_as_the_rest(machine, seen):
    size = RecordSize(
        step=weight(200e3), coactivation=weight(30e6), traced_token=weight(100),
        checkpoint=weight(1e6), slow_table_bytes=31_000_000, commit_seconds=0.1,
    )  # fmt: skip
    fault = found(machine, seen, size=size)["wide-coactivation"]
    assert "coactivation_every=150" in fault.remedy
    assert found(machine, seen, size=size, coactivation_every=150) == {}


def test_a_writer_slower_than_the_steps_is_told(machine, seen):
    size = RecordSize(
        step=weight(1e3), coactivation=weight(1e3), traced_token=weight(100),
        checkpoint=weight(1e6), slow_table_bytes=1000, commit_seconds=6.0,
    )  # fmt: skip
    assert "writer-too-slow" in found(machine, seen, size=size, step_seconds=0.1)
    assert found(machine, seen, size=size, step_seconds=0.2) == {}


def test_what_loses_data_comes_first(machine, seen):
    faults = find_faults(
        machine=replace(machine, file_system="nfs"), seen=seen,
        retention=Retention(saved=2, kept=1),
    )  # fmt: skip
    assert [fault.loses for fault in faults] == [True, False]


def test_the_kind_of_a_file_system_is_that_of_the_nearest_mount(tmp_path):
    mounts = tmp_path / "mounts"
    inner = tmp_path / "in ner"
    inner.mkdir()
    point = str(inner).replace(" ", "\\040")
    mounts.write_text(f"a / ext4 rw 0 0\nb {tmp_path} xfs rw 0 0\nc {point} nfs4 rw 0 0\n")
    assert file_system(inner, mounts) == "nfs4"
    assert file_system(tmp_path, mounts) == "xfs"
    assert file_system(Path("/"), mounts) == "ext4"
    assert file_system(inner, tmp_path / "none") == "unknown"


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no memory file system here")
def test_memory_is_no_disk(seen):
    assert "in-memory" in found(look(Path("/dev/shm/run"), torch.device("cpu")), seen)


def test_a_folder_under_a_file_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryDirectory", _refused)
    assert look(tmp_path, torch.device("cpu")).writable is False


def _refused(*args, **kwargs):
    raise PermissionError("read-only")


# Bytes and times


def test_the_weight_of_a_step_is_what_a_real_record_of_many_commits_takes(tmp_path):
    config = replace(TINY, n_layers=1, d_model=8, n_heads=2, n_key_value_heads=1, d_mlp=4)
    model = MoELM(config)
    with Recorder(model, tmp_path / "run") as recorder, torch.no_grad():
        for step in range(1, 1001):
            with recorder.step(step):
                recorder.log(loss=float(torch.rand(())), grad_norm=float(torch.rand(())))
                model(torch.randint(0, 64, (2, 8)))
            if step % 50 == 0:
                recorder._writer.flush()  # or the ring could be full
    files = [p.stat().st_size for p in (tmp_path / "run/store").rglob("*") if p.is_file()]
    size = weigh(
        Layout(layers=(0,), experts=8, k=2), tokens=16, traced=0.016, folder=tmp_path
    )  # fmt: skip
    said = size.per_step(coactivation_every=25, traced_tokens=0).stored
    assert said == pytest.approx(sum(files) / 1000, rel=0.3)


def test_raw_bytes_are_those_of_the_arrays(tmp_path):
    L, E, k = 4, 64, 8
    size = weigh(
        Layout(layers=tuple(range(L)), experts=E, k=k), tokens=4096, traced=4.0, folder=tmp_path
    )  # fmt: skip
    router = L * E * (8 + 4 + 4) + L * 5 * 4 + 8
    train = 3 * 4 + 8 + 8 + 4 + 4
    assert size.step.raw == router + train + 2 * 8
    assert size.coactivation.raw == L * E * E * 8 + L * 32 * 8 + 8
    assert size.traced_token.raw == 8 + 4 + 8 + 4 + 2 + L * k * (2 + 4)
    assert size.checkpoint.raw == 1000 * L * (k * 2 + E * 4) + 16
    for tier in (size.step, size.coactivation, size.checkpoint):
        assert 0.1 * tier.raw < tier.stored < 1.5 * tier.raw
    assert list(tmp_path.iterdir()) == []


def test_traces_are_shared_out_to_steps(tmp_path):
    layout = Layout(layers=(0,), experts=8, k=2)
    size = weigh(layout, tokens=64, traced=1.0, folder=tmp_path)
    with_traces = size.per_step(coactivation_every=25, traced_tokens=2.0)
    without = size.per_step(coactivation_every=25, traced_tokens=0.0)
    assert with_traces.raw - without.raw == pytest.approx(2 * size.traced_token.raw)


def test_an_effect_smaller_than_the_noise_is_not_above_it():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, 60)
    assert not median_interval(list(noise + 0.001)).above_noise
    assert median_interval(list(noise + 0.2)).above_noise
    assert not median_interval([0.2] * 5).above_noise
    assert median_interval([0.2] * 6).above_noise


def test_the_interval_of_the_median_covers_it_in_95_of_100_measurements():
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(400):
        interval = median_interval(list(rng.exponential(size=40) - np.log(2)))
        covered.append(interval.low <= 0 <= interval.high)
    assert 0.93 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": 0}, {"length": -1}, {"traces": 1.5}, {"step_seconds": 0.0},
        {"coactivation_every": 0}, {"retention": Retention(saved=0)},
        {"retention": Retention(saved=2, kept=-1)},
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_are_refused(changes, tmp_path):
    with pytest.raises(UsageError, match=r"must be|a share"):
        plan(tmp_path, **changes)
