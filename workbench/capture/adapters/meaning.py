"""Meaning: what a router's output says, and where in it.

Needs   nothing but torch; made by a trial of the router (trial.py), or by name (exceptions.py).
Yields  Meaning, which makes a RouterSite; `reader`, for routers that return a tuple of logits, ids
        and gates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from workbench.capture.adapters.router_site import Reading, RouterSite, Scores, on_output

# Shapes: T tokens of all rows of one forward, row by row; E experts; K chosen a token.


@dataclass(frozen=True)
class Meaning:
    """What the output of one router says."""

    num_experts: int
    experts_per_token: int
    scores: Scores
    read: Callable[[Any], Reading]
    """From the router's output to a Reading, detached."""
    ids_from: str
    """Where the chosen experts come from, in words."""

    def site(self, name: str, router: nn.Module) -> RouterSite:
        """The site of a router that returns this: one hook, on its output."""
        return RouterSite(
            name,
            router,
            self.num_experts,
            self.experts_per_token,
            self.scores,
            on_output(router, self.read),
        )


def reader(
    logits_at: int,
    ids_at: int,
    gates_at: int,
    num_experts: int,
    score: Callable[[Tensor], Tensor] | None = None,
) -> Callable[[Any], Reading]:
    """Reads a router that returns a tuple.

    Args:
        logits_at, ids_at, gates_at: places in the tuple.
        num_experts: of the layer; tells logits that were flattened from those that were not.
        score: where the router's own distribution is score(logits) divided by its sum, that
            distribution is read in place of the logits.
    """

    def read(output: Any) -> Reading:
        # Detached: the record must not keep the graph, nor send a gradient back.
        logits_TE = output[logits_at].detach().reshape(-1, num_experts)
        ids, gates = output[ids_at].detach(), output[gates_at].detach()
        k = ids.shape[-1]
        if score is not None:
            scores_TE = score(logits_TE.float())
            logits_TE = scores_TE / scores_TE.sum(-1, keepdim=True)
        return Reading(logits_TE, ids.reshape(-1, k), gates.reshape(-1, k))

    return read
