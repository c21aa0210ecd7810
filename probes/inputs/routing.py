"""Routing: what the routers of one checkpoint did with the fixed tokens.

Needs   a Subject (sites expert_ids, router_probs), or a record's activations: expert_ids
        (checkpoint, token, layer, k), router_probs (checkpoint, token, layer, expert).
Yields  Routing, one checkpoint at a time; `over_checkpoints`, which asks each for its numbers.

Tokens of one text share their context. Whatever is resampled or permuted is therefore a block of
text: a row of the fixed tokens where rows are known (a Subject), a document where the record names
them, else stretches of at most 64 tokens of one domain.

An id of -1 is an assignment that was dropped. It counts for no expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from probes.source import Source, group_of
from workbench.errors import SchemaError, UsageError

if TYPE_CHECKING:
    from probes.subject import Subject

Floats = NDArray[np.float64]

BLOCK_TOKENS = 64
"""Tokens of contiguous text that stand or fall together, where rows and documents are not known."""

FEWEST_BLOCKS = 20
"""Blocks are made shorter where a record would give fewer; attrs say how long they are."""

# Shapes: T tokens, L layers, K chosen, E experts, B blocks of text.


@dataclass(frozen=True, eq=False)
class FixedTokens:
    """What is known of the fixed tokens: the same at every checkpoint."""

    token_id: NDArray[np.int64]
    """(token,): vocabulary id."""

    next_id: NDArray[np.int64] | None
    """(token,): id of the token that follows, -1 at the end of a row; None: rows are not known."""

    domain: NDArray[np.str_]
    """(token,): where the token's text comes from."""

    starts: NDArray[np.intp]
    """(block,): where each block of text begins."""

    blocks_are: str
    """"rows", "documents" or "stretches of text"."""

    @property
    def count(self) -> int:
        return len(self.token_id)

    @cached_property
    def block_sizes(self) -> Floats:
        """(block,): tokens."""
        return np.diff([*self.starts, self.count]).astype(np.float64)

    @cached_property
    def domains(self) -> list[str]:
        """Names, in the order of the tokens."""
        return list(dict.fromkeys(map(str, self.domain[self.starts])))

    @cached_property
    def domain_of_block(self) -> NDArray[np.intp]:
        """(block,): place of the block's domain in `domains`."""
        place = {name: i for i, name in enumerate(self.domains)}
        return np.array([place[str(name)] for name in self.domain[self.starts]])

    def groups(self, most: int = 40) -> NDArray[np.intp]:
        """(group,): starts of at most `most` groups of neighbouring blocks.

        Sums over many blocks are kept per group, so that memory does not grow with the text.
        """
        cuts = np.linspace(0, len(self.starts), min(most, len(self.starts)) + 1)[:-1]
        return self.starts[cuts.astype(np.intp)]

    def about(self) -> dict[str, object]:
        """Attributes of whatever is computed over these tokens."""
        return {
            "n": self.count,
            "n_meaning": "tokens of the fixed set",
            "blocks": len(self.starts),
            "blocks_are": self.blocks_are,
            "block_tokens": round(self.count / len(self.starts)),
        }


