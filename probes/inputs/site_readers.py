"""Readers of sites: what is kept of each forward of the one pass, by the site's name.

Needs   a subject's model; names of sites (subject.py lists them).
Yields  `reader_of`: attached before the pass, told after each forward, asked once for the whole:
        (token, ...), or (layer, token, ...) where a site is one of every layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from model.lm import MoELM
from probes.inputs.finite import not_finite
from workbench.capture.adapters.router_site import Reading, RouterSite, probabilities
from workbench.errors import UsageError

if TYPE_CHECKING:
    from probes.subject import Subject

CANONICAL = ("expert_ids", "router_probs", "resid_post", "logits", "next_logprob")


def reader_of(subject: Subject, name: str) -> Any:
    """The reader of a site; UsageError where the model has no such site."""
    if name in ("expert_ids", "router_probs"):
        return _Routing(subject, name)
    if name in ("logits", "next_logprob"):
        return _Output(name)
    modules = getattr(subject.model, "mod_dict", None) or dict(subject.model.named_modules())
    if name == "resid_post":
        if isinstance(subject.model, MoELM):
            name = "blocks.{layer}.hook_resid_post"
        else:
            return _Modules(name, _decoder_layers(subject.model), stacked=True)
    if "{layer}" not in name:
        if name not in modules:
            raise UsageError(f"no site {name!r} in this model; canonical ones: {CANONICAL}.")
        return _Modules(name, [modules[name]], stacked=False)
    found = []
    for layer in range(1_000_000):
        if (full := name.replace("{layer}", str(layer))) not in modules:
            break
        found.append(modules[full])
    if not found:
        raise UsageError(f"no site {name!r} in this model; canonical ones: {CANONICAL}.")
    return _Modules(name, found, stacked=True)


class _Routing:
    """expert_ids or router_probs of every layer."""

    def __init__(self, subject: Subject, name: str) -> None:
        self.subject, self.routers, self.name = subject, subject.routers, name
        self.seen: list[list[Tensor]] = [[] for _ in self.routers]

    def attach(self) -> Iterator[Any]:
        """One at a time: those before one that fails are known, and are taken off."""
        for layer, (seen, router) in enumerate(zip(self.seen, self.routers, strict=True)):
            yield from router.attach(partial(self._see, layer, seen, router))

    def _see(self, layer: int, seen: list[Tensor], router: RouterSite, reading: Reading) -> None:
        shown = probabilities(reading.logits_TE, router.scores)
        if not torch.isfinite(shown).all():
            # NaN has a top-k too, but nothing was chosen.
            raise not_finite(self.subject, f"router probabilities, layer {layer},")
        seen.append((reading.ids_TK.long() if self.name == "expert_ids" else shown).cpu())

    def after(self, tokens_BP: Tensor, logits: Tensor) -> None: ...

    def take(self) -> Tensor:
        return torch.stack([torch.cat(seen) for seen in self.seen])


class _Output:
    """logits or next_logprob."""

    def __init__(self, name: str) -> None:
        self.name, self.seen = name, list[Tensor]()

    def attach(self) -> Iterator[Any]:
        return iter(())

    def after(self, tokens_BP: Tensor, logits: Tensor) -> None:
        if self.name == "logits":
            self.seen.append(logits.float().flatten(0, 1).cpu())
            return
        logprob = logits[:, :-1].float().log_softmax(-1)
        chosen = logprob.gather(-1, tokens_BP[:, 1:, None]).squeeze(-1)
        padded = torch.full(tokens_BP.shape, float("nan"))
        padded[:, :-1] = chosen.cpu()
        self.seen.append(padded.flatten())

    def take(self) -> Tensor:
        return torch.cat(self.seen)


class _Modules:
    """The outputs of some modules, one a layer (or one alone), stacked."""

    def __init__(self, name: str, modules: Sequence[nn.Module], stacked: bool) -> None:
        self.name, self.modules, self.stacked = name, modules, stacked
        self.seen: list[list[Any]] = [[] for _ in modules]

    def attach(self) -> Iterator[Any]:
        for module, seen in zip(self.modules, self.seen, strict=True):
            yield module.register_forward_hook(partial(_see_output, seen))

    def after(self, tokens_BP: Tensor, logits: Tensor) -> None:
        for seen in self.seen:
            # (row, pos, ...) becomes (token, ...); what is per assignment or per head stays.
            if seen and isinstance(seen[-1], Tensor) and seen[-1].shape[:2] == tokens_BP.shape:
                seen[-1] = seen[-1].flatten(0, 1)

    def take(self) -> Tensor:
        """The outputs, over all parts of the pass; UsageError where they are no site."""
        for seen in self.seen:
            odd = [shown for shown in seen if not isinstance(shown, Tensor)]
            if odd or not seen:
                what = f"gives a {odd[0].__name__}" if odd else "was not called in the pass"
                raise UsageError(
                    f"site {self.name!r}: its module {what}, expected a tensor a forward; name "
                    f"another module in `needs`."
                )
        try:
            whole = [torch.cat(seen) for seen in self.seen]
            return torch.stack(whole) if self.stacked else whole[0]
        except RuntimeError as error:
            raise UsageError(
                f"site {self.name!r}: outputs that do not fit together ({str(error)[:80]}); name "
                f"one layer alone, or another module."
            ) from error


def _see_output(seen: list[Any], module: nn.Module, inputs: Any, output: Any) -> None:
    shown = output[0] if isinstance(output, tuple) and output else output
    # An error of a hook would break off the pass of all probes: the kind alone is noted.
    plain = isinstance(shown, Tensor)
    seen.append(shown.detach().float().cpu() if plain else type(shown))


def _decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer: of the lists of modules that lie in no other list, the one with
    the most parameters. A block's own lists (its experts) lie in the list of blocks.
    """
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    outer: list[nn.ModuleList] = [
        m for n, m in lists.items() if not any(n.startswith(f"{o}.") for o in lists)
    ]
    if not outer:
        raise UsageError(
            "resid_post: found no list of blocks (nn.ModuleList) in this model; name the sites by "
            "their modules instead."
        )
    blocks = max(outer, key=lambda m: sum(p.numel() for p in m.parameters()))
    return list(blocks)
