"""Report card: everything known of how one capability emerged, on one sheet; over seeds if any.

Needs   a capability dataset (or a Run, Window, evaluations dataset) and a task; several of them,
        one for each training seed, where there are several.
Yields  ReportCard: onset, change points, age of acquisition, linearity and breakthroughness of the
        accuracy and of the log-probability, a verdict with its reasons; over seeds the spread.

Verdict. Of one seed: by the rule in seed_card.py. Over seeds: jump (or smooth) where more than half
of the seeds say so and at most a fifth say the opposite; else cannot tell. With two to four seeds a
single opposite one is too many.

Intervals. Each seed's onset: other items, same training run. `spread` over seeds is the standard
deviation between training runs (items' luck included), and `mean_low`, `mean_high` the 95 % t
interval of the mean onset over seeds: other seeds, same kind of run. They are NaN where fewer than
two seeds reached the level, and say nothing of the seeds that did not: `reached` counts them.

It misleads where seeds differ in more than their seed, where a few seeds reached the level and the
others are left out of the mean onset, and where the checkpoints are too sparse for any rise to look
smooth.

Sources: those of the parts; seeds apart from items, Miller 2024, arXiv:2411.00640.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from scipy import stats

from probes.capability import capability
from probes.emergence import Verdict
from probes.registry import probe
from probes.seed_card import NUMBERS, SeedCard, row_of, seed_card
from probes.source import Source
from probes.statistics.resample import BOOT, CONFIDENCE
from workbench.errors import UsageError

OPPOSED = 1 / 5
"""Share of the seeds that may say the opposite."""

VERDICTS: tuple[Verdict, ...] = ("jump", "smooth", "cannot tell")


@dataclass(frozen=True, kw_only=True, repr=False)
class ReportCard:
    """How one capability emerged."""

    task: str
    """Which task."""

    level: float
    """The onset's level, chance-normalised."""

    seeds: tuple[SeedCard, ...]
    """A sheet for each training seed; often one."""

    verdict: Verdict
    """Of the one seed, or over all of them."""

    reached: int
    """Seeds that reached the level."""

    mean: float
    """Mean onset of those, steps."""

    mean_low: float
    """Lower end of its 95 % interval over seeds, steps; NaN under two."""

    mean_high: float
    """Upper end, steps."""

    spread: float
    """Standard deviation of the onset between seeds, steps; NaN under two."""

    shares: dict[Verdict, float]
    """Share of the seeds for each verdict."""

    curves: xr.Dataset = field(compare=False)
    """(seed, checkpoint): accuracy, normalized and logprob with their bounds; NaN where a seed has
    no such checkpoint."""

    def __repr__(self) -> str:
        first = self.seeds[0]
        lines = [f"ReportCard({self.task}: {self.verdict}"]
        if len(self.seeds) == 1:
            lines += [f"  {first.onset!r}"]
            lines += [f"  {change!r}" for change in first.changes.values() if change]
            lines += [f"  {first.acquisition!r}"]
            lines += [f"  because {reason}" for reason in first.reasons]
        else:
            said = ", ".join(f"{v} {self.shares[v]:.0%}" for v in VERDICTS)
            lines += [f"  {len(self.seeds)} seeds: {said}; {self.reached} reached {self.level:g}"]
            lines += [
                f"  onset at step {self.mean:.0f} in the mean, 95 % over seeds {self.mean_low:.0f} "
                f"to {self.mean_high:.0f}; between seeds ±{self.spread:.0f} (sd)"
            ]
        return "\n".join(lines) + ")"

    def rows(self) -> list[dict[str, Any]]:
        """One plain row a seed, for a table: numbers in steps, nats and fractions."""
        return [{"task": self.task, "seed": i, **row_of(s)} for i, s in enumerate(self.seeds)]

    def to_dataset(self) -> xr.Dataset:
        """The card as a dataset: the curves (seed, checkpoint), and every number (seed)."""
        rows = self.rows()
        card = self.curves.copy()
        for name, (units, meaning, interval) in NUMBERS.items():
            card[name] = ("seed", [row[name] for row in rows])
            card[name].attrs = {"units": units, "long_name": meaning, "interval": interval}
        card["verdict"] = ("seed", np.array([row["verdict"] for row in rows]))
        card["verdict"].attrs = {
            "units": "1", "long_name": "jump, smooth or cannot tell",
            "interval": "error rates on planted curves: tests/probes/rates_emergence.py",
        }  # fmt: skip
        return card.assign_attrs(
            task=self.task, level=self.level, verdict=self.verdict, n=len(rows),
            n_meaning="training seeds", reached=self.reached, onset_mean=self.mean,
            onset_mean_low=self.mean_low, onset_mean_high=self.mean_high, onset_sd=self.spread,
            **{f"share_{v.replace(' ', '_')}": self.shares[v] for v in VERDICTS},
        )  # fmt: skip


