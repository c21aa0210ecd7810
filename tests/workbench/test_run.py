"""Opening a run: the record and the weights of a branch, whatever its writer does meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import workbench as wb
from checkpoints_index.errors import CheckpointIncomplete, CheckpointNotFound, ClockError
from checkpoints_index.index import CheckpointIndex
from checkpoints_index.record import CheckpointRecord
from workbench.errors import RunNotFound
from workbench.run import Run
from workbench.store.layout import Layout, ProbeTokens, Task
from workbench.store.run_store import RunStore
from workbench.store.schema import Variable

LAYOUT = Layout(
    layers=(0, 1),
    experts=4,
    k=2,
    domains=("prose", "code_text"),
    tasks=(Task("logic/chains", 0.25, 3),),
)
TOKENS = 64
BEGAN = 1.75e9


def rows(first, last):
    steps = np.arange(first, last + 1)
    counts = np.zeros((len(steps), 2, 4), "int64")
    counts[:] = steps[:, None, None]
    router = {"step": steps, "tokens": np.full_like(steps, TOKENS), "assignments": counts}
    train = {
        "step": steps,
        "loss": (4 / steps).astype("float32"),
        "tokens_seen": steps * TOKENS,
        "utc": BEGAN + 3600.0 * steps,
    }
    return router, train


def train_to(writer, folder, first, last, every=10):
    """Steps `first` to `last` on the writer's branch, a checkpoint and its scores every ten."""
    for begin in range(first, last + 1, every):
        end = begin + every - 1
        router, train = rows(begin, end)
        writer.append("router", router)
        writer.append("train", train)
        writer.append(
            "evaluations",
            {
                "checkpoint": np.array([end]),
                "tokens_seen": np.array([end * TOKENS]),
                "correct": np.full((1, 1, 3), end % 2, "int8"),
                "logprob": np.full((1, 1, 3), -1 / end, "float32"),
            },
        )
        writer.commit(f"checkpoint {end}")
        writer.tag_checkpoint(end)
        save_weights(folder, writer.branch, end)


def save_weights(folder, branch, step, parent=None):
    path = folder / "checkpoints" / branch / f"step-{step:08d}"
    path.mkdir(parents=True, exist_ok=True)
    save_file({"blocks.0.w": torch.full((2, 3), float(step))}, path / "model.safetensors")
    files = {"model.safetensors": {"bytes": (path / "model.safetensors").stat().st_size}}
    state = {"format": "workbench-native-1", "step": step, "files": files}
    (path / "state.json").write_text(json.dumps(state))
    record = CheckpointRecord(
        run="demo", branch=branch, step=step, tokens_seen=step * TOKENS, utc=BEGAN + 3600.0 * step,
        format="native", uri=f"checkpoints/{branch}/step-{step:08d}", size_bytes=100, parent=parent,
    )  # fmt: skip
    CheckpointIndex(folder).add(record, replace=True)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A trunk of 100 steps, and an arm that forked at 80."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    store = RunStore.create(folder / "store", LAYOUT)
    phases = [
        {"name": "stable", "start": 0, "stop": 80},
        {"name": "final", "start": 80, "stop": 100},
    ]
    (folder / "run.json").write_text(json.dumps({"name": "demo", "phases": phases}))
    with store.writer("main") as w:
        train_to(w, folder, 1, 100)
    store.fork("curriculum", "main", at_step=80)
    with store.writer("curriculum") as w:
        train_to(w, folder, 81, 120)
    return folder


def test_an_opened_run_tells_its_clocks_branches_sites_and_checkpoints(demo):
    text = repr(wb.open_run(demo))
    for said in ("'demo'", "steps 1 to 100", "6,400 tokens", "2025-06-15", "stable 0–80",
                 "curriculum (from main at step 80)", "2 layer x 4 expert", "assignments",
                 "10, steps 10 to 100"):  # fmt: skip
        assert said in text
    assert wb.open_run(demo).phases[1]["name"] == "final"


def test_the_router_record_carries_the_tokens_clock_and_the_routing_width(demo):
    router = wb.open_run(demo).router
    assert router.attrs["k"] == 2
    assert router.attrs["branch"] == "main"
    assert (router.tokens_seen == router.step * TOKENS).all()
    assert "tokens_seen" in router.coords


