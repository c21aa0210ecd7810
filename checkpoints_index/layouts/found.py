"""One checkpoint that was found below a folder: where, in which format, whose, and whether whole.

Needs   nothing.
Yields  Found.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Found:
    """A checkpoint, whole or not."""

    path: Path
    """The folder or file that is the checkpoint."""

    format: str
    """How its weights lie on disk: "native", "huggingface", "safetensors", "dcp", "pickled", or
    "unknown" where too little of it is there to tell."""

    trainer: str | None = None
    """Whose layout it is: "workbench", "transformers", "lightning", "torchtitan", "olmo-core",
    "megatron", "composer"; None for weights without a trainer's marks."""

    step: int | None = None
    """Optimizer steps taken, where the layout says so."""

    tokens: int | None = None
    """Training tokens seen, where the layout says so."""

    complete: bool = True
    """False for one that was begun and not finished, or that has lost a file."""

    why: str = ""
    """What is wrong, where it is not complete."""

    kind: str = "weights"
    """"training" where the optimizer's state lies with the weights, else "weights"."""
