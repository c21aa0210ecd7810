"""The two ops that trace tokens: one chooses them as a forward begins, one notes their experts.

Needs   the token ids of a forward (row, position), what is known of their documents, and every
        router's chosen ids and gates (token, k).
Yields  nothing: a table grows in place, laid out by `TraceTable`.

Which tokens they are is decided in token_choice.py.

As in route_stats.py the ops are opaque, a recomputation adds nothing, and flags lie on the device.
Imports with torch and numpy alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.capture.accumulators import ACTIVE
from workbench.capture.spent import timed
from workbench.capture.token_choice import choose, fit

# Shapes: R rows of P tokens, T = R x P; C slots for the traced tokens of a step; L routers, K
# experts chosen a token. An array is numpy's on a CPU and torch's elsewhere.

USED, CHOSEN, MISMATCHED, FIRST, TOKENS, SERIAL = range(6)
"""Head of the table: slots filled; tokens chosen, slots or not; readings that fitted no forward and
forwards whose labels did not fit; first slot, token count and number of the forward under way."""
HEAD = 6
UNREAD = -(2**15)
"""Id of a token that has not passed the router."""


class TraceParts(NamedTuple):
    """Views of a table, as tensors or as arrays."""

    head: Any
    """(HEAD,) int64, then for each router the number of the forward that it was last read in."""
    read_L: Any
    index_C: Any
    """int64 (C + 1,): the token of the forward under way that has this slot; the last is waste."""
    columns_4C: Any
    """int64: token id, document, position, domain; -1: not known."""
    ids_LCK: Any
    """int16; -1: dropped; UNREAD: the token did not pass this router."""
    gates_LCK: Any
    """float32; NaN where the token did not pass this router."""


@dataclass(frozen=True)
class TraceTable:
    """Where everything lies in a table of int64 cells.

    Example:
        >>> TraceTable(layers=2, k=1, capacity=4).cells
        35
    """

    layers: int
    k: int
    capacity: int

    @property
    def _bounds(self) -> tuple[int, int, int, int, int]:
        """Ends of the parts after the head."""
        L, K, C = self.layers, self.k, self.capacity
        read = HEAD + L
        index = read + C + 1
        columns = index + 4 * C
        ids = columns + -(-L * C * K // 4)
        return read, index, columns, ids, ids + -(-L * C * K // 2)

    @property
    def cells(self) -> int:
        return self._bounds[-1]

    def parts(self, table: Any) -> TraceParts:
        """Views of a table (cells,), a tensor or an array."""
        L, K, C = self.layers, self.k, self.capacity
        read, index, columns, ids, _ = self._bounds
        short, single = (
            (torch.int16, torch.float32) if isinstance(table, Tensor) else (np.int16, np.float32)
        )
        return TraceParts(
            table[:HEAD],
            table[HEAD:read],
            table[read:index],
            table[index:columns].reshape(4, C),
            table[columns:ids].view(short)[: L * C * K].reshape(L, C, K),
            table[ids:].view(single)[: L * C * K].reshape(L, C, K),
        )


# On a CPU. While a model trains the caches hold none of this code: an operation of numpy that is
# spared here saves 5 microseconds, not a half.

_views: dict[int, TraceParts] = {}
"""Parts of the tables in use, by address. They hold the memory, so no address is used again."""


def keep_views(table: Tensor, layout: TraceTable) -> int:
    """Makes the parts of a table on the host once for all; returns the key to give to `forget`."""
    _views[table.data_ptr()] = layout.parts(table.numpy())
    return table.data_ptr()


def forget_views(key: int) -> None:
    """The table is no longer in use."""
    _views.pop(key, None)


def _parts_on_cpu(table: Tensor, layers: int, k: int, capacity: int) -> TraceParts:
    # A compiler may hand over a copy.
    known = _views.get(table.data_ptr())
    return known or TraceTable(layers, k, capacity).parts(table.numpy())


def _begin_on_cpu(
    tokens_RP: Tensor, documents: Tensor, positions: Tensor, domains: Tensor, keep: Tensor,
    limit: int, layers: int, k: int, capacity: int, flags: Tensor, table: Tensor,
) -> None:  # fmt: skip
    if torch._C._current_graph_task_id() != -1:
        return
    parts = _parts_on_cpu(table, layers, k, capacity)
    first, already, wrong, _, _, serial = parts.head.tolist()
    tokens, found, used = tokens_RP.numpy(), 0, first
    if flags.numpy()[ACTIVE] and not fit(tokens_RP, documents, positions, domains, keep):
        wrong += 1
    elif flags.numpy()[ACTIVE]:
        chosen = choose(
            tokens, documents.numpy(), positions.numpy(), domains.numpy(), keep.numpy(), limit
        )
        every_N = chosen.chosen_RP.ravel().nonzero()[0]
        found = len(every_N)
        used = min(first + found, capacity)
    parts.head[:] = (used, already + found, wrong, first, tokens.size, serial + 1)
    if used == first:
        return
    rows_N = every_N[: used - first]
    slots = slice(first, used)
    parts.index_C[slots] = rows_N
    at = rows_N // tokens.shape[1], rows_N % tokens.shape[1]
    labels = (tokens, chosen.document_RP, chosen.position_RP, chosen.domain_RP)
    for column, values in enumerate(labels):
        parts.columns_4C[column, slots] = -1 if values is None else _at(values, at)
    parts.ids_LCK[:, slots] = UNREAD
    parts.gates_LCK[:, slots] = np.nan


def _at(values: np.ndarray, at: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Entries of labels that spread over (R, P)."""
    if values.shape[1] == 1:
        return values[at[0], 0]
    return values[0, at[1]] if values.shape[0] == 1 else values[at]


