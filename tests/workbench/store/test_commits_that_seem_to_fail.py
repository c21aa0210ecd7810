"""Commits of which the writer does not learn how they ended: nothing acknowledged is lost."""

from __future__ import annotations

import signal

import numpy as np
import pytest

from workbench.errors import StoreBusy, UsageError
from workbench.store.layout import Layout
from workbench.store.run_store import RunStore


def append(writer, rows, first, last):
    for group, values in zip(("router", "train"), rows(first, last), strict=True):
        writer.append(group, values)


def crash(writer):
    """What a kill leaves: no lock, and files as they are."""
    writer._journal.close()
    writer._lock.close()


def test_what_is_synced_after_a_commit_whose_last_sync_failed_outlives_a_kill(
    small_store, rows, monkeypatch, check_steps
):
    import workbench.store.location as place

    w = small_store.writer("main")
    append(w, rows, 1, 3)
    w.sync()
    real, calls = place.sync_tree, []

    def failing(folder):
        calls.append(folder)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        real(folder)

    monkeypatch.setattr(place, "sync_tree", failing)
    with pytest.raises(OSError, match="Input/output"):
        w.commit("three")
    append(w, rows, 4, 6)
    w.sync()
    assert check_steps(small_store.read("main")) == 6
    crash(w)
    with small_store.writer("main") as again:
        assert again.recovered == 3
    assert check_steps(small_store.read("main")) == 6
    assert list(small_store.location.journal_folder.iterdir()) == []


def test_a_commit_that_a_power_cut_undoes_is_made_again_from_both_journals(
    small_store, rows, monkeypatch, check_steps
):
    import workbench.store.location as place

    w = small_store.writer("main")
    append(w, rows, 1, 3)
    w.sync()
    before, calls = w.snapshot_id, []

    def failing(folder):
        calls.append(folder)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(place, "sync_tree", failing)
        with pytest.raises(OSError, match="Input/output"):
            w.commit("three")
        append(w, rows, 4, 6)
        w.sync()
    crash(w)
    # The branch's move was not on the disk.
    small_store.repository.reset_branch("main", before)
    with small_store.writer("main") as again:
        assert again.recovered == 6
    assert check_steps(small_store.read("main")) == 6


def test_rows_that_have_samples_and_no_steps_are_taken_in_again(small_store, monkeypatch):
    import workbench.store.location as place

    def pairs(step):
        return {
            "sample": np.array([step]),
            "coactivation": np.full((1, 2, 4, 4), step),
            "entropy_histogram": np.full((1, 2, 32), step),
        }

    w = small_store.writer("main")
    w.append("router", pairs(1))
    w.sync()
    before = w.snapshot_id
    with monkeypatch.context() as broken:
        broken.setattr(place, "sync_tree", lambda folder: None)
        w.commit("one")
    w.append("router", pairs(2))
    w.sync()
    crash(w)
    small_store.repository.reset_branch("main", before)
    with small_store.writer("main") as again:
        assert again.last("router", "sample") == 2


@pytest.mark.parametrize("error", [ConnectionError("the answer was lost"), KeyboardInterrupt()])
def test_a_commit_whose_answer_was_lost_is_found_by_the_next(
    small_store, rows, monkeypatch, check_steps, error
):
    w = small_store.writer("main")
    append(w, rows, 1, 3)
    w.seal()
    real = RunStore.move

    def lost(store, branch, to, *, since):
        real(store, branch, to, since=since)
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(RunStore, "move", lost)
        with pytest.raises(type(error)):
            w.commit("three")
    append(w, rows, 4, 5)
    w.sync()
    w.fill_layout(domains=("web",))
    append(w, rows, 6, 6)
    w.commit("six")
    assert check_steps(small_store.read("main")) == 6
    assert small_store.read("main").layout.domains == ("web",)
    append(w, rows, 7, 8)
    w.close()
    assert check_steps(small_store.read("main")) == 6


