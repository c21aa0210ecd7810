"""A lasting name: the one place where an object can be found again, in this process and the next.

Needs   a function or a class.
Yields  `lasting_name`: "module.qualified.name"; None where that leads elsewhere or nowhere.

A method that is bound to an object, a wrapper that took over the name of what it wraps, a closure,
a lambda and a partial share their names with others. What a notebook or a script defines is edited
under the same name.
"""

from __future__ import annotations

import sys
from typing import Any


def lasting_name(what: Any) -> str | None:
    """The name under which others can import this very object; None where there is none.

    Example:
        >>> import json
        >>> lasting_name(json.dumps)
        'json.dumps'
        >>> lasting_name(lambda: 1) is lasting_name([].append) is None
        True
    """
    home, name = (getattr(what, a, None) for a in ("__module__", "__qualname__"))
    if not isinstance(name, str) or not isinstance(home, str) or hasattr(what, "__self__"):
        return None
    found: Any = sys.modules.get(home)
    if home == "__main__" or getattr(found, "__spec__", None) is None:
        return None
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{home}.{name}" if found is what else None
