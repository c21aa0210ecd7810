"""The store as its writers and readers meet it: rows in, consistent snapshots out."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import numpy as np
import pytest

from workbench.errors import RunExists, RunNotFound, SchemaError, StoreBusy, UsageError
from workbench.store.layout import Layout, ProbeTokens, Task
from workbench.store.run_store import RunStore

LAYOUT = Layout(
    layers=(0, 1),
    experts=4,
    k=2,
    domains=("prose", "code_text", "logic/chains"),
    tasks=(Task("logic/chains", 0.25, 3), Task("code/arithmetic", 0.1, 2)),
)


def router_rows(steps, value=None):
    """Rows whose every number says which step it belongs to."""
    steps = np.asarray(steps, "int64")
    worth = steps if value is None else np.full_like(steps, value)
    shape = (len(steps), 2, 4)
    return {
        "step": steps,
        "tokens": worth * 10,
        "assignments": np.broadcast_to(worth[:, None, None], shape).copy(),
        "entropy": np.broadcast_to(worth[:, None], shape[:2]).astype("float32"),
    }


def train_rows(steps):
    steps = np.asarray(steps, "int64")
    return {"step": steps, "loss": (1 / steps).astype("float32"), "tokens_seen": steps * 100}


def record(writer, steps, message="rows"):
    writer.append("router", router_rows(steps))
    writer.append("train", train_rows(steps))
    return writer.commit(message)


@pytest.fixture
def store(tmp_path):
    return RunStore.create(tmp_path / "run" / "store", LAYOUT, {"seed": 7})


def bytes_of(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_what_was_committed_reads_back_with_units_and_labels(store):
    with store.writer("main") as w:
        record(w, range(1, 131))
    router = RunStore.open(store.path).read("main").dataset("router")
    assert router.sizes == {"step": 130, "layer": 2, "expert": 4, "expert2": 4, "domain": 3}
    assert (router.assignments == router.step).all()
    assert router.entropy.attrs["units"] == "nats"
    assert router.domain.values.tolist() == list(LAYOUT.domains)
    assert router.domain.dtype.kind == "U"


def test_rows_are_invisible_until_the_commit_and_complete_after_it(store):
    with store.writer("main") as w:
        w.append("router", router_rows([1, 2]))
        w.append("train", train_rows([1, 2]))
        assert store.read("main").groups == ()
        w.commit("both groups")
        seen = store.read("main")
    assert seen.groups == ("router", "train")
    assert seen.dataset("router").sizes["step"] == seen.dataset("train").sizes["step"] == 2


def test_a_snapshot_does_not_move_when_the_writer_goes_on(store):
    with store.writer("main") as w:
        record(w, [1])
        before = store.read("main")
        record(w, [2])
    assert before.dataset("train").sizes["step"] == 1
    assert store.read("main").dataset("train").sizes["step"] == 2


def test_a_step_that_does_not_ascend_is_refused_with_the_remedy(store):
    with store.writer("main") as w:
        record(w, [1, 2, 5])
        for steps in ([5], [3], [6, 6], [8, 7]):
            with pytest.raises(SchemaError, match="ascend"):
                w.append("router", router_rows(steps))
        with pytest.raises(SchemaError, match=r"store\.rollback\('main'"):
            w.append("train", train_rows([4]))
        assert w.waiting == 0


def test_a_fork_shares_history_and_costs_a_few_hundred_bytes(store):
    with store.writer("main") as w:
        record(w, range(1, 101))
        w.tag_checkpoint(100)
        record(w, range(101, 151))
    before = bytes_of(store.path)
    store.fork("curriculum", "main", at_step=100)
    assert bytes_of(store.path) - before < 500
    assert store.lineage("curriculum") == ("main", 100)
    assert store.lineage("main") is None
    with store.writer("curriculum") as w:
        assert w.last("router") == 100
        w.append("router", router_rows(range(101, 121), value=-5))
    arm = store.read("curriculum").dataset("router")
    assert (arm.assignments.sel(step=slice(1, 100)) == arm.step.sel(step=slice(1, 100))).all()
    assert (arm.assignments.sel(step=slice(101, None)) == -5).all()
    assert (store.read("main").dataset("router").assignments >= 0).all()


def test_a_rollback_keeps_what_it_takes_off_under_a_tag(store):
    with store.writer("main") as w:
        record(w, range(1, 41))
        w.tag_checkpoint(40)
        record(w, range(41, 81))
        w.tag_checkpoint(80)
    aside = store.rollback("main", 40)
    assert aside.steps == (41, 80)
    assert store.read("main").dataset("train").step.values[-1] == 40
    assert (store.read_tag(aside.tag).dataset("router").step == range(1, 81)).all()
    # The same steps again, and the same checkpoint: the branch now holds the second history.
    with store.writer("main") as w:
        w.append("router", router_rows(range(41, 81), value=-1))
        w.append("train", train_rows(range(41, 81)))
        w.commit("again")
        w.tag_checkpoint(80)
    assert store.checkpoints("main").keys() == {40, 80}
    store.fork("later", "main", at_step=80)
    assert (store.read("later").dataset("router").assignments.sel(step=80) == -1).all()
    assert store.rollback("main", 80) is None


def test_a_run_that_died_before_its_first_checkpoint_can_go_back_to_its_beginning(store):
    with store.writer("main") as w:
        record(w, range(1, 31))
    aside = store.rollback("main", 0)
    assert aside.steps == (1, 30)
    assert store.read("main").groups == ()
    with store.writer("main") as w:
        record(w, range(1, 4))
    assert store.read("main").dataset("train").sizes["step"] == 3


def test_a_second_writer_of_a_branch_is_refused_by_name_of_host_and_process(store):
    named = rf"{os.getpid()} on host {socket.gethostname()}"
    with store.writer("main"), pytest.raises(StoreBusy, match=named):
        store.writer("main")
    store.writer("main").close()


def test_departures_are_named_all_at_once_and_nothing_is_taken_in(store):
    rows = router_rows([1, 2])
    rows["assignments"] = rows["assignments"].astype("int32")
    rows["entropy"] = rows["entropy"][:, :1]
    rows["colour"] = np.zeros(2)
    with store.writer("main") as w:
        with pytest.raises(SchemaError) as refused:
            w.append("router", rows)
        assert w.waiting == 0
    for name in ("assignments", "entropy", "colour"):
        assert name in str(refused.value)


def test_what_the_layout_left_open_can_be_filled_in_once(store):
    tokens = ProbeTokens((5, 6, 7), ("prose", "prose", "code_text"))
    with store.writer("main") as w:
        with pytest.raises(SchemaError, match="fill_layout"):
            w.append(
                "activations",
                {"checkpoint": np.array([1]), "expert_ids": np.zeros((1, 3, 2, 2), "int16")},
            )
        w.fill_layout(tokens=tokens)
        w.append(
            "activations",
            {"checkpoint": np.array([1]), "expert_ids": np.ones((1, 3, 2, 2), "int16")},
        )
        w.commit("probe set")
        with pytest.raises(UsageError, match="cannot change"):
            w.fill_layout(tokens=ProbeTokens((1,), ("prose",)))
    seen = store.read("main")
    assert seen.layout.tokens == tokens
    assert seen.layout.tasks == LAYOUT.tasks
    assert seen.dataset("activations").token_id.values.tolist() == [5, 6, 7]
    assert seen.dataset("activations").domain.values.tolist() == list(tokens.domains)


def test_a_notebook_s_running_event_loop_is_no_obstacle(store):
    async def cell():
        with store.writer("main") as w:
            record(w, [1, 2])
        return store.read("main").dataset("train").step.values.tolist()

    assert asyncio.run(cell()) == [1, 2]


def test_an_existing_store_is_never_overwritten(store):
    before = bytes_of(store.path)
    with pytest.raises(RunExists, match="exists already"):
        RunStore.create(store.path, LAYOUT)
    assert bytes_of(store.path) == before


def test_an_unknown_branch_is_answered_with_those_that_are_there(store):
    with store.writer("main") as w:
        record(w, [1])
        w.tag_checkpoint(1)
    store.fork("curriculum", "main", at_step=1)
    with pytest.raises(RunNotFound, match=r"main, curriculum; did you mean 'curriculum'\?"):
        store.read("curiculum")
    with pytest.raises(RunNotFound, match=r"no checkpoint at step 7.*near it: 1"):
        store.fork("b", "main", at_step=7)
    with pytest.raises(RunNotFound, match="no store at"):
        RunStore.open(store.path.parent)
