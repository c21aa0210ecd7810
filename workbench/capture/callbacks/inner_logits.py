"""Logits that a router makes inside itself and does not return.

Needs   a router module, and the name of the method or submodule that makes its logits.
Yields  `on_output_and_logits`: the `attach` of a RouterSite that reads both.

Megatron's and OLMo-core's routers return choices and weights only, torchtitan's returns scores
after the sigmoid. What the part returns is kept from there to the end of the same forward, and no
longer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from workbench.capture.adapters.router_site import Reading, Show

# Shapes: T tokens of one forward, E experts.


class Shadow(RemovableHandle):
    """A method of one module, shadowed by a function until it is removed.

    Example:
        >>> layer = nn.Identity()
        >>> shadow = Shadow(layer, "extra_repr", lambda: "shadowed")
        >>> print(layer)
        Identity(shadowed)
        >>> shadow.remove()
        >>> print(layer)
        Identity()
    """

    def __init__(self, module: nn.Module, name: str, function: Callable[..., Any]) -> None:
        super().__init__(OrderedDict())
        self._module, self._name = module, name
        # Beside the parameters, as an attribute of the instance: the class stays as it is.
        object.__setattr__(module, name, function)

    def remove(self) -> None:
        self._module.__dict__.pop(self._name, None)
        super().remove()


def on_output_and_logits(
    router: nn.Module, part: str, read: Callable[[Tensor, Any], Reading]
) -> Callable[[Show], Sequence[RemovableHandle]]:
    """The `attach` of a router whose logits are what its `part` returns.

    Args:
        router: hooked.
        part: its method, or its submodule, that makes the logits.
        read: from logits (T, E), detached, and the router's output to a Reading.
    """

    def attach(show: Show) -> Sequence[RemovableHandle]:
        kept: list[Tensor] = []

        def keep(logits: Tensor) -> None:
            kept.clear()
            kept.append(logits)

        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            logits = local(kept.pop())
            show(read(logits.reshape(-1, logits.shape[-1]), output))

        return [_watch(router, part, keep), router.register_forward_hook(after)]

    return attach


def _watch(router: nn.Module, part: str, keep: Callable[[Tensor], None]) -> RemovableHandle:
    maker = getattr(router, part)
    if isinstance(maker, nn.Module):
        return maker.register_forward_hook(lambda module, inputs, output: keep(output))

    def shadow(*args: Any, **kwargs: Any) -> Tensor:
        logits = maker(*args, **kwargs)
        keep(logits)
        return logits

    return Shadow(router, part, shadow)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, detached: the record must keep no graph."""
    tensor = tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
