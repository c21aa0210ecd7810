"""DBRX in TransformerLens's bridge: hooks on every part and all its tools, on our released models.

Needs   a Hugging Face DBRX: a folder that `model.hf.save_hf` wrote, or one by anybody else; or a
        MoELM.
Yields  DbrxAdapter, which TransformerLens finds by the entry point `transformer_lens.architectures`
        once this package is installed; `bridge_of`, the bridge of a MoELM without files.

    import model.bridge_dbrx
    from transformer_lens.model_bridge import TransformerBridge
    bridge = TransformerBridge.boot_transformers("path/to/folder", device="cpu")

The first line is for TransformerLens 4.3, which asks for entry points only after it has refused
what it does not know.

Where the parts are:
    embed, blocks.{i}.{ln1, attn, ln2, mlp}, ln_final, unembed
    blocks.{i}.attn.hook_q, hook_k, hook_v     clamped, before rotation, (batch, pos, head, d_head);
                                               keys and values have the heads of their groups
    blocks.{i}.attn.hook_attn_scores, hook_pattern, hook_z
    blocks.{i}.hook_resid_pre, hook_resid_mid, hook_resid_post, hook_attn_out, hook_mlp_out
    blocks.{i}.mlp.gate.hook_out               router logits (token, expert)
    blocks.{i}.mlp.hook_expert_indices         chosen experts (token, k)
    blocks.{i}.mlp.hook_expert_weights         their gates, 0 for the others (token, expert)

Two things are done to the model before it is wrapped, without changing what it computes. DBRX's
router gives logits and its layer chooses the experts; here the router chooses, so that a hook can
choose otherwise. The stream between attention and experts passes a point of its own, so that what
a hook puts there stays in the stream; the bridge's usual place for it, the input of the norm, would
reach the experts alone.

Compatibility mode folds the norms into all that reads them, router and experts included.

The bridge takes the model that it is given apart: never give it one that is to be trained or saved.
The hidden layers of single experts have no hooks there; those of MoELM have.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import (
    BlockBridge,
    EmbeddingBridge,
    JointQKVPositionEmbeddingsAttentionBridge,
    LinearBridge,
    MoEBridge,
    MoERouterBridge,
    NormalizationBridge,
    RotaryEmbeddingBridge,
    UnembeddingBridge,
)
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import DbrxConfig, DbrxForCausalLM
from transformers.models.dbrx.modeling_dbrx import DbrxFFN, DbrxNormAttentionNorm

from model.hf import _hf_tensors
from model.hf_config import config_to_hf
from model.lm import MoELM

# Shapes: B batch, P position, T tokens (B x P), D d_model, E experts, K experts per token.


class DbrxAdapter(ArchitectureAdapter):
    """Says which module of `DbrxForCausalLM` is which part of TransformerLens's bridge.

    Example:
        >>> from model.config import NANO
        >>> bridge = bridge_of(MoELM(NANO))
        >>> type(bridge.adapter).__name__, bridge.cfg.num_experts, bridge.cfg.n_key_value_heads
        ('DbrxAdapter', 16, 4)
    """

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        c = self.cfg
        c.normalization_type = "LN"
        c.uses_rms_norm = c.final_rms = False
        c.positional_embedding_type = "rotary"
        c.gated_mlp = True
        c.attn_only = False
        c.act_fn = "silu"
        c.eps = 1e-5
        # Any other implementation forms no pattern.
        c.attn_implementation = "eager"
        self.weight_processing_conversions = self._qkvo_weight_conversions()
        self.component_mapping = {
            "embed": EmbeddingBridge(name="transformer.wte"),
            "rotary_emb": RotaryEmbeddingBridge(name="transformer.rotary_emb"),
            "blocks": BlockBridge(
                name="transformer.blocks",
                config=c,
                submodules={
                    "ln1": NormalizationBridge(name="norm_attn_norm.norm_1", config=c),
                    "attn": DbrxAttentionBridge(
                        name="norm_attn_norm.attn",
                        config=c,
                        split_qkv_matrix=split_qkv,
                        submodules={
                            "qkv": LinearBridge(name="Wqkv"),
                            "o": LinearBridge(name="out_proj"),
                        },
                    ),
                    "mid": LinearBridge(name="norm_attn_norm.mid"),
                    "ln2": NormalizationBridge(name="norm_attn_norm.norm_2", config=c),
                    "mlp": MoEBridge(
                        name="ffn", config=c, submodules={"gate": DbrxRouterBridge(name="router")}
                    ),
                },
                hook_alias_overrides={"hook_resid_mid": "mid.hook_out"},
            ),
            "ln_final": NormalizationBridge(name="transformer.norm_f", config=c),
            "unembed": UnembeddingBridge(name="lm_head", config=c),
        }

    def prepare_model(self, hf_model: Any) -> None:
        """Takes from the model what the outer configuration does not say, and opens its blocks."""
        super().prepare_model(hf_model)
        ffn = hf_model.config.ffn_config
        self.cfg.d_mlp = ffn.ffn_hidden_size
        self.cfg.num_experts = ffn.moe_num_experts
        self.cfg.experts_per_token = ffn.moe_top_k
        self.cfg.act_fn = ffn.ffn_act_fn["name"]
        for block in hf_model.transformer.blocks:
            block.norm_attn_norm.__class__ = _NormAttentionNorm
            block.norm_attn_norm.mid = nn.Identity()
            block.ffn.__class__ = _FFN
            block.ffn.router.experts_per_token = block.ffn.top_k
            block.ffn.router.norm_order = block.ffn.moe_normalize_expert_weights

    @torch.no_grad()
    def postprocess_weights(self, bridge: Any) -> None:
        """Folds the second norm of each block into router and experts.

        TransformerLens leaves it alone, because it does not know these experts' weights.
        """
        if not self._fold_ln_requested:
            return
        for block in bridge.blocks:
            scale_D = block.ln2.weight
            readers = [block.mlp.gate.original_component.layer.weight]
            readers += [block.mlp.experts.mlp.w1, block.mlp.experts.mlp.v1]
            for weight in readers:
                weight.mul_(scale_D.to(weight.dtype))
            scale_D.fill_(1.0)


class DbrxAttentionBridge(JointQKVPositionEmbeddingsAttentionBridge):
    """Attention taken apart at queries, keys, values, scores, pattern and mix.

    As the original, the softmax runs in float32.
    """

    def _split_forward_qkv(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """With an input of its own for each head: this path leaves out the modules, and the clamp
        with them.
        """
        clip = self.original_component.clip_qkv
        parts = super()._split_forward_qkv(hidden_states)
        q, k, v = (p if clip is None else p.clamp(-clip, clip) for p in parts)
        return q, k, v

    def _create_qkv_conversion_rule(self) -> Any:
        """None: set below, when the widths are known."""
        return None

    def set_original_component(self, original_component: nn.Module) -> None:
        """Adopts the layer; its keys and values have fewer heads than its queries."""
        super().set_original_component(original_component)
        self._setup_qkv_hook_reshaping()

    def _softmax_dropout_pattern(self, attn_scores: Tensor, *_: Any, **__: Any) -> Tensor:
        """The pattern (batch, head, query, key), in the dtype of the scores."""
        pattern: Tensor = super()._softmax_dropout_pattern(
            attn_scores, target_dtype=attn_scores.dtype, upcast_to_fp32=True
        )
        return pattern


class ClampedLinear(nn.Linear):
    """A part of Wqkv: a linear map whose results are clamped to ±clip."""

    def __init__(self, weight: Tensor, clip: float | None) -> None:
        # On meta, because the weight is there already: a view into Wqkv, not a copy.
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = nn.Parameter(weight)
        self.clip = clip

    def forward(self, input: Tensor) -> Tensor:
        """The clamped product (..., out)."""
        product = F.linear(input, self.weight)
        return product if self.clip is None else product.clamp(-self.clip, self.clip)


def split_qkv(attention: Any) -> tuple[ClampedLinear, ClampedLinear, ClampedLinear]:
    """The maps to queries, keys and values of a `DbrxAttention`, each with its clamp."""
    keys = attention.num_key_value_heads * attention.head_dim
    q, k, v = attention.Wqkv.weight.detach().split([attention.hidden_size, keys, keys])
    clip = attention.clip_qkv
    return ClampedLinear(q, clip), ClampedLinear(k, clip), ClampedLinear(v, clip)


class DbrxRouterBridge(MoERouterBridge):
    """DBRX's router, which also chooses; hooks act on the choice in the order of MoELM's router.

    What a hook puts into the logits decides the choice; what it puts into the ids gets gates of its
    own; and what it puts into the gates of all experts decides which k of them are taken.
    """

    def forward(self, input: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (token, expert), gates and ids of the chosen experts (token, k)."""
        router: Any = self.original_component
        logits_TE = self.hook_out(router(self.hook_in(input)))
        probs_TE = logits_TE.softmax(-1)
        ids_TK = probs_TE.topk(router.experts_per_token, dim=-1).indices
        ids_TK = self.hook_expert_indices(ids_TK)
        gates_TK = probs_TE.gather(-1, ids_TK)
        if router.norm_order is not None:
            gates_TK = gates_TK / gates_TK.norm(p=router.norm_order, dim=-1, keepdim=True)
        spread_TE = torch.zeros_like(probs_TE).scatter(-1, ids_TK, gates_TK)
        gates_TK, ids_TK = self.hook_expert_weights(spread_TE).topk(ids_TK.shape[-1], dim=-1)
        return logits_TE, gates_TK, ids_TK


