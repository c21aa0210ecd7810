"""Matrix products, one matrix for all rows or one for each stretch of them, the fastest exact way.

Needs   rows (..., A) and a matrix (B, A); or rows (N, A) sorted by group, matrices (E, A, B) and
        the groups' ends (E,).
Yields  the product, in the dtype of the rows; gradients to both.

On CPU in float32 torch multiplies by MKL, which on processors not made by Intel leaves the wide
vector units unused. oneDNN, which torch carries too, uses them, and computes in float32 as well:
400 against 190 Gflop/s on two AMD cores. So float32 products on a CPU with AVX-512 go to oneDNN,
all others to torch. `torch.backends.mkldnn.flags(enabled=False)` turns it off.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Shapes: T tokens, N rows sorted by group, A and B the inner and outer width of a product, E
# groups.

_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
_WORTH_IT = 1 << 20
"""Multiplications in a product under which making oneDNN's kernel costs more than it saves."""


def linear(x: Tensor, W_BA: Tensor) -> Tensor:
    """`x` times the transpose of `W_BA`, as in `torch.nn.functional`: (..., A) -> (..., B).

    Example:
        >>> linear(torch.ones(2, 3), torch.ones(4, 3)).tolist()[0]
        [3.0, 3.0, 3.0, 3.0]
    """
    if torch.compiler.is_compiling() or not _suits_onednn(x, W_BA):
        return F.linear(x, W_BA)
    return _Linear.apply(x, W_BA)


def grouped_product(x_NA: Tensor, W_EAB: Tensor, ends_E: Tensor) -> Tensor:
    """Row n times the matrix of the group whose stretch n lies in: (N, A) x (E, A, B) -> (N, B).

    Args:
        x_NA: rows, those of a group together, groups in order.
        W_EAB: one matrix a group.
        ends_E: where each group's stretch ends (exclusive), int32; a group may be empty.

    Example:
        >>> W, ends = torch.tensor([1.0, 10.0]).view(2, 1, 1), torch.tensor([1, 3])
        >>> grouped_product(torch.ones(3, 1), W, ends.int()).flatten().tolist()
        [1.0, 10.0, 10.0]
    """
    x_NA, W_EAB = autocast(x_NA, W_EAB)
    # torch's own kernel has no float64, compiles in bfloat16 only, and on CPU knows no windows.
    compiled_whole = x_NA.dtype == torch.float32 and torch.compiler.is_compiling()
    if not x_NA.is_cuda or compiled_whole or x_NA.dtype == torch.float64:
        return _grouped(x_NA, W_EAB, ends_E)
    return F.grouped_mm(x_NA, W_EAB, offs=ends_E)


def autocast(*operands: Tensor) -> tuple[Tensor, ...]:
    """The operands in the dtype of autocast, where that is on for their device; else as they are.

    For products that autocast does not know of.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     autocast(torch.ones(1))[0].dtype
        torch.bfloat16
    """
    device = operands[0].device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return tuple(t.to(torch.get_autocast_dtype(device)) for t in operands)
    return operands


def _suits_onednn(x: Tensor, W: Tensor) -> bool:
    """Whether oneDNN takes these operands and is worth calling."""
    return (
        _ONEDNN
        and x.dtype == W.dtype == torch.float32
        and x.device.type == W.device.type == "cpu"
        and x.numel() * W.shape[0] >= _WORTH_IT
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
    )


def _multiply(x_TA: Tensor, W_BA: Tensor) -> Tensor:
    """`x_TA @ W_BA.T` by oneDNN. Either may be strided; a strided `x_TA` is copied first."""
    return torch.ops.mkldnn._linear_pointwise(x_TA, W_BA, None, "none", [], "")


