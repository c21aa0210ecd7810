"""The session: one recorder through one training, as a trainer's events tell it.

Needs   a run's folder and the recorder's options; then the trainer's events, in their order.
Yields  Session: `start`, `begin`, `end`, `checkpoint`, `close`; Recording, what callbacks share;
        called_inside, the model in a trainer's wrapper module.

Every callback of this folder is a thin layer on this: it says which event is a step's begin, which
its end, and where the checkpoint lies.
"""

from __future__ import annotations

import warnings
import weakref
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from torch import nn

from workbench.capture.adapters.find import find_routers
from workbench.capture.recorder import Recorder
from workbench.capture.run_folder import RunFolder
from workbench.errors import CaptureError, UsageError

_UNDER_WAY: weakref.WeakValueDictionary[tuple[Path, str], Session] = weakref.WeakValueDictionary()
"""Sessions of this process that have not been closed, by folder and branch."""


class Session:
    """A recorder that follows a trainer.

    Args:
        path: the run's folder.
        options: what Recorder takes beside the model and the folder.
    """

    def __init__(self, path: str | Path, options: dict[str, Any]) -> None:
        self.path = Path(path)
        self.options = options
        self.step: int | None = None
        """The step under way; None between steps."""
        self._recorder: Recorder | None = None
        self._warned = False
        self._half_saved: dict[int, Path] = {}

    @property
    def running(self) -> bool:
        """Whether there is a recorder."""
        return self._recorder is not None

    @property
    def recorder(self) -> Recorder:
        """The recorder of the training under way.

        Raises:
            UsageError: no training has begun.
        """
        if self._recorder is None:
            raise UsageError(
                f"nothing is recorded into {self.path} yet: the recorder is made when the training "
                f"begins; ask for it from then on."
            )
        return self._recorder

    def start(self, model: nn.Module, done: int, *, again: bool = False, **more: Any) -> None:
        """The training begins, after `done` steps: a new record, or one that is gone on with.

        Where the run holds a record, it goes on at the checkpoint of step `done`; what it holds
        after that is set aside.

        Args:
            model: recorded.
            done: the steps that its weights have seen.
            again: the trainer may begin anew by itself, as after a batch too large for the memory;
                what this session has recorded until then is set aside.
            more: options of Recorder that the trainer knows, behind those of the session.

        Raises:
            CaptureError, RunExists, StoreBusy: as Recorder does.
        """
        anew = again and not done and self._recorder is not None and self._recorder.last_step
        self.close()
        key = (self.path.resolve(), str(self.options.get("branch", "main")))
        # A training that was interrupted in this process, as in a notebook, still holds the branch.
        if (before := _UNDER_WAY.get(key)) is not None:
            before.close()
        options = {**more, **self.options}
        if done and RunFolder(self.path).store.exists():
            options.setdefault("resume_at", done)
        if anew:
            options.setdefault("resume_at", 0)
            warnings.warn(
                f"the trainer begins anew: the {anew} steps recorded into {self.path} until now "
                f"are set aside.",
                RuntimeWarning,
                stacklevel=3,
            )
        self._recorder = Recorder(model, self.path, **options)
        self._half_saved = {}
        _UNDER_WAY[key] = self

    def begin(self, step: int) -> None:
        """A step begins; one that is still under way failed, and is dropped."""
        self.abandon()
        self.recorder.begin(step)
        self.step = step

    def log(self, **values: Any) -> None:
        """Numbers of the step under way; None is not known."""
        if self.step is not None:
            known = {name: float(value) for name, value in values.items() if value is not None}
            self.recorder.log(**known)

    def end(self, **values: Any) -> None:
        """The step under way ends; nothing where none is."""
        if self.step is not None:
            self.log(**values)
            self.step = None
            self.recorder.end()

    def abandon(self) -> None:
        """Drops the step under way; nothing where none is."""
        if self.step is not None:
            self.step = None
            self.recorder.abandon()

    def paused(self) -> AbstractContextManager[None]:
        """Around forwards that do not count."""
        return self.recorder.paused()

    def checkpoint(self, path: str | Path) -> None:
        """Weights of the last step were saved at `path`, and are whole."""
        # Said, because a trainer may save in the midst of the next step.
        self.recorder.checkpoint(path, step=self.recorder.last_step)

    def saving(self, path: str | Path) -> None:
        """Weights of the last step are being saved at `path` while training goes on.

        The record is marked now, since no mark can be set once later steps are in it; `saved` is
        to tell when the files are whole, for the index.
        """
        self._half_saved[self.recorder.last_step] = Path(path)
        self.recorder.checkpoint(path, step=self.recorder.last_step, whole=False)

    def half_saved(self) -> tuple[int, ...]:
        """Steps of which `saving` was said, and `saved` not yet."""
        return tuple(self._half_saved)

    def saved(self, step: int) -> None:
        """What `saving` said at `step` is whole now; nothing where it said nothing."""
        path = self._half_saved.pop(step, None)
        if path is not None:
            self.recorder.enter(path, step)

    def warn_of_retention(self, found: str, remedy: str) -> None:
        """Warns, once, that the trainer will delete checkpoints."""
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{found}: the others are deleted, and what happened between them can then not be "
                f"studied on weights. To keep all: {remedy}.",
                UserWarning,
                stacklevel=4,
            )

    def close(self) -> None:
        """Drops the step under way, writes the rest and takes the hooks off. Closing twice is
        fine.
        """
        if self._recorder is None:
            return
        self.abandon()
        for step in self.half_saved():
            self.saved(step)
        recorder, self._recorder = self._recorder, None
        for key in [key for key, session in _UNDER_WAY.items() if session is self]:
            del _UNDER_WAY[key]
        recorder.close()


class Recording:
    """What the callbacks share: the recorder, and an end for trainings that break off.

    A training that ends in an exception leaves what was recorded readable all the same; `close`, or
    a `with` around the training, frees the run's folder at once instead of at the process's end.
    """

    session: Session

    @property
    def recorder(self) -> Recorder:
        """The recorder of the training under way: for `labels`, `evaluations` and the like."""
        return self.session.recorder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drops the step under way, writes the rest and frees the run's folder."""
        self.session.close()


def called_inside(wrapper: nn.Module, routers: Any = None) -> nn.Module:
    """The part of a trainer's wrapper module that holds all routers and is called by it; the
    wrapper itself where there is no such part.

    A trainer's own module takes a batch; the model in it takes the `attention_mask` that tells
    padding.

    Example:
        >>> called_inside(nn.Sequential(nn.Linear(2, 2)))
        Sequential(
          (0): Linear(in_features=2, out_features=2, bias=True)
        )
    """
    holding = [child for child in wrapper.children() if _has_routers(child, routers)]
    return holding[0] if len(holding) == 1 else wrapper


def _has_routers(module: nn.Module, routers: Any) -> bool:
    try:
        return bool(find_routers(module, routers))
    except CaptureError:
        return False
