"""Weights beside a trainer's own checkpoint, in a format that runs no code when it is read.

Needs   a model, where the trainer's checkpoint lies.
Yields  `save_readable`: a folder of safetensors, a Hugging Face one where the model is one.

Lightning's and Composer's checkpoints can only be read by unpickling, which the index refuses.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import nn


def save_readable(model: nn.Module, checkpoint: str | Path) -> Path:
    """Writes the model's weights to "<checkpoint without its suffix>-weights", whole or not at all,
    and returns that folder; one that is there is replaced.
    """
    checkpoint = Path(checkpoint)
    folder = checkpoint.with_name(f"{checkpoint.stem}-weights")
    partial = checkpoint.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save: Any = getattr(model, "save_pretrained", None)
    if save is not None:
        save(partial)
    else:
        from safetensors.torch import save_model

        save_model(model, str(partial / "model.safetensors"))
    shutil.rmtree(folder, ignore_errors=True)
    return partial.rename(folder)
