"""Writers are killed a hundred times, at all moments, and lose nothing that they were told of.

The figures are logged: pytest --log-cli-level=info -m slow.
"""

from __future__ import annotations

import json
import logging
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import ledger
import pytest
from nursery import ENVIRONMENT, HERE, Death, Moment, Nursery

from workbench.errors import RunNotFound
from workbench.store.journal import Journal
from workbench.store.run_store import RunStore
from workbench.store.verification import verify_store

KILL_SAFE = ("sealed", "synced", "committed", "tagged")
LOST_AT_MOST = 5.0
"""Seconds of samples that a kill may cost."""


@dataclass(frozen=True)
class Lane:
    """Lives that follow each other on one store, with a reader that stays open throughout."""

    kind: str
    lives: int
    step_seconds: float
    commit_every: int = 50
    tag_every: int = 130
    moments: str = "phases"
    """Kills "phases": in a random phase; "late": at a moment of the last second of eight."""
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind}, {1e3 * self.step_seconds:.0f} ms a step"

    def moment(self, chance: random.Random, life: int) -> Moment:
        if self.moments == "late":
            return Moment("anywhere", 0, chance.uniform(6.5, 8))
        return Moment.draw(chance, self.kind, life)


@dataclass
class Outcome:
    """What a lane's lives came to."""

    lane: Lane
    deaths: list[Death] = field(default_factory=list)
    lost_seconds: list[float] = field(default_factory=list)
    """For each death how long before it the first step was recorded that is lost."""
    lost_steps: list[int] = field(default_factory=list)
    reader: dict = field(default_factory=dict)


class Reader:
    """A process that looks at a store all the time (watching_reader.py)."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, HERE / "watching_reader.py", str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
        )  # fmt: skip

    def close(self) -> dict:
        """What it has seen."""
        return json.loads(self._process.communicate(timeout=60)[0])


def run(lane: Lane, folder: Path) -> Outcome:
    """All lives of a lane; asserts after each death that what it was owed is there."""
    folder.mkdir()
    store_path = folder / "store"
    if lane.kind == "direct":
        RunStore.create(store_path, ledger.LAYOUT)
    chance = random.Random(f"{lane.name} {lane.seed}")
    outcome = Outcome(lane)
    known: dict = {}
    reader = Reader(store_path)
    try:
        with Nursery(lane.kind) as nursery:
            for life in range(1, lane.lives + 1):
                path = store_path if lane.kind == "direct" else folder
                death = nursery.live(
                    lane.moment(chance, life), kind=lane.kind, path=str(path), life=life,
                    commit_every=lane.commit_every, tag_every=lane.tag_every,
                    sync_seconds=0.25, step_seconds=lane.step_seconds,
                )  # fmt: skip
                outcome.deaths.append(death)
                _check(outcome, death, store_path, known)
    finally:
        outcome.reader = reader.close()
    _check_reader(outcome)
    assert not verify_store(RunStore.open(store_path)).faults
    return outcome


def _check(outcome: Outcome, death: Death, path: Path, known: dict) -> None:
    try:
        held = ledger.states(RunStore.open(path), known)
    except RunNotFound:
        # A training that was killed before it had made its store.
        assert not death.recorded, death
        return
    for past in outcome.deaths:
        owed = past.owed(KILL_SAFE, LOST_AT_MOST)
        if owed:
            assert any(s.holds(owed, past.life) for s in held), (owed, past, held)
    lost = {
        step: at
        for step, at in death.recorded.items()
        if not any(state.holds(step, death.life) for state in held)
    }
    outcome.lost_steps.append(len(lost))
    outcome.lost_seconds.append(death.killed_at - min(lost.values()) if lost else 0.0)


def _check_reader(outcome: Outcome) -> None:
    reader = outcome.reader
    assert not reader["faults"], reader["faults"][0]
    assert reader["looks"] > 0
    if outcome.lane.kind == "direct":
        assert not reader["shrunk"]
    for at, _, after in reader["shrunk"]:
        # Only a rollback takes something off, and it stops at the checkpoint that is resumed at.
        assert after in {d.opened for d in outcome.deaths} | {
            s for d in outcome.deaths for s in d.recorded
        }, (at, after)


def told(outcome: Outcome) -> str:
    """A line of figures."""
    deaths, reader = outcome.deaths, outcome.reader
    phases = {p: sum(d.phase == p for d in deaths) for p in sorted({d.phase for d in deaths})}
    steps = sum(len(d.recorded) for d in deaths)
    return (
        f"{outcome.lane.name}: {len(deaths)} kills ({phases}), {steps} steps recorded, lost "
        f"{sum(outcome.lost_steps)} (at most {max(outcome.lost_steps, default=0)} a kill, of the "
        f"last {max(outcome.lost_seconds, default=0):.3f} s), recovered from journals "
        f"{sum(d.recovered for d in deaths)}; reader: {reader['looks']} looks, up to "
        f"{reader['rows']} steps, {len(reader['shrunk'])} times fewer"
    )


@pytest.mark.slow
def test_a_hundred_kills_lose_nothing_that_was_promised(tmp_path):
    lanes = [
        Lane("direct", 42, 0.001),
        Lane("recorder", 42, 0.002),
        Lane("direct", 8, 0.15, moments="late", tag_every=50),
        Lane("recorder", 8, 0.15, moments="late", tag_every=50),
    ]
    assert sum(lane.lives for lane in lanes) == 100
    with ThreadPoolExecutor(len(lanes)) as pool:
        outcomes = pool.map(run, lanes, [tmp_path / str(n) for n in range(len(lanes))])
        for outcome in outcomes:
            logging.getLogger(__name__).info(told(outcome))


def test_rows_committed_just_before_a_kill_do_not_come_back_after_a_rollback(tmp_path, monkeypatch):
    class KilledError(BaseException):
        pass

    def killed(*_):
        raise KilledError

    store = RunStore.create(tmp_path / "store", ledger.LAYOUT)
    with store.writer("main") as writer:
        for first, last in ((1, 20), (21, 30)):
            router, train = ledger.rows_of(first, last, life=1)
            writer.append("router", router)
            writer.append("train", train)
            writer.seal()
            if first == 1:
                writer.commit("up to the checkpoint")
                writer.tag_checkpoint(20)
        # The branch has moved, and the journal of what came before is still there.
        monkeypatch.setattr(Journal, "begin", killed)
        with pytest.raises(KilledError):
            writer.commit("more")
        writer.close()
    monkeypatch.undo()
    assert len(ledger.shown(store.read("main"))) == 30
    store.rollback("main", 20)
    assert len(ledger.shown(store.read("main"))) == 20
    with store.writer("main") as writer:
        assert writer.recovered == 0
        assert writer.last("train") == 20


def test_a_few_kills_lose_nothing_that_was_promised(tmp_path):
    outcome = run(Lane("direct", 8, 0.001, seed=1), tmp_path / "run")
    assert len(outcome.deaths) == 8
    assert sum(len(death.recorded) for death in outcome.deaths) > 0
