"""Whether a run is being written is told by who holds its branch, and when it last stepped."""

from __future__ import annotations

import json
import signal
import time

import pytest

from workbench.app.dashboard import health as health_file
from workbench.app.dashboard.holder import holder_of
from workbench.app.dashboard.live_run import LiveRun
from workbench.app.dashboard.view import View


def told(path, arm=""):
    """The health as the page says it."""
    return LiveRun(path).moment(View(arm=arm)).health


@pytest.fixture(scope="module")
def unplanned(planted_run):
    """A run of a hundred steps whose run.json plans nothing."""
    return planted_run("unplanned", arms=False, parts={"train"}, about={"phases": []})


def test_a_run_that_reached_its_plan_is_finished(two_arm_run):
    found = told(two_arm_run)
    assert found.state == "finished"
    assert "planned step 100" in found.why
    assert dict(found.facts)["Missing"] == "no step"


def test_a_trunk_that_ends_at_its_forks_is_finished(planted_run):
    path = planted_run("forked", parts={"train"}, about={"phases": []})
    live = LiveRun(path)
    run = live.arm("main").refresh()
    found = health_file.health(run, run.store.read("main"), None)
    assert found.state == "finished"
    assert "2 arms go on" in found.why


def test_a_run_that_stopped_before_its_plan_has_stalled(planted_run):
    phases = [{"name": "all", "start": 1, "stop": 500}]
    path = planted_run("short", arms=False, parts={"train"}, about={"phases": phases})
    found = told(path)
    assert found.state == "stalled"
    assert "step 100 of 500" in found.why


def test_a_writer_is_seen_to_write_to_hang_to_be_killed_and_to_be_resumed(
    unplanned, begin_writer, monkeypatch
):
    assert told(unplanned).state == "finished"
    writer = begin_writer(unplanned, "main")
    writer.steps(30)
    found = told(unplanned)
    assert (found.state, found.age_s < 5) == ("writing", True)
    assert dict(found.facts)["Waiting for their commit"].startswith("30 steps")

    real = time.time
    monkeypatch.setattr(health_file.time, "time", lambda: real() + 600)
    hung = told(unplanned)
    assert hung.state == "stalled"
    assert "no step has come for 10 min" in hung.why
    monkeypatch.undo()

    writer.kill()
    killed = told(unplanned)
    assert killed.state == "stalled"
    assert "killed or crashed" in killed.why

    resumed = begin_writer(unplanned, "main")
    resumed.steps(1)
    assert told(unplanned).state == "writing"
    resumed.end()
    ended = told(unplanned)
    assert ended.state == "finished"
    assert dict(ended.facts)["Last step"] == "131"


def test_a_stopped_process_still_holds_its_branch(unplanned, begin_writer):
    writer = begin_writer(unplanned, "main")
    writer.process.send_signal(signal.SIGSTOP)
    lock = unplanned / "store" / "locks" / "main.lock"
    held = holder_of(lock)
    writer.process.send_signal(signal.SIGCONT)
    assert (held.state, held.pid) == ("alive", writer.process.pid)
    writer.end()


def test_looking_for_the_holder_never_takes_the_lock(unplanned):
    from workbench.store.lock import FileLock

    lock = unplanned / "store" / "locks" / "main.lock"
    for _ in range(50):
        holder_of(lock)
        with FileLock(lock, "the branch") as held:
            held.acquire()


def test_of_a_writer_on_another_host_the_last_step_tells(unplanned):
    lock = unplanned / "store" / "locks" / "main.lock"
    note = {"host": "node-7", "pid": 1, "since_utc": "2026-01-01T00:00:00+00:00"}
    lock.write_text(json.dumps(note))
    found = told(unplanned)
    assert found.state in ("stalled", "writing")
    assert "node-7" in dict(found.facts)["Writer"]
    lock.write_text(json.dumps({"host": "<b>" * 100, "pid": "x", "since_utc": 3}))
    assert "cannot" not in told(unplanned).why


@pytest.mark.parametrize("note", ["", "[" * 5000, "null", '{"pid": true}', '{"pid": 1e400}'])
def test_a_lock_that_says_nothing_sensible_is_a_writer_that_ended(note, tmp_path):
    lock = tmp_path / "main.lock"
    lock.write_text(note)
    assert holder_of(lock).state == "gone"


def test_without_a_lock_there_was_never_a_writer(tmp_path):
    assert holder_of(tmp_path / "main.lock") is None


def test_steps_that_were_not_recorded_are_counted(tmp_path):
    import numpy as np

    from workbench.store.layout import Layout
    from workbench.store.run_store import RunStore

    store = RunStore.create(tmp_path / "store", Layout(layers=(0,), experts=4, k=2))
    with store.writer("main") as writer:
        steps = np.array([1, 2, 3, 7, 8])
        writer.append("train", {"step": steps, "loss": np.ones(5, "float32")})
    assert dict(told(tmp_path).facts)["Missing"].startswith("3 of 8 steps")


def test_a_run_without_a_record_waits(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    found = told(tmp_path)
    assert found.state == "waiting"
