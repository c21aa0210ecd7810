"""Model: a hand-built mixture of experts in which one capability lives in one expert of one layer.

Needs   where each task lives (layer, expert), and which of its parts a checkpoint has learned.
Yields  PlantedModel: `before` and `after` (MoELM), a task's items, fixed tokens; and what is true:
        `homes` (which expert does it) and `shares` (how much each kind of part adds to the gain).

How it works. A task asks questions of one token each, of `answers` classes. The question's
embedding holds a marker of its task and its class under noise. In the home layer the router knows
the marker and sends the question to the home expert, which turns the class into the direction of
the right answer; the output matrix reads that direction. Every other question of every other layer
goes to quiet experts, whose output is 0, and attention writes nothing. The choice is wrong where
noise drowns the class, so items differ, as real ones do.

A checkpoint has learned its router, its experts and its embeddings or not; without one of them the
answer is not produced at all: all choices are equally probable, which counts as wrong. So

    learned between before and after   shares of the gain
    "expert"                           experts 1         (the router chose it all along)
    "router"                           router 1          (it was there and never chosen)
    "both"                             router 1/2, experts 1/2: neither helps alone
    "embeddings"                       embeddings 1

Everything else differs between the two as well (attention's projections, norms before it, experts
and router rows that no question meets) and changes nothing, to the last bit: a probe that pays by
how much the weights moved is found out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from workbench.errors import UsageError

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from model.config import MoEConfig
    from model.evaluation import ItemBatch
    from model.lm import MoELM

Learned = Literal["expert", "router", "both", "embeddings"]

START, PADDING, FIRST_ANSWER = 0, 1, 2
"""Token ids: the start of a text, padding, and where the answers of the first task begin."""

BIAS = 0
"""The dimension of the stream that every token has; then a marker, classes and answers a task."""
SPARE = 8
"""Dimensions of the stream that hold noise alone."""
STRENGTH = 4.0
"""Size of marker and bias in an embedding; a class has half of it."""

_OF_A_BLOCK = (
    "attn.W_out", "ln1.weight", "mlp.router.weight", "mlp.experts.W_gate_in", "mlp.experts.W_out",
)  # fmt: skip

# Shapes: T tasks, A answers of each task, I items of each task, D d_model, V d_vocab.


@dataclass(frozen=True, kw_only=True)
class PlantedModel:
    """A task, or several, whose place in the model is known. `planted_model` makes one."""

    homes: Mapping[str, tuple[int, int]]
    """Task to (layer, expert): the one that does it."""
    learned: Learned
    """What differs between `before` and `after` that matters."""
    config: MoEConfig
    answers: int
    """Choices of an item."""
    n_items: int
    """Items of each task."""
    noise: float
    """Standard deviation of the noise on the class dimensions of a question; a class is 2."""
    seed: int

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(self.homes)

    @property
    def shares(self) -> dict[str, float]:
        """Kind of part to its share of the gain from `before` to `after`: its Shapley value over
        the gain. Kinds that are not named have 0.
        """
        return {
            "expert": {"experts": 1.0}, "router": {"router": 1.0},
            "both": {"router": 0.5, "experts": 0.5}, "embeddings": {"embeddings": 1.0},
        }[self.learned]  # fmt: skip

    @property
    def chance(self) -> dict[str, float]:
        """Accuracy of guessing, by task."""
        return dict.fromkeys(self.tasks, 1 / self.answers)

    @cached_property
    def before(self) -> MoELM:
        """The model that lacks what is `learned`; its answers to all tasks are wrong."""
        lacks = {"expert": ["experts"], "both": ["router", "experts"]}
        return self.model(**dict.fromkeys(lacks.get(self.learned, [self.learned]), False), idle=1)

    @cached_property
    def after(self) -> MoELM:
        """The model that has it all."""
        return self.model(idle=2)

    def model(
        self,
        *,
        router: bool = True,
        experts: bool = True,
        embeddings: bool = True,
        idle: int = 0,
    ) -> MoELM:
        """A model that has learned some of its parts.

        Args:
            router, experts, embeddings: whether each has learned its share of every task.
            idle: seed of all that does not matter.
        """
        import torch

        from model.lm import MoELM

        model = MoELM(self.config, seed=idle)
        with torch.no_grad():
            weights = dict(model.named_parameters())
            weights["embed.weight"].copy_(self._embeddings(embeddings, idle))
            weights["unembed.weight"].copy_(self._unembeddings())
            for layer in range(self.config.n_layers):
                own = {n: weights[f"blocks.{layer}.{n}"] for n in _OF_A_BLOCK}
                own["attn.W_out"].zero_()
                own["ln1.weight"].uniform_(0.5, 1.5, generator=_generator(idle, layer))
                self._fill_router(own["mlp.router.weight"], layer, router)
                self._fill_experts(
                    own["mlp.experts.W_gate_in"], own["mlp.experts.W_out"], layer, experts
                )
        return model.eval()

    @cached_property
    def items(self) -> ItemBatch:
        """The items as `model.evaluation.score` takes them: one question, `answers` choices."""
        import torch

        from model.evaluation import ItemBatch

        total, A = len(self.tasks) * self.n_items, self.answers
        task = np.repeat(np.arange(len(self.tasks)), self.n_items)
        question = self._first_question + np.arange(total)
        choices = FIRST_ANSWER + A * task[:, None] + np.arange(A)
        right = np.arange(A) == self._class_of[:, None]
        return ItemBatch(
            self.tasks, torch.from_numpy(np.stack([np.full(total, START), question], axis=1)),
            np.repeat(np.arange(total), A), np.full(total * A, 1),
            [[int(token)] for token in choices.ravel()], np.repeat(np.arange(total), A),
            right.ravel(), self.n_items,
        )  # fmt: skip

    @cached_property
    def tokens(self) -> np.ndarray:
        """(row, pos) int64: fixed text, 8 rows a task, questions each followed by its answer."""
        rng = np.random.default_rng([self.seed, 3])
        rows = []
        for task in range(len(self.tasks)):
            asked = task * self.n_items + rng.integers(self.n_items, size=(8, 12))
            answer = FIRST_ANSWER + self.answers * task + self._class_of[asked]
            pairs = np.stack([self._first_question + asked, answer], axis=-1).reshape(8, -1)
            rows.append(np.concatenate([np.full((8, 1), START), pairs], axis=1))
        return np.concatenate(rows).astype(np.int64)

    @property
    def domains(self) -> tuple[str, ...]:
        """Domain of each row of `tokens`: its task."""
        return tuple(task for task in self.tasks for _ in range(8))

    # Where things stand in the stream and in the vocabulary

    @property
    def _first_question(self) -> int:
        return FIRST_ANSWER + len(self.tasks) * self.answers

    @cached_property
    def _class_of(self) -> np.ndarray:
        """(item,), counted through all tasks: the class of its question."""
        return np.tile(np.arange(self.n_items) % self.answers, len(self.tasks))

    def _marker(self, task: int) -> int:
        return BIAS + 1 + task * (1 + 2 * self.answers)

    def _class_dims(self, task: int) -> slice:
        first = self._marker(task) + 1
        return slice(first, first + self.answers)

    def _answer_dims(self, task: int) -> slice:
        first = self._marker(task) + 1 + self.answers
        return slice(first, first + self.answers)

    # The weights

    def _embeddings(self, learned: bool, idle: int) -> Tensor:
        import torch

        rng = np.random.default_rng([self.seed, 1])
        E_VD = np.zeros((self.config.d_vocab, self.config.d_model))
        E_VD[:, BIAS] = STRENGTH
        E_VD[:, -SPARE:] = rng.normal(0, 0.5, (len(E_VD), SPARE))
        for task in range(len(self.tasks)):
            asked = self._first_question + task * self.n_items + np.arange(self.n_items)
            E_VD[asked, self._marker(task)] = STRENGTH
            seen_IA = rng.normal(0, self.noise, (self.n_items, self.answers))
            seen_IA[np.arange(self.n_items), np.arange(self.n_items) % self.answers] += STRENGTH / 2
            if learned:
                E_VD[asked, self._class_dims(task)] = seen_IA
        # A token that no text has: what changes there changes nothing.
        E_VD[PADDING, -SPARE:] = np.random.default_rng(idle).normal(size=SPARE)
        return torch.from_numpy(E_VD).float()

    def _unembeddings(self) -> Tensor:
        import torch

        U_VD = torch.zeros(self.config.d_vocab, self.config.d_model)
        for task in range(len(self.tasks)):
            first = FIRST_ANSWER + task * self.answers
            U_VD[first : first + self.answers, self._answer_dims(task)] = 2 * torch.eye(
                self.answers
            )
        return U_VD

    def _fill_router(self, weight_ED: Tensor, layer: int, learned: bool) -> None:
        k = self.config.experts_per_token
        # The first k experts are quiet, and chosen where no marker says otherwise.
        weight_ED[:, :-SPARE] = 0
        weight_ED[:k, -SPARE:] = 0
        weight_ED[k:, BIAS] = -2.0
        # Unequal, so that no choice is a tie.
        for expert in range(k):
            weight_ED[expert, BIAS] = 2.0 - 0.25 * expert
        for task, (at, expert) in enumerate(self.homes.values()):
            if at == layer and learned:
                weight_ED[expert] = 0
                weight_ED[expert, self._marker(task)] = STRENGTH

    def _fill_experts(
        self, W_gate_in: Tensor, W_out: Tensor, layer: int, learned: bool
    ) -> None:  # fmt: skip
        import torch

        A = self.answers
        W_out[: self.config.experts_per_token] = 0
        # What is read of the classes leaves out what they share, such as the norm's centring.
        apart = torch.eye(A) - 1 / A
        for task, (at, expert) in enumerate(self.homes.values()):
            if at != layer:
                continue
            W_gate_in[expert] = 0
            W_gate_in[expert, self._class_dims(task), :A] = 2 * apart
            W_gate_in[expert, self._class_dims(task), A:] = apart
            W_out[expert] = 0
            if learned:
                W_out[expert, :, self._answer_dims(task)] = torch.eye(A)


def planted_model(
    learned: Learned = "expert",
    homes: Mapping[str, tuple[int, int]] | None = None,
    *,
    items: int = 64,
    n_layers: int = 3,
    num_experts: int = 8,
    experts_per_token: int = 2,
    answers: int = 8,
    noise: float = 1.0,
    seed: int = 0,
) -> PlantedModel:
    """A model whose capabilities live where they were put.

    Args:
        learned: what the checkpoint `after` has and `before` lacks: "expert", "router", "both" or
            "embeddings".
        homes: task to (layer, expert); None: one task, "planted/skill", in expert 5 of layer 1.
        items: of each task.
        n_layers, num_experts, experts_per_token: of the model.
        answers: choices of an item, and so classes of questions; a multiple of 4.
        noise: standard deviation on the class dimensions, of which the right one is 2. 0: every
            item is right once the capability is there.
        seed: of the questions; the same seed gives the same world.

    Raises:
        UsageError: a home that the model does not have, one of its quiet experts (the first
            `experts_per_token`), or one that two tasks share.

    Example:
        >>> from model.evaluation import score
        >>> world = planted_model("router", noise=0.0, items=16)
        >>> [float(score(m, world.items).correct.mean()) for m in (world.before, world.after)]
        [0.0, 1.0]
        >>> world.shares
        {'router': 1.0}
    """
    from model.config import MoEConfig

    homes = {"planted/skill": (1, 5)} if homes is None else dict(homes)
    if learned not in get_args(Learned):
        raise UsageError(f"learned={learned!r}: expected one of {', '.join(get_args(Learned))}.")
    for task, (layer, expert) in homes.items():
        if not (0 <= layer < n_layers and experts_per_token <= expert < num_experts):
            raise UsageError(
                f"home of {task!r}: found layer {layer}, expert {expert}; expected a layer under "
                f"{n_layers} and an expert from {experts_per_token} (those before are quiet) to "
                f"{num_experts - 1}."
            )
    if len(set(homes.values())) < len(homes) or not homes:
        raise UsageError(f"homes {homes}: expected one task or more, each at home on its own.")
    if answers % 4 or answers < 4 or items < 1:
        raise UsageError(
            f"answers={answers}, items={items}: expected a multiple of 4, and 1 item or more."
        )
    width = 1 + len(homes) * (1 + 2 * answers) + SPARE
    config = MoEConfig(
        d_vocab=FIRST_ANSWER + len(homes) * (answers + items), d_model=-(-width // 8) * 8,
        n_layers=n_layers, n_heads=2, n_key_value_heads=1, d_mlp=answers, num_experts=num_experts,
        experts_per_token=experts_per_token, n_ctx=32, rope_theta=10_000.0,
    )  # fmt: skip
    return PlantedModel(
        homes=homes, learned=learned, config=config, answers=answers, n_items=items, noise=noise,
        seed=seed,
    )  # fmt: skip


def _generator(*seeds: int) -> Generator:
    import torch

    return torch.Generator("cpu").manual_seed(sum(s * 1009**i for i, s in enumerate(seeds)))
