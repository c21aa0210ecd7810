"""The branches of a run as a small drawing: a line each along the steps, forks, checkpoints.

Needs   an open run.
Yields  `branch_picture`, SVG in the page's own colour; "" where there is nothing to draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.html_card import safe

if TYPE_CHECKING:
    from workbench.run import Run

MOST_BRANCHES = 12
MOST_TICKS = 120
"""Checkpoints of one branch that are drawn; of more, evenly chosen ones."""

_LEFT, _RIGHT, _WIDTH, _ROW = 170, 110, 720, 24


@dataclass(frozen=True)
class _Line:
    """One branch: from where it forked to its last step."""

    name: str
    parent: str | None
    start: int
    stop: int
    saved: list[int]


def branch_picture(run: Run, stretch: tuple[int, int] | None = None) -> str:
    """Every branch of `run` (the first few of many), the one that it was opened on in bold.

    Args:
        run: an open run.
        stretch: first and last step of what is to be shaded.

    Example:
        >>> from types import SimpleNamespace
        >>> branch_picture(SimpleNamespace(branches=[]))
        ''
    """
    shown = list(dict.fromkeys([run.branch, *run.branches])) if run.branches else []
    kept = set(shown[:MOST_BRANCHES])
    lines = [_line(run, name) for name in run.branches if name in kept]
    last = max((line.stop for line in lines), default=0)
    if not last:
        return ""

    def x(step: int) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * step / last, 1)

    y = {line.name: _ROW * (i + 0.5) for i, line in enumerate(lines)}
    height = _ROW * len(lines)
    parts = []
    if stretch is not None:
        left, right = x(stretch[0]), x(stretch[1])
        parts.append(
            f'<rect x="{left}" y="0" width="{max(right - left, 1):.1f}" height="{height}" '
            f'fill="currentColor" opacity="0.12"/>'
        )
    history = _history(run.branch, lines)
    for line in lines:
        parts += _drawn(line, x(line.start), x(line.stop), y, bold=line.name == run.branch)
        if line.name in history:
            here = y[line.name]
            parts.append(_path(f"M{x(line.start)} {here}H{x(history[line.name])}", bold=True))
        parts += [_tick(x(step), y[line.name]) for step in line.saved]
    words = safe("; ".join(_in_words(line) for line in lines), longest=1000)
    more = len(run.branches) - len(lines)
    rest = (
        f'<div class="wb-soft">and {more} more {"branch" if more == 1 else "branches"}</div>'
        if more
        else ""
    )
    return (
        f'<svg class="wb-picture" role="img" aria-label="{words}" width="{_WIDTH}" '
        f'height="{height}" viewBox="0 0 {_WIDTH} {height}" font-size="12" '
        f'font-family="inherit">{"".join(parts)}</svg>{rest}'
    )


def _line(run: Run, name: str) -> _Line:
    arm = run if name == run.branch else run.arm(name)
    own = [c.step for c in arm.checkpoints if c.branch == name]
    stop = max([arm.last_step, *own[-1:]])
    return _Line(name, arm.parent, arm.fork_step or 0, stop, own[:: 1 + len(own) // MOST_TICKS])


def _history(branch: str, lines: list[_Line]) -> dict[str, int]:
    """Of every branch that `branch` came from: up to which step it is part of its history."""
    known = {line.name: line for line in lines}
    found: dict[str, int] = {}
    line = known.get(branch)
    while line is not None and line.parent is not None and line.parent not in found:
        found[line.parent] = line.start
        line = known.get(line.parent)
    return found


def _drawn(line: _Line, left: float, right: float, y: dict[str, float], *, bold: bool) -> list[str]:
    here = y[line.name]
    from_ = y.get(line.parent or "", here)
    weight = ' font-weight="bold"' if bold else ""
    return [
        _path(f"M{left} {from_}V{here}H{right}", bold=bold),
        f'<text x="0" y="{here + 4}" fill="currentColor"{weight}>{safe(line.name, 22)}</text>',
        f'<text x="{_WIDTH - _RIGHT + 8}" y="{here + 4}" fill="currentColor" opacity="0.75">'
        f"step {line.stop:,}</text>",
    ]


def _path(course: str, *, bold: bool) -> str:
    width, opacity = (2.5, 0.95) if bold else (1.2, 0.6)
    return (
        f'<path d="{course}" stroke="currentColor" fill="none" stroke-width="{width}" '
        f'opacity="{opacity}"/>'
    )


def _tick(x: float, y: float) -> str:
    return f'<circle cx="{x}" cy="{y}" r="2.2" fill="currentColor"/>'


def _in_words(line: _Line) -> str:
    came = f" from {line.parent} at step {line.start:,}" if line.parent else ""
    return f"{line.name}{came} to step {line.stop:,}, {len(line.saved)} checkpoints drawn"
