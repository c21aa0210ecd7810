"""Recording from torchtitan's Trainer.

Needs   a torchtitan Trainer, or the hook `post_optimizer_build_fn` of a model spec; a run's folder.
Yields  RecordTorchTitan: every step, loss, learning rate, gradient norm and checkpoint in the run's
        store and index; TorchTitanRouters, which finds torchtitan's routers.

    record = RecordTorchTitan("runs/mine")
    record.watch(trainer)        # between making the trainer and trainer.train()

torchtitan has no callbacks. Where the trainer cannot be got at, because torchtitan's own command
makes it, `record.after_optimizers(...)` is what a model spec can carry; it sees neither loss nor
checkpoints.

Source: torchtitan 0.3.0 and 0.2.2, trainer.py (train.py), components/optimizer, components/
checkpointer, models/common/moe.py (models/moe/moe.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from workbench.capture.adapters.module_names import modules_by_name
from workbench.capture.adapters.router_site import Reading, RouterSite, Scores
from workbench.capture.callbacks.inner_logits import local, on_output_and_logits
from workbench.capture.callbacks.session import Recording, Session
from workbench.errors import CaptureError

SCORES = {"softmax": Scores.LOGITS, "sigmoid": Scores.SIGMOID}
OptimizersBuilt = Callable[[Any, list[nn.Module], Any], None]


class RecordTorchTitan(Recording):
    """Records a torchtitan training.

    All micro-batches of a step are one sample; validation does not count. Where a checkpoint is
    loaded, the record goes on at its step. Loss and gradient norm are recorded at the steps at
    which torchtitan logs them (`metrics.log_freq`), the learning rate at every step.

    With pipeline parallelism ranks hold different layers, which one record cannot: refused.

    Args:
        path: the run's folder.
        options: further ones of Recorder, such as branch=, overhead=, group=.
    """

    def __init__(self, path: str | Path, **options: Any) -> None:
        self.session = Session(path, options)
        self._trainer: Any = None

    def watch(self, trainer: Any) -> None:
        """Records this trainer from now on, by standing around its `train_step`, its checkpointer's
        `save` and its metrics' `log`.

        Raises:
            CaptureError: it has more than one model part, or pipeline stages.
        """
        self._trainer = trainer
        _check_one_part(trainer.model_parts, trainer.parallel_dims)
        saver = trainer.checkpointer
        kept = getattr(saver, "keep_latest_k", 0)
        if kept and getattr(saver, "enable", True):
            self.session.warn_of_retention(
                f"torchtitan keeps {kept} checkpoints (keep_latest_k={kept})",
                "--checkpoint.keep_latest_k 0",
            )
        trainer.train_step = self._around(trainer.train_step)
        trainer.metrics_processor.log = self._with_numbers(trainer.metrics_processor.log)
        saver.save = self._after_saving(saver.save)

    def _around(self, train_step: Callable[..., Any]) -> Callable[..., Any]:
        trainer = self._trainer

        @wraps(train_step)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            # The weights and the step are loaded by now, and no forward has been.
            if not self.session.running:
                self._start(trainer.model_parts[0], trainer.parallel_dims, trainer.step - 1)
            self._tell_whole()
            self.session.begin(trainer.step)
            try:
                rate = _rate(trainer.optimizers)
                result = train_step(*args, **kwargs)
            except BaseException:
                # Such as a data set that ends in mid-step.
                self.session.abandon()
                raise
            self.session.end(lr=rate)
            return result

        return recorded

    def _start(self, model: nn.Module, parallel_dims: Any, done: int) -> None:
        more: dict[str, Any] = {"group": _group(parallel_dims)}
        if TorchTitanRouters.in_model(model):
            more["routers"] = TorchTitanRouters()
        self.session.start(model, done, **more)

    def _with_numbers(self, log: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(log)
        def recorded(
            step: int, global_avg_loss: float, global_max_loss: float, grad_norm: float,
            *args: Any, **kwargs: Any,
        ) -> Any:  # fmt: skip
            # In train_step, after the update: the step is still under way.
            self.session.log(loss=global_avg_loss, grad_norm=grad_norm)
            return log(step, global_avg_loss, global_max_loss, grad_norm, *args, **kwargs)

        return recorded

    def _after_saving(self, save: Callable[..., Any]) -> Callable[..., Any]:
        saver = self._trainer.checkpointer

        @wraps(save)
        def recorded(curr_step: int, last_step: bool = False) -> Any:
            # Until 0.2.2 `save` returns nothing.
            should = saver._should_save(curr_step, last_step)
            saved = save(curr_step, last_step)
            if (saved or (saved is None and should)) and self.session.running:
                path = saver._create_checkpoint_id(curr_step)
                done = _future(saver) is None
                (self.session.checkpoint if done else self.session.saving)(path)
            return saved

        return recorded

    def _tell_whole(self) -> None:
        """Checkpoints that were being saved in the background and are whole now."""
        future = _future(self._trainer.checkpointer)
        if future is None or future.done():
            for step in self.session.half_saved():
                self.session.saved(step)

    def after_optimizers(self, then: OptimizersBuilt | None = None) -> OptimizersBuilt:
        """A function for a model spec's `post_optimizer_build_fn`, which calls `then`, the one that
        was there, such as torchtitan's `register_moe_load_balancing_hook`.

        Steps count from `resume_at`, an option of Recorder; the trainer's own step is not known
        here.
        """

        def built(optimizers: Any, model_parts: list[nn.Module], parallel_dims: Any) -> None:
            # Before the balancing hook, which zeroes the counts that torchtitan keeps itself.
            _check_one_part(model_parts, parallel_dims)
            model = model_parts[0]
            self._start(model, parallel_dims, 0)
            model.register_forward_pre_hook(lambda *_: self._before_forward(model))
            optimizers.register_step_post_hook(lambda *_: self._after_update(optimizers))
            if then is not None:
                then(optimizers, model_parts, parallel_dims)

        return built

    def _before_forward(self, model: nn.Module) -> None:
        # Validation is no step, and reaches this hook as well.
        if model.training and self.session.running and self.session.step is None:
            self.session.begin(self.recorder.last_step + 1)

    def _after_update(self, optimizers: Any) -> None:
        # The scheduler moves the rate on after this.
        self.session.end(lr=_rate(optimizers))

    def close(self) -> None:
        """Writes what waits and frees the run's folder."""
        if self._trainer is not None and self.session.running:
            self._tell_whole()
        self.session.close()


