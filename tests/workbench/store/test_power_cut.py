"""The power goes, again and again, while a writer writes: what `commit` or `sync` has acknowledged
is on the disk.

Each cut is simulated on an ext4 file system of the test's own (loop_disk.py); the control shows
that without syncs the same cut does lose what was acknowledged.
"""

from __future__ import annotations

import logging
import os
import random
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ledger
import pytest
from loop_disk import LoopDisk
from nursery import Death, Moment, Nursery

from workbench.store.run_store import RunStore
from workbench.store.verification import verify_store

ON_DISK = ("synced", "committed", "tagged")
PHASES = ("sync", "commit", "sync_tree", "begin", "tag_checkpoint", "writer")


def cut(disk: LoopDisk, nursery: Nursery, life: int, moment: Moment, **more: object) -> Death:
    """One life on `disk`, ended by a power cut."""

    def end(pid: int) -> None:
        # Stopped first, so that it is told nothing by a disk without power; what it waits for in
        # the kernel goes on and is cut off in the middle.
        os.kill(pid, signal.SIGSTOP)
        disk.cut_power()
        os.kill(pid, signal.SIGKILL)

    death = nursery.live(
        moment, end, kind="direct", path=str(disk.place / "store"), life=life,
        commit_every=50, tag_every=120, sync_seconds=0.1, step_seconds=0.002, **more,
    )  # fmt: skip
    disk.restart()
    return death


def rounds(folder: Path, cuts: int, seed: int) -> list[Death]:
    """Cuts that follow each other on one store, each looked at before the next."""
    chance = random.Random(f"power {seed}")
    deaths: list[Death] = []
    with LoopDisk(folder) as disk, Nursery("direct") as nursery:
        RunStore.create(disk.place / "store", ledger.LAYOUT)
        for life in range(1, cuts + 1):
            phase = PHASES[life % len(PHASES)]
            moment = Moment(phase, chance.randint(1, 5), chance.uniform(0, 0.04))
            if phase == "writer":
                moment = Moment(phase, 1, moment.delay)
            deaths.append(cut(disk, nursery, life, moment))
            held = ledger.states(RunStore.open(disk.place / "store"))
            for death in deaths:
                owed = death.owed(ON_DISK)
                assert not owed or any(s.holds(owed, death.life) for s in held), (owed, death)
            tags = RunStore.open(disk.place / "store").checkpoints("main")
            assert {d.acknowledged["tagged"] for d in deaths if "tagged" in d.acknowledged} <= {
                *tags
            }
        assert not verify_store(RunStore.open(disk.place / "store")).faults
    return deaths


@pytest.mark.slow
def test_twenty_power_cuts_lose_nothing_that_was_acknowledged(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        lanes = pool.map(rounds, [tmp_path / "a", tmp_path / "b"], [10, 10], [1, 2])
        deaths = [death for lane in lanes for death in lane]
    assert len(deaths) == 20
    owed = sum(bool(death.owed(ON_DISK)) for death in deaths)
    assert owed >= 10
    lost = [max(d.recorded, default=0) - d.owed(ON_DISK) for d in deaths if d.owed(ON_DISK)]
    told = f"20 cuts, {owed} of them with acknowledged steps, none lost; unacknowledged: {lost}"
    logging.getLogger(__name__).info(told)


def test_without_syncs_a_power_cut_loses_what_was_acknowledged(tmp_path):
    with LoopDisk(tmp_path / "disk") as disk, Nursery("direct") as nursery:
        RunStore.create(disk.place / "store", ledger.LAYOUT)
        death = cut(disk, nursery, 1, Moment("commit", 6, 0.02), unsynced=True)
        assert death.acknowledged["committed"] >= 100
        try:
            held = ledger.states(RunStore.open(disk.place / "store"))
        except Exception:
            held = []
        assert not any(state.holds(death.acknowledged["committed"], 1) for state in held)


def test_after_a_power_cut_the_store_opens_and_goes_on(tmp_path):
    deaths = rounds(tmp_path / "disk", 3, 3)
    assert any(death.owed(ON_DISK) for death in deaths)