@dataclass(frozen=True, eq=False)
class Routing:
    """One checkpoint's routing of the fixed tokens."""

    tokens: FixedTokens
    ids: NDArray[np.int64]
    """(layer, token, k): chosen experts, the most probable first; -1: dropped."""
    experts: int
    layers: NDArray[np.int64]
    """(layer,): labels."""
    probs: NDArray[np.float32] | None = None
    """(layer, token, expert): softmax over all experts."""
    step: int = 0

    @property
    def k(self) -> int:
        return int(self.ids.shape[-1])

    @cached_property
    def chosen(self) -> NDArray[np.float32]:
        """(layer, token, expert): 1 where the expert is among the token's k, else 0.

        Raises:
            SchemaError: a token that chose an expert twice, or an expert that is not there.
        """
        layers, tokens, k = self.ids.shape
        if self.ids.max(initial=-1) >= self.experts or self.ids.min(initial=0) < -1:
            raise SchemaError(
                f"expert_ids at step {self.step} runs from {self.ids.min()} to {self.ids.max()}, "
                f"expected 0 to {self.experts - 1}, or -1 where an assignment was dropped."
            )
        wide = np.zeros((layers * tokens, self.experts + 1), dtype=np.float32)
        ids = np.where(self.ids < 0, self.experts, self.ids).reshape(layers * tokens, k)
        cells = ids + np.arange(layers * tokens)[:, None] * (self.experts + 1)
        wide.reshape(-1)[cells.ravel()] = 1
        chosen = wide[:, : self.experts].reshape(layers, tokens, self.experts)
        if int(chosen.sum(dtype=np.float64)) != int((self.ids >= 0).sum()):
            raise SchemaError(
                f"expert_ids at step {self.step} names an expert twice for one token; expected "
                f"{k} different ones."
            )
        return chosen

    @cached_property
    def counts(self) -> Floats:
        """(block, layer, expert): tokens of the block that chose the expert."""
        sums = np.add.reduceat(self.chosen, self.tokens.starts, axis=1, dtype=np.float64)
        return sums.transpose(1, 0, 2)

    @cached_property
    def domain_counts(self) -> Floats:
        """(domain, layer, expert): tokens of the domain that chose the expert."""
        hot = np.eye(len(self.tokens.domains))[self.tokens.domain_of_block]
        return np.tensordot(hot.T, self.counts, 1)

    def probabilities(self) -> NDArray[np.float32]:
        """(layer, token, expert).

        Raises:
            SchemaError: they were not recorded, or are no numbers where a token chose experts.
        """
        if self.probs is None:
            raise SchemaError("activations lacks router_probs; record it, or probe checkpoints.")
        broken = ~np.isfinite(self.probs).all(axis=-1) & (self.ids >= 0).any(axis=-1)
        if broken.any():
            layer = int(self.layers[np.argwhere(broken)[0, 0]])
            raise SchemaError(
                f"router_probs at step {self.step}, layer {layer}, hold values that are no numbers "
                f"for {broken.sum()} tokens: was it captured, or had the run diverged? Leave this "
                "checkpoint out."
            )
        return self.probs

    def result(self, variables: dict[str, Any], coords: dict[str, Any]) -> xr.Dataset:
        """A Dataset with labels for `layer` and what the tokens say of themselves."""
        return xr.Dataset(variables, coords={"layer": self.layers, **coords}).assign_attrs(
            {**self.tokens.about(), "k": self.k, "experts": self.experts}
        )


def is_subject(source: object) -> bool:
    """Whether `source` is one checkpoint under study rather than a record."""
    return hasattr(source, "exam") and hasattr(source, "labels")


def routing_of(subject: Subject, *, probs: bool = False) -> Routing:
    """The routing of a checkpoint.

    Raises:
        UsageError: a model without routers.
    """
    labels = subject.labels
    row = labels["row"].values
    tokens = FixedTokens(
        token_id=labels["token_id"].values,
        next_id=labels["next_id"].values,
        domain=labels["domain"].values.astype(str),
        starts=np.flatnonzero(np.r_[True, row[1:] != row[:-1]]),
        blocks_are="rows",
    )
    ids = subject["expert_ids"].numpy()
    return Routing(
        tokens=tokens,
        ids=ids,
        experts=subject.num_experts,
        layers=np.arange(len(ids)),
        probs=subject["router_probs"].numpy() if probs else None,
        step=subject.step,
    )