class _Linear(torch.autograd.Function):
    """`F.linear` by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W_BA: Tensor) -> Tensor:
        ctx.save_for_backward(x, W_BA)
        return _multiply(x, W_BA)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, W_BA = ctx.saved_tensors
        grad = grads[0]
        grad_x = _multiply(grad, W_BA.mT) if ctx.needs_input_grad[0] else None
        grad_W = (
            outer_sum(grad.flatten(0, -2), x.flatten(0, -2)) if ctx.needs_input_grad[1] else None
        )
        return grad_x, grad_W


def outer_sum(g_TB: Tensor, x_TA: Tensor) -> Tensor:
    """Sum over rows of the outer products of g and x, (B, A). Has no gradient.

    It is the gradient of `linear` to its matrix.

    Example:
        >>> outer_sum(torch.ones(5, 2), torch.ones(5, 3)).tolist()
        [[5.0, 5.0, 5.0], [5.0, 5.0, 5.0]]
    """
    if torch.compiler.is_compiling() or not _suits_onednn(g_TB, x_TA.mT):
        return g_TB.mT @ x_TA
    # One side is copied to turn it; better the narrower.
    if g_TB.shape[1] < x_TA.shape[1]:
        return _multiply(g_TB.mT, x_TA.mT)
    return _multiply(x_TA.mT, g_TB.mT).mT


@torch.library.custom_op("workbench_model::grouped_product", mutates_args=())
def _grouped(x_NA: Tensor, W_EAB: Tensor, ends_E: Tensor) -> Tensor:
    """One product a group. An op of its own, so that the compiler need not look into the loop."""
    parts, start = [], 0
    for W_AB, end in zip(W_EAB, ends_E.tolist(), strict=True):
        begin, stop = _window(start, end, x_NA)
        y_MB = linear(x_NA[begin:stop], W_AB.mT)
        parts.append(y_MB[start - begin : end - begin])
        start = end
    return torch.cat(parts)


@torch.library.custom_op("workbench_model::grouped_outer", mutates_args=())
def _grouped_outer(x_NA: Tensor, g_NB: Tensor, ends_E: Tensor) -> Tensor:
    """Sum over each group's rows of x times g, (E, A, B); 0 for an empty group."""
    out_EAB = x_NA.new_zeros(len(ends_E), x_NA.shape[1], g_NB.shape[1])
    start = 0
    for out_AB, end in zip(out_EAB, ends_E.tolist(), strict=True):
        if start == end:
            continue
        begin, stop = _window(start, end, x_NA)
        # The window's rows of other groups meet zeros here.
        x_MA = x_NA[begin:stop]
        if stop - begin > end - start:
            x_MA = torch.zeros_like(x_MA)
            x_MA[start - begin : end - begin] = x_NA[start:end]
        out_AB.copy_(outer_sum(x_MA, g_NB[begin:stop]))
        start = end
    return out_EAB


def _window(start: int, end: int, x_NA: Tensor) -> tuple[int, int]:
    """A stretch of rows around [start, end) whose length is one of few.

    oneDNN makes a kernel for each length that it meets, 0.2 ms a time, and the number of tokens of
    an expert is another in every step. Rounded up to a sixteenth there are few lengths, their
    kernels are kept, and the rows too many cost 3 %. Where oneDNN does not multiply, the stretch
    itself.
    """
    half = x_NA.dtype in (torch.bfloat16, torch.float16)
    if x_NA.device.type != "cpu" or not (half or (_ONEDNN and x_NA.dtype == torch.float32)):
        return start, end
    rows, total = end - start, len(x_NA)
    grain = max(64, 1 << max(rows.bit_length() - 4, 0))
    length = min(-(-rows // grain) * grain, total)
    begin = min(start, total - length)
    return begin, begin + length


@_grouped.register_fake
def _(x_NA: Tensor, W_EAB: Tensor, ends_E: Tensor) -> Tensor:
    return x_NA.new_empty(x_NA.shape[0], W_EAB.shape[2])


@_grouped_outer.register_fake
def _(x_NA: Tensor, g_NB: Tensor, ends_E: Tensor) -> Tensor:
    return x_NA.new_empty(ends_E.shape[0], x_NA.shape[1], g_NB.shape[1])


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _grouped_backward(ctx: Any, grad_NB: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x_NA, W_EAB, ends_E = ctx.saved_tensors
    grad_NB = grad_NB.contiguous()
    grad_x = _grouped(grad_NB, W_EAB.mT, ends_E) if ctx.needs_input_grad[0] else None
    grad_W = _grouped_outer(x_NA, grad_NB, ends_E) if ctx.needs_input_grad[1] else None
    return grad_x, grad_W, None


_grouped.register_autograd(_grouped_backward, setup_context=_save)
