"""Recording from Megatron-LM's training loop.

Needs   Megatron's `train_step` and `save_checkpoint`; a run's folder.
Yields  RecordMegatron: every step, loss, learning rate, gradient norm and checkpoint in the run's
        store and index; MegatronRouters, which finds Megatron-core's routers.

    record = RecordMegatron("runs/mine")
    training.train_step = record.around(training.train_step)
    training.save_checkpoint = record.after_saving(training.save_checkpoint, folder=args.save)

with `from megatron.training import training`, before `pretrain`: Megatron has no callbacks.

Source: Megatron-LM 0.20, megatron/training/training.py and
megatron/core/transformer/moe/router.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.capture.adapters.module_names import modules_by_name
from workbench.capture.adapters.router_site import Reading, RouterSite, Scores
from workbench.capture.callbacks.inner_logits import local, on_output_and_logits
from workbench.capture.callbacks.session import Recording, Session
from workbench.errors import CaptureError

# Shapes: T tokens of one forward, E experts over all ranks, K chosen a token.

SCORES = {"softmax": Scores.LOGITS, "sigmoid": Scores.SIGMOID}


class RecordMegatron(Recording):
    """Records a Megatron training.

    All micro-batches of an iteration are one sample; a forward and backward that Megatron runs
    again to check a result counts once; evaluation does not count; padding is what the router's
    `padding_mask` says. With a checkpoint loaded the record goes on at its iteration.

    Ranks whose routers see different tokens are added up: with sequence parallelism those of a
    pipeline stage. Pipeline stages hold different layers: give each its own folder, and `group=`
    its ranks.

    Args:
        path: the run's folder.
        numbers_every: iterations between two readings of loss and gradient norm, which wait for the
            GPU; on a CPU every one is read.
        options: further ones of Recorder, such as branch=, overhead=, group=.
    """

    def __init__(self, path: str | Path, *, numbers_every: int = 100, **options: Any) -> None:
        self.session = Session(path, options)
        self.numbers_every = numbers_every
        self._handles: list[Any] = []

    def around(self, train_step: Callable[..., Any]) -> Callable[..., Any]:
        """`train_step`, recorded; takes and returns what it does.

        Raises:
            CaptureError: (at the first iteration) the model is spread over ranks in a way that one
                record cannot hold.
        """

        @wraps(train_step)
        def recorded(
            forward_step_func: Any, data_iterator: Any, model: list[nn.Module], optimizer: Any,
            opt_param_scheduler: Any, config: Any, forward_backward_func: Callable[..., Any],
            iteration: int | None = None, **kwargs: Any,
        ) -> Any:  # fmt: skip
            if not self.session.running:
                self._start(model, iteration or 0)
            # Megatron's iteration counts those that are done; our steps count from 1.
            step = (self.recorder.last_step if iteration is None else iteration) + 1
            rate = optimizer.param_groups[0]["lr"]

            @wraps(forward_backward_func)
            def once(*args: Any, **kwargs: Any) -> Any:
                # Drops what is under way: the same step, run again.
                self.session.begin(step)
                return forward_backward_func(*args, **kwargs)

            try:
                result = train_step(
                    forward_step_func, data_iterator, model, optimizer, opt_param_scheduler, config,
                    once, iteration, **kwargs,
                )  # fmt: skip
            except BaseException:
                self.session.abandon()
                raise
            losses, _, _, should_exit, _, norm = result[:6]
            if should_exit and norm is None:
                # It leaves before the update.
                self.session.abandon()
            loss = next((v for name, v in losses.items() if "lm loss" in name), None)
            self.session.end(loss=self._read(loss, step), lr=rate, grad_norm=self._read(norm, step))
            return result

        return recorded

    def _read(self, value: Any, step: int) -> Any:
        waits = isinstance(value, Tensor) and value.device.type != "cpu"
        return None if waits and step % self.numbers_every else value

    def _start(self, model: list[nn.Module], done: int) -> None:
        whole = model[0] if len(model) == 1 else nn.ModuleList(model)
        routers = MegatronRouters()
        found = [site.module for site in routers.find(whole)]
        more: dict[str, Any] = {"routers": routers} if found else {}
        if found and "group" not in self.session.options:
            more["group"] = _group(found[0])
        self.session.start(whole, done, **more)
        self._handles = [
            router.register_forward_pre_hook(self._see_padding, with_kwargs=True)
            for router in found
        ]

    def _see_padding(self, router: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("padding_mask", args[1] if len(args) > 1 else None)
        if mask is not None:
            # (pos, row) as the tokens are, True for padding: the code's sense, not its comment's.
            self.recorder.labels(keep=~mask.reshape(-1))

    def after_saving(
        self,
        save_checkpoint: Callable[..., Any],
        *,
        folder: str | Path,
        async_save: bool = False,
        retain_interval: int | None = None,
    ) -> Callable[..., Any]:
        """`save_checkpoint`, recorded; takes and returns what it does.

        Args:
            save_checkpoint: Megatron's.
            folder: its `--save`.
            async_save: whether `--async-save` is on.
            retain_interval: its `--save-retain-interval`, which deletes what lies in between.
        """
        if retain_interval is not None:
            self.session.warn_of_retention(
                f"Megatron keeps one checkpoint in {retain_interval} iterations "
                f"(--save-retain-interval {retain_interval})",
                "leave --save-retain-interval out",
            )

        @wraps(save_checkpoint)
        def recorded(iteration: int, *args: Any, **kwargs: Any) -> Any:
            if self.session.running:
                # The one before is whole: Megatron waits for it before it saves the next.
                for step in self.session.half_saved():
                    self.session.saved(step)
            result = save_checkpoint(iteration, *args, **kwargs)
            if self.session.running and not kwargs.get("non_persistent_ckpt"):
                path = Path(folder) / f"iter_{iteration:07d}"
                (self.session.saving if async_save else self.session.checkpoint)(path)
            return result

        return recorded

    def close(self) -> None:
        """Writes what waits and frees the run's folder; the hooks on the routers are taken off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.session.close()


