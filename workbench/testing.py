"""Testing: records of runs that never ran, in which the answer is known.

Needs   a seed, and what is to be true.
Yields  datasets as a run's own: run.router, run.evaluations, run.activations; same dims, dtypes,
        coordinates and attrs (checked by schema.conform), same numbers for the same seed.

For tests of probes, for one's own analysis ("would my method see a dead expert?") and for docs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from workbench.errors import UsageError
from workbench.store.schema import NEAR_TIE_LOGITS, conform

Floats = NDArray[np.float64]

TASKS = ("knowledge/capitals", "reading/coreference", "logic/chain", "code/add")
"""Task names used where none are given: one of each family."""

# Shapes: T tokens, L layers, E experts, K chosen, C checkpoints, I items.


@dataclass(frozen=True, kw_only=True)
class DeadExpert:
    """An expert that receives nothing from a step on."""

    expert: int
    """Which expert."""

    step: int
    """First step without any assignment."""

    layer: int = 0
    """Which layer."""


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """An expert whose router logit rises (or falls) evenly over the run."""

    expert: int
    """Which expert."""

    rise: float = 2.0
    """Logits by which it ends above the others; negative to fall."""

    layer: int = 0
    """Which layer."""


def router_record(
    *,
    steps: int = 60,
    layers: int = 2,
    experts: int = 8,
    k: int = 2,
    tokens: int = 512,
    domains: Sequence[str] = TASKS,
    dead: Sequence[DeadExpert] = (),
    ramps: Sequence[Ramp] = (),
    specialised: Mapping[str, int] | None = None,
    sample_every: int = 10,
    seed: int = 0,
) -> xr.Dataset:
    """A router record from tokens that were truly routed, one by one: every count adds up.

    A token's logits are its domain's bias plus Gumbel noise, so that its first choice follows the
    softmax of the bias; with no dead expert, ramp or specialisation the routing is fair.

    Args:
        steps, layers, experts, k, tokens: sizes; tokens per step, dealt evenly over the domains.
        dead: experts that die, ramps: experts that gain or lose ground.
        specialised: domain -> expert that it prefers, by 3 logits, in every layer.
        sample_every: steps between two co-activation samples.

    Returns:
        Dataset of the group "router" with coordinates step (from 1), layer, expert, expert2,
        domain, sample, tokens_seen (step); attrs k, branch, run.

    Raises:
        UsageError: k over the number of experts, or an unknown domain.

    Example:
        >>> record = router_record(steps=5, dead=[DeadExpert(expert=3, step=4)])
        >>> int(record["assignments"].sel(step=slice(4, None), layer=0, expert=3).sum())
        0
    """
    if not 0 < k <= experts:
        raise UsageError(f"k={k} of {experts} experts: expected 1 to {experts}.")
    unknown = set(specialised or {}) - set(domains)
    if unknown:
        raise UsageError(f"no domain {sorted(unknown)}; there are {', '.join(domains)}.")
    rng = np.random.default_rng(seed)
    domain_T = np.arange(tokens) % len(domains)
    bias = np.zeros((layers, len(domains), experts))
    for name, expert in (specialised or {}).items():
        bias[:, list(domains).index(name), expert] += 3.0
    clock = np.arange(1, steps + 1)
    rows, samples = [], []
    for step in clock:
        now = bias.copy()
        for ramp in ramps:
            now[ramp.layer, :, ramp.expert] += ramp.rise * (step - 1) / max(steps - 1, 1)
        for death in dead:
            if step >= death.step:
                now[death.layer, :, death.expert] = -50.0
        logits_TLE = now[:, domain_T].swapaxes(0, 1) + rng.gumbel(size=(tokens, layers, experts))
        row, chosen_TLE = _routed(logits_TLE, k, domain_T, len(domains))
        rows.append(row)
        if step % sample_every == 0:
            chosen = chosen_TLE.astype(np.int64)
            samples.append((step, np.einsum("tle,tlf->lef", chosen, chosen)))
    record = xr.concat(rows, dim="step")
    record["tokens"] = ("step", np.full(steps, tokens))
    if samples:
        record["coactivation"] = (
            ("sample", "layer", "expert", "expert2"),
            np.stack([counts for _, counts in samples]),
        )
        record = record.assign_coords(
            sample=[step for step, _ in samples], expert2=np.arange(experts)
        )
    record = record.assign_coords(
        step=clock,
        layer=np.arange(layers),
        expert=np.arange(experts),
        domain=list(domains),
        tokens_seen=("step", clock * tokens),
    )
    return conform(record, "router").assign_attrs(_attrs(k=k))


def _routed(
    logits: Floats, k: int, domain_T: NDArray[np.intp], domains: int
) -> tuple[xr.Dataset, NDArray[np.bool_]]:
    """One step's statistics from (token, layer, expert) logits, and who was chosen."""
    order = np.sort(logits, axis=-1)[..., ::-1]
    chosen = logits >= order[..., k - 1 : k]
    top = logits.max(axis=-1, keepdims=True)
    lse = top + np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    probs = np.exp(logits - lse)
    gates = np.where(chosen, probs, 0.0)
    topk_mass = gates.sum(axis=-1, keepdims=True)
    gates = gates / topk_mass
    left_out = order[..., k] if k < logits.shape[-1] else np.full(order.shape[:-1], -np.inf)
    margin = np.minimum(order[..., k - 1] - left_out, 1e6)
    one_hot = np.eye(domains, dtype=np.int64)[domain_T]
    le, per_layer = ("layer", "expert"), ("layer",)
    values = {
        "assignments": (le, chosen.sum(axis=0, dtype=np.int64)),
        "gate_mass": (le, gates.sum(axis=0)),
        "prob_mass": (le, probs.sum(axis=0)),
        "entropy": (per_layer, -(probs * (logits - lse)).sum(axis=-1).mean(axis=0)),
        "margin": (per_layer, margin.mean(axis=0)),
        "z_squared": (per_layer, (lse[..., 0] ** 2).mean(axis=0)),
        "topk_mass": (per_layer, topk_mass[..., 0].mean(axis=0)),
        "near_tie": (per_layer, (margin < NEAR_TIE_LOGITS).mean(axis=0)),
        "domain_assignments": (
            ("layer", "domain", "expert"),
            np.einsum("td,tle->lde", one_hot, chosen.astype(np.int64)),
        ),
    }
    held = {
        name: (dims, array if array.dtype == np.int64 else array.astype(np.float32))
        for name, (dims, array) in values.items()
    }
    return xr.Dataset(held), chosen


