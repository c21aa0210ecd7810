"""`route_stats`: the one op that reads a router, and adds what it saw to accumulators.

Needs   router scores (token, expert), chosen ids and gates (token, k), and optionally each token's
        domain and whether it counts.
Yields  nothing: the tables of accumulators.py grow in place.

It is one opaque `torch.library` op, so that a compiler neither splits its graph there nor looks
inside. Two decisions are therefore taken anew at every call, inside its body: whether this forward
is a recomputation for activation checkpointing (then it adds nothing, or every count would double),
and what the flags say. The flags lie on the device: a replayed CUDA graph runs no Python.

Imports with torch and numpy alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from workbench.capture import route_stats_cpu, route_stats_reference
from workbench.capture.accumulators import ACTIVE
from workbench.capture.spent import timed

# Shapes: T tokens of this forward, E experts, K chosen a token.


_NAME = "workbench::route_stats"
# Defined by its schema and not by `torch.library.custom_op`: a call costs 7 microseconds so, and 48
# the other way.
_LIBRARY = torch.library.Library("workbench", "FRAGMENT")
_LIBRARY.define(
    "route_stats(Tensor logits_TE, Tensor ids_TK, Tensor gates_TK, Tensor domains, Tensor keep, "
    "int scores, int layers, int place, int num_domains, "
    "Tensor flags, Tensor(a!) table, Tensor(b!) slow) -> ()"
)


def route_stats(
    logits_TE: Tensor,
    ids_TK: Tensor,
    gates_TK: Tensor,
    domains: Tensor,
    keep: Tensor,
    scores: int,
    layers: int,
    place: int,
    num_domains: int,
    flags: Tensor,
    table: Tensor,
    slow: Tensor,
) -> None:
    """Adds one forward of one router to its accumulators.

    Args:
        logits_TE: router scores, any float dtype; the statistics are computed in float32.
        ids_TK: chosen experts, integers in [0, E); -1 for an assignment that was dropped.
        gates_TK: their weights.
        domains: int64 (T,), or (rows,) where T is a multiple of rows and each row's tokens lie
            together; empty: domain 0.
        keep: like `domains`, bool: tokens that count (padding does not); empty: all.
        scores: a value of `Scores`: what logits_TE are.
        layers, place: routers of the model, and which of them this is.
        num_domains: at least 1.
        flags: (2,) int64 on the same device: ACTIVE, SLOW.
        table: (cells,) int64, laid out by `Table`.
        slow: (slow_cells,) int64, likewise; added to only where the flag SLOW is set.
    """
    torch.ops.workbench.route_stats(
        logits_TE, ids_TK, gates_TK, domains, keep, scores, layers, place, num_domains,
        flags, table, slow,
    )  # fmt: skip


def _on_cpu(*arguments: Any) -> None:
    # A backward pass is under way: this forward is a recomputation, and was counted before.
    if torch._C._current_graph_task_id() == -1 and arguments[FLAGS][ACTIVE]:
        route_stats_cpu.add(*arguments)


def _on_device(*arguments: Any) -> None:
    if torch._C._current_graph_task_id() == -1:
        _of_device(arguments[FLAGS].device.type)(*arguments)


FLAGS = 9
"""Place of the flags among the arguments."""
_LIBRARY.impl("route_stats", timed(_on_cpu), "CPU")
_LIBRARY.impl("route_stats", timed(_on_device), "CompositeExplicitAutograd")
# It has no result and so no gradient: autograd passes it by, whatever its inputs require.
_LIBRARY.impl("route_stats", torch.library.fallthrough_kernel, "Autograd")


@torch.library.register_fake(_NAME)
def _(*arguments: Any) -> None:
    return None


@cache
def let_selective_checkpoints_pass() -> None:
    """Lets a graph that holds the op run inside a selective checkpoint.

    torch says for its own operators how they pass the two modes by which a selective checkpoint
    saves and recomputes, but not for the one that wraps an op which writes to its arguments. Only
    the backends that run a graph as it was traced ("aot_eager") meet it there.
    """
    try:
        from torch._higher_order_ops.auto_functionalize import auto_functionalized_v2
        from torch._higher_order_ops.utils import redirect_to_mode
        from torch.utils.checkpoint import _CachedTorchDispatchMode, _CachingTorchDispatchMode
    except ImportError:  # not public: another version may have it elsewhere, or solved
        return
    for mode in (_CachingTorchDispatchMode, _CachedTorchDispatchMode):
        if mode not in auto_functionalized_v2.python_key_table:
            redirect_to_mode(auto_functionalized_v2, mode)


@cache
def _of_device(kind: str) -> Callable[..., None]:
    """The kernel for a kind of device; plain torch where there is none."""
    if kind == "cuda":
        try:
            from workbench.capture import route_stats_triton
        except ImportError:
            return route_stats_reference.add
        return route_stats_triton.add
    return route_stats_reference.add
