"""Points in a plane from the distances between them, and how much of these a plane can hold.

Needs   distances, each from each.
Yields  `placed`: Placed, with the share that the plane holds and its stress.

Classical scaling: the coordinates whose inner products are nearest to those that the distances
imply. It is exact where the points lie in a plane, and the same for the same distances but for
turns and mirrors, which are fixed here by a convention.

Source: Torgerson 1952, Psychometrika 17(4); stress as in Kruskal 1964, Psychometrika 29(1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.errors import SchemaError


@dataclass(frozen=True)
class Placed:
    """Points in a plane. C points."""

    points_C2: np.ndarray
    shares: tuple[float, float]
    """Share of the squared distances that lies along each axis."""
    stress: float
    """Root of the squared errors of the distances over the squared distances: 0 is exact."""


def placed(distance_CC: np.ndarray) -> Placed:
    """The plane that holds most of some distances.

    Args:
        distance_CC: symmetric, zero on the diagonal, no number missing.

    Raises:
        SchemaError: not such a matrix.

    Example:
        >>> corners = np.array([[0, 3], [4, 0], [0, 0]])
        >>> apart = np.linalg.norm(corners[:, None] - corners, axis=-1)
        >>> found = placed(apart)
        >>> round(sum(found.shares), 6), round(found.stress, 6)
        (1.0, 0.0)
    """
    _check(distance_CC)
    n = len(distance_CC)
    centre = np.eye(n) - 1 / n
    inner = -centre @ distance_CC**2 @ centre / 2
    value, vector = np.linalg.eigh(inner)
    value, vector = value[::-1], vector[:, ::-1]
    points = np.zeros((n, 2))
    real = min(2, n)
    points[:, :real] = vector[:, :real] * np.sqrt(np.maximum(value[:real], 0))
    # A mirrored plane is as good: the last point lies up and to the right of the first.
    points *= np.where(points[-1] < points[0], -1.0, 1.0)
    total = float(np.maximum(value, 0).sum())
    first, second = (float(max(v, 0)) / total if total > 0 else np.nan for v in (*value, 0, 0)[:2])
    drawn = np.linalg.norm(points[:, None] - points, axis=-1)
    size = float((distance_CC**2).sum())
    stress = float(np.sqrt(((drawn - distance_CC) ** 2).sum() / size)) if size > 0 else 0.0
    # What rounding leaves is no stress.
    stress = stress if stress > 1e-9 else 0.0
    return Placed(points, (first, second), stress)


def _check(distance_CC: np.ndarray) -> None:
    square = distance_CC.ndim == 2 and distance_CC.shape[0] == distance_CC.shape[1]
    if not square or not len(distance_CC):
        raise SchemaError(f"distances have shape {distance_CC.shape}; expected (C, C), C >= 1.")
    if not np.isfinite(distance_CC).all():
        missing = int((~np.isfinite(distance_CC)).sum())
        raise SchemaError(f"{missing} distances are no numbers; leave out the points without.")
    if (distance_CC < 0).any() or not np.allclose(distance_CC, distance_CC.T, atol=1e-6):
        raise SchemaError("distances are negative or differ by direction; expected neither.")
    if not np.allclose(np.diagonal(distance_CC), 0, atol=1e-6):
        raise SchemaError("points lie at a distance from themselves; expected 0 on the diagonal.")
