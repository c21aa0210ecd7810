"""What must hold between the numbers of a record, whoever wrote it.

Needs   some rows of one group, the growing dim first, and the store's layout.
Yields  Findings: the first row that breaks a rule, and how many do.

Only what is true of every run is a rule. A model that has diverged gives NaN, and NaN is then the
true record: it breaks none. A row of integers that are all -1 was not recorded, and is passed over.

Shapes: n rows, L layers, E experts, B bins, D domains, K experts chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from workbench.store.layout import Layout
from workbench.store.ragged import faults_of_offsets

Block = Mapping[str, np.ndarray]

SLACK = 1e-3
"""Room for float32 sums and means, relative."""


class Finding(NamedTuple):
    """Rows that break a rule."""

    variable: str
    rule: str
    """What is expected, in words; the same rule, the same words."""
    row: int
    """The first row that breaks it, counted in the block."""
    place: str
    """Where in that row."""
    found: str
    times: int


def broken(
    variable: str, rule: str, bad: np.ndarray, shown: np.ndarray, axes: tuple[str, ...] = ()
) -> Iterator[Finding]:
    """A Finding where anything of `bad` is true; `shown` holds the numbers to tell."""
    if not bad.any():
        return
    first = np.unravel_index(int(np.argmax(bad)), bad.shape)
    rows = bad.any(axis=tuple(range(1, bad.ndim))) if bad.ndim > 1 else bad
    place = ", ".join(f"{axis} {i}" for axis, i in zip(axes, first[1:], strict=False))
    number = shown[first]
    found = str(number) if shown.dtype.names is None else f"{number[0]} where {number[1]} is due"
    yield Finding(variable, rule, int(first[0]), place, found, int(rows.sum()))


def given(values: np.ndarray) -> np.ndarray:
    """Which rows were recorded: (n,) bool."""
    if values.dtype.kind == "f" or values.ndim == 0:
        return np.ones(values.shape[:1], bool)
    return (values != -1).any(axis=tuple(range(1, values.ndim)))


def _over_rows(mask_n: np.ndarray, like: np.ndarray) -> np.ndarray:
    return mask_n.reshape(-1, *[1] * (like.ndim - 1))


def ascending(name: str, labels: np.ndarray, least: int, previous: int | None) -> Iterator[Finding]:
    """Labels that do not ascend by `least`, from the one before the block on."""
    before = labels[0] - least if previous is None else previous
    steps = np.diff(labels, prepend=before)
    rule = "labels that ascend" if least else "labels that do not descend"
    yield from broken(name, rule, (steps < least) | (labels < 0), labels)


def of_router(block: Block, layout: Layout, *, drops: bool) -> Iterator[Finding]:
    """Rows of `router` along step.

    Args:
        drops: whether a router may send a token to fewer than k experts.
    """
    tokens = block.get("tokens")
    counts = block.get("assignments")
    if tokens is not None:
        yield from broken("tokens", "0 or more", given(tokens) & (tokens < 0), tokens)
    if counts is not None:
        there = given(counts)
        bad = _over_rows(there, counts) & (counts < 0)
        yield from broken("assignments", "0 or more", bad, counts, ("layer", "expert"))
        if tokens is not None:
            rule = "counts wherever `tokens` were counted"
            yield from broken("assignments", rule, ~there & given(tokens), there)
            sums_nL = counts.sum(-1)
            want_n1 = (tokens * layout.k)[:, None]
            off = sums_nL > want_n1 if drops else sums_nL != want_n1
            off &= (there & given(tokens))[:, None]
            shown = _versus(sums_nL, np.broadcast_to(want_n1, sums_nL.shape))
            most = "at most " if drops else ""
            rule = f"a sum over experts of {most}tokens x k, k = {layout.k}"
            yield from broken("assignments", rule, off, shown, ("layer",))
    by_domain = block.get("domain_assignments")
    if by_domain is not None and counts is not None:
        off = (by_domain.sum(2) != counts) & _over_rows(given(by_domain) & given(counts), counts)
        shown = _versus(by_domain.sum(2), counts)
        rule = "a sum over domains that is `assignments`"
        yield from broken("domain_assignments", rule, off, shown, ("layer", "expert"))
    yield from _ranges(block, layout)


def _versus(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Pairs of what was found and what is due."""
    pairs = np.empty(found.shape, [("found", found.dtype), ("due", wanted.dtype)])
    pairs["found"], pairs["due"] = found, wanted
    return pairs


