"""Stand-ins for trainers that are not installed: their events, in their order, with their names.

Each follows the source of the release that it names, cut down to what a callback sees; the model
and the optimizer are real. Nothing of theirs is copied.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from tiny_training import ROWS_A_MICRO_BATCH, ROWS_A_STEP, K, Rows, tiny_moe
from torch import nn

# Shapes: S positions, B rows, D width, E experts, K chosen.


def micro_batches(rows: Rows, step: int):
    """The batches of one optimizer step, as the model takes them."""
    first = (step - 1) * ROWS_A_STEP
    for i in range(first, first + ROWS_A_STEP, ROWS_A_MICRO_BATCH):
        batch = [rows[j] for j in range(i, i + ROWS_A_MICRO_BATCH)]
        yield {name: torch.stack([row[name] for row in batch]) for name in batch[0]}


class Training:
    """A real model and optimizer; the trainers below are orders of events around this."""

    def __init__(self, rows: Rows, model: nn.Module | None = None) -> None:
        self.rows = rows
        self.model = tiny_moe() if model is None else model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.loss = torch.zeros(())
        self.norm = torch.zeros(())

    def forward_backward(self, step: int, fail: bool = False) -> None:
        self.model.train()
        self.loss = torch.zeros(())
        for i, batch in enumerate(micro_batches(self.rows, step)):
            if fail and i == 2:
                raise RuntimeError("power")
            loss = self.model(**batch).loss / 4
            loss.backward()
            self.loss += loss.detach()

    def update(self) -> None:
        self.norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters()])
        self.optimizer.step()
        self.optimizer.zero_grad()

    def evaluate(self) -> None:
        self.model.eval()
        with torch.no_grad():
            self.model(input_ids=self.rows.tokens[:2])
        self.model.train()


class ComposerTrainer:
    """Composer 0.32: events of trainer/trainer.py, `Timestamp.batch`, CheckpointSaver's names."""

    def __init__(self, training, callback, folder, *, done=0, save_every=3, retries=()):
        self.training, self.callback, self.folder = training, callback, folder
        self.save_every, self.retries = save_every, set(retries)
        self.saver = SimpleNamespace(
            num_checkpoints_to_keep=-1, all_saved_checkpoints_to_timestamp={}
        )
        self.state = SimpleNamespace(
            model=SimpleNamespace, timestamp=SimpleNamespace(batch=done),
            callbacks=[self.saver, callback], optimizers=[training.optimizer], fsdp_enabled=False,
        )  # fmt: skip
        self.state.model = Wrapper(training.model)

    def event(self, name):
        getattr(self.callback, name)(self.state, None)

    def fit(self, until, fail_at=None):
        state, training = self.state, self.training
        self.event("fit_start")
        for step in range(state.timestamp.batch + 1, until + 1):
            if step in self.retries:
                self.event("before_train_batch")
                training.model(**next(micro_batches(training.rows, step)))
            self.event("before_train_batch")
            training.forward_backward(step, fail=step == fail_at)
            self.event("after_train_batch")
            training.update()
            state.total_loss_dict = {"loss/train/total": float(training.loss)}
            state.timestamp = SimpleNamespace(batch=step)
            self.event("batch_end")
            self.event("eval_start")
            training.evaluate()
            if step % self.save_every == 0:
                path = self.folder / f"ep0-ba{step}-rank0.pt"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(b"")
                self.saver.all_saved_checkpoints_to_timestamp[str(path)] = state.timestamp
        self.event("epoch_end")
        self.event("fit_end")


