"""A run from beginning to end: the main line, the arms that fork from it, and going on after a
stop.

Needs   a TrainingPlan, a folder.
Yields  `begin`, `train_main`, `train_arm`: each goes on from the last moment that is safe on the
        disk.

Safe is a step whose checkpoint is whole and whose record was committed. Training goes on from the
newest such step; what the record holds after it is set aside under a tag of the store, never
deleted, and then recorded again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from checkpoints_index.index import CheckpointIndex
from model.data.corpus import collect_standard_library
from model.data.tokenizer import load_tokenizer
from model.data.world import TASKS, World
from model.errors import TrainingStateError
from model.training.checkpoint import checkpoint_path, read_state
from model.training.loop import Training, make_tokenizer, pick_device
from model.training.plan import TrainingPlan
from model.training.progress import Progress
from model.training.schedule import arm_mixture
from workbench.capture.callbacks.native import RecordTraining
from workbench.capture.checkpoint_entry import enter_checkpoint
from workbench.capture.run_folder import RunFolder
from workbench.errors import RunExists, RunNotFound, UsageError
from workbench.store.names import MAIN
from workbench.store.run_store import RunStore

Say = Callable[[str], None]


class Experiment:
    """One run folder and what can be trained in it.

    Args:
        path: the run's folder.
        say: told what happens, a sentence at a time.
        device: "auto", "cpu", "cuda", ...
        compile: whether the model is compiled.

    Raises:
        ConfigError: no such device.
    """

    def __init__(
        self, path: Path, *, say: Say, device: str = "auto", compile: bool = False
    ) -> None:
        pick_device(device)  # refused before a run is begun
        self.folder = RunFolder(path)
        self.say = say
        self.device = device
        self.compile = compile

    def begin(self, plan: TrainingPlan) -> None:
        """Makes the run: its folder, its plan, its tokenizer.

        Raises:
            RunExists: there is a run, or anything else, in the folder.
        """
        world = World(plan.seed)
        for task in TASKS:
            world.items(task, plan.items_per_task)  # refused before a run is begun
        text = collect_standard_library()
        about = {"config": plan.to_dict(), "phases": plan.schedule.phases()}
        self.folder.create(**about, text_digest=text.digest)
        self._save_tokenizer(make_tokenizer(plan, world, text))

    @property
    def plan(self) -> TrainingPlan:
        """The plan that the run was begun with.

        Raises:
            RunNotFound: there is no run, or it was not begun by this program.
        """
        said = self.folder.read()
        if "config" not in said:
            raise RunNotFound(f"{self.folder.path} has no training plan in its run.json.")
        return TrainingPlan.from_dict(said["config"])

    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer, checked against its model; trained anew if a stop came before it was
        saved.
        """
        plan = self.plan
        if not self.folder.tokenizer.exists():
            text = collect_standard_library()
            self._save_tokenizer(make_tokenizer(plan, World(plan.seed), text))
        return load_tokenizer(self.folder.tokenizer, plan.model.d_vocab)

    def _save_tokenizer(self, tokenizer: Tokenizer) -> None:
        partial = self.folder.tokenizer.with_name(".partial-tokenizer.json")
        tokenizer.save(str(partial))
        partial.replace(self.folder.tokenizer)

    def train_main(self, until: int | None = None) -> None:
        """Trains the main line to step `until`, or to the plan's end, from wherever it stands."""
        plan = self.plan
        until = plan.schedule.steps if until is None else until
        self._train(MAIN, plan, until)

    def train_arm(self, arm: str, fork_step: int) -> None:
        """Forks an arm from the main line at a step and trains it to the end, from wherever it
        stands.

        Raises:
            ConfigError: no such arm.
            UsageError: the main line has no checkpoint at that step, or the arm forked elsewhere.
        """
        mixture = arm_mixture(arm)
        plan = self.plan
        if not 0 < fork_step < plan.schedule.steps:
            raise UsageError(
                f"fork at step {fork_step}: must lie inside the {plan.schedule.steps} steps."
            )
        if fork_step > plan.schedule.fork_step:
            raise UsageError(
                f"fork at step {fork_step}: the main line's learning rate falls after step "
                f"{plan.schedule.fork_step}, and the arm's would leap; fork there or earlier."
            )
        share = 1 - fork_step / plan.schedule.steps
        schedule = replace(plan.schedule, final_share=share, final_mixture=dict(mixture))
        store = self._store()
        if arm not in store.branches:
            if not self._is_safe(MAIN, fork_step):
                safe = ", ".join(map(str, self._safe_steps(MAIN))) or "none"
                raise UsageError(
                    f"the main line has no checkpoint at step {fork_step} to fork from; "
                    f"it has {safe}."
                )
            store.fork(arm, MAIN, at_step=fork_step)
        elif (forked := store.lineage(arm)) != (MAIN, fork_step):
            raise UsageError(
                f"arm {arm!r} is there and forked from {forked}, not from "
                f"('main', {fork_step}): go on with the same fork, or use another run."
            )
        self.folder.update(arms={arm: {"fork_step": fork_step, "mixture": dict(mixture)}})
        self._train(arm, replace(plan, schedule=schedule), schedule.steps)

    def is_finished(self, branch: str, until: int) -> bool:
        """Whether the branch was trained and recorded up to step `until`."""
        if not self.folder.store.exists() or branch not in self._store().branches:
            return False
        return self._is_safe(branch, until)

    def standing(self) -> str:
        """What is there, in a sentence."""
        steps = self.plan.schedule.steps
        if not self.folder.store.exists():
            return f"{self.folder.path}: a run begun, nothing recorded yet"
        parts = [
            f"{branch} up to step {max(safe)} of {steps}"
            for branch in self._store().branches
            if (safe := self._safe_steps(branch))
        ]
        return f"{self.folder.path}: {', '.join(parts) or 'no checkpoint yet'}"

    def _train(self, branch: str, plan: TrainingPlan, until: int) -> None:
        self._complete_index(branch)
        if self.is_finished(branch, until):
            self.say(f"{branch}: already there up to step {until}")
            return
        safe = self._safe_steps(branch) if self.folder.store.exists() else []
        if safe and max(safe) > until:
            raise UsageError(
                f"{branch} stands at step {max(safe)}, beyond {until}: nothing to train there."
            )
        record = RecordTraining(self.folder.path, branch, resume=self.folder.store.exists())
        training = Training(
            plan, self.folder.checkpoints(branch), tokenizer=self.tokenizer(),
            callbacks=[record, Progress(branch)], device=self.device, compile=self.compile,
        )  # fmt: skip
        for step in sorted(safe, reverse=True):
            try:
                training.resume(self._weights(branch, step))
            except TrainingStateError as error:
                self.say(f"{branch}: passed over {error}")
                continue
            self.say(f"{branch}: goes on from step {training.step}")
            break
        began = time.monotonic()
        training.run(until)
        self.say(f"{branch}: step {training.step} reached in {time.monotonic() - began:.0f} s")
        if record.recorder is not None and (aside := record.recorder.set_aside):
            self.say(
                f"{branch}: steps {aside.steps} recorded before the stop are kept as {aside.tag}"
            )

    def _store(self) -> RunStore:
        return RunStore.open(self.folder.store)

    def _complete_index(self, branch: str) -> None:
        """Enters checkpoints that are safe and not in the index: a stop came between the two."""
        if not self.folder.store.exists() or branch not in self._store().branches:
            return
        lineage = self._store().lineage(branch)
        known = {r.step for r in CheckpointIndex(self.folder.path).list(branch=branch)}
        for step in self._safe_steps(branch):
            if step in known or (lineage is not None and step <= lineage[1]):
                continue
            path = self._weights(branch, step)
            enter_checkpoint(
                self.folder.path, path, branch=branch, step=step,
                tokens_seen=read_state(path).tokens_seen, parent=lineage, about={},
                history=self._store().checkpoints(branch),
            )  # fmt: skip

    def _weights(self, branch: str, step: int) -> Path:
        """The checkpoint of a step in the history of a branch; before the fork it is the
        parent's.
        """
        own = checkpoint_path(self.folder.checkpoints(branch), step)
        lineage = self._store().lineage(branch)
        if lineage is not None and step <= lineage[1]:
            return self._weights(lineage[0], step)
        return own

    def _safe_steps(self, branch: str) -> list[int]:
        """Steps whose record is committed and whose weights are whole."""
        return [s for s in self._store().checkpoints(branch) if self._is_whole(branch, s)]

    def _is_safe(self, branch: str, step: int) -> bool:
        return step in self._store().checkpoints(branch) and self._is_whole(branch, step)

    def _is_whole(self, branch: str, step: int) -> bool:
        try:
            read_state(self._weights(branch, step))
        except TrainingStateError:
            return False
        return True


def fork_step(plan: TrainingPlan, share: float) -> int:
    """The step at that share of the plan.

    Raises:
        UsageError: not a share between 0 and 1.

    Example:
        >>> from model.training.plan import plan_for
        >>> fork_step(plan_for("nano"), 0.8) == plan_for("nano").schedule.fork_step
        True
    """
    if not 0 < share < 1:
        raise UsageError(f"{share}: expected a share of the run's steps, between 0 and 1.")
    return plan.schedule.steps - max(1, round(plan.schedule.steps * (1 - share)))


def move_aside(path: Path) -> Path:
    """Renames a run's folder so that another can begin in its place; nothing is deleted.

    Raises:
        RunExists: what lies there is no run of ours, and stays where it is.
        StoreBusy: somebody writes to it.
    """
    path = path.resolve()
    if not RunFolder(path).exists:
        raise RunExists(f"{path} holds no run that could be moved aside: choose another folder.")
    if RunFolder(path).store.exists():
        store = RunStore.open(RunFolder(path).store)
        for branch in store.branches:
            with store.branch_lock(branch) as lock:
                lock.acquire()
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    aside = path.with_name(f"{path.name}.before-{stamp}")
    path.rename(aside)
    return aside
