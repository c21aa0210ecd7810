"""Hugging Face routers that return something else than logits, ids and gates made of them.

Needs   a router of one of the classes named here, and the module that holds it.
Yields  `EXCEPTIONS`: the class's name to what its output means; `REFUSED`: the class's name to why
        it cannot be captured.

Checked against transformers 5.23. Where a router keeps its choice to itself, the same operation is
done again on the same logits, which gives the same ids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from workbench.capture.adapters.meaning import Meaning, reader
from workbench.capture.adapters.router_site import Reading, Scores

# Shapes: T tokens of all rows of one forward, row by row; E experts; K chosen a token.


def _dbrx(router: Any, holder: Any) -> Meaning:
    """Returns logits alone; its holder chooses. Jitter is applied to the hidden states before."""

    def read(logits_TE: Tensor) -> Reading:
        logits_TE = logits_TE.detach()
        gates_TK, ids_TK = holder.route_tokens_to_experts(logits_TE)
        return Reading(logits_TE, ids_TK, gates_TK)

    E = router.layer.weight.shape[0]
    return Meaning(E, holder.top_k, Scores.LOGITS, read, "the block's own choice, made again")


def _llama4(router: Any, holder: Any) -> Meaning:
    """Returns sigmoids (token, expert), 0 where not chosen, and logits; the gates weigh the
    experts' inputs.
    """
    k = router.top_k

    def read(output: tuple[Tensor, Tensor]) -> Reading:
        scores_TE, logits_TE = (o.detach() for o in output)
        ids_TK = logits_TE.topk(k, dim=1).indices
        return Reading(logits_TE, ids_TK, scores_TE.gather(1, ids_TK))

    return Meaning(router.weight.shape[0], k, Scores.SIGMOID, read, "top k of the logits again")


def _jetmoe(router: Any, holder: Any) -> Meaning:
    """Returns tokens sorted by expert, for feed-forward and for attention experts alike."""
    k = router.top_k

    def read(output: tuple[Any, ...]) -> Reading:
        logits_TE = output[4].detach()
        chosen_TK, ids_TK = logits_TE.topk(k, dim=1)
        return Reading(logits_TE, ids_TK, chosen_TK.softmax(1))

    E = router.layer.weight.shape[0]
    return Meaning(E, k, Scores.LOGITS, read, "top k of the logits again")


def _doge(block: Any, holder: Any) -> Meaning:
    """Product keys: the logit of expert (x, y) is the sum of a logit for x and one for y, and the
    square of keys is the number of experts.
    """
    k, keys = block.top_k, block.num_keys

    def read(output: tuple[Tensor, Tensor]) -> Reading:
        x_TG, y_TG = output[1].detach().unbind(0)
        # The block's own order of operations, so that ties fall alike.
        (best_x, of_x), (best_y, of_y) = x_TG.topk(keys, dim=-1), y_TG.topk(keys, dim=-1)
        sums_TE = (best_x.unsqueeze(-1) + best_y.unsqueeze(-2)).flatten(-2)
        ids_TE = (of_x.unsqueeze(-1) * keys + of_y.unsqueeze(-2)).flatten(-2)
        chosen_TK, at_TK = sums_TE.topk(k, dim=-1)
        logits_TE = (x_TG.unsqueeze(-1) + y_TG.unsqueeze(-2)).flatten(-2)
        return Reading(logits_TE, ids_TE.gather(-1, at_TK), chosen_TK.softmax(-1))

    return Meaning(keys**2, k, Scores.LOGITS, read, "the block's own choice, made again")


def _phimoe(router: Any, holder: Any) -> Meaning:
    """Sparse mixer: each gate is a softmax over the experts that come near it, so the k gates sum
    to about k; in training the choice is sampled.
    """
    read = reader(0, 2, 1, router.num_experts)
    return Meaning(
        router.num_experts, router.top_k, Scores.LOGITS, read, "the router's output"
    )  # fmt: skip


def _zaya(router: Any, holder: Any) -> Meaning:
    """One class more than experts: to skip them. The router returns expert 0 with weight 0 for it;
    recorded is the class itself, the last id.
    """
    classes = router.num_router_classes
    plain = reader(0, 2, 1, classes)

    def read(output: Any) -> Reading:
        reading = plain(output)
        skipped_TK = reading.gates_TK == 0
        return reading._replace(ids_TK=reading.ids_TK.masked_fill(skipped_TK, classes - 1))

    return Meaning(
        classes, router.top_k, Scores.LOGITS, read, "the router's output; last id: skipped"
    )  # fmt: skip


def _hash(router: Any, holder: Any) -> Meaning:
    """Experts come from a table by token id; logits weigh them alone."""
    read = reader(0, 2, 1, router.num_experts, router.score_fn)
    return Meaning(
        router.num_experts, router.top_k, Scores.PROBABILITIES, read, "the router's output"
    )  # fmt: skip


def _switch(router: Any, holder: Any) -> Meaning:
    """Returns the one chosen expert one-hot, all zero where its capacity was full."""
    E = router.num_experts

    def read(output: tuple[Tensor, Tensor, Tensor]) -> Reading:
        onehot_TE, gates, logits = (o.detach() for o in output)
        onehot_TE = onehot_TE.reshape(-1, E)
        taken = onehot_TE.sum(-1, keepdim=True) > 0
        ids_TK = torch.where(taken, onehot_TE.argmax(-1, keepdim=True), -1)
        return Reading(logits.reshape(-1, E), ids_TK, gates.reshape(-1, 1))

    return Meaning(E, 1, Scores.LOGITS, read, "the router's one-hot output; -1: over capacity")


EXCEPTIONS: dict[str, Callable[[nn.Module, nn.Module], Meaning]] = {
    "DbrxRouter": _dbrx,
    "Llama4Router": _llama4,
    "JetMoeTopKGating": _jetmoe,
    "DogeCDMoE": _doge,
    "PhimoeTopKRouter": _phimoe,
    "ZayaRouter": _zaya,
    "DeepseekV4HashRouter": _hash,
    "SwitchTransformersTop1Router": _switch,
}

ALSO_ROUTERS = {"DeepseekV4HashRouter"}
"""Routers that the model's recorder does not name."""

WITHIN = {"Ernie4_5_VLMoeMoeBlock": "text_moe.gate", "JetMoeAttention": "experts.router"}
"""What the recorder names holds the router, at this path. Of Ernie's two, the one for text."""

REFUSED = {
    "NllbMoeTop2Router": (
        "its experts do not follow the router: a one-hot of the router's 0/1 mask sends every "
        "token's first choice to expert 1 and its second to expert 0, whatever was chosen"
    ),
}


def named(module: nn.Module, table: Any) -> str | None:
    """The name under which a module's class, or one it was made from, is in a table."""
    return next((c.__name__ for c in type(module).__mro__ if c.__name__ in table), None)
