"""Every place in the model where a hook can read or change what passes, as data.

Needs   a configuration, for the number of layers and the sizes.
Yields  SITES, the table; `sites` and `aliases` with the layers filled in; `shape` of a site for a
        batch.

The names are the usual ones of TransformerLens. Where its bridge or its older models call a
router's point otherwise, ALIASES says so, and hooks can be added under either name; caches bear the
names of SITES.

Dims     batch, pos: the tokens given. head, kv_head, d_head: attention. query, key: positions that
         look and are looked at. expert: all experts of the layer. k: the chosen ones, the most
         probable first. assignment: batch x pos x k rows sorted by expert, within an expert by
         token: row n is entry argsort(hook_expert_indices.flatten(), stable)[n]. one: an axis of
         length 1.
Dtype    "model" is that of the weights, or of autocast where that is on.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from model.config import MoEConfig


@dataclass(frozen=True)
class Site:
    """One hook point: the axes of what passes there, how it is held, its unit and what it is."""

    name: str
    dims: tuple[str, ...]
    dtype: str
    unit: str
    meaning: str


_STREAM = ("batch", "pos", "d_model")
_BLOCK = "blocks.{layer}."

SITES = (
    Site("hook_embed", _STREAM, "model", "1", "Embedding of each token."),
    Site(_BLOCK + "hook_resid_pre", _STREAM, "model", "1", "Residual stream before the block."),
    Site(
        _BLOCK + "ln1.hook_scale", ("batch", "pos", "one"), "float32", "1",
        "Root of variance plus eps that the stream is divided by before attention.",
    ),
    Site(
        _BLOCK + "ln1.hook_normalized", _STREAM, "model", "1",
        "What attention reads: centred, scaled, times the norm's weight.",
    ),
    Site(
        _BLOCK + "attn.hook_q", ("batch", "pos", "head", "d_head"), "model", "1",
        "Queries, clamped, before rotation.",
    ),
    Site(
        _BLOCK + "attn.hook_k", ("batch", "pos", "kv_head", "d_head"), "model", "1",
        "Keys, clamped, before rotation.",
    ),
    Site(
        _BLOCK + "attn.hook_v", ("batch", "pos", "kv_head", "d_head"), "model", "1",
        "Values, clamped.",
    ),
    Site(
        _BLOCK + "attn.hook_rot_q", ("batch", "pos", "head", "d_head"), "model", "1",
        "Queries, rotated by position.",
    ),
    Site(
        _BLOCK + "attn.hook_rot_k", ("batch", "pos", "kv_head", "d_head"), "model", "1",
        "Keys, rotated by position.",
    ),
    Site(
        _BLOCK + "attn.hook_attn_scores", ("batch", "head", "query", "key"), "model", "logits",
        "Scaled products of queries and keys; minus infinity at later positions.",
    ),
    Site(
        _BLOCK + "attn.hook_pattern", ("batch", "head", "query", "key"), "model", "1",
        "Softmax of the scores over keys.",
    ),
    Site(
        _BLOCK + "attn.hook_z", ("batch", "pos", "head", "d_head"), "model", "1",
        "Values mixed by the pattern, one vector a head.",
    ),
    Site(
        _BLOCK + "hook_attn_out", _STREAM, "model", "1",
        "What attention adds to the residual stream.",
    ),
    Site(
        _BLOCK + "hook_resid_mid", _STREAM, "model", "1",
        "Residual stream between attention and experts.",
    ),
    Site(
        _BLOCK + "ln2.hook_scale", ("batch", "pos", "one"), "float32", "1",
        "Root of variance plus eps that the stream is divided by before the experts.",
    ),
    Site(
        _BLOCK + "ln2.hook_normalized", _STREAM, "model", "1",
        "What router and experts read: centred, scaled, times the norm's weight.",
    ),
    Site(
        _BLOCK + "mlp.router.hook_logits", ("batch", "pos", "expert"), "float32", "logits",
        "Router logits of all experts.",
    ),
    Site(
        _BLOCK + "mlp.router.hook_probs", ("batch", "pos", "expert"), "float32", "1",
        "Softmax of the router logits over all experts.",
    ),
    Site(
        _BLOCK + "mlp.router.hook_expert_indices", ("batch", "pos", "k"), "int64", "expert",
        "The chosen experts; gates are made for what a hook puts here.",
    ),
    Site(
        _BLOCK + "mlp.router.hook_expert_weights", ("batch", "pos", "k"), "float32", "1",
        "Gates: the chosen experts' probabilities over their sum.",
    ),
    Site(
        _BLOCK + "mlp.experts.hook_pre", ("assignment", "d_mlp"), "model", "1",
        "Gate branch of the expert that the token is assigned to, before silu.",
    ),
    Site(
        _BLOCK + "mlp.experts.hook_pre_linear", ("assignment", "d_mlp"), "model", "1",
        "Linear branch of the expert that the token is assigned to.",
    ),
    Site(
        _BLOCK + "mlp.experts.hook_post", ("assignment", "d_mlp"), "model", "1",
        "Hidden layer of the expert: silu(gate branch) times linear branch, not yet gated.",
    ),
    Site(
        _BLOCK + "hook_mlp_out", _STREAM, "model", "1",
        "What the experts add to the residual stream: their outputs times gates, summed.",
    ),
    Site(_BLOCK + "hook_resid_post", _STREAM, "model", "1", "Residual stream after the block."),
    Site(
        "ln_final.hook_scale", ("batch", "pos", "one"), "float32", "1",
        "Root of variance plus eps that the last stream is divided by.",
    ),
    Site(
        "ln_final.hook_normalized", _STREAM, "model", "1",
        "What the output matrix reads: centred, scaled, times the norm's weight.",
    ),
)  # fmt: skip
"""In the order in which a forward pass meets them."""

ALIASES = {
    _BLOCK + "mlp.router.hook_out": _BLOCK + "mlp.router.hook_logits",
    _BLOCK + "mlp.hook_expert_indices": _BLOCK + "mlp.router.hook_expert_indices",
    _BLOCK + "mlp.hook_expert_weights": _BLOCK + "mlp.router.hook_expert_weights",
}
"""Other names of TransformerLens for the same points."""


def sites(config: MoEConfig) -> dict[str, Site]:
    """Every site of a model, full name -> site, in the order of the forward pass.

    Example:
        >>> from model.config import NANO
        >>> sites(NANO)["blocks.2.mlp.router.hook_probs"].dims
        ('batch', 'pos', 'expert')
    """
    first = next(i for i, s in enumerate(SITES) if s.name.startswith(_BLOCK))
    inside = [s for s in SITES if s.name.startswith(_BLOCK)]
    table = {s.name: s for s in SITES[:first]}
    for layer in range(config.n_layers):
        table |= {s.name.format(layer=layer): s for s in inside}
    return table | {s.name: s for s in SITES[first + len(inside) :]}


def aliases(config: MoEConfig) -> dict[str, str]:
    """Every alias of a model, full alias -> full name.

    Example:
        >>> from model.config import NANO
        >>> aliases(NANO)["blocks.0.mlp.hook_expert_indices"]
        'blocks.0.mlp.router.hook_expert_indices'
    """
    return {
        alias.format(layer=layer): name.format(layer=layer)
        for layer in range(config.n_layers)
        for alias, name in ALIASES.items()
    }


def shape(site: Site, config: MoEConfig, batch: int, pos: int) -> tuple[int, ...]:
    """Sizes of what passes at a site when (batch, pos) tokens are given.

    Example:
        >>> from model.config import NANO
        >>> shape(sites(NANO)["blocks.0.mlp.experts.hook_post"], NANO, batch=2, pos=5)
        (40, 48)
    """
    sizes = {
        "batch": batch,
        "pos": pos,
        "query": pos,
        "key": pos,
        "d_model": config.d_model,
        "head": config.n_heads,
        "kv_head": config.n_key_value_heads,
        "d_head": config.d_head,
        "expert": config.num_experts,
        "k": config.experts_per_token,
        "assignment": batch * pos * config.experts_per_token,
        "d_mlp": config.d_mlp,
        "one": 1,
    }
    return tuple(sizes[dim] for dim in site.dims)


class Sites(dict[str, Any]):
    """Names to modules; a name that is not there is answered with the nearest one that is."""

    def __missing__(self, name: str) -> Any:
        near = difflib.get_close_matches(name, self, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise KeyError(f"no site {name!r}; model/sites.py lists them all.{hint}")