class Wrapper(nn.Module):
    """A trainer's own module around the model."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, batch):
        return self.net(**batch)


class OLMoTrainer:
    """OLMo-core 3.0: events of train/trainer.py, saving in the background or not."""

    def __init__(self, training, callback, folder, *, done=0, save_every=3, skip=(), behind=False):
        self.training, self.callback, self.folder = training, callback, folder
        self.global_step, self.save_every = done, save_every
        self.skip, self.behind = set(skip), behind
        self.metrics_collect_interval = 5
        self.train_module = SimpleNamespace(model=training.model, optim=training.optimizer)
        self.saver = SimpleNamespace(
            max_checkpoints=3, enabled=True, checkpoint_pending=False,
            _latest_checkpoint_step=-1, _latest_checkpoint_path="",
        )  # fmt: skip
        self.callbacks = {"checkpointer": self.saver, "record": callback}
        callback.trainer = self
        self.metrics = {}

    def get_metric(self, name, namespace=None):
        return self.metrics.get(name)

    def fit(self, until, fail_at=None):
        callback, training = self.callback, self.training
        callback.pre_train()
        training.forward_backward(1)
        training.optimizer.zero_grad()
        try:
            while self.global_step < until:
                self.step(fail_at)
        except BaseException as error:
            callback.on_error(error)
            callback.close()
            raise
        callback.post_train()
        callback.close()

    def step(self, fail_at):
        callback, training = self.callback, self.training
        self.global_step += 1
        callback.pre_step({})
        if self.global_step not in self.skip:
            training.forward_backward(self.global_step, fail=self.global_step == fail_at)
            self.metrics = {"train/CE loss": training.loss}
            callback.pre_optim_step()
            training.update()
            self.metrics["optim/total grad norm"] = training.norm
        # The callback's priority puts it before the checkpointer.
        callback.post_train_batch()
        if self.saver.checkpoint_pending:
            self.whole()
        if self.global_step % self.save_every == 0:
            self.save()
        callback.post_step()
        training.evaluate()

    def save(self):
        path = self.folder / f"step{self.global_step}"
        self.saver._latest_checkpoint_step = self.global_step
        self.saver._latest_checkpoint_path = str(path)
        if self.behind:
            self.saver.checkpoint_pending = True
        else:
            self.training.model.save_pretrained(path)
            self.callback.post_checkpoint_saved(path)

    def whole(self):
        """A step later: told from another thread, as done callbacks of futures are."""
        from threading import Thread

        path = self.saver._latest_checkpoint_path
        self.training.model.save_pretrained(path)
        self.saver.checkpoint_pending = False
        thread = Thread(target=self.callback.post_checkpoint_saved, args=(path,))
        thread.start()
        thread.join()


class TitanTrainer:
    """torchtitan 0.3.0: `train`, `train_step` and what they call."""

    def __init__(self, training, folder, *, done=0, save_every=3, behind=False, keep=0):
        self.training, self.step, self.done = training, 0, done
        self.model_parts = [training.model]
        self.optimizers = OptimizersContainer(training.optimizer)
        self.parallel_dims = SimpleNamespace(pp_enabled=False, tp=1, ep_enabled=False)
        self.checkpointer = TitanCheckpointer(training.model, folder, save_every, behind, keep)
        self.metrics_processor = SimpleNamespace(log=lambda *a, **k: None)

    def train(self, until, fail_at=None):
        # The step is known only here, after the trainer was made.
        self.step = self.done
        while self.step < until:
            self.step += 1
            self.train_step(fail_at)
            self.checkpointer.save(self.step, last_step=self.step == until)
            self.training.evaluate()

    def train_step(self, fail_at):
        training = self.training
        training.forward_backward(self.step, fail=self.step == fail_at)
        self.checkpointer.whole()
        training.norm = nn.utils.get_total_norm([p.grad for p in training.model.parameters()])
        self.optimizers.step()
        self.optimizers.zero_grad()
        loss = float(training.loss)
        if self.step % 2 == 0:
            self.metrics_processor.log(
                self.step, loss, loss, float(training.norm), extra_metrics={"n_tokens_seen": 1}
            )


class OptimizersContainer(torch.optim.Optimizer):
    """torchtitan's: itself an Optimizer, so that hooks can be registered on its step."""

    def __init__(self, optimizer):
        self.optimizers = [optimizer]
        super().__init__(optimizer.param_groups[0]["params"], {})

    def __iter__(self):
        return iter(self.optimizers)

    def step(self, closure=None):
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none=True):
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)


class TitanCheckpointer:
    """torchtitan 0.3.0's DCP manager, as far as a step sees it."""

    def __init__(self, model, folder, every, behind, keep):
        self.model, self.folder, self.every, self.behind = model, folder, every, behind
        self.enable, self.keep_latest_k = True, keep
        self.save_future = None

    def _create_checkpoint_id(self, step, folder=""):
        return str(self.folder / f"step-{step}")

    def _should_save(self, curr_step, last_step=False):
        return curr_step % self.every == 0 or last_step

    def save(self, curr_step, last_step=False):
        if not self._should_save(curr_step, last_step):
            return False
        self.whole()
        if self.behind and not last_step:
            self.begun = self._create_checkpoint_id(curr_step)
            self.save_future = SimpleNamespace(done=lambda: self.begun is None)
        else:
            self.model.save_pretrained(self._create_checkpoint_id(curr_step))
            self.save_future = None
        return True

    def whole(self):
        if self.save_future is not None and self.begun is not None:
            self.model.save_pretrained(self.begun)
            self.begun = None


