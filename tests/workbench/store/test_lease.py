"""Leases: the lock of a store on object storage, against a local server that speaks S3."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from workbench.errors import StoreBusy
from workbench.store.layout import Layout
from workbench.store.location import Location
from workbench.store.object_storage import ObjectStorage
from workbench.store.run_store import RunStore

pytest.importorskip("obstore", reason="leases on object storage need obstore")

import obstore

from workbench.store.lease import Lease

LAYOUT = Layout(layers=(0, 1), experts=4, k=2)


@pytest.fixture
def store(place):
    return RunStore.create(place, LAYOUT, {"seed": 7})


def record(writer, rows, first, last):
    for group, values in zip(("router", "train"), rows(first, last), strict=True):
        writer.append(group, values)
    return writer.commit(f"{first} to {last}")


@pytest.fixture
def bucket(place):
    return Location.of(place)._locks


@pytest.fixture
def lease(bucket):
    """Make leases that go stale in a second; they are closed with the test."""
    made = []

    def make(stale_after_s=60.0):
        made.append(Lease(bucket, "main", "branch 'main'", stale_after_s))
        return made[-1]

    yield make
    for one in made:
        one.close()


def note_of(bucket):
    return json.loads(bytes(obstore.get(bucket, "main").bytes()))


def foreign(bucket, **more):
    """A lease that a process on another machine holds."""
    note = {"host": "node7", "pid": 1, "since_utc": "2026-01-01T00:00:00+00:00", "token": "other",
            "machine": "another", "started": "5", **more}  # fmt: skip
    obstore.put(bucket, "main", json.dumps(note).encode())


def test_of_twelve_that_want_a_lease_one_gets_it(lease):
    leases, told = [lease() for _ in range(12)], []
    together = threading.Barrier(12)

    def take(one):
        together.wait()
        try:
            one.acquire()
            told.append(one)
        except StoreBusy:
            pass

    for _ in range(3):
        told.clear()
        threads = [threading.Thread(target=take, args=(one,)) for one in leases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(told) == 1
        assert [one for one in leases if one.held] == told
        told[0].close()


def test_leases_that_are_waited_for_are_held_one_at_a_time(lease):
    inside, most, turns = [], [], []

    def work(one):
        for _ in range(5):
            one.acquire(wait=True)
            inside.append(1)
            most.append(len(inside))
            inside.pop()
            turns.append(1)
            one.close()

    threads = [threading.Thread(target=work, args=(lease(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(turns) == 20
    assert max(most) == 1


def test_a_held_lease_is_renewed_and_outlives_its_term(lease, bucket):
    holder = lease(stale_after_s=1.5)
    holder.acquire()
    first = note_of(bucket)
    until = time.monotonic() + 3
    while time.monotonic() < until:
        with pytest.raises(StoreBusy, match=f"process {os.getpid()}"):
            lease(stale_after_s=1.5).acquire()
        threading.Event().wait(0.1)
    holder.check()
    last = note_of(bucket)
    assert last["renewal"] != first["renewal"]
    assert last["since_utc"] == first["since_utc"]


def test_a_lease_of_another_machine_is_taken_when_it_is_stale_and_not_before(lease, bucket):
    foreign(bucket)
    with pytest.raises(StoreBusy, match="process 1 on host node7 since 2026"):
        lease().acquire()
    waiting = lease(stale_after_s=1.5)
    waiting.acquire(wait=True)
    assert note_of(bucket)["pid"] == os.getpid()


def test_the_age_of_a_lease_is_told_by_the_server_s_clock_alone(lease, bucket, monkeypatch):
    foreign(bucket)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 1e6)
    with pytest.raises(StoreBusy):
        lease().acquire()


def test_a_lost_lease_is_noticed_and_the_next_commit_refuses(store, rows, monkeypatch):
    import workbench.store.lease as leases

    with store.writer("main") as w:
        record(w, rows, 1, 5)
        # The network is away for 41 s: what the holder's clock says.
        now = leases._now()
        monkeypatch.setattr(leases, "_now", lambda: now + 41)
        w.append("router", rows(6, 7)[0])
        with pytest.raises(StoreBusy, match=r"lost: it could not be renewed for 4\d s"):
            w.commit("two more")
        w.close()


def test_a_holder_learns_who_took_its_lease(lease, bucket):
    holder = lease(stale_after_s=1.2)
    holder.acquire()
    foreign(bucket)
    # The thread that renews ends when it finds the lease taken.
    holder._thread.join(20)
    with pytest.raises(StoreBusy, match="taken by process 1 on host node7"):
        holder.check()
    # Giving back what was lost leaves the other's alone.
    holder.close()
    assert note_of(bucket)["host"] == "node7"


def test_an_answer_that_was_lost_on_the_way_is_not_another_holder(lease, bucket, monkeypatch):
    put, lost = obstore.put, []

    def unreliable(store, path, body, *, mode):
        answer = put(store, path, body, mode=mode)
        if path == "main" and not lost:
            lost.append(answer)
            # The request is sent again, and finds what it wrote itself.
            return put(store, path, body, mode=mode)
        return answer

    monkeypatch.setattr(obstore, "put", unreliable)
    one = lease()
    one.acquire()
    assert lost
    assert one.held


@pytest.mark.parametrize(
    "text", [b"", b"\0" * 10_000, b"[" * 4000, b"[]", b'{"pid": [], "host": 3}', b"\xff"]
)
def test_whatever_a_lease_says_it_is_held_and_the_refusal_is_one_line(lease, bucket, text):
    obstore.put(bucket, "main", text)
    with pytest.raises(StoreBusy) as refused:
        lease().acquire()
    assert str(refused.value).isprintable()


def test_a_lease_that_says_nothing_is_taken_when_it_is_stale(lease, bucket):
    obstore.put(bucket, "main", b"\xff")
    lease(stale_after_s=1.0).acquire(wait=True)


@pytest.mark.parametrize(
    ("lie", "free"),
    [
        ({"pid": -1}, False),
        ({"pid": 0}, False),
        ({"pid": True}, False),
        ({"pid": 10**30}, False),
        ({"pid": "1"}, False),
        ({"started": ""}, False),
        ({"machine": ""}, False),
        ({}, True),
    ],
)
def test_only_a_process_of_this_machine_that_is_surely_gone_is_passed_over(
    lease, bucket, lie, free
):
    import workbench.store.lease as leases

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    foreign(bucket, **{"machine": leases._machine(), "pid": ended.pid, "started": "5", **lie})
    if free:
        lease().acquire()
    else:
        with pytest.raises(StoreBusy):
            lease().acquire()


def test_a_process_that_proc_hides_is_alive(lease, bucket, monkeypatch):
    import workbench.store.lease as leases

    lease().acquire()
    monkeypatch.setattr(leases, "_stat", lambda pid: ("", ""))
    with pytest.raises(StoreBusy):
        lease().acquire()


def test_without_a_network_the_lease_says_so(lease, place):
    nowhere = ObjectStorage(place, {"endpoint_url": "http://127.0.0.1:1"})
    with pytest.raises(ConnectionError, match="cannot be reached"):
        nowhere.branch_lock("main").acquire()


def test_a_child_that_was_forked_holds_no_lease(lease):
    one = lease()
    one.acquire()
    child = os.fork()
    if child == 0:
        os._exit(int(one.held))
    assert os.waitpid(child, 0)[1] == 0
    assert one.held
