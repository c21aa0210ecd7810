"""The folder of a run: what lies where, and the one file that says what it is.

Needs   a path.
Yields  paths of its parts; `run.json`, written whole or not at all.

    run.json        name, when, with which software, configuration, phases, arms, what capture
                    dropped, and where the record is if it is not here
    tokenizer.json  the run's tokenizer
    store/          the record
    checkpoints/    the weights, <branch>/step-.../
    index/          their records
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from workbench.errors import RunExists, RunNotFound
from workbench.store.location import Location

FORMAT_VERSION = 1


class RunFolder:
    """Paths of a run's parts, and its run.json."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def store(self) -> Location:
        """Where the record is: store/ in the folder, or the place that run.json names."""
        here = self.path / "store"
        named = self.read().get("store") if self.exists and not here.exists() else None
        return Location.of(named if isinstance(named, str) else here)

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's file."""
        return self.path / "tokenizer.json"

    def checkpoints(self, branch: str) -> Path:
        """Where a branch's checkpoints lie."""
        return self.path / "checkpoints" / branch

    @property
    def exists(self) -> bool:
        """Whether a run has begun here."""
        return (self.path / "run.json").is_file()

    def create(self, **about: Any) -> None:
        """Begins a run: makes the folder and its run.json.

        Raises:
            RunExists: there is a run here already, or something else.
        """
        from workbench.provenance import provenance

        if self.exists:
            raise RunExists(
                f"{self.path} holds a run already: resume it, or choose another folder."
            )
        if self.path.exists() and not self.path.is_dir():
            raise RunExists(f"{self.path} is a file: choose another folder.")
        # A kill while the first run.json was written leaves a part of it, and nothing else.
        rest = self.path.iterdir() if self.path.exists() else ()
        if any(not p.name.startswith(".partial-run.json") for p in rest):
            raise RunExists(
                f"{self.path} is not empty and holds no run: choose an empty or a new folder."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self._write(
            {
                "format_version": FORMAT_VERSION,
                "name": self.path.resolve().name,
                "created_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "provenance": provenance(),
                "phases": [],
                "arms": {},
                **about,
            }
        )

    def read(self) -> dict[str, Any]:
        """What run.json says.

        Raises:
            RunNotFound: there is no run here, or its run.json cannot be read.
        """
        try:
            said = json.loads((self.path / "run.json").read_text())
        except FileNotFoundError as error:
            raise RunNotFound(f"no run at {self.path}: expected its run.json there.") from error
        except ValueError as error:
            raise RunNotFound(f"{self.path}/run.json cannot be read: {error}.") from error
        if not isinstance(said, dict):
            raise RunNotFound(f"{self.path}/run.json is no object: expected the file of a run.")
        return said

    def update(self, **about: Any) -> None:
        """Changes entries of run.json; a mapping is merged into the one that is there."""
        said = self.read()
        for name, value in about.items():
            if isinstance(value, dict) and isinstance(said.get(name), dict):
                value = {**said[name], **value}
            said[name] = value
        self._write(said)

    def _write(self, said: dict[str, Any]) -> None:
        partial = self.path / f".partial-run.json-{os.getpid()}"
        with partial.open("w") as file:
            json.dump(said, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path / "run.json")
