"""Lives that are watched, and ended at a chosen moment.

Needs   doomed_writer.py, beside this file.
Yields  Nursery: `live` lets one writer live and kills it; Death: what it had been told until then.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import workbench

HERE = Path(__file__).parent
HOME = Path(workbench.__file__).parent.parent
ENVIRONMENT = {
    **os.environ, "PYTHONPATH": f"{HOME}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1",
}  # fmt: skip
PATIENCE = 60.0
"""Seconds without a word from a writer after which something is wrong."""

PHASES = {
    "writer": (1, 1, 0.10), "rollback": (0, 1, 0.05), "append": (100, 8, 0.001),
    "seal": (60, 4, 0.001), "sync": (6, 1, 0.01), "commit": (6, 5, 0.05),
    "sync_tree": (14, 10, 0.03), "begin": (6, 4, 0.005), "tag_checkpoint": (3, 2, 0.03),
}  # fmt: skip
"""Phases of a writer: the most times that a direct one and a recorder's is let through, and about
the seconds that one lasts. A life ends at a random moment of a random one.
"""


@dataclass(frozen=True)
class Moment:
    """When to kill: `delay` seconds after the `nth` entry into `phase`, or after the birth where
    that is "anywhere".
    """

    phase: str
    nth: int
    delay: float

    @classmethod
    def draw(cls, chance: random.Random, kind: str, turn: int) -> Moment:
        """Every phase has its turn; which occurrence and when within it is left to chance."""
        at = ("direct", "recorder").index(kind)
        own = [phase for phase in PHASES if PHASES[phase][at]]
        phase = own[turn % len(own)]
        return cls(phase, chance.randint(1, PHASES[phase][at]), chance.uniform(0, PHASES[phase][2]))


@dataclass
class Death:
    """What a writer had done and been told when it was killed."""

    life: int
    moment: Moment
    killed_at: float = 0.0
    """time.monotonic() just before the kill."""
    opened: int | None = None
    """Steps that it found, or went back to; None: it did not come so far."""
    recovered: int = 0
    """Steps of those that its predecessor had not committed."""
    recorded: dict[int, float] = field(default_factory=dict)
    """When each step was handed over."""
    acknowledged: dict[str, int] = field(default_factory=dict)
    """The last step that was sealed, synced, committed and tagged."""
    phase: str = "birth"
    """Where it died: the last one that it entered, or between two."""
    status: int | None = None

    def take(self, line: str) -> None:
        verb, *words = line.split()
        if verb == "at":
            self.phase = words[0]
        elif verb == "recorded":
            self.recorded[int(words[0])] = float(words[1])
        elif verb == "opened":
            self.opened, self.recovered = map(int, words)
            # What was acknowledged before is the last life's rows, committed to be set aside.
            self.acknowledged.clear()
        elif verb == "ended":
            self.status = int(words[0])
        else:
            self.acknowledged[verb], self.phase = int(words[0]), "between"

    def owed(self, deeds: tuple[str, ...], seconds: float | None = None) -> int:
        """The last step of this life that must be there: it was told that one of `deeds` was done
        up to it, or it was recorded more than `seconds` before the end. 0: none.
        """
        own = [self.acknowledged.get(deed, 0) for deed in deeds]
        if seconds is not None:
            own += [s for s, at in self.recorded.items() if at < self.killed_at - seconds]
        last = max(own, default=0)
        if last < min(self.recorded, default=last + 1):
            # Told of what earlier lives had recorded.
            return 0
        return last if last in self.recorded else min(last, max(self.recorded, default=0))


class Nursery:
    """Brings writers to life, one after the other.

    Args:
        kinds: "recorder" where trainings are to live here, which takes longer to start.
    """

    def __init__(self, *kinds: str) -> None:
        self._errors = open(os.memfd_create("errors"), "w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, HERE / "doomed_writer.py", *kinds],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=ENVIRONMENT,
        )  # fmt: skip
        assert self._process.stdout is not None
        self._fd = self._process.stdout.fileno()
        self._unread = b""
        assert self._line() == "ready"

    def live(
        self,
        moment: Moment,
        end: Callable[[int], None] = lambda pid: os.kill(pid, signal.SIGKILL),
        **life: Any,
    ) -> Death:
        """One life, ended at `moment`, or after 3 s (or `delay`) where that does not come.

        Args:
            end: how it ends, given its process id; it must be dead soon afterwards.
            life: as doomed_writer.py takes it.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(life).encode() + b"\n")
        self._process.stdin.flush()
        death = Death(life["life"], moment)
        anywhere = moment.phase == "anywhere"
        deadline = time.monotonic() + (moment.delay if anywhere else 3.0)
        pid, met, ended = 0, 0, False
        while death.status is None:
            line = self._line(None if ended else deadline - time.monotonic())
            if line is not None and line.startswith("born"):
                pid = int(line.split()[1])
            elif line is not None:
                death.take(line)
                met += line == f"at {moment.phase}"
            come = met >= moment.nth and not anywhere
            if pid and not ended and (come or time.monotonic() >= deadline):
                if come:
                    time.sleep(moment.delay)
                death.killed_at, ended = time.monotonic(), True
                end(pid)
        if death.status != -signal.SIGKILL:
            raise AssertionError(f"it ended by itself, {death.status}:\n{self.said()}")
        return death

    def _line(self, limit: float | None = None) -> str | None:
        """The next line, or None where there is none within `limit` seconds."""
        while b"\n" not in self._unread:
            wait = PATIENCE if limit is None else max(limit, 0)
            if not select.select([self._fd], [], [], wait)[0]:
                assert limit is not None, f"not a word for {PATIENCE} s:\n{self.said()}"
                return None
            more = os.read(self._fd, 1 << 16)
            assert more, f"the nursery has gone:\n{self.said()}"
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def said(self) -> str:
        """What came on stderr."""
        self._errors.seek(0)
        return self._errors.read()[-4000:]

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()
