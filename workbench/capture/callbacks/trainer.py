"""Recording from Hugging Face transformers' Trainer.

Needs   a Trainer, a run's folder.
Yields  RecordTrainer, a TrainerCallback: every optimizer step, loss, learning rate, gradient norm
        and checkpoint of it in the run's store and index.

    Trainer(..., callbacks=[RecordTrainer("runs/mine")])

Source: transformers 5.23, trainer_callback.py and the order of events in trainer.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from workbench.capture.callbacks.library import with_base
from workbench.capture.callbacks.session import Recording, Session
from workbench.errors import CaptureError


class RecordTrainer(Recording):
    """Records a Trainer's run.

    All micro-batches of an optimizer step are one sample; padding is what `attention_mask` says;
    evaluation does not count. With `resume_from_checkpoint` the record goes on at that step. Loss
    and gradient norm are recorded at the steps at which the Trainer logs them, the loss as its mean
    since the last such step: `logging_steps=1` for every step's own. The learning rate is known at
    every step.

    Args:
        path: the run's folder.
        options: further ones of Recorder, such as branch=, overhead=, probe=.

    Raises:
        UsageError: transformers is not installed.
    """

    def __new__(cls, *args: Any, **options: Any) -> Any:
        return object.__new__(
            with_base(cls, "transformers", "TrainerCallback", "pip install transformers")
        )

    def __init__(self, path: str | Path, **options: Any) -> None:
        self.session = Session(path, options)
        self._updated = False

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any
    ) -> None:
        """After weights and counters were loaded, before the first forward."""
        if args.n_gpu > 1:
            raise CaptureError(
                f"the Trainer splits every batch over {args.n_gpu} GPUs of one process, whose "
                f"replicas cannot be counted; start it with torchrun, one process a GPU."
            )
        if args.save_total_limit is not None:
            self.session.warn_of_retention(
                f"the Trainer keeps {args.save_total_limit} checkpoints "
                f"(save_total_limit={args.save_total_limit})",
                "TrainingArguments(save_total_limit=None)",
            )
        again = bool(getattr(args, "auto_find_batch_size", False))
        self.session.start(model, state.global_step, again=again)
        self._updated = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before the first micro-batch."""
        self._finish()
        self.session.begin(state.global_step + 1)

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, *, optimizer: Any = None, **_: Any
    ) -> None:
        """The rate that this update is made with; the scheduler moves it on right after."""
        if optimizer is not None:
            self.session.log(lr=optimizer.param_groups[0]["lr"])

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After the update; where the Trainer is about to log, its numbers are waited for."""
        self._updated = True
        if not control.should_log:
            self._finish()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Before the Trainer evaluates or saves; anybody may log at any time, though."""
        if logs and "loss" in logs:
            self._finish(loss=logs["loss"], grad_norm=logs.get("grad_norm"))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The checkpoint is whole."""
        self._finish()
        self.session.checkpoint(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The training ended by itself."""
        self._finish()
        self.session.close()

    def _finish(self, **values: Any) -> None:
        """The step's end, once its update has been made."""
        if self._updated:
            self._updated = False
            self.session.end(**values)
