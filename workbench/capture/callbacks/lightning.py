"""Recording from Lightning's Trainer.

Needs   a Lightning Trainer, a run's folder.
Yields  RecordLightning, a Callback: every optimizer step, loss, learning rate, gradient norm and
        checkpoint of it in the run's store and index.

    Trainer(..., callbacks=[RecordLightning("runs/mine", safetensors=True)])

Source: Lightning 2.6, pytorch/callbacks/callback.py and the order of events in
pytorch/loops/training_epoch_loop.py.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from workbench.capture.callbacks.gradient_norm import gradient_norm
from workbench.capture.callbacks.library import with_base
from workbench.capture.callbacks.readable_weights import save_for_index
from workbench.capture.callbacks.session import Recording, Session, called_inside

SHARDED = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")
"""Strategies under which one rank has neither whole weights nor whole gradients."""


class RecordLightning(Recording):
    """Records a Trainer's fit.

    All micro-batches up to an optimizer step are one sample, with validation in between or not;
    padding is what the `attention_mask` of the model inside the LightningModule says. With
    `ckpt_path` the record goes on at that step. On a GPU, loss and gradient norm are read, which
    waits for it, only every `log_every_n_steps`.

    Args:
        path: the run's folder.
        safetensors: at every checkpoint also write the model's weights beside it, as
            "<name>-weights", or "<name>-step<N>-weights" where another step has that name:
            Lightning's own can only be read by unpickling and are refused by the index. Not with
            sharded strategies.
        options: further ones of Recorder, such as branch=, overhead=, probe=.

    Raises:
        UsageError: Lightning is not installed.
    """

    def __new__(cls, *args: Any, **options: Any) -> Any:
        # The same library under two names; the callback must be of the one that is trained with.
        old = "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules
        module = "pytorch_lightning" if old else "lightning.pytorch"
        return object.__new__(with_base(cls, module, "Callback", "pip install lightning"))

    def __init__(self, path: str | Path, *, safetensors: bool = False, **options: Any) -> None:
        self.session = Session(path, options)
        self.safetensors = safetensors
        self._loss: Any = None
        self._losses = 0
        self._rate: float | None = None
        self._norm: Tensor | None = None
        self._pause = ExitStack()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Before anything is restored: warns of what will be deleted."""
        for saver in trainer.checkpoint_callbacks:
            kept = getattr(saver, "save_top_k", -1)
            if kept > 0 and not self.safetensors:
                self.session.warn_of_retention(
                    f"Lightning keeps {kept} checkpoint{'s' * (kept > 1)} (save_top_k={kept})",
                    "ModelCheckpoint(save_top_k=-1), or RecordLightning(..., safetensors=True)",
                )
        self._watch_saving(trainer)

    def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
        """The first forward comes here, where there is a sanity check; all is restored."""
        self._start(trainer, pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """The first forward comes here, where there is none."""
        if not self.session.running:
            self._start(trainer, pl_module)

    def _start(self, trainer: Any, pl_module: nn.Module) -> None:
        model = called_inside(pl_module, self.session.options.get("routers"))
        self.session.start(model, trainer.global_step)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Before a micro-batch: the first one begins the step."""
        if self.session.step is None:
            self._loss = self._rate = self._norm = None
            self._losses = 0
            self.session.begin(trainer.global_step + 1)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """All gradients are there, not yet clipped."""
        self._rate = optimizer.param_groups[0]["lr"]
        if type(trainer.strategy).__name__ not in SHARDED and self._reads(trainer, pl_module):
            self._norm = gradient_norm(pl_module)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a micro-batch: the last one ends the step."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            loss = loss.detach()
            if pl_module.automatic_optimization:
                # Lightning has divided it, also where an epoch's last step has fewer micro-batches.
                loss = loss * trainer.accumulate_grad_batches
            self._loss = loss if self._loss is None else self._loss + loss
            self._losses += 1
        if self.session.step is not None and trainer.global_step >= self.session.step:
            mean = None
            if self._loss is not None and self._reads(trainer, pl_module):
                mean = self._loss / self._losses
            self.session.end(loss=mean, lr=self._rate, grad_norm=self._norm)

    def _reads(self, trainer: Any, pl_module: Any) -> bool:
        """Whether the step's numbers may be fetched from the device, which the host waits for."""
        step = self.session.step or 0
        return pl_module.device.type == "cpu" or step % max(trainer.log_every_n_steps, 1) == 0

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """In the midst of a step, maybe; whatever the module's mode, it does not count."""
        if self.session.running:
            self._pause.enter_context(self.session.paused())

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Back to the step."""
        self._pause.close()

    def _watch_saving(self, trainer: Any) -> None:
        """Hears of every checkpoint and its path; no event of Lightning's tells both."""
        if "save_checkpoint" in vars(trainer):
            return
        save = trainer.save_checkpoint

        @wraps(save)
        def saving(filepath: Any, *args: Any, **kwargs: Any) -> None:
            save(filepath, *args, **kwargs)
            if self.session.running:
                self._saved(trainer, Path(filepath))

        trainer.save_checkpoint = saving

    def _saved(self, trainer: Any, path: Path) -> None:
        if self.safetensors and type(trainer.strategy).__name__ not in SHARDED:
            if trainer.is_global_zero:
                path = save_for_index(self.recorder, path)
            trainer.strategy.barrier("RecordLightning")
        self.session.checkpoint(path)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """The step under way is dropped; all before it is written."""
        self._end(trainer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """The fit ended; the last checkpoint has been saved."""
        if stage == "fit":
            self._end(trainer)

    def _end(self, trainer: Any) -> None:
        self._pause.close()
        vars(trainer).pop("save_checkpoint", None)
        self.session.close()
