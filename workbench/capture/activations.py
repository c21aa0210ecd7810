"""Activations at checkpoints: what passes at chosen sites of a model, for every probe token.

Needs   a model and names of sites: hook points as TransformerLens names them (model/sites.py lists
        ours), or module paths, whose output is kept (of several, the first tensor).
Yields  Activations: for each site an array (token, ...), and the Variable that describes it.

Which axes of a site are row and position is found by showing the model one row, two rows, and one
row less a token, and seeing which lengths follow: a name tells nothing about that, and models lay
their tensors out as they like. Every other axis is named by its length, such as dim_96.

Nothing is lost: float32 and integers are kept as they are; bfloat16 and float16, which Zarr readers
do not know alike, are widened to float32, exactly, and the variable says so.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from workbench.capture.adapters.module_names import outer_and_inner
from workbench.errors import UsageError
from workbench.store.schema import Variable

HELD = {
    torch.float32: "float32", torch.float64: "float64", torch.int64: "int64", torch.int32: "int32",
    torch.int16: "int16", torch.int8: "int8", torch.uint8: "uint8", torch.bool: "int8",
    torch.bfloat16: "float32", torch.float16: "float32",
}  # fmt: skip
"""Dtype in the store, by dtype in the model."""


@dataclass(frozen=True)
class Axes:
    """Which axes of a site hold the tokens."""

    tokens: tuple[int, ...]
    """(row axis, position axis), or the one axis that holds both, row by row."""

    def by_token(self, value: Tensor) -> Tensor:
        """(token, ...): the site with its tokens first, row by row.

        Example:
            >>> pattern = torch.zeros(2, 8, 5, 5)  # (row, head, query, key)
            >>> tuple(Axes((0, 2)).by_token(pattern).shape)
            (10, 8, 5)
        """
        moved = value.movedim(self.tokens, tuple(range(len(self.tokens))))
        return moved.flatten(0, len(self.tokens) - 1)


class Activations:
    """Keeps sites of a model while the probe set runs.

    Args:
        model: as it is, or wrapped by DDP or torch.compile.
        names: of the sites.

    Raises:
        UsageError: names that are no site of the model; those like them are listed.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.modules = sites_of(model, names)
        self.learnt = False
        self._axes: dict[str, Axes] = {}
        self._seen: dict[str, list[Tensor]] = {}

    def attach(self) -> list[RemovableHandle]:
        """Hooks the sites; what they show is kept on the host, in the model's dtype."""
        self._seen = {name: [] for name in (self._axes if self.learnt else self.modules)}
        return [self.modules[n].register_forward_hook(self._hook(n)) for n in self._seen]

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            value = _first_tensor(output)
            if value is not None:
                axes = self._axes.get(name)
                shown = value.detach() if axes is None else axes.by_token(value.detach())
                # A copy: later layers may write into the tensor in place.
                self._seen[name].append(shown.to("cpu", copy=True))

        return hook

    def learn(self, forward: Callable[[Tensor], Any], row: Tensor) -> None:
        """Finds the axes of every site. One that cannot be kept is left out, with a warning that
        says why: training must not stop because of it.

        Args:
            forward: the model, eager, without gradients.
            row: (1, pos) tokens, at least two.
        """
        if row.shape[1] < 2:
            raise UsageError("sites need probe rows of 2 tokens or more, to tell their axes apart.")
        shapes: list[dict[str, list[Tensor]]] = []
        for tokens in (row, row.repeat(2, 1), row[:, :-1]):
            handles = self.attach()
            try:
                forward(tokens)
            finally:
                for handle in handles:
                    handle.remove()
            shapes.append(self._seen)
        for name in self.modules:
            one, two, shorter = (seen[name] for seen in shapes)
            found = axes_of(one, two, shorter, row.shape[1])
            if isinstance(found, Axes):
                self._axes[name] = found
            else:
                warnings.warn(
                    f"site {name!r} is not recorded: {found}.", RuntimeWarning, stacklevel=2
                )
        self.learnt = True

    def take(self) -> dict[str, tuple[np.ndarray, Variable]]:
        """Every site's values (token, ...), and what describes them; forgets them here."""
        taken = {}
        for name, seen in self._seen.items():
            whole = torch.cat(seen)
            held = HELD[whole.dtype]
            widened = str(whole.dtype).removeprefix("torch.")
            values = whole.to(getattr(torch, held)).numpy()
            dims = tuple(_named(values.shape[1:]))
            taken[name] = values, Variable(
                ("checkpoint", "token", *dims), held, "1",
                "What passes at this site of the model, for every token of the probe set.",
                widened if widened != held else "",
            )  # fmt: skip
        self._seen = {}
        return taken