class _FFN(DbrxFFN):
    """DBRX's mixture of experts, which takes its router's choice."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Gate-weighted sum of the chosen experts (batch, pos, d_model)."""
        _, gates_TK, ids_TK = self.router(hidden_states)
        mixed: Tensor = self.experts(hidden_states, ids_TK, gates_TK)
        return mixed


class _NormAttentionNorm(DbrxNormAttentionNorm):
    """DBRX's first half of a block, in which the stream after attention passes `mid`."""

    mid: nn.Module

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The stream after attention, and what the experts read; both (batch, pos, d_model)."""
        normed = self.norm_1(hidden_states).to(hidden_states.dtype)
        added, _ = self.attn(hidden_states=normed, **kwargs)
        added = F.dropout(added, p=self.resid_pdrop, training=self.training)
        stream = self.mid(added + hidden_states)
        return stream, self.norm_2(stream).to(stream.dtype)


def bridge_of(lm: MoELM) -> Any:
    """A bridge with a copy of a MoELM's weights: every tool of TransformerLens on a checkpoint.

    MoELM has hook points of its own, which suffice for caches and patching by hooks; tools that
    want a bridge (`transformer_lens.patching`, `tools.analysis`) get one here.

    Returns:
        `TransformerBridge`, in evaluation mode, on the device and in the dtype of `lm`.

    Raises:
        ConfigError: Hugging Face's DBRX cannot be this model.

    Example:
        >>> from model.config import NANO
        >>> bridge = bridge_of(MoELM(NANO, seed=0))
        >>> tuple(bridge(torch.zeros(1, 5, dtype=torch.long)).shape)
        (1, 5, 768)
    """
    place = lm.unembed.weight
    config = DbrxConfig(**config_to_hf(lm.cfg, dtype=place.dtype))
    dbrx = DbrxForCausalLM._from_config(config, attn_implementation="eager", dtype=place.dtype)
    dbrx.load_state_dict(dict(_hf_tensors(lm)))
    return build_bridge_from_module(
        dbrx.to(place.device).eval(), "DbrxForCausalLM", hf_config=config, model_name="MoELM"
    )


# TransformerLens 4.3 looks into this table, to see whether it knows the architecture of a folder,
# before it looks for entry points.
SUPPORTED_ARCHITECTURES.setdefault("DbrxForCausalLM", DbrxAdapter)
