"""Tasks in the order of every figure and table: by family, then as recorded.

Needs   task names "<family>/<task>".
Yields  family -> tasks; the name of a task within its family.
"""

from __future__ import annotations

from collections.abc import Iterable

FAMILIES = ("knowledge", "reading", "logic", "code")


def by_family(tasks: Iterable[str]) -> dict[str, list[str]]:
    """Family -> its tasks in the given order; the four known families first, others after them.

    Example:
        >>> by_family(["code/add", "zoo/cat", "knowledge/capitals", "code/mul"])
        {'knowledge': ['knowledge/capitals'], 'code': ['code/add', 'code/mul'], 'zoo': ['zoo/cat']}
    """
    groups: dict[str, list[str]] = {}
    for task in tasks:
        groups.setdefault(family_of(task), []).append(str(task))
    known = [f for f in FAMILIES if f in groups]
    return {f: groups[f] for f in [*known, *(f for f in groups if f not in known)]}


def family_of(task: str) -> str:
    """What stands before the first slash; the name itself where there is none.

    Example:
        >>> family_of("logic/chain"), family_of("loose")
        ('logic', 'loose')
    """
    return str(task).partition("/")[0]


def short_name(task: str) -> str:
    """What stands after the first slash; the name itself where there is nothing.

    Example:
        >>> short_name("logic/chain"), short_name("loose")
        ('chain', 'loose')
    """
    return str(task).partition("/")[2] or str(task)
