"""Weights beside a trainer's own checkpoint, in a format that runs no code when it is read.

Needs   a recorder or a model, where the trainer's checkpoint lies.
Yields  `save_readable`: a folder of safetensors, a Hugging Face one where the model is one;
        `save_for_index`: the same, never over another step's and never the end of a training.

Lightning's and Composer's checkpoints can only be read by unpickling, which the index refuses.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from checkpoints_index.index import CheckpointIndex
from workbench.capture.checkpoint_entry import uri_of
from workbench.capture.recorder import Recorder


def save_for_index(recorder: Recorder, checkpoint: str | Path) -> Path:
    """Writes the weights of the recorder's model beside `checkpoint`, which was saved after its
    last step.

    A trainer may save every step under one name, such as "last"; what is in the index must stay as
    it is, so a name that the index has for another step gets the step in it.

    Returns:
        The folder of weights; `checkpoint` itself, with a warning, where they could not be written.
    """
    checkpoint = Path(checkpoint)
    try:
        return save_readable(recorder.model, checkpoint, _free_name(recorder, checkpoint))
    except Exception as error:  # Whatever it is, a training must not stop because of capture.
        warnings.warn(
            f"no readable weights beside {checkpoint}: {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=4,
        )
        return checkpoint


def _free_name(recorder: Recorder, checkpoint: Path) -> str:
    run, here = recorder.folder.path, (recorder.branch, recorder.last_step)
    taken = {r.uri for r in CheckpointIndex(run).list() if (r.branch, r.step) != here}
    steps = checkpoint.stem, f"{checkpoint.stem}-step{recorder.last_step}"
    names = [f"{name}-weights" for name in (*steps, f"{steps[1]}-{recorder.branch}")]
    free = [name for name in names if uri_of(run, checkpoint.with_name(name)) not in taken]
    return free[0] if free else names[-1]


def save_readable(model: nn.Module, checkpoint: str | Path, name: str | None = None) -> Path:
    """Writes the model's weights to the folder `name` beside the checkpoint, whole or not at all,
    and returns that folder; one that is there is replaced.

    Args:
        model: any; by its `save_pretrained` where it has one.
        checkpoint: the trainer's own.
        name: of the folder; None: "<checkpoint without its suffix>-weights".
    """
    checkpoint = Path(checkpoint)
    folder = checkpoint.with_name(name or f"{checkpoint.stem}-weights")
    partial = checkpoint.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save: Any = getattr(model, "save_pretrained", None)
        if save is not None:
            save(partial)
        else:
            from safetensors.torch import save_model

            save_model(model, str(partial / "model.safetensors"))
        shutil.rmtree(folder, ignore_errors=True)
        return partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
