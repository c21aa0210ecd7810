"""Every module of a model by the name it has in the model itself, whatever was wrapped around it.

Needs   a model, as it is or inside DistributedDataParallel, torch.compile's module or FSDP.
Yields  `modules_by_name`, `outer_and_inner`, `parent`.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

WRAPS = {
    "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_original_component",
    "base_layer",
}  # fmt: skip
"""Children that exist only because something was wrapped; no model calls its own part so."""
WRAPPERS = {"DistributedDataParallel", "DataParallel", "DeepSpeedEngine"}
"""Classes whose child `module` is the model; elsewhere `module` may be a part of it."""


def modules_by_name(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The model's modules, each once, in the order of `named_modules`, with the wrappers' own parts
    of the dotted path left out.

    A wrapper and what it wraps come under the same name, the wrapper first.

    Example:
        >>> wrapped = nn.DataParallel(nn.Sequential(nn.Linear(2, 2)))
        >>> [name for name, _ in modules_by_name(wrapped)]
        ['', '', '0']
    """
    clean = {"": ""}
    by_path = dict(model.named_modules())
    for path, module in by_path.items():
        if path:
            above, _, last = path.rpartition(".")
            wrapped = last in WRAPS or (
                last == "module" and type(by_path[above]).__name__ in WRAPPERS
            )
            clean[path] = clean[above] if wrapped else f"{clean[above]}.{last}".lstrip(".")
        yield clean[path], module


def outer_and_inner(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """By name: the outermost wrapper, which hands on what the model gets; and what it wraps.

    Example:
        >>> outer, inner = outer_and_inner(nn.DataParallel(nn.Linear(2, 2)))
        >>> type(outer[""]).__name__, type(inner[""]).__name__
        ('DataParallel', 'Linear')
    """
    outer: dict[str, nn.Module] = {}
    inner: dict[str, nn.Module] = {}
    for name, module in modules_by_name(model):
        outer.setdefault(name, module)
        inner[name] = module
    return outer, inner


def parent(name: str) -> str:
    """The dotted path one level up; '' for the model itself.

    Example:
        >>> parent("layers.3.mlp")
        'layers.3'
    """
    return name.rpartition(".")[0]
