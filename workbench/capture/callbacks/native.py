"""Recording and evaluating from our own training loop.

Needs   a Training (model/training/loop.py), a run's folder, the arm that it trains.
Yields  RecordTraining: every step and checkpoint of it in the run's store and index.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from model.data.corpus import DOMAINS
from model.data.mixture import Batch
from model.data.world import TASKS
from model.evaluation import encode_items, score
from model.training.callbacks import Callback, StepResult
from model.training.loop import Training
from workbench.capture.probe_set import ProbeSet
from workbench.capture.recorder import Recorder
from workbench.capture.traces import Traces
from workbench.store.layout import Task


class RecordTraining(Callback):
    """Records a training into a run; scores the held-out items at every checkpoint.

    Args:
        run: the run's folder.
        branch: the arm.
        resume: whether the branch is gone on with (from the step at which the training stands) or
            begun.
    """

    def __init__(self, run: Path, branch: str, *, resume: bool) -> None:
        self.run = run
        self.branch = branch
        self.resume = resume
        self.recorder: Recorder | None = None

    def train_start(self, training: Training) -> None:
        plan = training.plan
        items = {task: training.world.items(task, plan.items_per_task) for task in TASKS}
        self.items = encode_items(items, training.tokenizer)
        self.recorder = Recorder(
            training.model,
            self.run,
            branch=self.branch,
            domains=DOMAINS,
            tasks=[Task(t.name, t.chance, plan.items_per_task) for t in TASKS.values()],
            probe=probe_set(training),
            traces=Traces(tokens_per_step=plan.tokens_per_step),
            resume_at=training.step if self.resume else None,
        )

    def around_step(
        self, training: Training, step: int, batch: Batch
    ) -> AbstractContextManager[object]:
        assert self.recorder is not None
        return self.recorder.step(step, tokens=batch.num_tokens, domains=batch.domains)

    def step_end(self, training: Training, result: StepResult) -> None:
        assert self.recorder is not None
        self.recorder.log(loss=result.loss, lr=result.lr, grad_norm=result.grad_norm)

    def checkpoint(self, training: Training, step: int, path: Path) -> None:
        assert self.recorder is not None
        scores = score(training.model, self.items)
        self.recorder.evaluations(step, scores.correct, scores.logprob)
        self.recorder.checkpoint(path, step=step)

    def train_end(self, training: Training, *, finished: bool) -> None:
        if self.recorder is not None:
            self.recorder.close()


def probe_set(training: Training) -> ProbeSet:
    """The run's fixed probe set: held-out rows of every domain, the same for every arm."""
    rows = training.plan.probe_rows
    tokens = [training.corpus.held_out_rows(domain, rows) for domain in DOMAINS]
    domains = tuple(domain for domain in DOMAINS for _ in range(rows))
    # The last token of a row is only ever a target.
    return ProbeSet(np.concatenate(tokens)[:, :-1], domains)
