"""What the emergence figure says: its sentence, its table, its notes.

Needs   arm name -> capability (checkpoint, task), and the onsets that were told of them.
Yields  `emergence_sentence`, `emergence_table`, `emergence_notes`; Onset, what is read of one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import xarray as xr

from workbench.figures.caption import Table
from workbench.figures.tasks import by_family
from workbench.figures.wording import listed, many, number, per_arm, plain


class Onset(Protocol):
    """What the figure reads of a `probes.Onset`."""

    @property
    def step(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def level(self) -> float: ...
    @property
    def reached(self) -> bool: ...
    @property
    def verdict(self) -> Any: ...


Onsets = Mapping[str, Mapping[str, Onset]]
"""arm name -> task name -> onset."""


def emergence_sentence(arms: Mapping[str, xr.Dataset], onsets: Onsets) -> str:
    """On how many tasks each arm got half-way to perfect, and which came in one arm only.

    A task counts as one arm's own only where the items decide it: its onset has an end, and the
    other arms have none.
    """
    tasks = tasks_of(arms)
    able = {arm: _able(ds, onsets.get(arm)) for arm, ds in arms.items()}
    counts = per_arm({arm: str(len(names)) for arm, names in able.items()})
    what = (
        "Half-way from chance to perfect, to stay, is reached on"
        if onsets
        else "At the last checkpoint the model is half-way from chance to perfect on"
    )
    said = [f"{many(len(tasks), 'task')}. {what} {counts}."]
    undecided = []
    for arm, names in able.items():
        others = set().union(*(n for a, n in able.items() if a != arm))
        only = [t for t in tasks if len(able) > 1 and t in names and t not in others]
        open_ended = [t for t in only if _open(onsets.get(arm, {}).get(t))]
        undecided += open_ended
        if sure := [t for t in only if t not in open_ended]:
            said.append(f"Only under {plain(arm)}: {listed(sure)}.")
    if undecided:
        said.append(f"Too close to call with these items: {listed(undecided)}.")
    return " ".join(said)


def _able(ds: xr.Dataset, onsets: Mapping[str, Onset] | None) -> set[str]:
    if onsets is not None:
        return {task for task, found in onsets.items() if found.reached}
    last = ds["accuracy"].isel(checkpoint=-1)
    good = (last - ds["chance"]) / (1 - ds["chance"]) >= 0.5
    return {str(t) for t in ds["task"].values[good.values]}


def _open(found: Onset | None) -> bool:
    return found is not None and math.isinf(found.high)


def tasks_of(arms: Mapping[str, xr.Dataset]) -> list[str]:
    """The tasks of any arm, in the order in which they were recorded."""
    return list(dict.fromkeys(str(t) for ds in arms.values() for t in ds["task"].values))


def emergence_table(arms: Mapping[str, xr.Dataset], onsets: Onsets) -> Table:
    """A row a task and arm: accuracy and log-probability at the last checkpoint, onset, verdict."""
    rows: list[tuple[Any, ...]] = []
    for task in [t for names in by_family(tasks_of(arms)).values() for t in names]:
        for arm, ds in arms.items():
            if task not in ds["task"]:
                continue
            last = ds.sel(task=task).isel(checkpoint=-1)
            found = onsets.get(arm, {}).get(task)
            rows.append(
                (task, arm, *_cells(last, "accuracy"), *_cells(last, "logprob"),
                 float(last["chance"]), *_onset_cells(found))
            )  # fmt: skip
    return Table(
        ("task", "arm", "final accuracy", "low", "high", "final log-prob. (nats)", "low", "high",
         "chance", "onset (step)", "from", "to", "verdict"),
        tuple(rows),
    )  # fmt: skip


def _cells(last: xr.Dataset, name: str) -> tuple[float | None, ...]:
    return tuple(
        float(last[n]) if n in last else None for n in (name, f"{name}_low", f"{name}_high")
    )


def _onset_cells(found: Onset | None) -> tuple[Any, ...]:
    if found is None:
        return (None, None, None, None)
    if not found.reached:
        return ("not reached", round(found.low), None, str(found.verdict))
    high = "open" if math.isinf(found.high) else round(found.high)
    return (round(found.step), round(found.low), high, str(found.verdict))


def emergence_notes(arms: Mapping[str, xr.Dataset]) -> tuple[str, ...]:
    """What the bands are about, and where the axes of the log-probability begin."""
    sizes = sorted({int(ds["n"].max()) for ds in arms.values() if "n" in ds})
    checkpoints = max(ds.sizes["checkpoint"] for ds in arms.values())
    items = f", {number(sizes[0])} items a task" if len(sizes) == 1 else ""
    notes = [
        f"Bands: 95 % over items{items}; {many(checkpoints, 'checkpoint')}; one training seed."
    ]
    if any(early_dip(ds, task) for ds in arms.values() for task in tasks_of({"": ds})):
        notes.append("The first checkpoints may lie below the axis of the log-probability.")
    return tuple(notes)


EARLY = 0.1
"""Share of the checkpoints that does not decide where the axis of the log-probability begins."""


def floor_of(ds: xr.Dataset, task: str) -> float:
    """The lowest log-probability of a task after the first tenth of the checkpoints, nats.

    Before a model knows which tokens are answers at all, the right one gets next to nothing; an
    axis that held that would press all that follows flat. 0 where none was recorded.
    """
    names = [n for n in ("logprob", "logprob_low") if n in ds]
    if task not in ds["task"] or not names:
        return 0.0
    late = ds.sel(task=task).isel(checkpoint=slice(math.ceil(EARLY * ds.sizes["checkpoint"]), None))
    found = [float(late[n].min()) for n in names if late.sizes["checkpoint"]]
    return min([v for v in found if math.isfinite(v)], default=0.0)


def early_dip(ds: xr.Dataset, task: str) -> bool:
    """Whether a log-probability before that is clearly lower still."""
    if "logprob" not in ds:
        return False
    return float(ds["logprob"].sel(task=task).min()) < 1.08 * floor_of(ds, task) - 0.05
