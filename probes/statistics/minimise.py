"""Minimise: many smooth convex problems at once by preconditioned L-BFGS.

Needs   an objective that gives a value and a gradient for each problem, and a preconditioner.
Yields  the point of each problem at which its gradient is small enough.

Every problem has its own step length and its own history; they share the arithmetic, so that a
few large matrix products take the place of many small ones. A point is a pair: weights
(problem, class, d) and intercepts (problem, class).

Source: Nocedal & Wright 2006, algorithm 7.4, with the halving of steps that do not descend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Point: TypeAlias = tuple[Tensor, Tensor]
Objective: TypeAlias = Callable[[Point], tuple[Tensor, Point]]

MEMORY = 6
"""Past steps that shape the next one."""
HALVINGS = 25


def minimise(
    objective: Objective,
    precondition: Callable[[Point], Point],
    start: Point,
    tolerance: float,
    most_steps: int,
) -> tuple[Point, float]:
    """Where the problems' gradients have no entry above `tolerance`, or where steps ran out.

    Args:
        objective: point to (values (problem,), gradient).
        precondition: gradient to step, the same for all calls.
        start: a point.
        tolerance: largest entry of a gradient.
        most_steps: steps at most.

    Returns:
        The point, and the largest entry of any gradient there.

    Example:
        >>> bowl = lambda p: (p[0].square().sum((1, 2)) / 2 + p[1].square().sum(1) / 2, p)
        >>> point, left = minimise(bowl, lambda g: g, (torch.ones(1, 2, 3), torch.ones(1, 2)), 0, 5)
        >>> left
        0.0
    """
    point = start
    value, slope = objective(point)
    past: list[tuple[Point, Point, Tensor]] = []
    for taken in range(most_steps + 1):
        largest = _largest(slope)
        if not (largest > tolerance).any() or taken == most_steps:
            break
        step = _direction(slope, past, precondition)
        moved, new_value, new_slope = _descend(objective, point, value, slope, step, largest)
        change, turn = _minus(moved, point), _minus(new_slope, slope)
        past = [*past, (change, turn, 1 / _dot(change, turn).clamp_min(1e-30))][-MEMORY:]
        if (change[0] == 0).all() and (change[1] == 0).all():
            break  # rounding allows no better point
        point, value, slope = moved, new_value, new_slope
    return point, float(_largest(slope).max())


def _largest(slope: Point) -> Tensor:
    return torch.maximum(slope[0].abs().amax((1, 2)), slope[1].abs().amax(1))


def _dot(a: Point, b: Point) -> Tensor:
    return (a[0] * b[0]).sum((1, 2)) + (a[1] * b[1]).sum(1)


def _minus(a: Point, b: Point) -> Point:
    return a[0] - b[0], a[1] - b[1]


def _add(a: Point, scale: Tensor, b: Point) -> None:
    """a += scale * b, in place."""
    a[0].add_(scale[:, None, None] * b[0])
    a[1].add_(scale[:, None] * b[1])


def _direction(
    slope: Point,
    past: list[tuple[Point, Point, Tensor]],
    precondition: Callable[[Point], Point],
) -> Point:
    """The quasi-Newton step: to be subtracted."""
    left: Point = (slope[0].clone(), slope[1].clone())
    scales = []
    for change, turn, inverse in reversed(past):
        scales.append(_dot(change, left) * inverse)
        _add(left, -scales[-1], turn)
    step = precondition(left)
    if past:
        _, turn, inverse = past[-1]
        scale = 1 / (inverse * _dot(turn, precondition(turn))).clamp_min(1e-30)
        step = (step[0] * scale[:, None, None], step[1] * scale[:, None])
    for (change, turn, inverse), scale in zip(past, reversed(scales), strict=True):
        _add(step, scale - inverse * _dot(turn, step), change)
    return step


def _descend(
    objective: Objective, point: Point, value: Tensor, slope: Point, step: Point, largest: Tensor
) -> tuple[Point, Tensor, Point]:
    """The whole step, halved for the problems in which it does not descend."""
    gain = _dot(step, slope)
    # Near the minimum the gain is less than what rounding leaves of the value.
    slack = 8 * torch.finfo(value.dtype).eps * value.abs().clamp_min(1)
    scale = torch.ones_like(value)
    for _ in range(HALVINGS):
        moved = (point[0] - scale[:, None, None] * step[0], point[1] - scale[:, None] * step[1])
        new_value, new_slope = objective(moved)
        fine = new_value <= value - 1e-4 * scale * gain + slack
        if fine.all():
            return moved, new_value, new_slope
        scale = torch.where(fine, scale, scale / 2)
    scale = torch.where(fine, scale, 0.0)  # stay: no descent can be seen in this precision
    moved = (point[0] - scale[:, None, None] * step[0], point[1] - scale[:, None] * step[1])
    new_value, new_slope = objective(moved)
    return moved, new_value, new_slope
