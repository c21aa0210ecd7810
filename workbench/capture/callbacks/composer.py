"""Recording from MosaicML Composer's Trainer.

Needs   a Composer Trainer, a run's folder.
Yields  RecordComposer, a Callback: every batch, loss, learning rate, gradient norm and checkpoint
        of it in the run's store and index.

    Trainer(..., callbacks=[RecordComposer("runs/mine")])

Source: Composer 0.32, core/callback.py, core/event.py and the order of events in
trainer/trainer.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from workbench.capture.callbacks.gradient_norm import gradient_norm
from workbench.capture.callbacks.library import with_base
from workbench.capture.callbacks.readable_weights import save_for_index
from workbench.capture.callbacks.session import Recording, Session, called_inside


class RecordComposer(Recording):
    """Records a Trainer's fit.

    A batch, however many microbatches it is cut into, is one step; one that ran out of memory and
    is tried again with smaller microbatches counts once. With `load_path` or `autoresume` the
    record goes on at that batch.

    Args:
        path: the run's folder.
        safetensors: at every checkpoint also write the model's weights beside it, as
            "<name>-weights", or "<name>-step<N>-weights" where another step has that name:
            Composer's own can only be read by unpickling and are refused by the index. Not with
            FSDP.
        options: further ones of Recorder, such as branch=, overhead=, probe=.

    Raises:
        UsageError: Composer is not installed.
    """

    def __new__(cls, *args: Any, **options: Any) -> Any:
        return object.__new__(with_base(cls, "composer", "Callback", "pip install mosaicml"))

    def __init__(self, path: str | Path, *, safetensors: bool = False, **options: Any) -> None:
        self.session = Session(path, options)
        self.safetensors = safetensors
        self._rate: float | None = None
        self._norm: Tensor | None = None
        self._known: set[str] = set()

    def fit_start(self, state: Any, logger: Any) -> None:
        """Weights and counters are loaded; the model is wrapped."""
        for saver in _savers(state):
            kept = saver.num_checkpoints_to_keep
            if kept >= 0 and not self.safetensors:
                self.session.warn_of_retention(
                    f"Composer keeps {kept} checkpoints (num_checkpoints_to_keep={kept})",
                    "Trainer(save_num_checkpoints_to_keep=-1)",
                )
            self._known |= set(saver.all_saved_checkpoints_to_timestamp)
        model = getattr(state.model, "module", state.model)
        routers = self.session.options.get("routers")
        self.session.start(called_inside(model, routers), int(state.timestamp.batch))

    def before_train_batch(self, state: Any, logger: Any) -> None:
        """Before the first microbatch, and again where the batch is tried again."""
        self._enter_saved(state)
        self.session.begin(int(state.timestamp.batch) + 1)

    def after_train_batch(self, state: Any, logger: Any) -> None:
        """All gradients are there, unscaled, not yet clipped."""
        self._rate = state.optimizers[0].param_groups[0]["lr"]
        if not getattr(state, "fsdp_enabled", False):
            self._norm = gradient_norm(state.model)

    def batch_end(self, state: Any, logger: Any) -> None:
        """After the update. Composer has fetched the loss for itself: no further wait for it."""
        losses = getattr(state, "total_loss_dict", None) or {}
        self.session.end(loss=losses.get("loss/train/total"), lr=self._rate, grad_norm=self._norm)

    def eval_start(self, state: Any, logger: Any) -> None:
        """After a batch's end; checkpoints are saved before or after it."""
        self._enter_saved(state)

    def epoch_end(self, state: Any, logger: Any) -> None:
        """After the last batch's checkpoint."""
        self._enter_saved(state)

    def fit_end(self, state: Any, logger: Any) -> None:
        """After the last checkpoint."""
        self._enter_saved(state)

    def _enter_saved(self, state: Any) -> None:
        """Composer tells callbacks of no path; its checkpoint savers know them."""
        if not self.session.running:
            return
        for saver in _savers(state):
            for path, clock in list(saver.all_saved_checkpoints_to_timestamp.items()):
                if path not in self._known and int(clock.batch) == self.recorder.last_step:
                    self._known.add(path)
                    self._enter(state, Path(path))

    def _enter(self, state: Any, path: Path) -> None:
        sharded = getattr(state, "fsdp_enabled", False)
        # The first rank alone enters the checkpoint, and needs to know where it lies.
        if self.safetensors and not sharded and self.recorder.ranks.first:
            path = save_for_index(self.recorder, path)
        self.session.checkpoint(path)

    def close(self, state: Any = None, logger: Any = None) -> None:
        """The trainer ended, by itself or by an exception."""
        self.session.close()


def _savers(state: Any) -> list[Any]:
    return [c for c in state.callbacks if hasattr(c, "all_saved_checkpoints_to_timestamp")]
