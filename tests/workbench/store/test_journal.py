"""Rows that wait for a commit: kept by the journal, seen by readers, taken in once."""

from __future__ import annotations

import signal

import numpy as np
import pytest

import workbench.store.journal as journals
from workbench.errors import SchemaError
from workbench.store.journal import Journal, read_journal
from workbench.store.run_store import RunStore

SEAL_AND_WAIT = """
w = store.writer("main")
for step in range(1, 8):
    router, train = rows(step, step)
    w.append("router", router)
    w.append("train", train)
    if step == 3:
        w.commit("three")
        w.tag_checkpoint(3)
    if step == 6:
        w.seal()
print("sealed", flush=True)
sys.stdin.read()
"""


def append(writer, rows, first, last):
    for group, values in zip(("router", "train"), rows(first, last), strict=True):
        writer.append(group, values)


def journal_files(store):
    folder = store.location.journal_folder
    return sorted(folder.iterdir()) if folder.exists() else []


def test_what_was_sealed_outlives_a_kill_and_is_committed_by_the_next_writer(
    small_store, rows, start, check_steps
):
    process = start(SEAL_AND_WAIT)
    assert process.stdout.readline() == "sealed\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert check_steps(small_store.read("main")) == 6  # before any writer has come
    with small_store.writer("main") as w:
        assert w.recovered == 3
        assert w.last("router") == 6
        append(w, rows, 7, 9)
    assert check_steps(small_store.read("main")) == 9
    assert not small_store.read("main").tail
    assert journal_files(small_store) == []


def test_a_reader_of_a_live_run_sees_what_is_not_committed_yet(small_store, rows, check_steps):
    with small_store.writer("main") as w:
        append(w, rows, 1, 50)
        w.seal()
        assert check_steps(small_store.read("main")) == 50  # no array exists yet
        w.commit("fifty")
        append(w, rows, 51, 57)
        assert check_steps(small_store.read("main")) == 50
        w.sync()
        live = small_store.read("main")
        assert check_steps(live) == 57
        assert live.labels("router", "step").tolist() == list(range(1, 58))
        append(w, rows, 58, 60)
        w.commit("sixty")
        assert check_steps(live) == 57
        assert check_steps(small_store.read("main")) == 60


def test_a_rollback_sets_aside_what_was_only_in_the_journal(small_store, rows, start, check_steps):
    process = start(SEAL_AND_WAIT)
    assert process.stdout.readline() == "sealed\n"
    process.kill()
    process.wait()
    aside = small_store.rollback("main", 3)
    assert aside.steps == (4, 6)
    assert check_steps(small_store.read("main")) == 3
    assert check_steps(small_store.read_tag(aside.tag)) == 6


def test_a_journal_whose_rows_were_committed_is_not_taken_in_again(
    small_store, rows, monkeypatch, check_steps
):
    # The kill that comes between a commit and the removal of the journal before it.
    monkeypatch.setattr(Journal, "begin", lambda self, snapshot: None)
    w = small_store.writer("main")
    append(w, rows, 1, 5)
    w.sync()
    w.commit("five")
    w.close()
    monkeypatch.undo()
    assert len(journal_files(small_store)) == 1
    assert check_steps(small_store.read("main")) == 5
    with small_store.writer("main") as again:
        assert again.recovered == 0
        append(again, rows, 6, 6)
    assert check_steps(small_store.read("main")) == 6
    assert journal_files(small_store) == []


@pytest.mark.parametrize("cut", [1, 7, 15, 16, 17, 40, 200])
def test_a_frame_that_was_cut_short_is_left_out_and_those_before_it_stay(
    small_store, rows, check_steps, cut
):
    w = small_store.writer("main")
    append(w, rows, 1, 4)
    w.seal()
    append(w, rows, 5, 6)
    w.seal()
    w.close()
    (file,) = journal_files(small_store)
    file.write_bytes(file.read_bytes()[:-cut])
    assert check_steps(small_store.read("main")) == 4
    with small_store.writer("main") as again:
        append(again, rows, 5, 9)
        again.seal()
        assert check_steps(small_store.read("main")) == 9
    assert check_steps(small_store.read("main")) == 9


def test_every_flipped_bit_of_a_frame_is_found(small_store, rows):
    w = small_store.writer("main")
    append(w, rows, 1, 2)
    w.seal()
    w.close()
    (file,) = journal_files(small_store)
    whole = file.read_bytes()
    for at in range(0, len(whole), 3):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << (at % 8)
        file.write_bytes(flipped)
        found = read_journal(file)
        assert (found.entries, found.lost, len(found.rest)) == ([], 0, len(whole))


