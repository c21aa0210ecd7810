"""Aria: what a screen reader is told of a component, as Dash takes it.

Needs   words.
Yields  `aria`, attributes for any html component.
"""

from __future__ import annotations

from typing import Any


def aria(**words: str) -> dict[str, Any]:
    """Attributes by their names without "aria-".

    Example:
        >>> aria(label="Pages", current="page")
        {'aria-label': 'Pages', 'aria-current': 'page'}
    """
    return {f"aria-{name}": value for name, value in words.items()}
