"""The training loop: reads from top to bottom, and tells callbacks what happens.

Needs   a TrainingPlan, a folder for checkpoints, callbacks.
Yields  a trained model, its checkpoints on the disk; stopped at any moment, it goes on
        bit-identically on a CPU.

It knows nothing of recording, evaluation or progress bars: those are callbacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from model.data.corpus import Corpus, RealText, collect_standard_library
from model.data.mixture import Batch, MixtureStream, mixture_digest
from model.data.tokenizer import check_fits, tokenizer_digest, train_tokenizer
from model.data.world import TASKS, World
from model.errors import ConfigError, DataError
from model.lm import Losses, MoELM
from model.training import checkpoint
from model.training.callbacks import Callback, StepResult
from model.training.optim import make_optimizer
from model.training.plan import TrainingPlan

DOCUMENTS_FOR_TOKENIZER = 3000
"""Documents of each task in the tokenizer's sample: enough that names become single tokens."""
TEXT_FOR_TOKENIZER = 150_000
"""Characters of each kind of real text in the sample."""


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one.

    Raises:
        ConfigError: unknown, or not on this machine.

    Example:
        >>> pick_device("cpu").type
        'cpu'
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"no device {name!r}; expected auto, cpu, cuda or cuda:0.") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r}; expected auto, cpu, cuda or cuda:0.")
    if device.type == "cuda" and (device.index or 0) >= max(torch.cuda.device_count(), 1):
        raise ConfigError(f"device {name!r}: this machine has {torch.cuda.device_count()} of them.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r}: this machine has no CUDA; use --device cpu or auto.")
    return device


def make_tokenizer(plan: TrainingPlan, world: World, text: RealText) -> Tokenizer:
    """Trains the run's tokenizer on a sample of every domain."""

    def sample() -> Any:
        for task in TASKS:
            yield from (world.document(task, i) for i in range(DOCUMENTS_FOR_TOKENIZER))
        for pieces in (text.code, text.prose):
            taken = 0
            for piece in pieces:
                if (taken := taken + len(piece)) > TEXT_FOR_TOKENIZER:
                    break
                yield piece

    return train_tokenizer(sample(), plan.model.d_vocab)


class Training:
    """One line of training, from its start or from a checkpoint, to its end.

    Args:
        plan: everything that decides the numbers.
        folder: where this line's checkpoints go.
        tokenizer: of the run; None trains one.
        callbacks: told what happens, in this order.
        device: "auto", "cpu", "cuda", ...; on CUDA the forward pass runs in bfloat16.
        compile: whether the model is compiled.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        folder: Path,
        *,
        tokenizer: Tokenizer | None = None,
        callbacks: Sequence[Callback] = (),
        device: str = "auto",
        compile: bool = False,
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.callbacks = list(callbacks)
        self.device = pick_device(device)
        self.world = World(plan.seed)
        self.text = collect_standard_library()
        self.tokenizer = tokenizer or make_tokenizer(plan, self.world, self.text)
        check_fits(self.tokenizer, plan.model.d_vocab)
        self.corpus = Corpus(self.world, self.text, self.tokenizer, plan.row_tokens + 1, plan.seed)
        self.data = MixtureStream(self.corpus, plan.batch_rows, plan.seed)
        self.model = MoELM(plan.model, seed=plan.seed).to(self.device)
        self.optimizer = make_optimizer(
            self.model, lr=plan.schedule.lr, weight_decay=plan.weight_decay
        )
        self.forward: nn.Module = torch.compile(self.model) if compile else self.model  # type: ignore[assignment]
        self.step = 0
        self.tokens_seen = 0
        self.until = plan.schedule.steps
        self.last_result: StepResult | None = None

    def resume(self, path: Path) -> None:
        """Goes exactly to where the checkpoint at `path` was saved.

        Raises:
            TrainingStateError: it is half-written, altered or of another model.
            DataError: this machine's text, the tokenizer or the seed is another.
        """
        said = checkpoint.read_state(path).extra
        for name, mine, remedy in (
            ("text", self.text.digest, "resume with the Python whose library it was trained on"),
            ("tokenizer", tokenizer_digest(self.tokenizer), "use the run's own tokenizer.json"),
            ("seed", self.plan.seed, "resume with the run's own plan"),
        ):
            if name in said and said[name] != mine:
                raise DataError(f"{path}: {name} {said[name]}, here {mine}: {remedy}.")
        state = checkpoint.restore(path, self.model, self.optimizer)
        self.step, self.tokens_seen = state.step, state.tokens_seen
        self.data.restore(state.data_position)

    def run(self, until: int | None = None) -> None:
        """Trains to step `until` (the plan's last where None), saving checkpoints on the way."""
        self.until = self.plan.schedule.steps if until is None else until
        finished = False
        started = []
        try:
            for callback in self.callbacks:
                callback.train_start(self)
                started.append(callback)
            if self.step == 0:
                self.save()
            while self.step < self.until:
                self.one_step(self.step + 1)
                if self.plan.is_checkpoint(self.step) or self.step == self.until:
                    self.save()
            finished = True
        finally:
            for callback in reversed(started):
                callback.train_end(self, finished=finished)

    def one_step(self, step: int) -> StepResult:
        """One optimizer step: draw, forward, backward, clip, update."""
        schedule = self.plan.schedule
        batch = self.data.batch(step, schedule.shares(step))
        with ExitStack() as around:
            for callback in self.callbacks:
                around.enter_context(callback.around_step(self, step, batch))
            losses = self.losses(batch)
            losses.total.backward()
            grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip_norm)
            lr = schedule.learning_rate(step)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step, self.tokens_seen = step, self.tokens_seen + batch.num_tokens
            result = StepResult(
                step, self.tokens_seen, losses.next_token.item(), grad_norm.item(), lr
            )
            self.last_result = result
            for callback in self.callbacks:
                callback.step_end(self, result)
        return result

    def losses(self, batch: Batch) -> Losses:
        """The model's losses on a batch, in bfloat16 on CUDA."""
        tokens, targets = batch.tokens.to(self.device), batch.targets.to(self.device)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            losses: Losses = self.forward(tokens, targets, return_type="losses")
        return losses

    def save(self) -> Path:
        """Saves a checkpoint of this moment and tells the callbacks."""
        schedule = self.plan.schedule
        weights = schedule.mixture if self.step <= schedule.fork_step else schedule.final_mixture
        path = checkpoint.save_checkpoint(
            self.folder,
            self.model,
            self.optimizer,
            step=self.step,
            tokens_seen=self.tokens_seen,
            data_position=self.data.state(),
            extra={
                "phase": schedule.phase(max(self.step, 1)),
                "lr": schedule.learning_rate(max(self.step, 1)),
                "mixture": mixture_digest(weights),
                "seed": self.plan.seed,
                "text": self.text.digest,
                "tokenizer": tokenizer_digest(self.tokenizer),
            },
        )
        for callback in self.callbacks:
            callback.checkpoint(self, self.step, path)
        return path