def test_an_arm_has_the_trunk_up_to_its_fork_and_its_own_steps_after(demo):
    arm = wb.open_run(demo).arm("curriculum")
    assert (arm.parent, arm.fork_step) == ("main", 80)
    assert arm.train.step.values.tolist() == list(range(1, 121))
    assert [c.branch for c in arm.checkpoints] == ["main"] * 8 + ["curriculum"] * 4
    assert arm.checkpoints.steps == list(range(10, 121, 10))
    assert arm.evaluations.checkpoint.values.tolist() == arm.checkpoints.steps
    assert wb.open_run(demo).fork_step is None


def test_the_tree_holds_every_group_under_its_name(demo):
    tree = wb.open_run(demo, "curriculum").tree
    assert set(tree.children) == {"router", "train", "evaluations"}
    assert tree["train"].to_dataset().sizes["step"] == 120
    assert tree.attrs["branch"] == "curriculum"


def test_nothing_is_read_before_it_is_used(demo):
    router = wb.open_run(demo).router
    assert not router.assignments.variable._in_memory
    assert not router.isel(layer=0).assignments.variable._in_memory
    assert router.isel(layer=0, step=[0, 99]).assignments.values[:, 0].tolist() == [1, 100]


def test_weights_are_loaded_by_name_and_only_then(demo):
    checkpoint = wb.open_run(demo).checkpoints.at(40)
    assert checkpoint.weights.shape("blocks.0.w") == (2, 3)
    assert checkpoint.load("blocks.0.")["blocks.0.w"].unique().item() == 40
    assert checkpoint.tokens_seen == 40 * TOKENS
    with pytest.raises(CheckpointNotFound, match=r"blocks\.0\.v.*blocks\.0\.w"):
        checkpoint.load(["blocks.0.v"])
    with pytest.raises(CheckpointNotFound, match=r"near it: 20, 30, 40, 50, 60"):
        wb.open_run(demo).checkpoints.at(41)


def test_a_slice_of_the_checkpoints_brings_its_own_scores(demo):
    late = wb.open_run(demo).checkpoints[-3:]
    assert late.steps == [80, 90, 100]
    assert late.evaluations.checkpoint.values.tolist() == [80, 90, 100]
    assert late.evaluations.tokens_seen.values.tolist() == [5120, 5760, 6400]
    assert late[-1].step == 100
    with pytest.raises(IndexError, match="10"):
        wb.open_run(demo).checkpoints[10]


@pytest.mark.parametrize(
    ("asked", "clock", "start", "stop"),
    [
        ({"last": 0.2}, "tokens", 80, 100),
        ({"last": 1.0}, "tokens", 0, 100),
        ({"last": "10h"}, "utc", 90, 100),
        ({"last_tokens": 5 * TOKENS}, "tokens", 95, 100),
        ({"start": 20, "stop": 40}, "step", 20, 40),
        ({"start": 60}, "step", 60, 100),
        ({"stop": 30}, "step", 0, 30),
    ],
)
def test_a_window_is_half_open_on_the_clock_it_was_asked_on(demo, asked, clock, start, stop):
    window = wb.open_run(demo).window(**asked)
    assert (window.clock, window.start, window.stop) == (clock, start, stop)
    assert window.train.step.values.tolist() == list(range(start + 1, stop + 1))
    assert window.router.sizes["step"] == stop - start
    saved = [step for step in range(10, 101, 10) if start < step <= stop]
    assert window.checkpoints.steps == saved
    assert window.evaluations.checkpoint.values.tolist() == saved


@pytest.mark.parametrize(
    "asked",
    [{}, {"last": 0.2, "start": 3}, {"last": 0}, {"last": 1.5}, {"last": "a week"}, {"last": "0d"},
     {"last_tokens": -1}, {"last_tokens": float("nan")}, {"start": 40, "stop": 40}],
)  # fmt: skip
def test_a_window_that_cannot_be_is_refused_with_what_can(demo, asked):
    with pytest.raises(ClockError):
        wb.open_run(demo).window(**asked)


def test_a_missing_run_is_answered_with_the_runs_near_by(demo):
    with pytest.raises(RunNotFound, match=r"runs near by: .*demo"):
        wb.open_run(demo.parent / "dmeo")
    with pytest.raises(RunNotFound, match=r"found no run\.json, store or index there; .*demo"):
        wb.open_run(demo.parent)


def test_an_unknown_branch_is_answered_with_the_branches(demo):
    with pytest.raises(RunNotFound, match=r"main, curriculum; did you mean 'curriculum'\?"):
        wb.open_run(demo, "curicculum")


def test_an_absent_group_says_what_there_is(demo):
    with pytest.raises(RunNotFound, match=r"'activations'; the record holds router, train, eval"):
        _ = wb.open_run(demo).activations


