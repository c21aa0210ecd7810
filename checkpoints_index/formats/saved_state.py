"""Which tensors of a saved training state are the model's weights, and what they are called.

Needs   the keys that lead to each tensor in the nested state that was saved.
Yields  `weight_names`: the saved name of each weight, by the weight's own name.

A trainer saves the model beside its optimizer: {"model": {"blocks.0.w": ...}, "optimizer": ...}.
What lies under a key called model, state_dict, model_state_dict or module (the first one on the
way) is a model, and its weights' names are what follows that key. Where several such keys stand at
different depths, the shallowest counts: {"state_dict": ..., "ema": {"state_dict": ...}} gives the
first. Where several stand at the same depth (a student and a teacher), or one stands below a key
with other tensors beside that key, nothing says which is meant: then as where there is no such key,
weights are all tensors but those under optimizer, scheduler, loader and random state, and their
names are all the keys, joined by dots. So a `model.` that is part of a parameter's own name, as in
Hugging Face's model.layers.0, stays.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

from checkpoints_index.errors import RecordError
from checkpoints_index.formats.place import shown

Saved = TypeVar("Saved", bound=Hashable)
Path = tuple[str, ...]

MODEL_KEYS = frozenset({"model", "state_dict", "model_state_dict", "module"})
OTHER_KEYS = frozenset({
    "optim", "optims", "optimizer", "optimizers", "optimizer_state", "optimizer_state_dict",
    "optimizer_states", "optim_state_dict", "lr_scheduler", "lr_schedulers", "scheduler",
    "schedulers", "train_state", "dataloader", "dataset_state", "rng", "rng_state", "loops",
    "callbacks", "rerun_state_machine", "scaler",
})  # fmt: skip
_FLAT = ("optimizer.", "optim.", "rng_state", "rerun_state_machine")


def weight_names(paths: Mapping[Saved, tuple[object, ...]]) -> dict[str, Saved]:
    """The saved name by the weight's own name.

    Args:
        paths: the keys that lead to a tensor, by the name it was saved under.

    Raises:
        RecordError: two tensors would have one name.

    Example:
        >>> weight_names({"model.w": ("model", "w"), "optim.w.m": ("optim", "w", "m")})
        {'w': 'model.w'}
        >>> weight_names({"model.w": ("model.w",), "optimizer.state.m.w": ("optimizer.state.m.w",)})
        {'model.w': 'model.w'}
        >>> weight_names({"a.model.w": ("a", "model", "w"), "b.model.w": ("b", "model", "w")})
        {'a.model.w': 'a.model.w', 'b.model.w': 'b.model.w'}
    """
    keys = {name: tuple(map(str, path)) for name, path in paths.items()}
    weights = {name: path for name, path in keys.items() if not _is_other(path)}
    model = _model(weights)
    names: dict[str, Saved] = {}
    for name, path in weights.items():
        if path[: len(model)] != model:
            continue
        own = ".".join(path[len(model) :])
        if own in names:
            raise RecordError(
                f"{shown(names[own])} and {shown(name)} are both called {shown(own)}; save them "
                f"under keys that differ."
            )
        names[own] = name
    return names


def _is_other(path: Path) -> bool:
    """Whether the keys lead to something that is no weight."""
    first = next((key for key in path[:-1] if key in MODEL_KEYS | OTHER_KEYS), "")
    return first in OTHER_KEYS or (len(path) == 1 and path[0].startswith(_FLAT))


def _model(weights: Mapping[Saved, Path]) -> Path:
    """The keys that lead to the one model among the weights; none where there is not one."""
    models = {_container(path) for path in weights.values()} - {()}
    depth = min(map(len, models), default=0)
    shallowest = [model for model in models if len(model) == depth]
    if len(shallowest) != 1:
        return ()
    [model] = shallowest
    if depth > 1 and any(len(path) > 1 and path[0] != model[0] for path in weights.values()):
        return ()
    return model


def _container(path: Path) -> Path:
    for i, key in enumerate(path[:-1], start=1):
        if key in MODEL_KEYS:
            return path[:i]
    return ()
