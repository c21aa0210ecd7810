"""Which tensors of a saved training state are the model's weights, and what they are called.

Needs   the keys that lead to each tensor in the nested state that was saved.
Yields  `weight_names`: the saved name of each weight, by the weight's own name.

A trainer saves the model beside its optimizer: {"model": {"blocks.0.w": ...}, "optimizer": ...}.
What lies under a key called model, state_dict, model_state_dict or module (the first one on the
way) is the weights, and its name is what follows that key. Where there is no such key, weights are
all tensors but those under optimizer, scheduler, loader and random state; their names are all the
keys, joined by dots. So a `model.` that is part of a parameter's own name, as in Hugging Face's
model.layers.0, stays.
"""

from __future__ import annotations

from collections.abc import Mapping

MODEL_KEYS = frozenset({"model", "state_dict", "model_state_dict", "module"})
OTHER_KEYS = frozenset({
    "optim", "optims", "optimizer", "optimizers", "optimizer_state", "optimizer_state_dict",
    "optimizer_states", "optim_state_dict", "lr_scheduler", "lr_schedulers", "scheduler",
    "schedulers", "train_state", "dataloader", "dataset_state", "rng", "rng_state", "loops",
    "callbacks", "rerun_state_machine", "scaler",
})  # fmt: skip
_FLAT = ("optimizer.", "optim.", "rng_state", "rerun_state_machine")


def weight_names(paths: Mapping[str, tuple[object, ...]]) -> dict[str, str]:
    """The saved name by the weight's own name.

    Args:
        paths: the keys that lead to a tensor, by the name it was saved under.

    Example:
        >>> weight_names({"model.w": ("model", "w"), "optim.w.m": ("optim", "w", "m")})
        {'w': 'model.w'}
        >>> weight_names({"model.w": ("model.w",), "optimizer.state.m.w": ("optimizer.state.m.w",)})
        {'model.w': 'model.w'}
    """
    below = {}
    for name, path in paths.items():
        keys = [str(key) for key in path]
        at = next((i for i, key in enumerate(keys[:-1]) if key in MODEL_KEYS | OTHER_KEYS), None)
        if at is not None and keys[at] in MODEL_KEYS:
            below[".".join(keys[at + 1 :])] = name
    if below:
        return below
    return {
        name: name
        for name, path in paths.items()
        if not any(str(key) in OTHER_KEYS for key in path[:-1])
        and not (len(path) == 1 and str(path[0]).startswith(_FLAT))
    }