def _check_one_part(model_parts: Sequence[nn.Module], parallel_dims: Any) -> None:
    if len(model_parts) > 1 or getattr(parallel_dims, "pp_enabled", False):
        raise CaptureError(
            f"a pipeline with {len(model_parts)} model part(s) on this rank: ranks hold different "
            f"layers, and one record holds all layers of every step; expected no pipeline "
            f"parallelism (--parallelism.pipeline_parallel_degree 1)."
        )


def _group(parallel_dims: Any) -> Any:
    """The ranks whose routers see different tokens; None for all."""
    tensor_parallel = getattr(parallel_dims, "tp", 1) > 1
    # With expert parallelism the routers' tokens are split over tensor-parallel ranks as well.
    if not tensor_parallel or getattr(parallel_dims, "ep_enabled", False):
        return None
    raise CaptureError(
        "tensor parallelism without expert parallelism: its ranks see the same tokens and would "
        "count them twice. Record on its first ranks alone: RecordTorchTitan(path, group=...)."
    )


def _rate(optimizers: Any) -> float:
    return float(next(iter(optimizers)).param_groups[0]["lr"])


def _future(saver: Any) -> Any:
    """What a save in the background can be waited for by; None where there is none."""
    return getattr(saver, "save_future", None)


class TorchTitanRouters:
    """torchtitan's routers, for `Recorder(..., routers=TorchTitanRouters())`.

    They return gates, ids and scores; the logits are those that their `gate` returned in the same
    forward.
    """

    @staticmethod
    def in_model(model: nn.Module) -> bool:
        """Whether the model has any."""
        return any(_is_router(module) for module in model.modules())

    def find(self, model: nn.Module) -> list[RouterSite]:
        """The model's routers, in the order of its modules.

        Raises:
            CaptureError: one scores its experts in a way that is not known.
        """
        named = modules_by_name(model)
        return [_site(name, module) for name, module in named if _is_router(module)]


def _is_router(module: nn.Module) -> bool:
    return "TokenChoiceTopKRouter" in {kind.__name__ for kind in type(module).__mro__}


def _site(name: str, router: Any) -> RouterSite:
    if router.score_func not in SCORES:
        raise CaptureError(
            f"router {name} scores by {router.score_func!r}; expected one of {sorted(SCORES)}."
        )
    E, K = router.num_experts, router.top_k

    def read(logits_TE: Tensor, output: Any) -> Reading:
        gates, ids = output[0], output[1]
        return Reading(logits_TE, local(ids).reshape(-1, K), local(gates).reshape(-1, K))

    attach = on_output_and_logits(router, "gate", read)
    return RouterSite(name, router, E, K, SCORES[router.score_func], attach)
