"""Traces: where a fixed sample of the training tokens was sent, token by token.

Needs   a model whose token ids pass an embedding; the readings of its routers.
Yields  RouteTraces: for every traced token of a step its id, document, position and domain, and in
        every layer its experts and gates.

Counts say how much each expert received; traces say of what. Which tokens are traced is decided by
a hash of document and position (token_choice.py): the same ones in every epoch and arm.

    traces = RouteTraces(layers=3, k=2, flags=flags, share=1e-3)
    handles = traces.watch(model, labels)       # before the first forward
    traces.begin()                              # each step
    traces.read(place, reading)                 # from every router's hook
    rows = traces.take(step)                    # rows of the store's group `traces`, or None

Nothing of the training is changed or waited for. Imports with torch and numpy alone.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from numbers import Integral, Real
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from workbench.capture.adapters.module_names import outer_and_inner
from workbench.capture.adapters.router_site import Reading
from workbench.capture.route_trace import (
    CHOSEN,
    FIRST,
    MISMATCHED,
    SERIAL,
    UNREAD,
    USED,
    TraceTable,
    forget_views,
    keep_views,
)
from workbench.capture.token_choice import limit_of
from workbench.errors import CaptureError, UsageError

SHARE = 1e-3
"""Tokens that are traced, as a share of all."""
TOKENS_OF_A_STEP = 1 << 18
"""For how many tokens a step there are slots where nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class Traces:
    """What a recorder is asked to trace.

    Example:
        >>> Traces(share=0.01).share
        0.01
    """

    share: float = SHARE
    """Tokens that are traced, as a share of all, in (0, 1]."""
    tokens_per_step: int = TOKENS_OF_A_STEP
    """Tokens of the largest step on one rank; traces beyond the room for them are counted as
    overflow."""
    embedding: str | None = None
    """Dotted path of the module that is given the token ids (row, position); None: what
    `get_input_embeddings` returns, or the model's only `nn.Embedding`."""

    def __post_init__(self) -> None:
        check_share(self.share)
        tokens = self.tokens_per_step
        if isinstance(tokens, bool) or not isinstance(tokens, Integral) or tokens < 1:
            raise UsageError(f"tokens_per_step={tokens!r}: expected an integer, 1 or more.")


def check_share(share: Any) -> None:
    """UsageError where `share` is no share of the tokens."""
    if isinstance(share, bool) or not isinstance(share, Real) or not 0 < float(share) <= 1:
        raise UsageError(
            f"share={share!r}: expected a number above 0 and up to 1, the share of the tokens that "
            f"is traced, such as 1e-3."
        )


class Labels(Protocol):
    """What is known of the tokens of the forwards that follow; empty tensors: nothing."""

    domains: Tensor
    keep: Tensor
    documents: Tensor
    positions: Tensor


def capacity_for(tokens: int, share: float = SHARE) -> int:
    """Slots that the traces of a step of so many tokens overflow less than once in 10^9 steps.

    Example:
        >>> capacity_for(4096, 1e-3)
        33
    """
    mean = tokens * share
    return ceil(min(mean + 6 * sqrt(mean) + 16, max(tokens, 1)))


