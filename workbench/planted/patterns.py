"""Patterns: routing of fixed tokens by known sets of experts, so that every structure is known.

Needs   sets of k experts (patterns) and how often each domain, or token id, takes each of them.
Yields  a dataset like run.activations, and what is true of it: shares, lifts, information, flow.

A token takes one pattern. Which, follows from its domain (or its id) and from its row: the rows of
a domain differ about the domain's own distribution, so that tokens of a row are dependent, as text
is; over rows the distribution is the domain's exactly.

Shapes: D domains, P patterns, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from workbench.errors import UsageError
from workbench.store.schema import conform

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Patterns:
    """A router whose structure is known.

    Example:
        >>> pairs = Patterns(sets=[[0, 1], [2, 3]], mix=[[0.5, 0.5]], experts=4)
        >>> pairs.lift[0].round(6).tolist()
        [2.0, 2.0, 0.0, 0.0]
    """

    sets: list[list[int]]
    """(pattern, k): experts of each pattern, the most probable first."""
    mix: list[list[float]]
    """(domain, pattern): how often each domain takes each pattern. With `by_id`, of each id."""
    experts: int
    stay: float = 0.0
    """Chance that the next layer takes the same pattern; else it draws by the domain afresh."""
    by_id: bool = False
    """The token's id decides, instead of its domain; ids are 0 to rows of mix - 1."""
    names: list[str] = field(default_factory=list)
    """Names of the domains; domain 0, domain 1, ... where none are given."""

    def __post_init__(self) -> None:
        mix = np.asarray(self.mix, dtype=float)
        if mix.ndim != 2 or not np.allclose(mix.sum(axis=1), 1) or mix.shape[1] != len(self.sets):
            raise UsageError(
                f"mix of shape {mix.shape}: expected (domain, {len(self.sets)} patterns), rows "
                "that sum to 1."
            )

    @property
    def k(self) -> int:
        return len(self.sets[0])

    @property
    def member(self) -> Floats:
        """(pattern, expert): 1 where the expert is in the set."""
        hot = np.zeros((len(self.sets), self.experts))
        for row, chosen in zip(hot, self.sets, strict=True):
            row[chosen] = 1
        return hot

    @property
    def share(self) -> Floats:
        """(domain, expert): P(expert in S | domain), or given the id; all rows equally frequent."""
        return np.asarray(self.mix, dtype=float) @ self.member

    @property
    def lift(self) -> Floats:
        """(expert, expert2): N_ij N / (N_i N_j); NaN for experts that are never taken."""
        often = np.asarray(self.mix, dtype=float).mean(axis=0)
        both = self.member.T @ (often[:, None] * self.member)
        load = np.diag(both)
        below = load[:, None] * load[None, :]
        return np.divide(both, below, out=np.full_like(both, np.nan), where=below > 0)

    @property
    def information(self) -> float:
        """I(expert; domain), bits, of an assignment picked at random."""
        joint = self.share / self.share.sum()
        return _information(joint)

    def flow(self, like: float | None = None) -> float:
        """I(expert; expert of the next layer), bits, of experts picked at random, where rows differ
        as in `record(like=like)`.
        """
        mix = np.asarray(self.mix, dtype=float)
        own = np.eye(len(self.sets)) * mix[:, None, :]
        apart = mix[:, :, None] * mix[:, None, :]
        # Second moments of a Dirichlet: tokens of a row share what it prefers.
        both = apart if like is None else (like * apart + own) / (like + 1)
        pairs = self.stay * own.mean(axis=0) + (1 - self.stay) * both.mean(axis=0)
        return _information(self.member.T @ pairs @ self.member / self.k**2)

    def record(
        self,
        *,
        rows: int = 8,
        row_tokens: int = 64,
        layers: int = 1,
        checkpoints: int = 1,
        like: float | None = None,
        rows_by_layer: bool = False,
        seed: int = 0,
    ) -> xr.Dataset:
        """Activations of `rows` rows a domain, each a document.

        Args:
            rows, row_tokens, layers, checkpoints: sizes.
            like: concentration of a row's distribution about its domain's; None: rows are alike and
                tokens independent, 10: rows differ much.
            rows_by_layer: a row differs in each layer in its own way: no flow but by the domain.
            seed: each draws another text.

        Example:
            >>> router = Patterns(sets=[[0], [1]], mix=[[1.0, 0.0], [0.0, 1.0]], experts=2)
            >>> router.record(rows=2, row_tokens=4)["expert_ids"].values.ravel().tolist()
            [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
        """
        rng = np.random.default_rng(seed)
        mix, sets = np.asarray(self.mix, dtype=float), np.asarray(self.sets)
        domains = 4 if self.by_id else len(mix)
        names = self.names or [f"domain {d}" for d in range(domains)]
        count = domains * rows * row_tokens
        domain = np.repeat(np.arange(domains), rows * row_tokens)
        token_id = rng.integers(0, len(mix) if self.by_id else 200, count)
        row = np.repeat(np.arange(domains * rows), row_tokens)
        which = token_id if self.by_id else domain
        ids = np.empty((checkpoints, count, layers, self.k), dtype=np.int16)
        for c in range(checkpoints):
            taken = np.zeros(count, dtype=np.intp)
            for layer in range(layers):
                if layer == 0 or rows_by_layer:
                    of_row = np.stack([_rows(mix, like, rng) for _ in range(domains * rows)])
                    chance = of_row[row, which]
                if layer == 0:
                    taken = _drawn(chance, rng)
                else:
                    fresh = rng.uniform(size=count) >= self.stay
                    taken = np.where(fresh, _drawn(chance, rng), taken)
                ids[c, :, layer] = sets[taken]
        probs = np.full((*ids.shape[:3], self.experts), 0.01, dtype=np.float32)
        ranked = np.linspace(1.2, 1.0, self.k).astype(np.float32)
        np.put_along_axis(probs, ids.astype(np.int64), ranked, axis=-1)
        probs /= probs.sum(axis=-1, keepdims=True)
        steps = np.arange(checkpoints, dtype=np.int64) * 100
        record = xr.Dataset(
            {
                "expert_ids": (("checkpoint", "token", "layer", "k"), ids),
                "router_probs": (("checkpoint", "token", "layer", "expert"), probs),
            },
            coords={
                "checkpoint": steps,
                "tokens_seen": ("checkpoint", steps * 4096),
                "token": np.arange(count),
                "layer": np.arange(layers),
                "k": np.arange(self.k),
                "expert": np.arange(self.experts),
                "token_id": ("token", token_id),
                "domain": ("token", np.asarray(names)[domain]),
                "document": ("token", row),
            },
        )
        about = {"run": "planted", "branch": "main", "k": self.k}
        return conform(record, "activations").assign_attrs(about)


def _rows(mix: Floats, like: float | None, rng: np.random.Generator) -> Floats:
    """One row's distributions (domain, pattern), about the domain's; their mean is the domain's."""
    if like is None:
        return mix
    # Gammas over their sum are a Dirichlet draw; a pattern that is never taken stays so.
    drawn = rng.gamma(np.maximum(mix * like, 1e-12)) * (mix > 0)
    total = drawn.sum(axis=1, keepdims=True)
    return np.divide(drawn, total, out=mix.copy(), where=total > 0)


def _drawn(chance: Floats, rng: np.random.Generator) -> NDArray[np.intp]:
    """One pattern a token, from (token, pattern) chances."""
    level = rng.uniform(size=(len(chance), 1)) * chance.sum(axis=1, keepdims=True)
    return np.minimum((chance.cumsum(axis=1) < level).sum(axis=1), chance.shape[1] - 1)


def _information(joint: Floats) -> float:
    outer = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    there = joint > 0
    return float((joint[there] * np.log2(joint[there] / outer[there])).sum())
