"""Checkpoints of a training: weights, optimizer, data position; complete or absent, and bit-exact
to resume from.

Needs   a model, its optimizer, where the data stand.
Yields  a folder `step-00000400/` of safetensors and one `state.json` that names every file with its
        size and digest.

A checkpoint is written into a folder whose name begins with `.partial-`, flushed to the disk and
then renamed: what bears its final name is whole. Nothing is pickled. The random state is not saved
because nothing in the loop draws from
it: every draw is made from the seed and the step.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from model.config import MoEConfig
from model.errors import TrainingStateError
from model.lm import MoELM

FORMAT = "workbench-native-1"
PARTIAL = ".partial-"


@dataclass(frozen=True)
class TrainingState:
    """What `state.json` says beside the tensors."""

    step: int
    tokens_seen: int
    data_position: Mapping[str, Any]
    model_config: MoEConfig
    extra: Mapping[str, Any]


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies.

    Example:
        >>> checkpoint_path(Path("checkpoints/main"), 400).name
        'step-00000400'
    """
    return folder / f"step-{step:08d}"


def save_checkpoint(
    folder: Path,
    model: MoELM,
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    tokens_seen: int,
    data_position: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the checkpoint of a step into `folder`, whole or not at all, and returns its path.

    An older checkpoint of the same step is replaced.
    """
    final = checkpoint_path(folder, step)
    partial = folder / f"{PARTIAL}{final.name}-{os.getpid()}"
    # One process writes a line of training: what another left half-written died with it.
    for stale in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(_plain(model.state_dict()), partial / "model.safetensors")
    save_file(_optimizer_tensors(model, optimizer), partial / "optimizer.safetensors")
    files = {
        p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(partial.iterdir())
    }
    state = {
        "format": FORMAT,
        "step": step,
        "tokens_seen": tokens_seen,
        "data_position": data_position,
        "model_config": model.cfg.to_dict(),
        "extra": dict(extra or {}),
        "files": files,
    }
    (partial / "state.json").write_text(json.dumps(state, indent=1, sort_keys=True))
    for path in partial.iterdir():
        _sync(path)
    _sync(partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _sync(folder)
    return final


def read_state(path: Path) -> TrainingState:
    """Reads and checks `state.json` and the size of every file that it names.

    Raises:
        TrainingStateError: no such checkpoint, or it is half-written, altered or of another format.
    """
    try:
        state = json.loads((path / "state.json").read_text())
    except FileNotFoundError as error:
        found = "a folder without state.json" if path.is_dir() else "nothing"
        raise TrainingStateError(
            f"{path}: found {found}, expected a finished checkpoint: resume from an earlier one."
        ) from error
    except ValueError as error:
        raise TrainingStateError(
            f"{path}/state.json cannot be read ({error}): resume from an earlier checkpoint."
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        format = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise TrainingStateError(f"{path}: format {format!r}, expected {FORMAT!r}.")
    try:
        return _checked(path, state)
    except (KeyError, TypeError, AttributeError) as error:
        raise TrainingStateError(
            f"{path}/state.json lacks what a checkpoint states ({error}), expected format "
            f"{FORMAT!r}: resume from an earlier one."
        ) from error


def _checked(path: Path, state: Mapping[str, Any]) -> TrainingState:
    """The state, if every file that it names has its size."""
    if not {"model.safetensors", "optimizer.safetensors"} <= set(state["files"]):
        raise KeyError("files")
    for name, said in state["files"].items():
        there = (path / name).stat().st_size if (path / name).is_file() else None
        if there != said["bytes"]:
            raise TrainingStateError(
                f"{path}/{name}: found {'no file' if there is None else there}, "
                f"expected {said['bytes']} bytes: the checkpoint is half-written; "
                f"resume from an earlier one."
            )
    return TrainingState(
        step=state["step"],
        tokens_seen=state["tokens_seen"],
        data_position=state["data_position"],
        model_config=MoEConfig.from_dict(state["model_config"]),
        extra=state["extra"],
    )


def load_model(path: Path, device: str | torch.device = "cpu") -> MoELM:
    """The model of a checkpoint, in evaluation mode.

    Raises:
        TrainingStateError: the checkpoint is not whole.
    """
    state = read_state(path)
    model = MoELM(state.model_config).to(device)
    load_weights(path, model)
    return model.eval()


def load_weights(path: Path, model: nn.Module) -> None:
    """Puts a checkpoint's weights into a model of the same shape."""
    tensors = load_file(path / "model.safetensors")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise TrainingStateError(
            f"{path}: its weights do not fit this model: {error}. Use the configuration in its "
            f"state.json."
        ) from error


def restore(path: Path, model: MoELM, optimizer: torch.optim.Optimizer) -> TrainingState:
    """Puts model and optimizer exactly where they were, and returns the rest of the state.

    Raises:
        TrainingStateError: the checkpoint is not whole, or of a model of another shape.
    """
    state = read_state(path)
    if state.model_config != model.cfg:
        differ = [
            f"{k}={v} (the model: {getattr(model.cfg, k)})"
            for k, v in state.model_config.to_dict().items()
            if v != getattr(model.cfg, k)
        ]
        raise TrainingStateError(f"{path} is of another model: {', '.join(differ)}.")
    _check_digests(path)
    load_weights(path, model)
    saved = load_file(path / "optimizer.safetensors")
    for name, parameter in model.named_parameters():
        moments = {
            k.removeprefix(f"{name}|"): t for k, t in saved.items() if k.startswith(f"{name}|")
        }
        if moments:
            optimizer.state[parameter] = {
                # The fused optimizer counts on the device, the plain one on the host.
                k: t if k == "step" and not parameter.is_cuda else t.to(parameter.device)
                for k, t in moments.items()
            }
    return state


def _check_digests(path: Path) -> None:
    files = json.loads((path / "state.json").read_text())["files"]
    for name, said in files.items():
        if (found := _sha256(path / name)) != said["sha256"]:
            raise TrainingStateError(
                f"{path}/{name}: sha256 {found[:12]}, expected {said['sha256'][:12]}: it was "
                f"altered after it was saved; resume from an earlier one."
            )


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder, or None; half-written ones are passed over."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            read_state(path)
        except TrainingStateError:
            continue
        return path
    return None


def _plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # Under torch.compile names begin with the wrapper's.
    return {k.removeprefix("_orig_mod."): t.detach().cpu().contiguous() for k, t in tensors.items()}


def _optimizer_tensors(model: MoELM, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{name}|{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
