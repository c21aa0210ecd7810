"""The key of a kept result: what it was computed from, as text that equal data share.

Needs   a probe's name and version, its parameters, its inputs: plain data (JSON).
Yields  Asked: the four attributes that make its key, and the path of its group.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.errors import UsageError

HOME = "probes"
NAMED = ("probe", "version", "params", "inputs")
"""Attributes that make the key, in this order; the last two as JSON text, which every format of
files can hold."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Asked:
    """What is asked for: what makes the key of a result."""

    probe: str
    version: int | str
    inputs: Mapping[str, Any]
    params: Mapping[str, Any]

    def named(self) -> dict[str, Any]:
        """The attributes that make the key; UsageError where they cannot."""
        return {
            "probe": check_name(self.probe),
            "version": str(self.version),
            "params": _as_json("params", self.params),
            "inputs": _as_json("inputs", self.inputs),
        }

    @property
    def path(self) -> str:
        """Its group in the branch that keeps results."""
        return f"{HOME}/{self.probe}/{digest(self.named())}"


def check_name(probe: object) -> str:
    """The name, where a result can be kept under it; UsageError where not."""
    if not isinstance(probe, str) or not _NAME.fullmatch(probe):
        raise UsageError(
            f"probe {ascii(probe)[:60]}: a name is 1 to 64 of a-z, 0-9, '_' and '-', beginning "
            f"with a letter or digit; for example 'expert-load'."
        )
    return probe


def _as_json(what: str, plain: Mapping[str, Any]) -> str:
    """Equal text for equal data: keys in order, numbers of numpy as Python's, tuples as lists."""
    try:
        text = json.dumps(plain, sort_keys=True, allow_nan=False, default=_plain)
        if not isinstance(plain, Mapping) or not _keys_are_text(plain):
            raise TypeError("names must be text")
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{what} cannot be a key: {str(error)[:120]}. Give plain data: text, finite numbers, "
            f"lists, and objects with text for names."
        ) from None
    return text


def _plain(value: object) -> Any:
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.size <= 1000):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} is not plain data")


def _keys_are_text(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _keys_are_text(v) for key, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(_keys_are_text, value))
    return True


def digest(named: Mapping[str, Any]) -> str:
    """32 hexadecimal digits of the attributes that make a key."""
    text = json.dumps([named[name] for name in NAMED])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