def report_card(
    skill: Source | Sequence[Source],
    task: str | None = None,
    level: float = 0.5,
    *,
    n_boot: int = BOOT,
    seed: int = 0,
) -> ReportCard:
    """Everything known of how a capability emerged, with a verdict; rules in the file's head.

    Args:
        skill: what `capability` returned, or a Run, Window or evaluations dataset; or a list, one
            for each training seed.
        task: which; None where there is one only.
        level: of the onset, chance-normalised.
        n_boot, seed: draws over items, and their seed.

    Returns:
        ReportCard.

    Raises:
        UsageError: no seed, several tasks and none named, or too few checkpoints.
        RunNotFound: no such task.

    Example:
        >>> from workbench.testing import PlantedSkill, evaluations_record
        >>> record = evaluations_record({"code/add": PlantedSkill("jump", at=500)}, seed=1)
        >>> card = report_card(record, task="code/add", n_boot=200)
        >>> card.verdict, card.seeds[0].changes["accuracy"].before
        ('jump', 480.0)
    """
    sources = list(skill) if isinstance(skill, list | tuple) else [skill]
    if not sources:
        raise UsageError("found no seed; a report card needs one run, or one for each seed.")
    skills = [_skill(source, task, seed) for source in sources]
    names = {str(one["task"].item()) for one in skills if "task" in one.coords}
    if len(names) > 1:
        raise UsageError(f"found the tasks {', '.join(sorted(names))}; expected one in all seeds.")
    seeds = tuple(seed_card(one, level, n_boot=n_boot, seed=seed) for one in skills)
    steps = np.array([s.onset.step for s in seeds if s.onset.reached])
    mean, low, high, spread = _over_seeds(steps)
    shares = {v: float(np.mean([s.verdict == v for s in seeds])) for v in VERDICTS}
    return ReportCard(
        task=seeds[0].onset.task,
        level=float(level),
        seeds=seeds,
        verdict=_overall(shares),
        reached=len(steps),
        mean=mean,
        mean_low=low,
        mean_high=high,
        spread=spread,
        shares=shares,
        curves=_curves(skills),
    )


@probe(
    "emergence",
    question="When did each task arrive, and did it jump or rise smoothly?",
    reads="record",
    needs=("evaluations",),
)
def report_cards(
    source: Source, level: float = 0.5, n_boot: int = BOOT, seed: int = 0
) -> xr.Dataset:
    """The report card of every task of a run.

    Args:
        source: Run, Window, Checkpoints or evaluations dataset.
        level: of the onset, chance-normalised.
        n_boot, seed: draws over items, and their seed.

    Returns:
        Dataset (task): onset, onset_low, onset_high, age (and bounds), plateau; of accuracy and
        logprob each <curve>_change (and bounds), <curve>_change_p, <curve>_linearity,
        <curve>_breakthroughness; verdict, reason.

    Raises:
        UsageError: no evaluations, or too few checkpoints.

    Example:
        >>> from workbench.testing import PlantedSkill, evaluations_record
        >>> record = evaluations_record({"code/add": PlantedSkill("jump", at=500)}, seed=1)
        >>> report_cards(record, n_boot=200)["verdict"].values.tolist()
        ['jump']
    """
    skills = capability(source, n_boot=2, seed=seed)
    cards = [
        seed_card(skills.sel(task=task), level, n_boot=n_boot, seed=seed)
        for task in skills["task"].values
    ]
    rows = [row_of(card) for card in cards]
    result = xr.Dataset(
        {name: ("task", np.array([row[name] for row in rows])) for name in (*NUMBERS, "verdict")},
        coords={"task": skills["task"].values, "chance": ("task", skills["chance"].values)},
    )
    result["reason"] = ("task", np.array(["; ".join(card.reasons) for card in cards]))
    for name, (units, meaning, interval) in NUMBERS.items():
        result[name].attrs = {"units": units, "long_name": meaning, "interval": interval}
    for name, meaning in (("verdict", "jump, smooth or cannot tell"), ("reason", "the evidence")):
        result[name].attrs = {
            "units": "1", "long_name": meaning,
            "interval": "error rates on planted curves: tests/probes/rates_emergence.py",
        }  # fmt: skip
    checkpoints = skills.sizes["checkpoint"]
    return result.assign_attrs(
        n=checkpoints, n_meaning="checkpoints", level=level, n_boot=n_boot, seed=seed
    )


def _skill(source: Source, task: str | None, seed: int) -> xr.Dataset:
    """A capability dataset of one task, from itself or from a record."""
    if isinstance(source, xr.Dataset) and "item_logprob" in source:
        if "task" in source.dims:
            source = source.sel(task=task) if task is not None else source
        if "task" in source.dims and source.sizes["task"] == 1:
            source = source.squeeze("task")
        found = source
    else:
        found = capability(source, task=task, seed=seed)
        if task is None and found.sizes["task"] == 1:
            found = found.squeeze("task")
    if "task" in found.dims:
        names = ", ".join(map(str, found["task"].values))
        raise UsageError(f"found the tasks {names}; name one: report_card(..., task=...).")
    return found


def _overall(shares: dict[Verdict, float]) -> Verdict:
    opposites: tuple[tuple[Verdict, Verdict], ...] = (("jump", "smooth"), ("smooth", "jump"))
    for one, opposite in opposites:
        if shares[one] > 0.5 and shares[opposite] <= OPPOSED:
            return one
    return "cannot tell"


def _over_seeds(steps: np.ndarray) -> tuple[float, float, float, float]:
    """(mean, low, high, standard deviation) of the onsets that were reached."""
    n = len(steps)
    mean = float(steps.mean()) if n else float("nan")
    if n < 2:
        return mean, float("nan"), float("nan"), float("nan")
    spread = float(steps.std(ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * spread / np.sqrt(n)
    return mean, mean - half, mean + half, spread


def _curves(skills: Sequence[xr.Dataset]) -> xr.Dataset:
    names = [
        f"{c}{e}" for c in ("accuracy", "normalized", "logprob") for e in ("", "_low", "_high")
    ]
    each = [skill[names].reset_coords(drop=True) for skill in skills]
    return xr.concat(each, dim="seed", join="outer").assign_coords(seed=np.arange(len(each)))