def sites_of(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """The module of every name; UsageError that lists those like the unknown ones.

    Example:
        >>> list(sites_of(nn.Sequential(nn.Linear(2, 2)), ["0"]))
        ['0']
    """
    _, known = outer_and_inner(model)
    for module in list(known.values()):
        # TransformerLens models know their points under further names.
        for table in ("mod_dict", "hook_dict"):
            for name, point in getattr(module, table, {}).items():
                known.setdefault(name, point)
    known.pop("", None)
    unknown = [name for name in names if name not in known]
    if unknown:
        near = {name: difflib.get_close_matches(name, known, n=3, cutoff=0.5) for name in unknown}
        like = "; ".join(
            f"{name!r}" + (f" (like it: {', '.join(found)})" if found else "")
            for name, found in near.items()
        )
        raise UsageError(
            f"no such site: {like}. A site is a hook point or a module path of the model; "
            f"it has {len(known)}: dict(model.named_modules()) lists them."
        )
    return {name: known[name] for name in names}


def axes_of(one: list[Tensor], two: list[Tensor], shorter: list[Tensor], pos: int) -> Axes | str:
    """The axes that follow the tokens, or why the site cannot be kept.

    Args:
        one: what the site showed for one row of `pos` tokens.
        two: for two rows.
        shorter: for one row of pos - 1 tokens.

    Example:
        >>> shown = [torch.zeros(1, 5, 3)], [torch.zeros(2, 5, 3)], [torch.zeros(1, 4, 3)]
        >>> axes_of(*shown, pos=5)
        Axes(tokens=(0, 1))
    """
    if any(len(seen) != 1 for seen in (one, two, shorter)):
        times = sorted({len(one), len(two), len(shorter)})
        return f"it showed a tensor {' or '.join(map(str, times))} times a forward, expected once"
    if one[0].dtype not in HELD:
        return f"the record has no dtype for {one[0].dtype}"
    shapes = [tuple(seen[0].shape) for seen in (one, two, shorter)]
    if len({len(shape) for shape in shapes}) > 1:
        return f"its axes come and go with the tokens: {shapes}"
    per_axis = list(zip(*shapes, strict=True))
    rows = [a for a, lengths in enumerate(per_axis) if lengths == (1, 2, 1)]
    # Attention has two such axes, query and key, in this order.
    positions = [a for a, lengths in enumerate(per_axis) if lengths == (pos, pos, pos - 1)]
    both = [a for a, lengths in enumerate(per_axis) if lengths == (pos, 2 * pos, pos - 1)]
    if len(rows) == 1 and positions:
        return Axes((rows[0], positions[0]))
    if len(both) == 1 and not rows and not positions:
        return Axes((both[0],))
    several = [a for a, n in enumerate(per_axis) if n[0] and n[0] % pos == 0 and n[1] == 2 * n[0]]
    if several:
        return (
            f"it has {per_axis[several[0]][0] // pos} entries a token (shapes {shapes}); "
            f"for the hidden rows of experts ask for interiors=[layer]"
        )
    return f"its axes do not follow the tokens: {shapes} for 1 x {pos}, 2 x {pos}, 1 x {pos - 1}"


def _named(lengths: tuple[int, ...]) -> list[str]:
    """Names for axes of these lengths; no two alike.

    Example:
        >>> _named((4, 96, 4))
        ['dim_4', 'dim_96', 'dim_4_b']
    """
    names: list[str] = []
    for length in lengths:
        again = sum(name.split("_")[1] == str(length) for name in names)
        names.append(f"dim_{length}" + (f"_{'abcdefgh'[again]}" if again else ""))
    return names


def _first_tensor(output: Any) -> Tensor | None:
    """The tensor of a module's output; of several, the first."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        found = (_first_tensor(part) for part in output)
        return next((tensor for tensor in found if tensor is not None), None)
    return None