def _ranges(block: Block, layout: Layout) -> Iterator[Finding]:
    top = math.log(layout.experts) if layout.experts > 1 else 0.0
    limits = {
        "gate_mass": (0.0, math.inf, "0 or more"),
        "prob_mass": (0.0, math.inf, "0 or more"),
        "entropy": (0.0, top, f"0 to ln E, {top:.4f}"),
        "near_tie": (0.0, 1.0, "a share, 0 to 1"),
        "topk_mass": (0.0, 1.0, "a share, 0 to 1"),
        "z_squared": (0.0, math.inf, "0 or more"),
    }
    for name, (least, most, rule) in limits.items():
        values = block.get(name)
        if values is None:
            continue
        slack = SLACK * max(1.0, top)
        bad = (values < least - slack) | (values > most + slack)
        yield from broken(name, rule, bad, values, ("layer", "expert"))


def of_samples(block: Block, rows: Block) -> Iterator[Finding]:
    """Rows of `router` along sample.

    Args:
        rows: tokens, assignments and entropy of the same steps, where they were recorded.
    """
    pairs, histogram = block.get("coactivation"), block.get("entropy_histogram")
    counts, tokens, entropy = (rows.get(n) for n in ("assignments", "tokens", "entropy"))
    if pairs is not None:
        there = given(pairs)
        off = (pairs != pairs.swapaxes(-1, -2)) & _over_rows(there, pairs)
        axes = ("layer", "expert", "expert2")
        yield from broken("coactivation", "a symmetric table", off, pairs, axes)
        if counts is not None:
            diagonal = np.diagonal(pairs, axis1=-2, axis2=-1)
            off = (diagonal != counts) & _over_rows(there & given(counts), counts)
            rule = "a diagonal that is `assignments` of that step"
            yield from broken("coactivation", rule, off, _versus(diagonal, counts), axes[:2])
    if histogram is not None:
        there = given(histogram)
        bad = (histogram < 0) & _over_rows(there, histogram)
        yield from broken("entropy_histogram", "0 or more", bad, histogram, ("layer", "bin"))
        if tokens is not None:
            sums_nL = histogram.sum(-1)
            want_nL = np.broadcast_to(tokens[:, None], sums_nL.shape)
            # A token whose probabilities are not finite is in no bin.
            whole = np.ones(sums_nL.shape, bool) if entropy is None else np.isfinite(entropy)
            off = (sums_nL > want_nL) | (whole & (sums_nL != want_nL))
            off &= (there & given(tokens))[:, None]
            rule = "a sum over bins that is `tokens`"
            shown = _versus(sums_nL, want_nL)
            yield from broken("entropy_histogram", rule, off, shown, ("layer",))


def of_train(
    block: Block, routed: tuple[np.ndarray, np.ndarray], previous: Block | None
) -> Iterator[Finding]:
    """Rows of `train`.

    Args:
        routed: ascending steps, and the tokens that the routers counted in each.
        previous: the row before, of step and tokens_seen.
    """
    seen, steps = block.get("tokens_seen"), block["step"]
    if seen is None:
        return
    there = given(seen)
    first = {name: (previous or block)[name][:1] for name in ("step", "tokens_seen")}
    before_n = np.concatenate([first["tokens_seen"], seen[:-1]])
    grown_n = seen - before_n
    rule = "tokens that do not decrease"
    yield from broken("tokens_seen", rule, there & ((grown_n < 0) | (seen < 0)), seen)
    next_n = np.diff(steps, prepend=first["step"]) == 1
    counted_n = _at_steps(steps, *routed)
    off = there & next_n & (counted_n >= 0) & (grown_n != counted_n)
    shown = _versus(grown_n, counted_n)
    yield from broken("tokens_seen", "a growth by the router's `tokens` of the step", off, shown)
    seconds = block.get("capture_seconds")
    if seconds is not None:
        yield from broken("capture_seconds", "0 or more", seconds < 0, seconds)


