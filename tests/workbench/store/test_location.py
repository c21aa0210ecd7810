"""Where a store may be, and what happens to names that are meant to do harm."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.errors import RunExists, RunNotFound, StoreBusy, UsageError, WorkbenchError
from workbench.store.layout import Layout
from workbench.store.location import Location
from workbench.store.lock import FileLock, read_holder
from workbench.store.run_store import RunStore

LAYOUT = Layout(layers=(0,), experts=2, k=1)
HOSTILE = [
    "",
    "   ",
    "a\0b",
    "x" * 10_000,
    "/".join(["x" * 200] * 60),
    "line\nbreak",
    "\x1b[31mred",
    "\ud800",
    "s3:/bucket/prefix",
    "gs://bucket/prefix",
    "file:///tmp/store",
    "s3://",
    "s3://bucket",
    "s3://bucket/",
    "s3://Bucket/prefix",
    "s3://b/prefix",
    "s3://user:word@bucket/prefix",
    "s3://bucket/../other",
    "s3://bucket/a/../../b",
    "s3://bucket/./a",
    "s3://bucket//a",
    "s3://bucket/a//b",
    "s3://bucket/a\0b",
    "s3://bucket/<script>alert(1)</script>",
    "s3://bucket/a?versionId=1",
    "s3://bucket/a#b",
    "s3://bucket/a%2e%2e",
    "s3://bucket/" + "x" * 10_000,
]


def everything_below(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:40])
def test_a_name_that_no_store_can_have_gets_one_short_error_and_makes_nothing(
    tmp_path, monkeypatch, name
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for call in (RunStore.open, lambda where: RunStore.create(where, LAYOUT)):
        with pytest.raises(UsageError) as refused:
            call(name)
        said = str(refused.value)
        assert len(said) < 400
        assert said.isprintable()
    assert everything_below(tmp_path) == {"here"}


@pytest.mark.parametrize("name", ["../../up", "/etc/passwd", "a\0b", "<b>x</b>", "x" * 10_000, ""])
def test_a_hostile_branch_or_tag_gets_one_error_and_nothing_outside_is_touched(tmp_path, name):
    store = RunStore.create(tmp_path / "run" / "store", LAYOUT)
    before = everything_below(tmp_path)
    calls = [
        store.tip, store.read, store.read_tag, store.writer, store.branch_lock,
        store.checkpoints, lambda b: store.fork(b, "main", at_step=0),
        lambda b: store.fork("arm", b, at_step=0), lambda b: store.rollback(b, 0),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(WorkbenchError) as refused:
            call(name)
        assert len(str(refused.value)) < 300
        assert str(refused.value).isprintable()
    assert everything_below(tmp_path) == before


def test_paths_upwards_and_absolute_are_the_user_s_own_choice(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    store = RunStore.create("../there/<b>store</b>", LAYOUT)
    assert store.path == tmp_path / "here" / ".." / "there" / "<b>store<" / "b>"
    assert RunStore.open(str(store.location)).branches == ["main"]
    assert RunStore.open(store.location).branches == ["main"]


def test_a_store_is_made_whole_or_not_at_all(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("workbench.store.location.sync_tree", broken)
    with pytest.raises(OSError, match="No space"):
        RunStore.create(tmp_path / "store", LAYOUT)
    assert everything_below(tmp_path) == set()


def test_a_dangling_link_is_not_written_through(tmp_path):
    (tmp_path / "store").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunExists):
        RunStore.create(tmp_path / "store", LAYOUT)
    assert not (tmp_path / "elsewhere").exists()


def test_options_of_object_storage_are_refused_for_a_folder(tmp_path):
    with pytest.raises(UsageError, match="s3:// only"):
        RunStore.open(tmp_path, storage_options={"region": "eu-central-1"})


def test_branches_that_begin_with_an_underscore_are_no_arms(small_store):
    small_store.repository.create_branch("_results", small_store.tip("main"))
    assert small_store.branches == ["main"]
    with pytest.raises(RunNotFound, match="it has main"):
        small_store.read("_results")
    with pytest.raises(UsageError):
        small_store.writer("_results")


def test_a_location_says_where_its_parts_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = Location.of("store")
    assert str(place) == str(tmp_path / "store")
    assert place.journal_folder == tmp_path / "store" / "journal"
    assert place.folder == tmp_path / "store"
    assert not place.exists()
    with pytest.raises(RunNotFound, match="no store at"):
        place.open()


# The lock


@pytest.fixture
def lock(tmp_path):
    with FileLock(tmp_path / "locks" / "main.lock", "branch 'main'") as made:
        yield made


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\0" * 5000,
        b"[" * 4000,
        b'"a string"',
        b"[1, 2]",
        b'{"pid": 1}',
        b'{"pid": [1], "host": {}, "since_utc": null}',
        b'{"pid": 1, "host": "\\u001b[31m\\n' + b"x" * 300 + b'", "since_utc": "<b>"}',
        b"\xff\xfe" * 50,
    ],
)
def test_whatever_a_lock_file_says_the_refusal_is_one_printable_line(lock, text):
    lock.acquire()
    lock.path.write_bytes(text)
    with pytest.raises(StoreBusy) as refused:
        FileLock(lock.path, "branch 'main'").acquire()
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400
    # What it says decides nothing: the lock is still held, and free when it is given back.
    lock.close()
    FileLock(lock.path, "branch 'main'").acquire()


def test_a_lock_is_signed_with_host_process_and_time(lock):
    lock.acquire()
    note = json.loads(lock.path.read_bytes())
    assert note["pid"] == os.getpid()
    assert f"process {os.getpid()} on host" in read_holder(lock.path.read_bytes())


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe", "linked folder"])
def test_what_is_no_plain_file_is_not_locked_and_not_followed(tmp_path, kind):
    victim, path = tmp_path / "victim", tmp_path / "locks" / "main.lock"
    victim.write_text("precious")
    path.parent.mkdir()
    match kind:
        case "link":
            path.symlink_to(victim)
        case "dangling":
            path.symlink_to(tmp_path / "made by the link")
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "linked folder":
            path.parent.rmdir()
            (tmp_path / "elsewhere").mkdir()
            path.parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="remove it"):
        FileLock(path, "branch 'main'").acquire()
    assert victim.read_text() == "precious"
    assert not (tmp_path / "made by the link").exists()
    assert not any((tmp_path / "elsewhere").glob("*"))


def test_a_lock_file_that_was_removed_is_noticed_by_its_holder(lock):
    lock.acquire()
    lock.check()
    lock.path.unlink()
    with FileLock(lock.path, "branch 'main'") as other:
        other.acquire()
        with pytest.raises(StoreBusy, match="removed"):
            lock.check()
    lock.close()
    with pytest.raises(StoreBusy, match="closed"):
        lock.check()


def test_who_waited_on_a_removed_file_locks_the_new_one(lock):
    lock.acquire()
    code = """
import sys
from pathlib import Path
from workbench.store.lock import FileLock
other = FileLock(Path(sys.argv[1]), "it")
inner = other._lock
def told(fd, wait):
    print("waiting", flush=True)
    inner(fd, wait)
other._lock = told
other.acquire(wait=True)
other.check()
print("got it", flush=True)
"""
    waiting = subprocess.Popen(
        [sys.executable, "-c", code, str(lock.path)],
        stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert waiting.stdout.readline() == "waiting\n"
    lock.path.unlink()
    lock.close()
    said = waiting.communicate(timeout=60)[0].split("\n")
    assert said[-2] == "got it"


def test_on_a_full_disk_the_lock_holds_unsigned(lock, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    lock.acquire()
    with pytest.raises(StoreBusy, match="not signed"):
        FileLock(lock.path, "branch 'main'").acquire()


def test_a_file_system_without_locks_is_refused_with_the_remedy(lock, monkeypatch):
    import fcntl

    def none(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(UsageError, match="mount this one with locks"):
        lock.acquire()
    assert not lock.held


def test_the_lock_file_is_for_its_owner_to_write(lock):
    lock.acquire()
    assert stat.S_IMODE(lock.path.stat().st_mode) & 0o022 == 0
