"""What happens to the record when processes crowd: writers of many arms, rivals, readers."""

from __future__ import annotations

import os
import socket

import pytest

from workbench.errors import StoreBusy

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


ARM = """
with store.writer(sys.argv[2]) as w:
    print("begun", flush=True)
    sys.stdin.readline()
    for step in range(21, 51):
        router, train = rows(step, step)
        w.append("router", router)
        w.append("train", train)
        if step % 3 == 0:
            w.sync()
        w.commit("one")
        if step % 10 == 0:
            w.tag_checkpoint(step)
"""


def test_four_processes_write_four_arms_at_once_and_lose_nothing(
    small_store, rows, start, check_steps
):
    with small_store.writer("main") as w:
        for group, values in zip(("router", "train"), rows(1, 20), strict=True):
            w.append(group, values)
        w.commit("trunk")
        w.tag_checkpoint(20)
    arms = ("north", "east", "south", "west")
    for arm in arms:
        small_store.fork(arm, "main", at_step=20)
    writers = [start(ARM, arm) for arm in arms]
    for writer in writers:
        assert writer.stdout.readline() == "begun\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    # Arms are forked and read while four others commit.
    small_store.fork("late", "main", at_step=20)
    while any(writer.poll() is None for writer in writers):
        for arm in arms:
            assert check_steps(small_store.read(arm)) >= 20
    assert [writer.wait() for writer in writers] == [0, 0, 0, 0]
    for arm in arms:
        assert check_steps(small_store.read(arm)) == 50
        history = small_store.repository.ancestry(branch=arm)
        assert len(list(history)) == 2 + 1 + 30
        assert list(small_store.checkpoints(arm)) == [20, 30, 40, 50]
    assert small_store.branches == ["main", "east", "late", "north", "south", "west"]


RACE = """
from workbench.errors import StoreBusy
print("here", flush=True)
sys.stdin.readline()
try:
    with store.writer("main") as w:
        router, train = rows(1, 5)
        w.append("router", router)
        w.append("train", train)
        w.commit("mine")
        print("mine", flush=True)
        sys.stdin.readline()
except StoreBusy as busy:
    print(busy, flush=True)
"""


def test_of_four_processes_that_want_one_branch_one_gets_it_and_the_others_are_told_who(
    small_store, start, check_steps
):
    rivals = [start(RACE) for _ in range(4)]
    for rival in rivals:
        assert rival.stdout.readline() == "here\n"
    for rival in rivals:
        rival.stdin.write("go\n")
        rival.stdin.flush()
    told = {rival.pid: rival.stdout.readline() for rival in rivals}
    winners = [pid for pid, words in told.items() if words == "mine\n"]
    assert len(winners) == 1
    host = socket.gethostname()
    for pid, words in told.items():
        if pid not in winners:
            assert f"process {winners[0]} on host {host}" in words
    assert check_steps(small_store.read("main")) == 5


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


def test_leaving_by_an_exception_drops_what_was_appended_in_part(small_store, rows):
    def interrupted():
        with small_store.writer("main") as w:
            w.append("router", rows(1, 5)[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert small_store.read("main").groups == ()
    small_store.writer("main").close()