def _at_steps(steps: np.ndarray, known: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Tokens of each step; -1 where they are not known."""
    if not len(known):
        return np.full(len(steps), -1)
    at_n = np.minimum(np.searchsorted(known, steps), len(known) - 1)
    return np.where(known[at_n] == steps, tokens[at_n], -1)


def of_traces(block: Block, layout: Layout) -> Iterator[Finding]:
    """Rows of `traces`."""
    ids, gates = block.get("expert_ids"), block.get("gates")
    axes = ("layer", "k")
    yield from _expert_ids(ids, layout, axes)
    if ids is not None and gates is not None:
        # A layer that saw the token gave a gate to every expert that it chose.
        off = (ids >= 0).all(-1, keepdims=True) & np.isinf(gates)
        yield from broken("gates", "finite weights, or NaN", off, gates, axes)
    for name, least in (("position", 0), ("document", -1), ("domain", -1)):
        values = block.get(name)
        if values is not None:
            yield from broken(name, f"{least} or more", values < least, values)
    domain = block.get("domain")
    if domain is not None and layout.domains:
        rule = f"a place among the {len(layout.domains)} domains, or -1"
        yield from broken("domain", rule, domain >= len(layout.domains), domain)


def _expert_ids(ids: np.ndarray | None, layout: Layout, axes: tuple[str, ...]) -> Iterator[Finding]:
    if ids is not None:
        rule = f"-1, or an expert below {layout.experts}"
        yield from broken("expert_ids", rule, (ids < -1) | (ids >= layout.experts), ids, axes)


def of_evaluations(block: Block, items: np.ndarray | None) -> Iterator[Finding]:
    """Rows of `evaluations`; `items`: how many each task has."""
    if "tokens_seen" in block:
        yield from ascending("tokens_seen", block["tokens_seen"], 0, None)
    correct, logprob = block.get("correct"), block.get("logprob")
    axes = ("task", "item")
    if correct is not None:
        bad = ~np.isin(correct, (-1, 0, 1))
        yield from broken("correct", "-1, 0 or 1", bad, correct, axes)
    if items is None:
        return
    for name, values in (("correct", correct), ("logprob", logprob)):
        if values is None:
            continue
        beyond = np.arange(values.shape[2]) >= items[:, None]
        filled = values != -1 if name == "correct" else ~np.isnan(values)
        fill = "-1" if name == "correct" else "NaN"
        rule = f"{fill} beyond the items of the task"
        yield from broken(name, rule, beyond & filled, values, axes)


def of_activations(block: Block, layout: Layout) -> Iterator[Finding]:
    """Rows of `activations`, some variables of them."""
    if "tokens_seen" in block:
        yield from ascending("tokens_seen", block["tokens_seen"], 0, None)
    yield from _expert_ids(block.get("expert_ids"), layout, ("token", "layer", "k"))
    probs = block.get("router_probs")
    if probs is not None:
        bad = (probs < -SLACK) | (probs > 1 + SLACK)
        rule = "probabilities, 0 to 1"
        yield from broken("router_probs", rule, bad, probs, ("token", "layer", "expert"))


def of_offsets(offsets: np.ndarray, before: int) -> Iterator[Finding]:
    """Offsets (n, L, E + 1) of `interiors`; `before`: where the rows before them end."""
    start_n = np.concatenate([[before], offsets[:-1, -1, -1]])
    for row, start in enumerate(start_n.tolist()):
        here = offsets[row : row + 1] - start
        faults = faults_of_offsets(here, int(here[0, -1, -1]))
        if faults:
            rule = "bounds that ascend without a gap, expert by expert and layer by layer"
            yield Finding("offsets", rule, row, "", faults[0][:160], 1)


def of_interior_rows(block: Block, layout: Layout) -> Iterator[Finding]:
    """Rows of `interiors` along row."""
    token = block.get("token")
    if token is not None and layout.tokens is not None:
        many = len(layout.tokens.ids)
        bad = (token < 0) | (token >= many)
        yield from broken("token", f"a place among the {many} probe tokens", bad, token)
