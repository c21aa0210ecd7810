"""Minimise: many smooth convex problems at once by preconditioned L-BFGS.

Needs   an objective that gives a value and a gradient for each problem, and a preconditioner.
Yields  the point of each problem at which its gradient is small enough.

Every problem has its own step length and its own history; they share the arithmetic, so that a
few large matrix products take the place of many small ones. For the same reason the quasi-Newton
step is taken in its compact form, two products with all past steps instead of a loop over them.

Source: Byrd, Nocedal & Schnabel 1994, Mathematical Programming 63, equation 2.6 (compact form);
Nocedal & Wright 2006, chapter 7, with the halving of steps that do not descend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Objective: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
Precondition: TypeAlias = Callable[[Tensor], Tensor]

# Shapes: P problems, M unknowns of each, m past steps.

MEMORY = 6
"""Past steps that shape the next one."""
HALVINGS = 25


def minimise(
    objective: Objective,
    precondition: Precondition,
    start: Tensor,
    tolerance: float,
    most_steps: int,
) -> tuple[Tensor, float]:
    """Where the problems' gradients have no entry above `tolerance`, or where steps ran out.

    Args:
        objective: point to (values (problem,), gradient of the point's shape).
        precondition: gradient to step, linear, the same for all calls.
        start: (problem, ...).
        tolerance: largest entry of a gradient; a problem that is there moves on until all are.
        most_steps: steps at most.

    Returns:
        The point, and the largest entry of any gradient there.

    Example:
        >>> bowl = lambda p: (p.square().sum(1) / 2, p)
        >>> point, left = minimise(bowl, lambda g: g, torch.ones(1, 3), 0, 5)
        >>> left
        0.0
    """
    point = start
    value, slope = objective(point)
    step = precondition(slope)
    past = _Past(point)
    for taken in range(most_steps + 1):
        if taken == most_steps or not (_largest(slope) > tolerance).any():
            break
        towards = past.direction(slope, step)
        moved, new_value, new_slope = _descend(objective, point, value, slope, towards)
        new_step = precondition(new_slope)
        if not past.add(moved - point, new_slope - slope, new_step - step):
            break  # rounding allows no better point
        point, value, slope, step = moved, new_value, new_slope, new_step
    return point, float(_largest(slope).max())


def _largest(slope: Tensor) -> Tensor:
    return slope.flatten(1).abs().amax(1)


class _Past:
    """The last steps, changes of the gradient, and those preconditioned."""

    def __init__(self, point: Tensor) -> None:
        problems, unknowns = point.flatten(1).shape
        self.step, self.turn, self.eased = point.new_zeros(3, problems, MEMORY, unknowns)
        self.count = 0

    def add(self, step: Tensor, turn: Tensor, eased: Tensor) -> bool:
        """False: no problem has moved."""
        flat, turned = step.flatten(1), turn.flatten(1)
        # A problem that stayed, or whose gradient is but rounding, learns nothing.
        curved = ((flat * turned).sum(1, keepdim=True) > 0).to(flat.dtype)
        slot = self.count % MEMORY
        torch.mul(flat, curved, out=self.step[:, slot])
        torch.mul(turned, curved, out=self.turn[:, slot])
        torch.mul(eased.flatten(1), curved, out=self.eased[:, slot])
        self.count += 1
        return bool(flat.any())

    def direction(self, slope: Tensor, step: Tensor) -> Tensor:
        """The quasi-Newton step, to be subtracted; `step` is the preconditioned slope."""
        if not self.count:
            return step
        kept = min(self.count, MEMORY)
        turns = self.count % MEMORY if self.count > MEMORY else 0
        order = [(turns + i) % kept for i in range(kept)]  # from the oldest
        s, y, z = self.step[:, :kept], self.turn[:, :kept], self.eased[:, :kept]
        g_PM1 = slope.flatten(1)[..., None]
        along, eased = (s @ g_PM1)[:, order], (z @ g_PM1)[:, order]
        inner = (s @ y.mT)[:, order][:, :, order]
        curve = (y @ z.mT)[:, order][:, :, order]
        diagonal = inner.diagonal(dim1=1, dim2=2)
        empty = diagonal <= 0
        above = inner.triu(1) + torch.diag_embed(torch.where(empty, 1.0, diagonal))
        scale = torch.where(empty[:, -1], 1.0, diagonal[:, -1] / curve[:, -1, -1].clamp_min(1e-30))[
            :, None, None
        ]
        first = torch.linalg.solve_triangular(above, along, upper=True)
        right = diagonal[..., None] * first + scale * (curve @ first - eased)
        second = torch.linalg.solve_triangular(above.mT, right, upper=False)
        back = sorted(range(kept), key=order.__getitem__)
        found = scale * (step.flatten(1)[..., None] - z.mT @ first[:, back])
        return found.baddbmm_(s.mT, second[:, back]).view_as(slope)


def _descend(
    objective: Objective,
    point: Tensor,
    value: Tensor,
    slope: Tensor,
    step: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The whole step, halved for the problems in which it does not descend."""
    gain = (step * slope).flatten(1).sum(1)
    # Near the minimum the gain is less than what rounding leaves of the value.
    slack = 8 * torch.finfo(value.dtype).eps * value.abs().clamp_min(1)
    scale = torch.ones_like(value)
    shape = (-1, *(1,) * (point.ndim - 1))
    for _ in range(HALVINGS):
        moved = torch.addcmul(point, scale.view(shape), step, value=-1)
        new_value, new_slope = objective(moved)
        fine = new_value <= value - 1e-4 * scale * gain + slack
        if fine.all():
            return moved, new_value, new_slope
        scale = torch.where(fine, scale, scale / 2)
    scale = torch.where(fine, scale, 0.0)  # stay: no descent can be seen in this precision
    moved = torch.addcmul(point, scale.view(shape), step, value=-1)
    return moved, *objective(moved)
