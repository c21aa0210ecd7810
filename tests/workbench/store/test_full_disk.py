"""The disk fills up, and has room again: what was acknowledged stays, what was not waits."""

from __future__ import annotations

import errno
import os
import warnings
from contextlib import suppress

import ledger
import numpy as np
import pytest
import torch
from icechunk import IcechunkError
from loop_disk import small_tmpfs
from torch import nn

import workbench.store.location as location
from workbench.capture.adapters.generic import Generic
from workbench.capture.recorder import Recorder
from workbench.store.run_store import RunStore
from workbench.store.verification import verify_store

FULL = (OSError, IcechunkError)


def fill(folder, leave=0):
    """Takes all the room of a file system but `leave` bytes; returns the file to remove."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize - leave
            if free <= 0 or not file.write(bytes(min(free, 1 << 20))):
                break
    return ballast


def append(writer, first, last):
    router, train = ledger.rows_of(first, last, life=1)
    writer.append("router", router)
    writer.append("train", train)


@pytest.fixture
def small_disk(tmp_path):
    with small_tmpfs(tmp_path / "disk", 8) as place:
        yield place


def test_a_writer_on_a_disk_that_fills_keeps_what_it_acknowledged_and_goes_on_with_room_again(
    small_disk,
):
    store = RunStore.create(small_disk / "store", ledger.LAYOUT)
    acknowledged = step = refused = 0
    with store.writer("main") as writer:
        ballast = fill(small_disk, leave=300_000)
        while refused < 3:
            step += 50
            append(writer, step - 49, step)
            try:
                writer.commit("fifty")
                assert not refused, "there was room after all"
                acknowledged = step
            except FULL:
                refused += 1
                assert len(ledger.shown(store.read("main"))) >= acknowledged
        assert acknowledged > 0
        assert writer.waiting > 0
        ballast.unlink()
        writer.commit("with room again")
        assert writer.waiting == 0
    assert len(ledger.shown(RunStore.open(small_disk / "store").read("main"))) == step


def test_when_the_journal_finds_no_room_its_rows_wait_and_readers_see_what_was_whole(small_disk):
    store = RunStore.create(small_disk / "store", ledger.LAYOUT)
    with store.writer("main") as writer:
        append(writer, 1, 10)
        writer.sync()
        ballast = fill(small_disk)

        def seal_each_of(steps):
            for step in steps:
                append(writer, step, step)
                writer.seal()

        with pytest.raises(OSError, match="No space"):
            seal_each_of(range(11, 200))
        step = writer.last("train")
        assert step < 199
        assert len(ledger.shown(store.read("main"))) == step - 1
        with pytest.raises(OSError, match="No space"):
            writer.sync()
        ballast.unlink()
        writer.sync()
        assert len(ledger.shown(store.read("main"))) == step
        writer.close()
    with store.writer("main") as writer:
        assert writer.recovered == step


def test_a_writer_that_dies_on_a_full_disk_leaves_what_was_acknowledged_to_the_next(small_disk):
    store = RunStore.create(small_disk / "store", ledger.LAYOUT)
    with store.writer("main") as writer:
        append(writer, 1, 50)
        writer.commit("fifty")
        append(writer, 51, 60)
        writer.sync()
        fill(small_disk)
        append(writer, 61, 90)
        with pytest.raises(FULL):
            writer.commit("no room")
        writer.close()
    # Nobody has made room yet: what is there can be read all the same.
    assert len(ledger.shown(RunStore.open(small_disk / "store").read("main"))) >= 60
    (small_disk / "ballast").unlink()
    with store.writer("main") as writer:
        last = writer.last("train")
        assert last >= 60
        append(writer, last + 1, 100)
        writer.commit("gone on")
    assert len(ledger.shown(store.read("main"))) == 100
    assert not verify_store(store).faults


def test_a_store_that_cannot_be_made_for_lack_of_room_leaves_nothing(small_disk):
    made = refused = 0
    for leave in (0, 4096, 16384, 32768, 65536, 131072):
        ballast = fill(small_disk, leave)
        try:
            RunStore.create(small_disk / "store", ledger.LAYOUT)
        except FULL:
            refused += 1
            assert [path.name for path in small_disk.iterdir()] == ["ballast"]
            ballast.unlink()
            continue
        made += 1
        assert len(ledger.shown(RunStore.open(small_disk / "store").read("main"))) == 0
        break
    assert refused >= 2
    assert made == 1


def test_training_goes_on_while_the_disk_is_full_and_no_step_is_missing_afterwards(small_disk):
    class Router(nn.Linear):
        def forward(self, logits_TE):
            top = logits_TE.softmax(-1).topk(ledger.K)
            return logits_TE, top.indices, top.values

    model = nn.ModuleList(Router(ledger.EXPERTS, ledger.EXPERTS) for _ in range(ledger.LAYERS))
    routers = Generic(
        modules=Router, read=lambda output: output,
        num_experts=ledger.EXPERTS, experts_per_token=ledger.K,
    )  # fmt: skip
    recorder = Recorder(model, small_disk / "run", routers=routers)

    def steps(first, last):
        for step in range(first, last + 1):
            token = torch.arange(int(ledger.tokens_of(step)))
            logits_TE = torch.zeros(len(token), ledger.EXPERTS)
            for place in range(ledger.K):
                logits_TE[token, (step + token + place) % ledger.EXPERTS] = 4.0 - place
            with recorder.step(step):
                for router in model:
                    router(logits_TE)
                recorder.log(loss=float(ledger.loss_of(step)), lr=1.0)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        steps(1, 70)
        recorder.checkpoint(small_disk, whole=False)
        before = recorder.dropped
        ballast = fill(small_disk)
        steps(71, 140)
        recorder.checkpoint(small_disk, whole=False)
        waiting = recorder.dropped
        ballast.unlink()
        steps(141, 200)
        recorder.checkpoint(small_disk, whole=False)
        recorder.close()
    assert before == 0
    assert 0 < waiting <= 70
    assert recorder.dropped == 0
    assert sum("capture cannot write" in str(warning.message) for warning in told) == 1
    store = RunStore.open(small_disk / "run" / "store")
    assert np.array_equal(ledger.shown(store.read("main")), np.ones(200))
    # Marked late, unless steps after it came first: then that is told.
    unmarked = any("checkpoint of step 140" in str(warning.message) for warning in told)
    assert list(store.checkpoints("main")) == ([70, 200] if unmarked else [70, 140, 200])
    assert not verify_store(store).faults


@pytest.mark.parametrize("failing", [1, 2])
def test_after_a_sync_that_failed_the_rows_still_wait_and_commit_again(
    tmp_path, monkeypatch, failing
):
    real, calls = location.sync_tree, []

    def full(folder):
        calls.append(folder)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(folder)

    store = RunStore.create(tmp_path / "store", ledger.LAYOUT)
    with store.writer("main") as writer:
        append(writer, 1, 30)
        writer.commit("before")
        append(writer, 31, 60)
        monkeypatch.setattr(location, "sync_tree", full)
        with pytest.raises(OSError, match="No space"):
            writer.commit("on a full disk")
        writer.commit("with room again")
        assert len(calls) == 3
        assert writer.waiting == 0
    assert len(ledger.shown(store.read("main"))) == 60