def test_rows_that_came_after_a_commit_whose_answer_was_lost_outlive_a_kill(
    small_store, rows, monkeypatch, check_steps
):
    w = small_store.writer("main")
    append(w, rows, 1, 3)
    w.sync()
    real = RunStore.move

    def lost(store, branch, to, *, since):
        real(store, branch, to, since=since)
        raise ConnectionError("the answer was lost")

    with monkeypatch.context() as broken:
        broken.setattr(RunStore, "move", lost)
        with pytest.raises(ConnectionError):
            w.commit("three")
    append(w, rows, 4, 5)
    w.sync()
    crash(w)
    with small_store.writer("main") as again:
        assert again.recovered == 2
    assert check_steps(small_store.read("main")) == 5


def test_a_commit_that_did_not_move_the_branch_is_made_again(
    small_store, rows, monkeypatch, check_steps
):
    w = small_store.writer("main")
    append(w, rows, 1, 3)

    def refused(store, branch, to, *, since):
        raise ConnectionError("no route")

    with monkeypatch.context() as broken:
        broken.setattr(RunStore, "move", refused)
        with pytest.raises(ConnectionError):
            w.commit("three")
    append(w, rows, 4, 5)
    w.commit("five")
    w.close()
    assert check_steps(small_store.read("main")) == 5


def test_a_writer_that_lost_its_lock_acknowledges_nothing(small_store, rows, check_steps):
    w = small_store.writer("main")
    append(w, rows, 1, 3)
    w.sync()
    w._lock.path.unlink()
    with small_store.writer("main") as rival:
        append(w, rows, 4, 4)
        with pytest.raises(StoreBusy, match="removed while it was needed"):
            w.sync()
        append(rival, rows, 4, 9)
    assert check_steps(small_store.read("main")) == 9


def test_rows_under_labels_that_no_commit_holds_are_committed_to_be_safe(tmp_path, rows):
    store = RunStore.create(tmp_path / "store", Layout(layers=(0, 1), experts=4, k=2))
    w = store.writer("main")
    w.fill_layout(domains=("web", "code"))
    router, train = rows(1, 3)
    router["domain_assignments"] = np.ones((3, 2, 2, 4), np.int64)
    w.append("router", router)
    w.append("train", train)
    w.sync()
    crash(w)
    with store.writer("main") as again:
        assert again.last("router") == 3
    assert store.read("main").dataset("router").domain.values.tolist() == ["web", "code"]


HOLD = """
lock = store.commit_lock()
lock.acquire(wait=True)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_process_that_was_stopped_in_a_commit_stops_no_other_for_ever(
    small_store, rows, start, monkeypatch, check_steps
):
    import workbench.store.lock as locks

    holder = start(HOLD)
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.3)
    w = small_store.writer("main")
    append(w, rows, 1, 3)
    with pytest.raises(StoreBusy, match=rf"by process {holder.pid} on host"):
        w.commit("three")
    w.sync()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    w.commit("three")
    w.close()
    assert check_steps(small_store.read("main")) == 3


def test_a_checkpoint_that_the_store_refuses_is_not_entered_into_the_index(tmp_path, tiny_plan):
    import torch

    import workbench as wb
    from model.lm import MoELM

    model = MoELM(tiny_plan.model)
    recorder = wb.Recorder(model, tmp_path / "run")
    for step in range(1, 4):
        with recorder.step(step, tokens=16):
            tokens = torch.randint(0, 99, (2, 9))
            model(tokens[:, :-1], tokens[:, 1:], return_type="loss").backward()
    weights = tmp_path / "weights.safetensors"
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, weights)
    with pytest.warns(RuntimeWarning, match="left something out"):
        recorder.checkpoint(weights, step=2)
    recorder.close()
    run = wb.open_run(tmp_path / "run")
    assert len(run.checkpoints) == 0
    assert run.train.step.values.tolist() == [1, 2, 3]
    with pytest.raises(UsageError):
        recorder.begin(9)