@pytest.mark.parametrize("at", [1, 5, 14, 40, -20])
def test_a_damaged_frame_is_told_and_those_before_and_behind_it_are_read(small_store, rows, at):
    w = small_store.writer("main")
    ends = [0]
    for first in (1, 3, 5):
        append(w, rows, first, first + 1)
        w.seal()
        (file,) = journal_files(small_store)
        ends.append(file.stat().st_size)
    w.close()
    damaged = bytearray(file.read_bytes())
    damaged[ends[1] + at if at > 0 else ends[2] + at] ^= 4
    file.write_bytes(damaged)
    with pytest.warns(RuntimeWarning, match="steps in them are lost"):
        assert small_store.read("main").labels("train", "step").tolist() == [1, 2, 5, 6]
    with pytest.warns(RuntimeWarning, match="steps in them are lost"):
        w = small_store.writer("main")
    with w:
        assert w.recovered == 4
    assert small_store.read("main").labels("router", "step").tolist() == [1, 2, 5, 6]
    (kept,) = journal_files(small_store)
    assert kept.suffix == ".damaged"
    assert kept.read_bytes() == damaged


def test_a_full_disk_costs_the_journal_nothing_that_was_sealed(
    small_store, rows, monkeypatch, check_steps
):
    w = small_store.writer("main")
    append(w, rows, 1, 4)
    w.seal()
    real = journals.os.pwrite

    def half(fd, data, offset):
        if len(data) > 100:
            return real(fd, data[:100], offset)
        raise OSError(28, "No space left on device")

    append(w, rows, 5, 6)
    with monkeypatch.context() as full:
        full.setattr(journals.os, "pwrite", lambda fd, data, at: half(fd, data[:150], at))
        with pytest.raises(OSError, match="No space"):
            w.seal()
    assert check_steps(small_store.read("main")) == 4
    w.seal()
    assert check_steps(small_store.read("main")) == 6
    w.close()
    with small_store.writer("main") as again:
        assert again.recovered == 6


def test_what_was_appended_in_part_when_an_error_came_is_not_in_the_journal(small_store, rows):
    def interrupted():
        with small_store.writer("main") as w:
            append(w, rows, 1, 5)
            w.seal()
            w.append("router", rows(6, 7)[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with small_store.writer("main") as again:
        assert again.last("router") == again.last("train") == 5


def test_rows_that_were_refused_are_not_in_the_journal(small_store, rows):
    with small_store.writer("main") as w:
        append(w, rows, 1, 5)
        with pytest.raises(SchemaError):
            w.append("router", rows(3, 4)[0])
        w.seal()
        assert small_store.read("main").labels("router", "step").tolist() == [1, 2, 3, 4, 5]


def test_arms_have_journals_of_their_own(small_store, rows, check_steps):
    with small_store.writer("main") as w:
        append(w, rows, 1, 2)
        w.commit("two")
        w.tag_checkpoint(2)
    small_store.fork("arm", "main", at_step=2)
    with small_store.writer("main") as trunk, small_store.writer("arm") as arm:
        append(trunk, rows, 3, 5)
        append(arm, rows, 3, 9)
        trunk.seal()
        arm.seal()
        assert check_steps(small_store.read("main")) == 5
        assert check_steps(small_store.read("arm")) == 9
        arm.commit("nine")
        assert check_steps(small_store.read("main")) == 5


def test_slow_quantities_and_rows_are_joined_along_their_own_dims(small_store, rows):
    with small_store.writer("main") as w:
        for first in (1, 3):
            router, train = rows(first, first + 1)
            router |= {
                "sample": np.array([first]),
                "coactivation": np.full((1, 2, 4, 4), first),
                "entropy_histogram": np.full((1, 2, 32), first),
            }
            w.append("router", router)
            w.append("train", train)
            w.seal()
        tail = RunStore.open(small_store.path).read("main").tail
    assert tail["router"]["step"]["step"].tolist() == [1, 2, 3, 4]
    assert tail["router"]["sample"]["sample"].tolist() == [1, 3]
    assert tail["router"]["sample"]["coactivation"].shape == (2, 2, 4, 4)


def test_the_end_of_a_run_is_known_without_reading_its_steps(small_store, rows):
    store, dims = small_store, ("train", "step")
    assert store.read("main").end(*dims) == (0, None)
    with store.writer("main") as w:
        append(w, rows, 1, 3)
        w.seal()
        assert store.read("main").end(*dims) == (3, 3)
        w.commit("three")
        assert store.read("main").end(*dims) == (3, 3)
        append(w, rows, 4, 9)
        w.seal()
        assert store.read("main").end(*dims) == (9, 9)
