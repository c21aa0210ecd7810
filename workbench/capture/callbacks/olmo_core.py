"""Recording from OLMo-core's Trainer.

Needs   an OLMo-core Trainer, a run's folder.
Yields  RecordOLMo, a Callback: every step, loss, learning rate, gradient norm and checkpoint of it
        in the run's store and index; OLMoRouters, which finds OLMo-core's routers.

    trainer.add_callback("record", RecordOLMo("runs/mine"))

Source: OLMo-core 3.0, train/callbacks/callback.py, the order of events in train/trainer.py, and
nn/moe/router.py, nn/moe/v2/router.py.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from pathlib import Path
from threading import get_ident
from typing import Any, ClassVar

from torch import Tensor, nn

from workbench.capture.adapters.module_names import modules_by_name
from workbench.capture.adapters.router_site import Reading, RouterSite, Scores
from workbench.capture.callbacks.inner_logits import local, on_output_and_logits
from workbench.capture.callbacks.library import with_base
from workbench.capture.callbacks.session import Recording, Session
from workbench.errors import CaptureError

NUMBERS = {"loss": "train/CE loss", "grad_norm": "optim/total grad norm"}
"""Ours, and the trainer's names for them."""
SCORES = {
    "softmax": Scores.LOGITS,
    "topk_softmax": Scores.LOGITS,
    "sigmoid": Scores.SIGMOID,
}


class RecordOLMo(Recording):
    """Records a Trainer's fit.

    A batch, however many micro-batches it is cut into, is one step; a step that the trainer skips
    is left out. Where a checkpoint is loaded, the record goes on at its step. Loss is this rank's.
    On a GPU, the step's numbers are read, which waits for it, only every `metrics_collect_interval`
    steps.

    Args:
        path: the run's folder.
        options: further ones of Recorder, such as branch=, overhead=, group=.

    Raises:
        UsageError: OLMo-core is not installed.
    """

    # Before the checkpointer's 1: the step must have ended when its checkpoint is saved.
    priority: ClassVar[int] = 2
    trainer: Any

    def __new__(cls, *args: Any, **options: Any) -> Any:
        module = "olmo_core.train.callbacks"
        return object.__new__(with_base(cls, module, "Callback", "pip install ai2-olmo-core"))

    def __init__(self, path: str | Path, **options: Any) -> None:
        self.session = Session(path, options)
        self._thread = get_ident()
        self._done = False
        self._whole: deque[Path] = deque()

    def pre_train(self) -> None:
        """Weights and counters are loaded; before the dry run, which compiles."""
        trainer = self.trainer
        if getattr(trainer, "checkpoints_to_eval", None):
            return
        for saver in self._savers():
            kept = saver.max_checkpoints
            if kept is not None:
                self.session.warn_of_retention(
                    f"OLMo-core keeps {kept} checkpoints (max_checkpoints={kept})",
                    "CheckpointerCallback(max_checkpoints=None)",
                )
        self._thread = get_ident()
        model = trainer.train_module.model
        more: dict[str, Any] = {}
        if OLMoRouters.in_model(model):
            more["routers"] = OLMoRouters()
        self.session.start(model, trainer.global_step, **more)

    def pre_step(self, batch: dict[str, Any]) -> None:
        """Before the first micro-batch."""
        self._done = False
        if self.session.running:
            self.session.begin(self.trainer.global_step)

    def pre_optim_step(self) -> None:
        """After the last backward; not called where the step is skipped."""
        self._done = True

    def post_train_batch(self) -> None:
        """After the update, before its checkpoint is saved and before evaluation."""
        if not self._done:
            self.session.abandon()
            return
        read = self.trainer.global_step % self.trainer.metrics_collect_interval == 0
        told = {name: self.trainer.get_metric(metric) for name, metric in NUMBERS.items()}
        # The scheduler sets it before the update, and it stays until the next.
        told["lr"] = self.trainer.train_module.optim.param_groups[0]["lr"]
        self.session.end(**{n: v for n, v in told.items() if read or not _waits(v)})

    def post_checkpoint_saved(self, path: str | Path) -> None:
        """A checkpoint is whole. Told from a thread of its own where it was saved in the
        background, when later steps may have been recorded.
        """
        if not self.session.running:
            return
        if get_ident() == self._thread and _step_of(path) == self.recorder.last_step:
            self.session.checkpoint(path)
        else:
            self._whole.append(Path(path))

    def post_step(self) -> None:
        """A checkpoint whose saving has begun in the background marks the record now."""
        step = self.trainer.global_step
        for saver in self._savers():
            begun = saver.checkpoint_pending and saver._latest_checkpoint_step == step
            if self.session.running and begun and step == self.recorder.last_step:
                self.session.saving(saver._latest_checkpoint_path)
        self._enter_whole()

    def _enter_whole(self) -> None:
        while self._whole:
            self.session.saved(_step_of(self._whole.popleft()))

    def _savers(self) -> list[Any]:
        callbacks = self.trainer.callbacks.values()
        return [c for c in callbacks if hasattr(c, "max_checkpoints") and c.enabled]

    def on_error(self, exc: BaseException) -> None:
        """The step under way is dropped."""
        self.session.abandon()

    def close(self) -> None:
        """The training ended, by itself or by an exception."""
        self._enter_whole()
        self.session.close()


def _waits(value: Any) -> bool:
    """Whether the host would wait for the device to have this number."""
    return isinstance(value, Tensor) and value.device.type != "cpu"


def _step_of(path: str | Path) -> int:
    found = re.fullmatch(r"step(\d+)", Path(path).name)
    return int(found[1]) if found else -1


class OLMoRouters:
    """OLMo-core's routers, for `Recorder(..., routers=OLMoRouters())`.

    They return weights and ids; the logits are those that `get_expert_logits` returned in the same
    forward. Its own counters are zeroed each step and are not touched.
    """

    @staticmethod
    def in_model(model: nn.Module) -> bool:
        """Whether the model has any."""
        return any(_is_router(name, module) for name, module in model.named_modules())

    def find(self, model: nn.Module) -> list[RouterSite]:
        """The model's routers, in the order of its modules.

        Raises:
            CaptureError: one scores its experts in a way that is not known.
        """
        named = modules_by_name(model)
        return [_site(name, module) for name, module in named if _is_router(name, module)]


def _is_router(name: str, module: nn.Module) -> bool:
    # A router of shared experts only weighs them; it chooses none.
    kinds = {kind.__name__ for kind in type(module).__mro__}
    return bool(kinds & {"MoERouter", "MoERouterV2"}) and not name.endswith("shared_experts_router")


def _site(name: str, router: Any) -> RouterSite:
    scores = SCORES.get(str(getattr(router.gating_function, "value", router.gating_function)))
    if scores is None or getattr(router, "random_expert_assignment", False):
        raise CaptureError(
            f"router {name} gates by {router.gating_function}"
            f"{' at random' if scores is not None else ''}; expected one of {sorted(SCORES)}."
        )
    E, K = router.num_experts, router.top_k
    attach = on_output_and_logits(router, "get_expert_logits", _reader(K))
    return RouterSite(name, router, E, K, scores, attach)


def _reader(K: int) -> Callable[[Tensor, Any], Reading]:
    def read(logits_TE: Tensor, output: Any) -> Reading:
        gates, ids = output[0], output[1]
        return Reading(logits_TE, local(ids).reshape(-1, K), local(gates).reshape(-1, K))

    return read