def activations_record(
    *,
    checkpoints: int = 11,
    tokens: int = 1024,
    layers: int = 2,
    experts: int = 16,
    k: int = 4,
    freeze_at: float | None = 0.6,
    skew: float = 0.0,
    document_tokens: int = 1,
    every: int = 100,
    seed: int = 0,
) -> xr.Dataset:
    """Routing of a fixed token set that freezes: its saturation is known at every checkpoint.

    Each document freezes at a time drawn evenly from the first `freeze_at` of training. Before
    that its tokens are routed afresh, independently, at every checkpoint; from then on as at the
    end. At share u of training kappa against the final routing is therefore min(1, u/freeze_at),
    whatever the loads; and kappa from one checkpoint to the next is that of the earlier one.

    Args:
        checkpoints, tokens, layers, experts, k: sizes; checkpoint c is at step c x `every`, and
            the first at step 0.
        freeze_at: share of training by which all is frozen; None: never, and kappa is 0 before
            the last checkpoint.
        skew: sd over experts of a bias on the logits: unequal loads, so that chance is not k/E.
        document_tokens: tokens of a document, which freeze together; over 1 makes neighbouring
            tokens dependent, as text does.

    Returns:
        Dataset of the group "activations" with coordinates checkpoint, tokens_seen, token, layer,
        k, expert, token_id (token), domain (token); attrs k, branch, run.

    Example:
        >>> routing = activations_record(checkpoints=3, tokens=8)
        >>> routing["expert_ids"].dims
        ('checkpoint', 'token', 'layer', 'k')
    """
    rng = np.random.default_rng(seed)
    # Its own stream: the loads stay the same when the sizes change.
    bias = np.random.default_rng(seed + 1).normal(0, skew, (layers, experts))
    documents = -(-tokens // document_tokens)
    frozen_from = rng.uniform(0, 1, documents).repeat(document_tokens)[:tokens]
    final = bias + rng.gumbel(size=(tokens, layers, experts))
    ids = np.empty((checkpoints, tokens, layers, k), dtype=np.int16)
    probs = np.empty((checkpoints, tokens, layers, experts), dtype=np.float32)
    for c in range(checkpoints):
        share = c / max(checkpoints - 1, 1)
        settled = np.zeros(tokens, dtype=bool)
        if freeze_at is not None:
            settled = frozen_from * freeze_at <= share
        if c == checkpoints - 1:
            settled[:] = True
        fresh = bias + rng.gumbel(size=final.shape)
        logits = np.where(settled[:, None, None], final, fresh)
        ids[c] = np.argsort(-logits, axis=-1)[..., :k]
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        probs[c] = weights / weights.sum(axis=-1, keepdims=True)
    steps = np.arange(checkpoints, dtype=np.int64) * every
    names = np.asarray(TASKS)
    record = xr.Dataset(
        {
            "expert_ids": (("checkpoint", "token", "layer", "k"), ids),
            "router_probs": (("checkpoint", "token", "layer", "expert"), probs),
        },
        coords={
            "checkpoint": steps,
            "tokens_seen": ("checkpoint", steps * 4096),
            "token": np.arange(tokens),
            "layer": np.arange(layers),
            "k": np.arange(k),
            "expert": np.arange(experts),
            "token_id": ("token", rng.integers(0, 1000, tokens)),
            "domain": ("token", names[np.arange(tokens) * len(names) // tokens]),
        },
    )
    return conform(record, "activations").assign_attrs(_attrs(k=k))


@dataclass(frozen=True)
class PlantedSkill:
    """A capability whose course over training is known."""

    kind: Literal["jump", "logistic", "linear", "never", "always"]
    """Course of the chance-normalised success probability: a step at `at`; a logistic or straight
    rise centred there; at `bottom` or at `top` throughout."""

    at: float = 500.0
    """Step of the jump: the first step with the skill; of the others, the middle of the rise."""

    width: float = 0.0
    """Steps from 10 % to 90 % of the rise (logistic), or from its start to its end (linear)."""

    top: float = 0.95
    """Chance-normalised success probability once there."""

    bottom: float = 0.0
    """Before."""

    logprob: Literal["with", "ahead"] = "with"
    """Does the log-probability move with the accuracy, or rise evenly all along the way to it?"""

    def __post_init__(self) -> None:
        if not 0 <= self.bottom <= self.top <= 1:
            raise UsageError(
                f"bottom={self.bottom}, top={self.top}: expected 0 <= bottom <= top <= 1."
            )
        if self.kind in ("logistic", "linear") and self.width <= 0:
            raise UsageError(f"width={self.width}: a {self.kind} rise takes more than 0 steps.")

    def success(self, step: Floats) -> Floats:
        """Chance-normalised success probability at these steps."""
        return self.bottom + (self.top - self.bottom) * self.progress(step)

    def progress(self, step: Floats) -> Floats:
        """Share of the rise that is done at these steps, 0 to 1."""
        step = np.asarray(step, dtype=np.float64)
        if self.kind == "jump":
            return (step >= self.at).astype(np.float64)
        if self.kind == "logistic":
            # 10 % to 90 % of a logistic is 2 ln 9 of its scales.
            return 1 / (1 + np.exp(-(step - self.at) * 2 * np.log(9) / self.width))
        if self.kind == "linear":
            return np.clip((step - self.at) / self.width + 0.5, 0, 1)
        return np.full(step.shape, float(self.kind == "always"))

    def onset(self, level: float = 0.5) -> float:
        """The true step at which the success reaches `level`; NaN where it never does.

        Example:
            >>> PlantedSkill("linear", at=500, width=200, top=1.0).onset(0.75)
            550.0
        """
        share = (level - self.bottom) / (self.top - self.bottom) if self.top > self.bottom else 2.0
        if self.kind == "never" or not 0 < share < 1:
            return float("nan")
        if self.kind == "always":
            return 0.0
        if self.kind == "jump":
            return float(self.at)
        if self.kind == "linear":
            return float(self.at + (share - 0.5) * self.width)
        return float(self.at + np.log(share / (1 - share)) * self.width / (2 * np.log(9)))


def evaluations_record(
    skills: Mapping[str, PlantedSkill],
    *,
    checkpoints: int | Sequence[int] = 25,
    every: int = 40,
    items: int | Mapping[str, int] = 200,
    chance: float = 0.1,
    persistence: float = 0.5,
    format_nats: float = 0.0,
    seed: int = 0,
) -> xr.Dataset:
    """Evaluations of tasks whose success probability at every checkpoint is known.

    An item is answered right where a number drawn for it lies under the success probability.
    With probability `persistence` that number is the item's own at all checkpoints (an easy item
    stays easy), else drawn afresh; either way each checkpoint's probability is exact.

    Args:
        skills: task name ("family/task") -> its course.
        checkpoints: how many (at 0, `every`, 2 `every`, ...), or their steps.
        items: per task, or one number for all; shorter tasks are padded with -1 and NaN.
        chance: success probability of guessing.
        persistence: 0, every checkpoint is a new draw; 1, items are learned once and kept.
        format_nats: extra cost at the start, gone within a twentieth of the window: before a
            model knows which tokens are answers at all.

    Returns:
        Dataset of the group "evaluations" with coordinates checkpoint, task, item, tokens_seen,
        family, chance.

    Raises:
        UsageError: no skill, or a chance outside [0, 1).

    Example:
        >>> record = evaluations_record({"code/add": PlantedSkill("jump", at=500)}, items=50)
        >>> dict(record.sizes)
        {'checkpoint': 25, 'task': 1, 'item': 50}
    """
    if not skills or not 0 <= chance < 1:
        raise UsageError(
            f"{len(skills)} skills at chance {chance}; expected one or more, at 0 <= chance < 1."
        )
    steps = (
        np.arange(checkpoints, dtype=np.int64) * every
        if isinstance(checkpoints, int)
        else np.asarray(checkpoints, dtype=np.int64)
    )
    sizes = {task: items if isinstance(items, int) else items[task] for task in skills}
    longest = max(sizes.values())
    correct = np.full((len(steps), len(skills), longest), -1, dtype=np.int8)
    logprob = np.full(correct.shape, np.nan, dtype=np.float32)
    for t, (task, skill) in enumerate(skills.items()):
        rng = np.random.default_rng([seed, t])
        n = sizes[task]
        draws = _luck(rng, len(steps), n, persistence)
        answers = _answers(skill, steps, draws, chance)
        correct[:, t, :n] = answers
        logprob[:, t, :n] = _log_probabilities(rng, skill, steps, n, chance, format_nats)
    return _evaluations(correct, logprob, steps, list(skills), chance, branch="main")


def two_arms(
    *,
    gain: Mapping[str, float],
    tasks: Sequence[str] = TASKS,
    base: float = 0.4,
    fork: int = 800,
    checkpoints: int = 11,
    every: int = 100,
    items: int = 400,
    chance: float = 0.1,
    persistence: float = 0.7,
    seed: int = 0,
) -> tuple[xr.Dataset, xr.Dataset]:
    """Evaluations of two arms forked from one checkpoint, with a known difference.

    Up to `fork` they are the same to the last bit. After it arm b's accuracy exceeds arm a's by
    `gain[task]` exactly in expectation, at every checkpoint; its log-probability by
    -ln(chance) x gain nats in the mean. An item that is easy in one arm is easy in the other.

    Args:
        gain: task -> difference in accuracy, b less a; 0 for the tasks not named.
        base: accuracy of arm a (and of both before the fork).
        persistence: share of an item's luck that the arms have in common.

    Returns:
        (a, b), each a Dataset of the group "evaluations"; attrs branch "continue" and
        "curriculum".

    Raises:
        UsageError: a gain for a task that is not there, or an accuracy outside [0, 1].
    """
    tasks = list(dict.fromkeys([*tasks, *gain]))
    for task, extra in gain.items():
        if not 0 <= base + extra <= 1:
            raise UsageError(f"{task}: base {base} + gain {extra} is no accuracy.")
    steps = np.arange(checkpoints, dtype=np.int64) * every
    shape = (len(steps), len(tasks), items)
    trunk = np.random.default_rng([seed, 0])
    luck = trunk.random((1, *shape[1:]))
    ease = trunk.gamma(4.0, 0.25, (1, *shape[1:]))
    after = (steps > fork)[:, None, None]
    arms: list[xr.Dataset] = []
    shared: list[Floats] = []
    for number, branch in enumerate(("continue", "curriculum")):
        rng = np.random.default_rng([seed, 1 + number])
        extra = np.array([gain.get(task, 0.0) * number for task in tasks])[:, None] * after
        own = np.where(rng.random(shape) < persistence, luck, rng.random(shape))
        noise = rng.gamma(4.0, 0.25, shape)
        if not arms:
            shared = [own, noise]
        own = np.where(after, own, shared[0])
        noise = np.where(after, noise, shared[1])
        correct = (own < base + extra).astype(np.int8)
        nats = -np.log(max(chance, 1e-3)) * (1 - base - extra)
        arms.append(
            _evaluations(
                correct,
                (-nats * (ease + noise) / 2).astype(np.float32),
                steps,
                tasks,
                chance,
                branch=branch,
            )
        )
    return arms[0], arms[1]


def _luck(rng: np.random.Generator, checkpoints: int, items: int, persistence: float) -> Floats:
    """(checkpoint, item): uniform numbers; kept over checkpoints with this probability."""
    own = rng.random((1, items))
    return np.where(
        rng.random((checkpoints, items)) < persistence, own, rng.random((checkpoints, items))
    )


def _answers(
    skill: PlantedSkill, steps: NDArray[np.int64], luck: Floats, chance: float
) -> NDArray[np.int8]:
    probability = chance + (1 - chance) * skill.success(steps.astype(np.float64))
    return (luck < probability[:, None]).astype(np.int8)


def _log_probabilities(
    rng: np.random.Generator,
    skill: PlantedSkill,
    steps: NDArray[np.int64],
    items: int,
    chance: float,
    format_nats: float,
) -> NDArray[np.float32]:
    """(checkpoint, item), nats: from guessing (ln chance) to nearly sure, times an item's ease."""
    clock = steps.astype(np.float64)
    progress = skill.success(clock)
    if skill.logprob == "ahead":
        # Evenly from the first checkpoint to the last: no step is special.
        progress = skill.top * (clock - clock[0]) / max(clock[-1] - clock[0], 1)
    start = clock[0] + (clock[-1] - clock[0]) / 20
    cost = -np.log(max(chance, 1e-3)) * (1 - progress) + 0.02 + format_nats * (clock < start)
    ease = (rng.gamma(4.0, 0.25, (1, items)) + rng.gamma(4.0, 0.25, (len(steps), items))) / 2
    return (-cost[:, None] * ease).astype(np.float32)


def _evaluations(
    correct: NDArray[np.int8],
    logprob: NDArray[np.float32],
    steps: NDArray[np.int64],
    tasks: Sequence[str],
    chance: float,
    branch: str,
) -> xr.Dataset:
    dims = ("checkpoint", "task", "item")
    record = xr.Dataset(
        {"correct": (dims, correct), "logprob": (dims, logprob)},
        coords={
            "checkpoint": steps,
            "task": list(tasks),
            "tokens_seen": ("checkpoint", steps * 4096),
            "family": ("task", [task.split("/")[0] for task in tasks]),
            "chance": ("task", np.full(len(tasks), float(chance))),
        },
    )
    return conform(record, "evaluations").assign_attrs(_attrs(branch=branch))


def _attrs(**own: object) -> dict[str, object]:
    return {"run": "planted", "branch": "main", **own}