def test_a_run_of_checkpoints_without_a_record_opens(tmp_path):
    for step in (10, 20):
        save_weights(tmp_path, "main", step)
    save_weights(tmp_path, "code", 30, parent=("main", 10))
    run = wb.open_run(tmp_path, "code")
    assert run.checkpoints.steps == [10, 30]
    assert (run.parent, run.fork_step) == ("main", 10)
    assert run.window(last_tokens=5).checkpoints.steps == [30]
    assert "nothing yet" in repr(run)
    with pytest.raises(RunNotFound, match="only checkpoints"):
        _ = run.router


def test_a_record_without_checkpoints_opens(tmp_path):
    with RunStore.create(tmp_path / "store", LAYOUT).writer("main") as w:
        w.append("router", rows(1, 20)[0])
    run = wb.open_run(tmp_path)
    assert len(run.checkpoints) == 0
    assert run.name == tmp_path.name
    # Every step was recorded, so the tokens are known although nobody kept that clock.
    assert run.window(last=0.5).start == 10
    assert "no checkpoints" in repr(run.checkpoints)


def test_a_run_that_has_only_begun_opens(tmp_path):
    (tmp_path / "run.json").write_text('{"name": "young"}')
    run = wb.open_run(tmp_path)
    assert "not started" in repr(run)
    RunStore.create(tmp_path / "store", LAYOUT)
    assert "not started" in repr(run.refresh())


def test_refresh_shows_what_was_committed_meanwhile_and_old_datasets_stay(tmp_path):
    store = RunStore.create(tmp_path / "store", LAYOUT)
    with store.writer("main") as w:
        train_to(w, tmp_path, 1, 10)
        run = wb.open_run(tmp_path)
        before = run.train
        train_to(w, tmp_path, 11, 20)
        assert run.train.sizes["step"] == before.sizes["step"] == 10
        assert run.refresh().train.sizes["step"] == 20
        assert run.checkpoints.steps == [10, 20]
    assert before.loss.values[-1] == np.float32(0.4)


def test_a_run_stays_open_when_the_program_changes_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = RunStore.create("runs/a/store", LAYOUT)
    with store.writer("main") as w:
        train_to(w, tmp_path / "runs/a", 1, 10)
        run = wb.open_run("runs/a")
        assert "at runs/a\n" in repr(run)
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir("elsewhere")
        train_to(w, tmp_path / "runs/a", 11, 20)
    assert run.refresh().train.sizes["step"] == 20
    assert run.checkpoints[-1].load()["blocks.0.w"].max() == 20


def test_checkpoints_that_a_rollback_set_aside_are_no_longer_of_the_branch(tmp_path):
    store = RunStore.create(tmp_path / "store", LAYOUT)
    with store.writer("main") as w:
        train_to(w, tmp_path, 1, 40)
    store.rollback("main", 20)
    assert wb.open_run(tmp_path).checkpoints.steps == [10, 20]
    with store.writer("main") as w:
        train_to(w, tmp_path, 21, 30)
    assert wb.open_run(tmp_path).checkpoints.steps == [10, 20, 30]


def test_a_half_written_checkpoint_is_named_when_it_is_loaded(tmp_path):
    save_weights(tmp_path, "main", 10)
    file = tmp_path / "checkpoints/main/step-00000010/model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    checkpoint = wb.open_run(tmp_path).checkpoints[0]
    found, expected = len(whole) - 5, len(whole)
    with pytest.raises(
        CheckpointIncomplete, match=f"{found} bytes, expected {expected} bytes; use"
    ):
        checkpoint.load()


def test_a_run_json_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunNotFound, match=r"run\.json cannot be read"):
        _ = wb.open_run(tmp_path).attrs


