"""A store on object storage, against a server on this machine that speaks S3."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import icechunk as ic
import numpy as np
import pytest
import xarray as xr
import zarr

import workbench
from workbench.errors import RunExists, RunNotFound, StoreBusy, UsageError
from workbench.store.layout import Layout
from workbench.store.location import Location
from workbench.store.object_storage import ObjectStorage
from workbench.store.run_store import RunStore

pytest.importorskip("obstore", reason="leases on object storage need obstore")
pytest.importorskip("moto.server", reason="needs the local S3 server of moto[server]")

import obstore

HOME = Path(workbench.__file__).parent.parent
LAYOUT = Layout(layers=(0, 1), experts=4, k=2)
HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture
def store(place):
    return RunStore.create(place, LAYOUT, {"seed": 7})


@pytest.fixture
def start(place):
    """Start a process that runs `code` on the store; it is ended with the test."""
    from conftest import PROLOGUE

    started: list[subprocess.Popen] = []

    def begin(code: str, *words: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", PROLOGUE + code, place, *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def record(writer, rows, first, last):
    for group, values in zip(("router", "train"), rows(first, last), strict=True):
        writer.append(group, values)
    return writer.commit(f"{first} to {last}")


def keys(place):
    """Every object of the store."""
    location = Location.of(place)
    listed = obstore.list(location._objects()).collect()
    return {entry["path"].removeprefix(location.prefix + "/") for entry in listed}


# What a store can do anywhere


def test_what_was_committed_reads_back_here_and_in_plain_icechunk(
    store, place, s3, rows, check_steps
):
    with store.writer("main") as w:
        record(w, rows, 1, 30)
        w.tag_checkpoint(30)
    again = RunStore.open(place)
    assert check_steps(again.read("main")) == 30
    assert again.read("main").attrs == {"seed": 7}
    assert str(again.location) == place
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    plain = ic.Repository.open(
        ic.s3_storage(
            bucket=bucket, prefix=prefix, region="us-east-1", endpoint_url=s3.url,
            allow_http=True, force_path_style=True, from_env=True,
        )
    )  # fmt: skip
    ds = xr.open_zarr(plain.readonly_session("main").store, group="train", consolidated=False)
    assert ds.tokens_seen.values.tolist() == list(range(1, 31))


def test_a_fork_shares_history_and_a_rollback_sets_aside(store, rows, check_steps):
    with store.writer("main") as w:
        for begin in (1, 11, 21):
            record(w, rows, begin, begin + 9)
            w.tag_checkpoint(begin + 9)
    store.fork("arm", "main", at_step=20)
    assert store.lineage("arm") == ("main", 20)
    with store.writer("arm") as w:
        record(w, rows, 21, 25)
    aside = store.rollback("main", 10)
    assert aside.steps == (11, 30)
    assert check_steps(store.read("main")) == 10
    assert check_steps(store.read("arm")) == 25
    assert check_steps(store.read_tag(aside.tag)) == 30
    assert list(store.checkpoints("arm")) == [10, 20]
    assert store.set_aside_checkpoints("main") == {20, 30}
    store.rollback("main", 0)
    assert store.read("main").groups == ()


def test_a_reader_keeps_its_moment_while_commits_land(store, place, rows, check_steps):
    with store.writer("main") as w:
        record(w, rows, 1, 5)
        early = RunStore.open(place).read("main")
        record(w, rows, 6, 9)
        assert check_steps(early) == 5
        assert check_steps(RunStore.open(place).read("main")) == 9


def test_nothing_is_written_into_the_users_folders_but_the_journal(store, rows, tmp_path):
    with store.writer("main") as w:
        record(w, rows, 1, 5)
    made = {p.relative_to(tmp_path).parts[:3] for p in tmp_path.rglob("*") if p.is_file()}
    assert made <= {("state", "training-dynamics-workbench", "journal")}
    with pytest.raises(UsageError, match=r"store\.location"):
        _ = store.path


def test_a_local_store_copied_object_by_object_is_a_store_there(
    small_store, place, rows, check_steps
):
    with small_store.writer("main") as w:
        record(w, rows, 1, 60)
        w.tag_checkpoint(60)
    objects = Location.of(place)._objects()
    for path in small_store.path.rglob("*"):
        key = path.relative_to(small_store.path)
        if path.is_file() and key.parts[0] not in ("locks", "journal"):
            obstore.put(objects, key.as_posix(), path.read_bytes())
    there = RunStore.open(place)
    assert check_steps(there.read("main")) == 60
    with there.writer("main") as w:
        record(w, rows, 61, 70)
    assert check_steps(there.read("main")) == 70
    assert list(there.checkpoints("main")) == [60]


def test_the_page_about_it_runs_as_it_is_written(store, place, s3, rows):
    page = (HOME / "docs" / "object-storage.md").read_text()
    blocks = [part.split("```")[0] for part in page.split("```python\n")[1:]]
    apart = place.replace("demo", "page").removeprefix("s3://")
    bucket, _, prefix = apart.partition("/")
    known: dict = {}
    for block in blocks[1:]:
        code = block.replace('s3://bucket/runs/mine"', f's3://{apart}"')
        code = code.replace('bucket="bucket"', f"{bucket=}")
        code = code.replace('prefix="runs/mine"', f"{prefix=}")
        here = f"endpoint_url={s3.url!r}, allow_http=True, force_path_style=True"
        exec(code.replace("from_env=True", f"from_env=True, {here}"), known)
        if "store" in known and not known["store"].read("main").groups:
            with known["store"].writer("main") as w:
                w.append("train", {**rows(1, 3)[1], "loss": np.ones(3, "float32")})
    assert known["loss"].tolist() == known["train"].loss.values.tolist() == [1, 1, 1]
    assert known["run"].train.loss.sizes["step"] == 3


# Making and finding


def test_a_store_that_was_cut_short_at_any_request_is_none_and_is_made_anew(place, monkeypatch):
    put, spared = obstore.put, 0
    while True:
        left = [spared]

        def killed(bucket, key, body, *, mode, left=left):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return put(bucket, key, body, mode=mode)

        with monkeypatch.context() as patched:
            patched.setattr(obstore, "put", killed)
            try:
                RunStore.create(place, LAYOUT, {"seed": spared})
                break
            except KeyboardInterrupt:
                pass
        assert not Location.of(place).exists()
        with pytest.raises(RunNotFound, match="no store at s3://"):
            RunStore.open(place)
        spared += 1
    assert spared > 5
    store = RunStore.open(place)
    assert store.read("main").attrs == {"seed": spared}
    assert len(store._history("main")) == 2


def test_an_answer_to_the_last_request_that_was_lost_is_no_other_maker(place, monkeypatch):
    put = obstore.put

    def twice(bucket, key, body, *, mode):
        put(bucket, key, body, mode=mode)
        return put(bucket, key, body, mode=mode)

    monkeypatch.setattr(obstore, "put", twice)
    assert RunStore.create(place, LAYOUT).branches == ["main"]


def test_of_six_that_make_one_store_one_succeeds(place):
    together, told, refused = threading.Barrier(6), [], []

    def make(seed):
        together.wait()
        try:
            RunStore.create(place, LAYOUT, {"seed": seed})
            told.append(seed)
        except RunExists as error:
            refused.append(str(error))

    threads = [threading.Thread(target=make, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 1
    assert len(refused) == 5
    assert RunStore.open(place).read("main").attrs == {"seed": told[0]}


def test_an_existing_store_and_a_prefix_of_other_things_are_left_alone(store, place):
    before = keys(place)
    with pytest.raises(RunExists, match="exists already"):
        RunStore.create(place, LAYOUT)
    assert keys(place) == before
    obstore.put(Location.of(place.replace("demo", "other"))._objects(), "notes.txt", b"mine")
    with pytest.raises(RunExists, match=r"notes\.txt"):
        RunStore.create(place.replace("demo", "other"), LAYOUT)
    # A run's prefix holds its store, so its parent is no place for another.
    with pytest.raises(RunExists, match="no part of a store"):
        RunStore.create(place.removesuffix("/demo/store"), LAYOUT)


def test_a_bucket_that_is_not_there_is_told_in_one_line(place, s3):
    with pytest.raises(RunNotFound, match="no-such-bucket") as refused:
        RunStore.open("s3://no-such-bucket/store")
    assert str(refused.value).isprintable()
    with pytest.raises((RunNotFound, RunExists)):
        RunStore.create("s3://no-such-bucket/store", LAYOUT)


def test_options_come_before_the_environment_and_wrong_ones_are_named(place, s3, monkeypatch):
    RunStore.create(place, LAYOUT)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    found = RunStore.open(place, storage_options={"endpoint_url": s3.url, "region": "us-east-1"})
    assert found.branches == ["main"]
    with pytest.raises(UsageError, match="has no 'endpoint'; it may have endpoint_url"):
        ObjectStorage(place, {"endpoint": s3.url})
    with pytest.raises(UsageError, match="is str, expected bool"):
        ObjectStorage(place, {"allow_http": "yes"})
    with pytest.raises(UsageError, match="plain http"):
        ObjectStorage(place, {"endpoint_url": "http://storage.example.org"})
    ObjectStorage(place, {"endpoint_url": "http://storage.example.org", "allow_http": True})


def test_secrets_are_in_no_text_of_a_location(place):
    location = ObjectStorage(place, {"access_key_id": "a", "secret_access_key": "hush-hush"})
    for text in (str(location), repr(location), repr(location.storage())):
        assert "hush-hush" not in text


# Committers


def test_every_ref_is_written_on_a_condition(s3, place, rows):
    s3.puts.clear()
    store = RunStore.create(place, LAYOUT)
    with store.writer("main") as w:
        record(w, rows, 1, 5)
        w.tag_checkpoint(5)
    store.fork("arm", "main", at_step=5)
    with store.writer("main") as w:
        record(w, rows, 6, 9)
    store.rollback("main", 5)
    prefix = Location.of(place).prefix
    refs = [conditional for key, conditional in s3.puts if key.startswith(f"{prefix}/refs/")]
    assert len(refs) >= 8
    assert all(refs)
    leases = [c for key, c in s3.puts if key.startswith(f"{prefix}/locks/") and ".clock" not in key]
    assert leases
    assert all(leases)


def test_of_six_that_move_a_branch_at_once_one_succeeds(store, place, rows):
    with store.writer("main") as w:
        record(w, rows, 1, 5)
    ends = []
    for step in range(6):
        session = store.repository.writable_session("main")
        zarr.open_group(session.store, mode="r+").attrs["by"] = step
        ends.append(session.flush(str(step)))
    for _ in range(5):
        told, refused, since = [], [], store.tip("main")
        others = [end for end in ends if end != since]
        together = threading.Barrier(len(others))

        def move(to, told=told, refused=refused, since=since, together=together):
            mine = RunStore.open(place)
            together.wait()
            try:
                mine.move("main", to, since=since)
                told.append(to)
            except StoreBusy:
                refused.append(to)

        threads = [threading.Thread(target=move, args=(end,)) for end in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(told) == 1
        assert sorted([*told, *refused]) == sorted(others)
        assert store.tip("main") == told[0]


def test_a_writer_that_was_overtaken_refuses_to_commit(store, rows, check_steps):
    with store.writer("main") as w:
        record(w, rows, 1, 5)
        store.repository.reset_branch("main", store._history("main")[-2])
        with pytest.raises(StoreBusy, match="moved"):
            record(w, rows, 6, 7)
        w.close()
    assert store.read("main").groups == ()


WRITE = """
with store.writer(sys.argv[2]) as w:
    step = w.last("router") or 0
    last = step + int(sys.argv[3])
    while step < last:
        router, train = rows(step + 1, step + 3)
        w.append("router", router)
        w.append("train", train)
        w.commit("more")
        step += 3
        print(step, flush=True)
