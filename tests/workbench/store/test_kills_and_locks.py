"""What happens to the record when processes die, crowd and read at once."""

from __future__ import annotations

import os
import random
import select
import signal

import pytest

import workbench.store.writer as writing
from workbench.errors import StoreBusy
from workbench.store.run_store import RunStore

WRITE_FOREVER = """
with store.writer("main") as w:
    step = w.last("router") or 0
    size = int(sys.argv[2])
    while True:
        router, train = rows(step + 1, step + size)
        w.append("router", router)
        w.append("train", train)
        w.commit("more")
        step += size
        print(step, flush=True)
"""


def test_five_kills_at_random_moments_lose_no_committed_step(small_store, start, check_steps):
    chance = random.Random(5)
    acknowledged = 0
    for size in (7, 50, 1, 13, 33):
        writer = start(WRITE_FOREVER, str(size))
        for _ in range(chance.randrange(2, 6)):
            acknowledged = int(writer.stdout.readline())
        # A random moment inside the commits that follow.
        select.select([], [], [], chance.uniform(0, 0.06))
        writer.send_signal(signal.SIGKILL)
        said = writer.communicate()[0].split()
        acknowledged = max([acknowledged, *map(int, said)])
        there = check_steps(RunStore.open(small_store.path).read("main"))
        assert there >= acknowledged
        assert there <= acknowledged + size


def test_a_reader_of_a_live_run_sees_whole_commits_only(small_store, start, check_steps):
    writer = start(WRITE_FOREVER, "10")
    seen = set()
    kept = small_store.read("main")
    while len(seen) < 6:
        n = check_steps(small_store.read("main"))
        assert n % 10 == 0
        if n and not kept.groups:
            kept = small_store.read("main")
            first = check_steps(kept)
        seen.add(n)
    assert writer.poll() is None
    assert check_steps(kept) == first


def test_two_processes_write_two_arms_at_once_and_lose_nothing(
    small_store, rows, start, check_steps
):
    with small_store.writer("main") as w:
        for group, values in zip(("router", "train"), rows(1, 20), strict=True):
            w.append(group, values)
        w.commit("trunk")
        w.tag_checkpoint(20)
    small_store.fork("left", "main", at_step=20)
    small_store.fork("right", "main", at_step=20)
    code = """
with store.writer(sys.argv[2]) as w:
    for step in range(21, 46):
        router, train = rows(step, step)
        w.append("router", router)
        w.append("train", train)
        w.commit("one")
"""
    writers = [start(code, branch) for branch in ("left", "right")]
    assert [writer.wait() for writer in writers] == [0, 0]
    for branch in ("left", "right"):
        assert check_steps(small_store.read(branch)) == 45
        assert len(small_store._history(branch)) == 2 + 1 + 25


HOLD = """
with store.writer("main") as w:
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_lock_of_another_process_is_told_and_freed_by_its_death(small_store, start):
    holder = start(HOLD)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(StoreBusy, match=rf"process {holder.pid} on host \S+ since 20"):
        small_store.writer("main")
    with pytest.raises(StoreBusy, match="'main'"):
        small_store.rollback("main", 0)
    holder.kill()
    holder.wait()
    small_store.writer("main").close()


def test_a_child_that_outlives_its_killed_parent_does_not_keep_the_lock(small_store, start):
    code = """
with store.writer("main") as w:
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)
        sys.stdin.read()
        os._exit(0)
    os.kill(os.getpid(), 9)
"""
    parent = start(code)
    child = int(parent.stdout.readline())
    parent.wait()
    os.kill(child, 0)
    small_store.writer("main").close()


def test_a_writer_that_was_overtaken_refuses_to_commit(small_store, rows):
    with small_store.writer("main") as w:
        w.append("router", rows(1, 5)[0])
        w.commit("five")
        root = small_store._history("main")[-2]
        small_store.repository.reset_branch("main", root)
        w.append("router", rows(6, 7)[0])
        with pytest.raises(StoreBusy, match="was moved to"):
            w.commit("two more")
        w.close()
    assert small_store.read("main").groups == ()


@pytest.mark.parametrize("failing", [1, 2])
def test_after_a_full_disk_the_rows_still_wait_and_commit_again(
    small_store, rows, monkeypatch, check_steps, failing
):
    real, calls = writing.sync_tree, []

    def full(folder):
        calls.append(folder)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        real(folder)

    with small_store.writer("main") as w:
        for begin in (1, 31):
            router, train = rows(begin, begin + 29)
            w.append("router", router)
            w.append("train", train)
            if begin == 1:
                w.commit("before")
        monkeypatch.setattr(writing, "sync_tree", full)
        with pytest.raises(OSError, match="No space"):
            w.commit("on a full disk")
        w.commit("with room again")
        assert len(calls) == 3
        assert w.waiting == 0
    assert check_steps(small_store.read("main")) == 60


def test_leaving_by_an_exception_drops_what_was_appended_in_part(small_store, rows):
    def interrupted():
        with small_store.writer("main") as w:
            w.append("router", rows(1, 5)[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert small_store.read("main").groups == ()
    small_store.writer("main").close()