def test_xarray_reads_the_store_without_this_code(demo):
    code = f"""
import warnings; warnings.simplefilter("error")
import icechunk, xarray
icechunk.set_logs_filter("error")
repo = icechunk.Repository.open(icechunk.local_filesystem_storage({str(demo / "store")!r}))
store = repo.readonly_session("curriculum").store
router = xarray.open_zarr(store, group="router", consolidated=False, chunks=None)
print(router.sizes["step"], *router.domain.values, router.assignments.attrs["units"])
scores = xarray.open_zarr(store, group="evaluations", consolidated=False, chunks=None)
print(*scores.task.values, *scores.family.values, sorted(scores.coords))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=demo)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
    first, second = done.stdout.splitlines()
    assert first == "120 prose code_text assignments"
    assert second == (
        "logic/chains logic ['chance', 'checkpoint', 'family', 'item_count', 'task', 'tokens_seen']"
    )


def test_opening_a_run_never_loads_torch(demo):
    code = (
        "import sys, workbench as wb; run = wb.open_run(sys.argv[1]); repr(run); run.router.load();"
        "run.checkpoints[0].weights.shape('blocks.0.w'); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(demo)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(wb.__file__).parent.parent)},
    )  # fmt: skip
    assert done.stdout.strip() == "False", done.stderr


def test_traces_sites_and_interiors_open_beside_the_rest(tmp_path):
    layout = Layout(
        layers=(0, 1), experts=4, k=2, domains=("prose", "code_text"),
        tokens=ProbeTokens((5, 6, 7), ("prose",) * 3),
    )  # fmt: skip
    site = Variable(("checkpoint", "token", "dim_2"), "float32", "1", "A site.")
    with RunStore.create(tmp_path / "store", layout).writer("main") as w:
        for step in range(1, 21):
            train = rows(step, step)[1]
            w.append("train", train)
            count = step % 3
            if count:
                w.append(
                    "traces",
                    {
                        "step": np.full(count, step),
                        "expert_ids": np.full((count, 2, 2), 3, "int16"),
                        "domain": np.ones(count, "int16"),
                    },
                )
            if step % 10 == 0:
                label = {"checkpoint": np.array([step]), "tokens_seen": np.array([step * TOKENS])}
                w.append(
                    "activations",
                    label | {"blocks.1.hook_resid_post": np.full((1, 3, 2), step, "float32")},
                    {"blocks.1.hook_resid_post": site},
                )
                offsets = np.array([[[0, 0, 0, 0, 0], [0, 1, 1, 3, 3]]])
                w.append(
                    "interiors",
                    label | {
                        "offsets": offsets,
                        "values": np.full((3, 6), step, "float32"),
                        "token": np.arange(3, dtype="int32"),
                        "gate": np.ones(3, "float32"),
                    },
                )  # fmt: skip
                w.commit(f"checkpoint {step}")
                w.tag_checkpoint(step)
    run = wb.open_run(tmp_path)
    assert set(run.tree.children) == {"train", "activations", "traces", "interiors"}
    assert run.traces.attrs["domains"] == ["prose", "code_text"]
    assert run.traces.sizes["trace"] == 7 * 1 + 7 * 2
    week = run.window(start=10)
    assert set(week.traces.step.values) == {11, 13, 14, 16, 17, 19, 20}
    assert week.activations["blocks.1.hook_resid_post"].values.tolist() == [[[20, 20]] * 3]
    assert week.interiors.checkpoint.values.tolist() == [20]
    last = run.interior(layer=1, expert=2)
    assert last["values"].shape == (2, 6)
    assert (last["values"] == 20).all()
    assert last.token.values.tolist() == [1, 2]
    assert run.interior(layer=1, expert=1).sizes["row"] == 0
    first = run.interior(layer=1, expert=0, checkpoint=10)
    assert (first["values"] == 10).all()
    for said in ("21 trace", "6 row", "blocks.1.hook_resid_post", "expert_ids"):
        assert said in repr(run)
    assert "dim_2" not in repr(run)


def test_a_router_record_with_gaps_keeps_the_clock_of_the_steps_that_it_has(tmp_path):
    with RunStore.create(tmp_path / "store", LAYOUT).writer("main") as w:
        router, train = rows(1, 40)
        w.append("train", train)
        w.append("router", {name: values[3::4] for name, values in router.items()})
    run = wb.open_run(tmp_path)
    assert run.router.step.values.tolist() == list(range(4, 41, 4))
    assert (run.router.tokens_seen == run.router.step * TOKENS).all()
    week = run.window(last=0.5)
    assert (week.start, week.stop) == (20, 40)
    assert week.train.sizes["step"] == 20
    assert week.router.step.values.tolist() == [24, 28, 32, 36, 40]
    assert "steps 1 to 40" in repr(run)


def test_the_end_of_a_run_is_that_of_its_clock(demo):
    run = wb.open_run(demo)
    for arm in run.branches:
        seen = run.arm(arm)
        assert (seen.step_count, seen.last_step) == (len(seen.clock), int(seen.clock.step[-1]))


def test_what_is_no_phase_in_a_run_json_that_was_edited_is_left_out(tmp_path):
    good = {"name": "final", "start": 5, "stop": 9}
    odd = [3, None, {"start": "x"}, {"start": 1e400}, {"start": -1}, {"start": 10**400}, good]
    (tmp_path / "run.json").write_text(json.dumps({"phases": odd}))
    run = Run(tmp_path)
    assert run.phases == [good]