class TokenChoiceTopKRouter(nn.Module):
    """torchtitan's: returns gates, ids and the scores after softmax or sigmoid."""

    def __init__(self, width=8, experts=4, score_func="sigmoid"):
        super().__init__()
        self.gate = nn.Linear(width, experts, bias=False)
        self.num_experts, self.top_k, self.score_func = experts, K, score_func

    def forward(self, x_BLD, expert_bias_E=None):
        logits = self.gate(x_BLD)
        scores = logits.sigmoid() if self.score_func == "sigmoid" else logits.softmax(-1)
        choice = scores if expert_bias_E is None else scores + expert_bias_E
        ids = choice.topk(self.top_k, -1, sorted=False).indices
        return scores.gather(-1, ids), ids, scores


class MoERouter(nn.Module):
    """OLMo-core's: returns weights, ids, counts and a loss; logits come from a method."""

    def __init__(self, width=8, experts=4, gating_function="softmax"):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(experts, width))
        self.num_experts, self.top_k, self.gating_function = experts, K, gating_function

    def get_expert_logits(self, x):
        return nn.functional.linear(x, self.weight)

    def forward(self, x, *, loss_div_factor=None):
        logits = self.get_expert_logits(x).float()
        scores = logits.softmax(-1) if self.gating_function == "softmax" else logits.sigmoid()
        weights, ids = scores.topk(self.top_k, -1)
        return weights, ids, torch.bincount(ids.flatten(), minlength=self.num_experts), None


class TopKRouter(nn.Module):
    """Megatron-core 0.20's: (S, B, D) in, weights and a map (S x B, E) out."""

    def __init__(self, config, width=8):
        super().__init__()
        self.config, self.topk = config, config.moe_router_topk
        self.score_function = config.moe_router_score_function
        self.weight = nn.Parameter(torch.randn(config.num_moe_experts, width))
        self.tp_group = self.tp_dp_cp_group = None

    def gating(self, input):
        return nn.functional.linear(input, self.weight)

    def forward(self, input, padding_mask=None):
        logits = self.gating(input).view(-1, self.config.num_moe_experts)
        top = logits.topk(self.topk, dim=1)
        weights = top.values.softmax(-1)
        chosen = torch.zeros_like(logits).scatter(1, top.indices, weights)
        routing_map = torch.zeros_like(logits).int().scatter(1, top.indices, 1).bool()
        if self.config.moe_expert_capacity_factor is not None:
            capacity = int(self.config.moe_expert_capacity_factor * len(logits) * self.topk / 4)
            kept = torch.zeros_like(routing_map)
            rows = chosen.topk(capacity, dim=0).indices
            routing_map = routing_map & kept.scatter(0, rows, True)
            chosen = chosen * routing_map
        return chosen, routing_map


def megatron_config(**changes):
    settings = {
        "num_moe_experts": 4, "moe_router_topk": K, "moe_router_score_function": "softmax",
        "moe_expert_capacity_factor": None, "moe_pad_expert_input_to_capacity": False,
        "pipeline_model_parallel_size": 1, "sequence_parallel": False,
    } | changes  # fmt: skip
    return SimpleNamespace(**settings)


class MegatronModel(nn.Module):
    """Two routers, one after the other, with a padding mask (S, B) that is True for padding."""

    def __init__(self, **changes):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(32, 8)
        self.layers = nn.ModuleList(TopKRouter(megatron_config(**changes)) for _ in range(2))
        self.head = nn.Linear(8, 32)

    def forward(self, tokens_SB, padding_SB):
        x = self.embed(tokens_SB)
        for router in self.layers:
            weights, _ = router(x, padding_mask=padding_SB)
            x = x + weights.sum(-1).view(*tokens_SB.shape, 1) * x
        return self.head(x)


def megatron_train_step(
    forward_step_func, data_iterator, model, optimizer, opt_param_scheduler, config,
    forward_backward_func, iteration=None, pg_collection=None, p2p_communicator=None,
):  # fmt: skip
    """Megatron 0.20's, as far as the recorder sees it: runs again where it is asked to check."""
    for _ in range(2 if iteration in config.run_again else 1):
        losses = forward_backward_func(
            forward_step_func=forward_step_func, data_iterator=data_iterator, model=model
        )
    if iteration in config.leave:
        return {}, True, True, True, 0, None, None, 0
    grads = [p.grad for p in model[0].parameters() if p.grad is not None]
    norm = float(nn.utils.get_total_norm(grads))
    optimizer.step()
    optimizer.zero_grad()
    return {"lm loss": torch.stack(losses).mean()}, 0, False, False, 0, norm, None, 0