"""


@pytest.mark.slow
def test_four_processes_on_four_branches_lose_nothing_while_they_are_read(
    store, place, rows, start, check_steps
):
    with store.writer("main") as w:
        record(w, rows, 1, 3)
        w.tag_checkpoint(3)
    arms = ["main", "b", "c", "d"]
    for arm in arms[1:]:
        store.fork(arm, "main", at_step=3)
    writers = [start(WRITE, arm, "18") for arm in arms]
    reader = RunStore.open(place)
    while any(writer.poll() is None for writer in writers):
        for arm in arms:
            assert check_steps(reader.read(arm)) % 3 == 0
    assert [writer.returncode for writer in writers] == [0] * 4
    for arm, writer in zip(arms, writers, strict=True):
        assert writer.stdout.read().split()[-1] == "21"
        assert check_steps(store.read(arm)) == 21
        assert len(store._history(arm)) == 2 + 7


def test_kills_lose_no_acknowledged_commit_and_the_lease_is_free_at_once(
    store, place, start, check_steps
):
    acknowledged = 0
    for kill in range(3):
        writer = start(WRITE, "main", "3000")
        for _ in range(2 + kill):
            acknowledged = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        said = writer.communicate()[0].split()
        acknowledged = max([acknowledged, *map(int, said)])
        began = time.monotonic()
        with RunStore.open(place).writer("main") as w:
            w.commit("what was in the journal")
        assert time.monotonic() - began < 30
        there = check_steps(RunStore.open(place).read("main"))
        assert acknowledged <= there <= acknowledged + 3


def test_a_second_writer_is_refused_by_name_of_host_and_process(store, start):
    holder = start("with store.writer('main') as w: print('held', flush=True); sys.stdin.read()")
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(StoreBusy, match=f"process {holder.pid} on host {socket.gethostname()}"):
        store.writer("main")
    with pytest.raises(StoreBusy, match="'main' of s3://"):
        store.rollback("main", 0)
    holder.communicate()
    store.writer("main").close()


# Leases


def test_without_obstore_a_store_is_read_and_writing_says_what_is_missing(
    store, place, monkeypatch
):
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    found = RunStore.open(place)
    assert found.read("main").groups == ()
    with pytest.raises(UsageError, match=r"training-dynamics-workbench\[s3\]"):
        found.writer("main")
