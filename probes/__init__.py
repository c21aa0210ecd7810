"""What is measured: one quantity per file, each from labelled arrays to a labelled dataset.

`import probes` loads nothing but this file; a probe's file is read when it is first named.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probes.arms import arm_difference as arm_difference
    from probes.balance import balance as balance
    from probes.capability import capability as capability
    from probes.emergence import Onset as Onset
    from probes.emergence import onset as onset
    from probes.emergence import onsets as onsets
    from probes.load import expert_load as expert_load
    from probes.stability import churn as churn
    from probes.stability import saturation as saturation

_FILES = {
    "Onset": "emergence",
    "arm_difference": "arms",
    "balance": "balance",
    "capability": "capability",
    "churn": "stability",
    "expert_load": "load",
    "onset": "emergence",
    "onsets": "emergence",
    "saturation": "stability",
}

__all__ = [  # noqa: RUF022  (the order of the story, not of the alphabet)
    "expert_load",
    "balance",
    "saturation",
    "churn",
    "capability",
    "onset",
    "onsets",
    "Onset",
    "arm_difference",
]


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module 'probes' has no {name!r}; it has {', '.join(__all__)}.")
    value = getattr(importlib.import_module(f"probes.{_FILES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


class _Probes(ModuleType):
    """The package itself: its public names are the probes, whatever their files are called."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing probes/capability.py would bind `probes.capability` to the file and so hide the
        # probe; the file stays reachable by `from probes.capability import ...`.
        if name in _FILES and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Probes
