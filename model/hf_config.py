"""A model's configuration as Hugging Face's DBRX writes it, and back.

Needs   a MoEConfig; or the contents of a DBRX config.json.
Yields  the other.

What is odd about DBRX in transformers (5.23), and what is done about it:
- The rotary base stands in `attn_config.rope_theta`, must stand there, and is not used: what is
  used is `rope_parameters.rope_theta`, 10,000 where it is missing, as in the published
  configuration. We write both and read either; where they contradict each other the caller must
  decide.
- A `clip_qkv` of null fails in the forward pass. No clamp is written as 65504, the largest number
  that float16 has, so that the clamp exists in every dtype; it is read back as no clamp.
- `moe_loss_weight` keeps the meaning that it was published with, the weight of a loss that is 1
  when even. The loss that transformers multiplies by it is k times larger and pooled over layers.
- Dropout and router jitter act in training only. We have neither, so a model that has them is
  refused unless the caller says that training is not the purpose.
- Normalisation always adds 1e-5.
"""

from __future__ import annotations

from typing import Any

import torch

from model.config import MoEConfig
from model.errors import ConfigError

NO_CLAMP = 65504.0
"""How "no clamp" is written, see above."""

_HF_EPS = 1e-5


def config_to_hf(config: MoEConfig, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The config.json of Hugging Face's DBRX for this shape.

    Raises:
        ConfigError: eps is not 1e-5, the only one that DBRX has there.

    Example:
        >>> from model.config import DBRX
        >>> config_to_hf(DBRX)["attn_config"]["kv_n_heads"]
        8
    """
    c = config
    if c.eps != _HF_EPS:
        raise ConfigError(
            f"eps={c.eps}: Hugging Face's DBRX has {_HF_EPS} built in and would give other "
            f"logits; a model for export must be trained with eps={_HF_EPS}."
        )
    return {
        "architectures": ["DbrxForCausalLM"],
        "model_type": "dbrx",
        "d_model": c.d_model,
        "n_heads": c.n_heads,
        "n_layers": c.n_layers,
        "max_seq_len": c.n_ctx,
        "vocab_size": c.d_vocab,
        "initializer_range": c.init_range,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
        "attn_config": {
            "clip_qkv": NO_CLAMP if c.clip_qkv is None else c.clip_qkv,
            "kv_n_heads": c.n_key_value_heads,
            "rope_theta": c.rope_theta,
        },
        "ffn_config": {
            "ffn_hidden_size": c.d_mlp,
            "moe_num_experts": c.num_experts,
            "moe_top_k": c.experts_per_token,
            "moe_loss_weight": c.balance_loss_weight,
            "moe_normalize_expert_weights": 1.0,
            # transformers carries this along and does not read it.
            "z_loss_weight": c.z_loss_weight,
        },
        "tie_word_embeddings": False,
        "dtype": str(dtype).removeprefix("torch."),
    }


def config_from_hf(
    values: dict[str, Any], *, rope_theta: float | None = None, drop_training_noise: bool = False
) -> MoEConfig:
    """The shape that a DBRX config.json describes.

    Raises:
        ConfigError: it is not one that MoELM can be; all differences in one message.

    Example:
        >>> from model.config import DBRX
        >>> config_from_hf(config_to_hf(DBRX)) == DBRX
        True
    """
    if values.get("model_type") != "dbrx":
        raise ConfigError(
            f"config.json says model_type={values.get('model_type')!r}, expected 'dbrx': only "
            f"that architecture can be read; other models are captured as they are."
        )
    attn, ffn = values.get("attn_config") or {}, values.get("ffn_config") or {}
    thetas = _rope_thetas(values, attn)
    faults = _faults(values, attn, ffn, drop_training_noise)
    if rope_theta is None and len(set(thetas.values())) != 1:
        said = " and ".join(f"{name}={value:g}" for name, value in thetas.items()) or "no value"
        faults.append(f"rotary base: found {said}; pass rope_theta= with the one of the training")
    missing = [
        key
        for part, keys in (
            (values, ("d_model", "n_heads", "n_layers", "max_seq_len", "vocab_size")),
            (attn, ("kv_n_heads",)),
            (ffn, ("ffn_hidden_size", "moe_num_experts", "moe_top_k")),
        )
        for key in keys
        if key not in part
    ]
    if missing:
        faults.append(f"missing: {', '.join(missing)}")
    if faults:
        raise ConfigError("config.json is not of a model that MoELM can be: " + "; ".join(faults))
    clip = attn.get("clip_qkv")
    return MoEConfig(
        d_vocab=values["vocab_size"],
        d_model=values["d_model"],
        n_layers=values["n_layers"],
        n_heads=values["n_heads"],
        n_key_value_heads=attn["kv_n_heads"],
        d_mlp=ffn["ffn_hidden_size"],
        num_experts=ffn["moe_num_experts"],
        experts_per_token=ffn["moe_top_k"],
        n_ctx=values["max_seq_len"],
        rope_theta=float(rope_theta if rope_theta is not None else next(iter(thetas.values()))),
        clip_qkv=None if clip is None or clip == NO_CLAMP else float(clip),
        balance_loss_weight=ffn.get("moe_loss_weight", 0.01),
        z_loss_weight=ffn.get("z_loss_weight", 0.0),
        init_range=values.get("initializer_range", 0.02),
        eps=_HF_EPS,
    )


def _rope_thetas(values: dict[str, Any], attn: dict[str, Any]) -> dict[str, float]:
    """Every place of a config.json where the rotary base may stand, and what stands there."""
    found = {
        "rope_parameters.rope_theta": (values.get("rope_parameters") or {}).get("rope_theta"),
        "rope_theta": values.get("rope_theta"),
        "attn_config.rope_theta": attn.get("rope_theta"),
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def _faults(
    values: dict[str, Any], attn: dict[str, Any], ffn: dict[str, Any], drop_training_noise: bool
) -> list[str]:
    """What a DBRX configuration may say and MoELM cannot do: found, expected, remedy."""
    activation = (ffn.get("ffn_act_fn") or {}).get("name", "silu")
    scaling = (values.get("rope_parameters") or {}).get("rope_type", "default")
    head = values.get("d_model", 0) // max(values.get("n_heads", 1), 1)
    faults = [
        f"{name}={found!r}, expected {expected!r}"
        for name, found, expected in (
            ("ffn_act_fn.name", activation, "silu"),
            ("moe_normalize_expert_weights", ffn.get("moe_normalize_expert_weights", 1.0), 1.0),
            ("rope_parameters.rope_type", scaling, "default"),
            ("tie_word_embeddings", values.get("tie_word_embeddings", False), False),
            ("head_dim", values.get("head_dim") or head, head),
            ("quantization_config", values.get("quantization_config"), None),
        )
        if found != expected
    ]
    noise = {
        "resid_pdrop": values.get("resid_pdrop"),
        "emb_pdrop": values.get("emb_pdrop"),
        "attn_config.attn_pdrop": attn.get("attn_pdrop"),
        "ffn_config.moe_jitter_eps": ffn.get("moe_jitter_eps"),
    }
    if not drop_training_noise:
        faults += [
            f"{name}={value}, expected 0: it acts in training only; "
            f"pass drop_training_noise=True to load the model without it"
            for name, value in noise.items()
            if value
        ]
    return faults
