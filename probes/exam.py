"""Exam: what every checkpoint of a run is asked, the same each time.

Needs   a run of ours; or fixed tokens, tasks and a way to build the model, for any other.
Yields  Exam: tokens (row, pos) with a domain a row, tasks with items and chance levels, `build`.

The tokens are the run's fixed probe set, read from its record, so that what a probe computes can be
held against what was recorded. The items are those of the run's own evaluations.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from probes.inputs.lasting_name import lasting_name
from workbench.errors import RunNotFound, UsageError

if TYPE_CHECKING:
    from torch import nn

    from model.evaluation import ItemBatch
    from workbench.checkpoints import Checkpoint

Build = Callable[["Checkpoint"], "nn.Module"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Exam:
    """What a checkpoint is asked.

    Example:
        >>> exam = Exam(tokens=np.zeros((2, 8), int), domains=("code", "prose"))
        >>> exam.labels["domain"].values[[0, -1]].tolist()
        ['code', 'prose']
    """

    tokens: np.ndarray
    """(row, pos), int64: the fixed tokens; a copy of its own, which refuses to be written on."""

    domains: tuple[str, ...]
    """Domain of each row."""

    items: ItemBatch | None = None
    """The tasks' items as token sequences (model/evaluation.py encodes them); None: no tasks."""

    chance: Mapping[str, float] = field(default_factory=dict)
    """Accuracy of guessing, by task."""

    build: Build | None = None
    """Makes the model of a checkpoint, its weights in it; None: by the checkpoint's own format.
    Results are kept for a function that can be imported, under its name; for a lambda, a closure, a
    partial, a wrapper or an object's method they are not: nothing would tell it from another."""

    def __post_init__(self) -> None:
        tokens = np.asarray(self.tokens)
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or tokens.shape[1] < 2:
            raise UsageError(
                f"exam tokens: found {tokens.dtype} of shape {tokens.shape}, expected integers "
                f"(row, pos) with 2 positions or more."
            )
        if len(self.domains) != len(tokens):
            raise UsageError(
                f"exam domains: found {len(self.domains)} for {len(tokens)} rows, expected one a "
                f"row."
            )
        object.__setattr__(self, "tokens", _fixed(tokens.astype(np.int64)))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """On a worker: numpy's arrays come out of a pickle open to writes."""
        self.__dict__.update(state | {"tokens": _fixed(state["tokens"])})
        self.__dict__.pop("_columns", None)

    @classmethod
    def of(cls, run: Any) -> Exam:
        """The exam of a run of ours, of a window, of checkpoints or of one checkpoint of it.

        Raises:
            RunNotFound: the run keeps no fixed tokens, or no plan that would give its tasks.
        """
        from workbench.run import Run

        run = getattr(run, "run", run)
        if not isinstance(run, Run):
            path = getattr(run, "run_path", None)
            if path is None:
                raise UsageError(
                    f"found a {type(run).__name__}, expected a run, a window or checkpoints; or "
                    f"make an Exam of your own tokens: Exam(tokens=..., domains=...)."
                )
            run = Run(Path(path))
        activations = run.activations
        tokens = activations["token_id"].values.astype(np.int64)
        domains = activations["domain"].values.astype(str)
        length = _row_length(run, len(tokens))
        rows = tokens.reshape(-1, length)
        items, chance = _tasks(run)
        return cls(
            tokens=rows, domains=tuple(map(str, domains[::length])), items=items, chance=chance
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return self.items.tasks if self.items is not None else ()

    @property
    def labels(self) -> xr.Dataset:
        """What is known of every fixed token, row by row (token): token_id, next_id (-1 at the end
        of a row), row, position, domain. Its columns refuse to be written on.
        """
        return self._columns.copy(deep=False)

    @cached_property
    def _columns(self) -> xr.Dataset:
        rows, length = self.tokens.shape
        following = np.full((rows, length), -1)
        following[:, :-1] = self.tokens[:, 1:]
        columns = {
            "token_id": self.tokens.ravel(),
            "next_id": following.ravel(),
            "row": np.repeat(np.arange(rows), length),
            "position": np.tile(np.arange(length), rows),
            "domain": np.repeat(np.array(self.domains, dtype=str), length),
        }
        return xr.Dataset({name: ("token", _fixed(column)) for name, column in columns.items()})

    @property
    def identity(self) -> str | None:
        """What names the exam in the key of a kept result; None where it has no name that lasts."""
        if self.build is None:
            return self.digest
        name = lasting_name(self.build)
        return None if name is None else f"{self.digest} {name}"

    @cached_property
    def digest(self) -> str:
        """Changes when anything that is asked does."""
        hashed = hashlib.sha256(np.ascontiguousarray(self.tokens).tobytes())
        hashed.update(json.dumps([list(self.tokens.shape), list(self.domains)]).encode())
        hashed.update(json.dumps(sorted(self.chance.items())).encode())
        if self.items is not None:
            batch = self.items
            hashed.update(batch.sequences.numpy().tobytes())
            plain = [
                list(batch.sequences.shape), list(batch.tasks), batch.items_per_task,
                batch.continuation, batch.sequence_of.tolist(), batch.start.tolist(),
                batch.item_of.tolist(), batch.is_right.tolist(),
            ]  # fmt: skip
            hashed.update(json.dumps(plain).encode())
        return hashed.hexdigest()[:32]


def _fixed(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def _row_length(run: Any, tokens: int) -> int:
    """Positions of a row of the fixed tokens: as recorded, or by the plan of a run of ours."""
    said = run.attrs.get("probe_set"), run.attrs.get("config")
    for about, name in zip(said, ("positions", "row_tokens"), strict=True):
        length = about.get(name) if isinstance(about, dict) else None
        if isinstance(length, int) and length > 1 and tokens % length == 0:
            return length
    raise RunNotFound(
        f"the run {run.path} does not say how its {tokens} fixed tokens fall into rows; make the "
        f"exam yourself: Exam(tokens=rows, domains=names, items=..., build=...)."
    )


def _tasks(run: Any) -> tuple[ItemBatch | None, dict[str, float]]:
    """The items that the run's own evaluations put to its checkpoints."""
    from model.data.tokenizer import load_tokenizer
    from model.data.world import TASKS, World
    from model.evaluation import encode_items
    from model.training.plan import TrainingPlan
    from workbench.capture.run_folder import RunFolder

    config = run.attrs.get("config")
    if not isinstance(config, dict) or "items_per_task" not in config:
        # Another trainer's run: its own evaluations cannot be put again from here.
        return None, {}
    plan = TrainingPlan.from_dict(config)
    world = World(plan.seed)
    tokenizer = load_tokenizer(RunFolder(run.path).tokenizer, plan.model.d_vocab)
    items = {task: world.items(task, plan.items_per_task) for task in TASKS}
    return encode_items(items, tokenizer), {t.name: t.chance for t in TASKS.values()}