def _read_on_cpu(
    ids_TK: Tensor, gates_TK: Tensor, layers: int, k: int, capacity: int, place: int,
    flags: Tensor, table: Tensor,
) -> None:  # fmt: skip
    if torch._C._current_graph_task_id() != -1:
        return
    parts = _parts_on_cpu(table, layers, k, capacity)
    if not flags.numpy()[ACTIVE]:
        return
    used, _, _, first, tokens, serial = parts.head.tolist()
    fits = tokens == ids_TK.shape[0] and parts.read_L[place] != serial
    parts.read_L[place] = serial
    if not fits:
        parts.head[MISMATCHED] += 1
    if first == used or not fits:
        return
    rows_N = parts.index_C[first:used]
    parts.ids_LCK[place, first:used] = ids_TK.numpy()[rows_N]
    if gates_TK.dtype == torch.bfloat16:  # numpy has none
        gates_TK = gates_TK[torch.from_numpy(rows_N)].float()
        rows_N = np.arange(used - first)
    parts.gates_LCK[place, first:used] = gates_TK.numpy()[rows_N]


# On any device, without the host waiting for it


def _begin_on_device(
    tokens_RP: Tensor, documents: Tensor, positions: Tensor, domains: Tensor, keep: Tensor,
    limit: int, layers: int, k: int, capacity: int, flags: Tensor, table: Tensor,
) -> None:  # fmt: skip
    if torch._C._current_graph_task_id() != -1:
        return
    parts = TraceTable(layers, k, capacity).parts(table)
    head = parts.head
    active = flags[ACTIVE] != 0
    if not fit(tokens_RP, documents, positions, domains, keep):
        head[MISMATCHED] += active
        # None is chosen: without labels all are, and then no longer.
        documents = positions = domains = keep = documents.new_empty(0)
        active = torch.zeros_like(active)
    chosen = choose(tokens_RP, documents, positions, domains, keep, limit)
    chosen_T = (chosen.chosen_RP & active).flatten()
    count_T = chosen_T.long().cumsum(0)
    first = head[USED].clone()
    slot_T = (first + count_T - 1).clamp(max=capacity)
    slot_T = torch.where(chosen_T, slot_T, capacity)
    T = len(slot_T)
    parts.index_C.scatter_(0, slot_T, torch.arange(T, device=table.device))
    found = count_T[-1] if T else torch.zeros_like(first)
    used = (first + found).clamp(max=capacity)
    slot_C = torch.arange(capacity, device=table.device)
    new_C = (slot_C >= first) & (slot_C < used)
    rows_C = torch.where(new_C, parts.index_C[:-1], 0)
    for column, values in zip(
        parts.columns_4C,
        (tokens_RP, chosen.document_RP, chosen.position_RP, chosen.domain_RP),
        strict=True,
    ):
        if values is None:
            column.masked_fill_(new_C, -1)
        else:
            known_C = values.expand(tokens_RP.shape).flatten()[rows_C]
            column.copy_(torch.where(new_C, known_C, column))
    parts.ids_LCK.masked_fill_(new_C[:, None], UNREAD)
    parts.gates_LCK.masked_fill_(new_C[:, None], float("nan"))
    head[CHOSEN] += found
    head[FIRST] = first
    head[USED] = used
    head[TOKENS] = T
    head[SERIAL] += 1


def _read_on_device(
    ids_TK: Tensor, gates_TK: Tensor, layers: int, k: int, capacity: int, place: int,
    flags: Tensor, table: Tensor,
) -> None:  # fmt: skip
    if torch._C._current_graph_task_id() != -1 or not len(ids_TK):
        return
    parts = TraceTable(layers, k, capacity).parts(table)
    head = parts.head
    active = flags[ACTIVE] != 0
    fits = (head[TOKENS] == len(ids_TK)) & (parts.read_L[place] != head[SERIAL])
    head[MISMATCHED] += active & ~fits
    parts.read_L[place] = torch.where(active, head[SERIAL], parts.read_L[place])
    slot_C = torch.arange(capacity, device=table.device)
    mine_C = ((slot_C >= head[FIRST]) & (slot_C < head[USED]) & fits & active)[:, None]
    rows_C = torch.where(mine_C[:, 0], parts.index_C[:-1], 0)
    for held, shown in ((parts.ids_LCK, ids_TK), (parts.gates_LCK, gates_TK)):
        held[place] = torch.where(mine_C, shown[rows_C].to(held.dtype), held[place])


_LIBRARY = torch.library.Library("workbench", "FRAGMENT")
_LIBRARY.define(
    "trace_tokens(Tensor tokens_RP, Tensor documents, Tensor positions, Tensor domains, "
    "Tensor keep, int limit, int layers, int k, int capacity, Tensor flags, Tensor(a!) table) -> ()"
)
_LIBRARY.define(
    "trace_routes(Tensor ids_TK, Tensor gates_TK, int layers, int k, int capacity, int place, "
    "Tensor flags, Tensor(a!) table) -> ()"
)
for _name, _cpu, _device in (
    ("trace_tokens", _begin_on_cpu, _begin_on_device),
    ("trace_routes", _read_on_cpu, _read_on_device),
):
    _LIBRARY.impl(_name, timed(_cpu), "CPU")
    _LIBRARY.impl(_name, timed(_device), "CompositeExplicitAutograd")
    # Without a result there is no gradient: autograd passes by, whatever the inputs require.
    _LIBRARY.impl(_name, torch.library.fallthrough_kernel, "Autograd")
    torch.library.register_fake(f"workbench::{_name}")(lambda *arguments: None)
