"""Traces: where a fixed sample of the training tokens was sent, token by token.

Needs   a model whose token ids pass an embedding; the readings of its routers.
Yields  RouteTraces: for every traced token of a step its id, document, position and domain, and in
        every layer its experts and gates.

Counts say how much each expert received; traces say of what. Which tokens are traced is decided by
a hash of document and position (route_trace.py): the same ones in every epoch and arm.

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
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from workbench.capture.adapters.router_site import Reading
from workbench.capture.route_trace import (
    CHOSEN,
    FIRST,
    MISMATCHED,
    USED,
    TraceTable,
    forget_views,
    keep_views,
    limit_of,
)
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
        if not 0 < share <= 1:
            raise UsageError(f"share={share}: a share of the tokens lies above 0 and up to 1.")
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
        """Router readings whose tokens were not those that the embedding saw: not traced."""

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
        """
        module = model.get_submodule(embedding) if embedding else embedding_of(model)
        layout, flags, table, limit = self.layout, self.flags, self.table, limit_of(self.share)

        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            # A module in evaluation mode is never counted; its routers are not read either.
            if not module.training or not inputs or inputs[0].is_floating_point():
                return
            tokens = inputs[0]
            if tokens.dtype != torch.int64 or tokens.dim() != 2:
                tokens = tokens.long().reshape(-1, tokens.shape[-1])
            torch.ops.workbench.trace_tokens.default(
                tokens,
                labels.documents, labels.positions, labels.domains, labels.keep,
                limit, layout.layers, layout.k, layout.capacity, flags, table,
            )  # fmt: skip

        return [module.register_forward_pre_hook(hook)]

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
        if not used:
            return None
        token, document, position, domain = parts.columns_4C[:, :used]
        return {
            "step": np.full(used, step, np.int64),
            "token": token.astype(np.int32),
            "document": document.copy(),
            "position": position.astype(np.int32),
            "domain": domain.astype(np.int16),
            "expert_ids": np.ascontiguousarray(parts.ids_LCK[:, :used].transpose(1, 0, 2)),
            "gates": np.ascontiguousarray(parts.gates_LCK[:, :used].transpose(1, 0, 2)),
        }


def embedding_of(model: nn.Module) -> nn.Module:
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
