"""The fixed dims of a run: which layers, experts, domains, tasks and probe tokens its arrays are
labelled by.

Needs   the model's shape, the names of the domains, the tasks that will be evaluated, the fixed
        probe set.
Yields  Layout: sizes and labels of every dim that does not grow.

What grows (step, sample, checkpoint) is not here. A layout is set when the store is made; what it
left empty (tasks, probe tokens, domains) may be filled in later, what it states may not change: old
rows would silently mean something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from workbench.errors import UsageError

ENTROPY_BINS = 32
"""Equal bins of the normalised entropy, [0, 1]."""


@dataclass(frozen=True)
class Task:
    """An evaluation task: its name "<family>/<task>", what guessing earns, and how many items it
    has.
    """

    name: str
    chance: float
    """Accuracy of guessing, in [0, 1]."""
    items: int

    def __post_init__(self) -> None:
        family, slash, rest = self.name.partition("/")
        if not (family and slash and rest):
            raise UsageError(f"task {self.name!r}: a task is named '<family>/<task>'.")
        if not 0 <= self.chance <= 1:
            raise UsageError(f"task {self.name}: chance={self.chance}, must lie in [0, 1].")
        if self.items < 1:
            raise UsageError(f"task {self.name}: items={self.items}, must be 1 or more.")

    @property
    def family(self) -> str:
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class ProbeTokens:
    """The fixed probe set: for every token its id and the domain that its text comes from."""

    ids: tuple[int, ...]
    domains: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.domains) or not self.ids:
            raise UsageError(
                f"probe set of {len(self.ids)} token ids and {len(self.domains)} domains: "
                f"give one domain for every token, and at least one token."
            )


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Sizes and labels of the fixed dims.

    Example:
        >>> layout = Layout(layers=(0, 1), experts=8, k=2, domains=("prose", "code_text"))
        >>> layout.sizes["layer"], layout.sizes["domain"]
        (2, 2)
    """

    layers: tuple[int, ...]
    """Layer numbers of the recorded routers, ascending."""

    experts: int
    """Experts in a layer."""

    k: int
    """Experts that a token is sent to."""

    domains: tuple[str, ...] = ()
    """Where training documents come from, in the order of the domain axis."""

    tasks: tuple[Task, ...] = ()
    """What is evaluated, in the order of the task axis."""

    tokens: ProbeTokens | None = None
    """The fixed probe set of the activations."""

    def __post_init__(self) -> None:
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise UsageError(f"layers={self.layers}: give layer numbers from 0, ascending.")
        if not 1 <= self.k <= self.experts:
            raise UsageError(f"k={self.k} of experts={self.experts}: k lies in 1..experts.")
        for what, names in (("domains", self.domains), ("tasks", [t.name for t in self.tasks])):
            if len(set(names)) != len(names) or not all(isinstance(n, str) and n for n in names):
                raise UsageError(f"{what}={tuple(names)}: give distinct names that are not empty.")

    @property
    def items(self) -> int:
        """Length of the item axis: the items of the largest task; smaller tasks are padded."""
        return max((task.items for task in self.tasks), default=0)

    @property
    def sizes(self) -> dict[str, int]:
        """Length of every fixed dim; 0 where it is not stated yet."""
        return {
            "layer": len(self.layers),
            "expert": self.experts,
            "expert2": self.experts,
            "k": self.k,
            "domain": len(self.domains),
            "task": len(self.tasks),
            "item": self.items,
            "bin": ENTROPY_BINS,
            "bound": self.experts + 1,
            "token": len(self.tokens.ids) if self.tokens else 0,
        }

    def filled(self, **more: Any) -> Layout:
        """This layout with what it left empty filled in; UsageError where it would change what is
        stated.

        Example:
            >>> Layout(layers=(0,), experts=4, k=1).filled(domains=("prose",)).domains
            ('prose',)
        """
        for name, new in more.items():
            old = getattr(self, name)
            if old and old != new:
                raise UsageError(
                    f"the store's {name} are set and cannot change; declare all of them when the "
                    f"run begins, or begin another run."
                )
        return replace(self, **more)

    def to_json(self) -> dict[str, Any]:
        """As plain data, without the probe tokens: those are thousands and live in arrays of their
        own.
        """
        plain = asdict(self)
        del plain["tokens"]
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any], tokens: ProbeTokens | None = None) -> Layout:
        """What `to_json` wrote; fields that a later version added are ignored."""
        known = {f.name for f in fields(cls)} & set(plain)
        values = {name: plain[name] for name in known}
        for name in ("layers", "domains"):
            values[name] = tuple(values.get(name, ()))
        values["tasks"] = tuple(Task(**task) for task in values.get("tasks", ()))
        return cls(**values, tokens=tokens)