class RouteTraces:
    """The traces of one step at a time.

    Args:
        layers: routers of the model.
        k: experts chosen a token.
        flags: (2,) int64 on the model's device, as of the accumulators: nothing is traced while
            ACTIVE is 0.
        share: of the tokens, in (0, 1].
        capacity: slots for the tokens of a step; None: for 2^18 tokens. What comes after they are
            full is counted in `overflowed`, and left out.

    Raises:
        UsageError: share or capacity out of range.
    """

    def __init__(
        self,
        layers: int,
        k: int,
        flags: Tensor,
        *,
        share: float = SHARE,
        capacity: int | None = None,
    ) -> None:
        check_share(share)
        capacity = capacity_for(TOKENS_OF_A_STEP, share) if capacity is None else capacity
        if capacity < 1:
            raise UsageError(f"capacity={capacity}: there must be room for 1 token or more.")
        self.share = share
        self.layout = TraceTable(layers, k, capacity)
        self.flags = flags
        self.table = torch.zeros(self.layout.cells, dtype=torch.int64, device=flags.device)
        """(cells,) int64, laid out by `layout`: everything that a step shows."""
        if flags.device.type == "cpu":
            weakref.finalize(self, forget_views, keep_views(self.table, self.layout))
        self.overflowed = 0
        """Tokens that should have been traced and found no slot, over all steps taken."""
        self.mismatched = 0
        """Router readings whose tokens were not those that the embedding saw, and forwards whose
        labels did not fit their tokens: neither is traced."""
        self.seen = False
        """Whether token ids have passed the embedding in any step taken. Where they never do,
        nothing can be traced."""

    def watch(
        self, model: nn.Module, labels: Labels, embedding: str | None = None
    ) -> list[RemovableHandle]:
        """Hooks the model's embedding: token ids pass there as a forward begins.

        Args:
            labels: looked at anew at every forward.
            embedding: dotted path of the module that is given the token ids (row, position); None:
                what `get_input_embeddings` returns, or the model's only `nn.Embedding`.

        Returns:
            Handles that undo it.

        Raises:
            CaptureError: which embedding it is cannot be told.
            UsageError: the model has no module of that path.
        """
        module = _named(model, embedding) if embedding else embedding_of(model)
        layout, flags, table, limit = self.layout, self.flags, self.table, limit_of(self.share)

        def hook(called: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            # A deep copy of the model (a moving average, a reference) has taken the hook along.
            # By id: a comparison by `is` makes no guard when compiled (torch 2.13), so that what is
            # compiled for the one would be run for the other.
            # A module in evaluation mode is never counted; its routers are not read either.
            if id(called) != id(module) or not module.training:
                return
            tokens = inputs[0] if inputs else next(iter(named.values()), None)
            if not isinstance(tokens, Tensor) or tokens.is_floating_point() or not tokens.dim():
                return
            if tokens.dtype != torch.int64 or tokens.dim() != 2:
                tokens = tokens.long()
                tokens = tokens.flatten(0, -2) if tokens.dim() > 1 else tokens.unsqueeze(0)
            torch.ops.workbench.trace_tokens.default(
                tokens,
                labels.documents, labels.positions, labels.domains, labels.keep,
                limit, layout.layers, layout.k, layout.capacity, flags, table,
            )  # fmt: skip

        return [module.register_forward_pre_hook(hook, with_kwargs=True)]

    def read(self, place: int, reading: Reading) -> None:
        """Notes what router `place` did with the tokens that are traced."""
        layout = self.layout
        torch.ops.workbench.trace_routes.default(
            reading.ids_TK, reading.gates_TK,
            layout.layers, layout.k, layout.capacity, place, self.flags, self.table,
        )  # fmt: skip

    def begin(self) -> None:
        """Forgets what was traced; does not wait for the device."""
        self.table[: FIRST + 1].zero_()

    def take(self, step: int) -> dict[str, np.ndarray] | None:
        """The traces since `begin`, as rows of the store's group `traces`; None: there are none.

        Waits for the device where that is not the host. Where time matters, copy `table`
        (asynchronously) and give the copy to `unpack` on another thread instead.
        """
        return self.unpack(self.table.cpu().numpy(), step)

    def unpack(self, table: np.ndarray, step: int) -> dict[str, np.ndarray] | None:
        """What a host copy of `table` says, as rows; counts what it could not hold.

        Args:
            table: (cells,) int64.
            step: written beside every row.
        """
        parts = self.layout.parts(table)
        used, chosen = int(parts.head[USED]), int(parts.head[CHOSEN])
        self.overflowed += chosen - used
        self.mismatched += int(parts.head[MISMATCHED])
        self.seen = self.seen or bool(parts.head[SERIAL])
        # Left out: tokens that passed the embedding and no router, such as those of a forward whose
        # routers saw pictures between them.
        routed = np.flatnonzero((parts.ids_LCK[:, :used] != UNREAD).any((0, 2)))
        if not len(routed):
            return None
        token, document, position, domain = parts.columns_4C[:, routed]
        ids_LNK, gates_LNK = parts.ids_LCK[:, routed], parts.gates_LCK[:, routed]
        ids_LNK[ids_LNK == UNREAD] = -1
        return {
            "step": np.full(len(routed), step, np.int64),
            "token": token.astype(np.int32),
            "document": document,
            "position": position.astype(np.int32),
            "domain": domain.astype(np.int16),
            "expert_ids": np.ascontiguousarray(ids_LNK.transpose(1, 0, 2)),
            "gates": np.ascontiguousarray(gates_LNK.transpose(1, 0, 2)),
        }


def _named(model: nn.Module, path: str) -> nn.Module:
    _, modules = outer_and_inner(model)
    if path not in modules:
        alike = [name for name, module in modules.items() if isinstance(module, nn.Embedding)]
        raise UsageError(
            f"embedding={path!r}: {type(model).__name__} has no such module; its modules of type "
            f"nn.Embedding: {', '.join(alike) or 'none'}."
        )
    return modules[path]


def embedding_of(model: nn.Module) -> nn.Module:
    """The module that a model gives its token ids: what `get_input_embeddings` returns, or its only
    `nn.Embedding`.

    Raises:
        CaptureError: which one it is cannot be told.
    """
    for module in model.modules():
        ask = getattr(module, "get_input_embeddings", None)
        if callable(ask):
            try:
                found = ask()
            except NotImplementedError:
                continue
            if isinstance(found, nn.Module):
                return found
    named: Sequence[tuple[str, nn.Module]] = [
        (name, m) for name, m in model.named_modules() if isinstance(m, nn.Embedding)
    ]
    if len(named) != 1:
        names = ", ".join(name for name, _ in named) or "none"
        raise CaptureError(
            f"traces need the token ids, and {type(model).__name__} has {len(named)} modules of "
            f"type nn.Embedding ({names}), expected 1: name the one that is given token ids, "
            f"embedding='<module path>', or record without traces."
        )
    return named[0][1]