class RecordedRouting:
    """The routing of every checkpoint of a record, one in memory at a time."""

    def __init__(self, source: Source, *, probs: bool = False) -> None:
        needs = ["expert_ids", "router_probs"] if probs else ["expert_ids"]
        self.activations = group_of(source, "activations", needs)
        dims = ("checkpoint", "token", "layer", "k")
        found = self.activations["expert_ids"]
        if set(found.dims) != set(dims):
            raise SchemaError(
                f"expert_ids: {found.dims}, expected {dims}; transpose or name its axes so."
            )
        self.ids = found.transpose("checkpoint", "layer", "token", "k")
        self.probs = None
        if probs:
            self.probs = self.activations["router_probs"].transpose(
                "checkpoint", "layer", "token", "expert"
            )
        self.steps = self.activations["checkpoint"].values
        self.layers = (
            self.activations["layer"].values
            if "layer" in self.activations.coords
            else np.arange(self.ids.sizes["layer"])
        )
        self.tokens = _recorded_tokens(self.activations)
        self.experts = int(self.activations.sizes.get("expert", 0)) or 1 + max(
            int(self.ids.isel(checkpoint=c).max()) for c in range(len(self.steps))
        )

    def at(self, position: int) -> Routing:
        """The routing of the checkpoint at that place on the checkpoint axis.

        Raises:
            SchemaError: nothing was captured there.
        """
        ids = self.ids.isel(checkpoint=position).values.astype(np.int64)
        if (ids < 0).all():
            raise SchemaError(
                f"expert_ids at step {self.steps[position]} has no expert at all, expected ids "
                "from 0: was this checkpoint captured?"
            )
        probs = None if self.probs is None else self.probs.isel(checkpoint=position).values
        return Routing(
            tokens=self.tokens,
            ids=ids,
            experts=self.experts,
            layers=self.layers,
            probs=probs,
            step=int(self.steps[position]),
        )

    def clocks(self) -> dict[str, Any]:
        """The coordinates along `checkpoint`."""
        coords = self.activations.coords
        return {
            str(name): coord.variable
            for name, coord in coords.items()
            if coord.dims == ("checkpoint",)
        } | {"checkpoint": self.steps}

    def __iter__(self) -> Iterator[Routing]:
        return (self.at(c) for c in range(len(self.steps)))


def over_checkpoints(
    source: Source | Subject, measure: Callable[[Routing], xr.Dataset], *, probs: bool = False
) -> xr.Dataset:
    """`measure` of a Subject's routing; or of every checkpoint of a record, along `checkpoint`.

    Example:
        >>> ids = np.array([[[[0]], [[1]]], [[[1]], [[1]]]])
        >>> record = xr.Dataset(
        ...     {"expert_ids": (("checkpoint", "token", "layer", "k"), ids)},
        ...     coords={"checkpoint": [10, 20], "domain": ("token", ["a", "a"])},
        ... )
        >>> load = lambda r: r.result({"load": (("layer", "expert"), r.counts.sum(0))}, {})
        >>> over_checkpoints(record, load)["load"].values.tolist()
        [[[1.0, 1.0]], [[0.0, 2.0]]]
    """
    if is_subject(source):
        return measure(routing_of(source, probs=probs))
    record = RecordedRouting(source, probs=probs)
    return stacked([measure(routing) for routing in record], record.clocks())


def stacked(parts: list[xr.Dataset], clocks: dict[str, Any]) -> xr.Dataset:
    """Results of one checkpoint each put together along `checkpoint`; attrs of the last."""
    last = parts[-1]
    variables = {
        name: (
            ("checkpoint", *last[name].dims),
            np.stack([part[name].values for part in parts]),
            last[name].attrs,
        )
        for name in map(str, last.data_vars)
    }
    return xr.Dataset(variables, coords={**last.coords, **clocks}, attrs=last.attrs)


def _recorded_tokens(activations: xr.Dataset) -> FixedTokens:
    count = activations.sizes["token"]
    if count < 2:
        raise UsageError(
            f"found {count} tokens, expected 2 or more; record activations on more text."
        )
    coords = activations.coords
    domain = (
        coords["domain"].values.astype(str) if "domain" in coords else np.full(count, "all text")
    )
    token_id = coords["token_id"].values if "token_id" in coords else np.full(count, -1)
    new_domain = np.r_[True, domain[1:] != domain[:-1]]
    if "document" in coords:
        document = coords["document"].values
        starts = np.flatnonzero(new_domain | np.r_[True, document[1:] != document[:-1]])
        return FixedTokens(token_id.astype(np.int64), None, domain, starts, "documents")
    length = max(1, min(BLOCK_TOKENS, count // FEWEST_BLOCKS))
    begins = np.flatnonzero(new_domain)
    since = np.arange(count) - begins[np.cumsum(new_domain) - 1]
    starts = np.flatnonzero(since % length == 0)
    return FixedTokens(token_id.astype(np.int64), None, domain, starts, "stretches of text")