def _group(router: Any) -> Any:
    """The ranks whose routers see different tokens."""
    config = router.config
    if getattr(config, "pipeline_model_parallel_size", 1) > 1:
        raise CaptureError(
            f"pipeline_model_parallel_size={config.pipeline_model_parallel_size}: stages hold "
            f"different layers, and one record holds all layers of every step. Give each stage its "
            f"own folder and its ranks: RecordMegatron(f'runs/mine/stage{{n}}', group=...)."
        )
    if getattr(config, "sequence_parallel", False) or _size(router.tp_group) == 1:
        return router.tp_dp_cp_group
    raise CaptureError(
        "tensor parallelism without sequence parallelism: its ranks see the same tokens and would "
        "count them twice. Use --sequence-parallel, or RecordMegatron(..., group=...) on the first "
        "ranks alone."
    )


def _size(group: Any) -> int:
    return 1 if group is None else group.size()


class MegatronRouters:
    """Megatron-core's TopKRouter, for `Recorder(..., routers=MegatronRouters())`.

    It returns weights and a map (token, expert); the logits are those that its `gating` returned in
    the same forward. Assignments dropped for capacity are in the record as dropped.
    """

    def find(self, model: nn.Module) -> list[RouterSite]:
        """The model's routers, in the order of its modules.

        Raises:
            CaptureError: one routes in a way that cannot be captured.
        """
        return [
            _site(name, module)
            for name, module in modules_by_name(model)
            if "TopKRouter" in {kind.__name__ for kind in type(module).__mro__}
        ]


def _site(name: str, router: Any) -> RouterSite:
    config = router.config
    if router.score_function not in SCORES:
        raise CaptureError(
            f"router {name} scores by {router.score_function!r}; expected one of {sorted(SCORES)}."
        )
    if getattr(config, "moe_pad_expert_input_to_capacity", False):
        raise CaptureError(
            f"router {name} fills experts up to their capacity with tokens that did not choose "
            f"them; expected moe_pad_expert_input_to_capacity=False."
        )
    K = router.topk

    def read(logits_TE: Tensor, output: Any) -> Reading:
        return _reading(logits_TE, local(output[0]), local(output[1]), K)

    attach = on_output_and_logits(router, "gating", read)
    drops = config.moe_expert_capacity_factor is not None
    scores = SCORES[router.score_function]
    return RouterSite(name, router, config.num_moe_experts, K, scores, attach, drops)


def _reading(logits_TE: Tensor, weights_TE: Tensor, map_TE: Tensor, K: int) -> Reading:
    """From a map of which experts a token goes to, to their ids; -1 where it was dropped."""
    # Not nonzero: it sizes its result from the data, so the host waits for the GPU.
    chosen_TK, ids_TK = map_TE.to(torch.float32).topk(K, dim=-1)
    gates_TK = weights_TE.gather(-1, ids_TK)
    return Reading(logits_TE, ids_TK.masked_fill(chosen_TK == 0, -1), gates_TK)
