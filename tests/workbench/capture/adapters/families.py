"""Every mixture-of-experts family of the installed transformers, as a model small enough to test.

Needs   transformers, and nothing from the network.
Yields  `in_library`, what there is; FAMILIES, how each is built tiny; NO_ROUTER, those whose name
        alone is like a mixture of experts; `built`.
"""

# ruff: noqa: C408 - keywords, as the configurations themselves are written.
from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import torch

SIZE = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, head_dim=8,
    pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
FULL = dict(layer_types=["full_attention", "full_attention"])
SPARSE = dict(mlp_layer_types=["sparse", "sparse"])
MOE = dict(
    num_experts=8, num_local_experts=8, n_routed_experts=8, num_experts_per_tok=2,
    moe_intermediate_size=24, shared_expert_intermediate_size=24, use_cache=False,
)  # fmt: skip
LATENT = dict(
    MOE, n_group=2, topk_group=1, n_shared_experts=1, first_k_dense_replace=1, q_lora_rank=16,
    kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, num_key_value_heads=4,
    use_cache=False,
)  # fmt: skip
"""As DeepSeek: latent attention, grouped routing, a shared expert, a first dense layer."""
LINEAR = dict(
    linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=8,
    linear_value_head_dim=8,
)  # fmt: skip
INDEX = dict(index_topk=8, index_n_heads=2, index_head_dim=16)
ROPE = dict(rope_type="default", rope_theta=1e4)
SECTIONS = dict(rope_parameters=ROPE | dict(mrope_section=[1, 1, 2], partial_rotary_factor=1.0))

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "afmoe": ("AfmoeForCausalLM", MOE | FULL | dict(num_dense_layers=1)),
    "aria": ("AriaTextForCausalLM", dict(moe_num_experts=8, moe_topk=2, moe_num_shared_experts=1)),
    "axk1": ("AXK1ForCausalLM", LATENT),
    "axk2": ("AXK2ForCausalLM", LATENT),
    "bailing_hybrid": ("BailingHybridForCausalLM", LATENT | FULL),
    "beam": ("BeamForCausalLM", LATENT | SPARSE),
    "cohere2_moe": ("Cohere2MoeForCausalLM", MOE),
    "dbrx": (
        "DbrxForCausalLM",
        dict(
            d_model=32, n_heads=4, n_layers=2, max_seq_len=64,
            attn_config=dict(kv_n_heads=2, rope_theta=1e4, clip_qkv=8),
            ffn_config=dict(
                hidden_size=32, ffn_hidden_size=48, moe_num_experts=8, moe_top_k=2,
                moe_jitter_eps=0.1,
            ),
        ),
    ),
    "deepseek_ocr2": ("DeepseekOcr2TextModel", LATENT | SPARSE),
    "deepseek_v2": ("DeepseekV2ForCausalLM", LATENT | dict(topk_method="group_limited_greedy")),
    "deepseek_v3": ("DeepseekV3ForCausalLM", LATENT),
    "deepseek_v32": ("DeepseekV32ForCausalLM", LATENT | INDEX),
    "deepseek_v4": ("DeepseekV4ForCausalLM", MOE | dict(mlp_layer_types=["hash_moe", "moe"])),
    "diffusion_gemma": (
        "DiffusionGemmaEncoderTextModel", MOE | dict(top_k_experts=2, global_head_dim=8)
    ),
    "doge": ("DogeForCausalLM", dict(is_moe=True, num_experts=16, num_experts_per_tok=4)),
    "dots1": ("Dots1ForCausalLM", LATENT),
    "dots3_note": (
        "Dots3NoteForCausalLM", LATENT | INDEX | dict(shared_experts_intermediate_size=24)
    ),
    "ernie4_5_moe": (
        "Ernie4_5_MoeForCausalLM",
        dict(
            moe_num_experts=8, moe_k=2, moe_intermediate_size=24, moe_num_shared_experts=1,
            moe_layer_start_index=0, moe_layer_interval=1,
        ),
    ),
    "ernie4_5_vl_moe": (
        "Ernie4_5_VLMoeTextModel",
        dict(
            moe_num_experts=8, moe_k=2, moe_intermediate_size=[24, 24], moe_num_shared_experts=1,
            rope_parameters=ROPE | dict(mrope_section=[1, 1, 2]),
        ),
    ),
    "exaone_moe": (
        "ExaoneMoeForCausalLM",
        MOE | dict(n_group=1, topk_group=1, num_shared_experts=1, is_moe_layer=[False, True]),
    ),
    "flex_olmo": ("FlexOlmoForCausalLM", MOE),
    "flint": ("FlintForCausalLM", MOE | dict(mlp_only_layers=[])),
    "gemma4": (
        "Gemma4ForCausalLM",
        MOE | dict(
            top_k_experts=2, enable_moe_block=True, global_head_dim=8,
            vocab_size_per_layer_input=64,
        ),
    ),
    "glm4_moe": ("Glm4MoeForCausalLM", LATENT),
    "glm4_moe_lite": ("Glm4MoeLiteForCausalLM", LATENT),
    "glm4v_moe": ("Glm4vMoeTextModel", LATENT | SECTIONS),
    "glm5_next": (
        "Glm5NextTextModel",
        LATENT | INDEX | SPARSE | dict(
            qk_rope_head_dim=0, head_dim=0, index_topk=16, n_group=1, linear_head_dim=8,
            linear_num_heads=4,
        ),
    ),
    "glm_moe_dsa": ("GlmMoeDsaForCausalLM", LATENT | INDEX),
    "gpt_oss": ("GptOssForCausalLM", MOE | dict(sliding_window=16)),
    "granitemoe": ("GraniteMoeForCausalLM", MOE),
    "granitemoe_swa": ("GraniteMoeSWAForCausalLM", MOE),
    "granitemoehybrid": (
        "GraniteMoeHybridForCausalLM",
        MOE | dict(
            layer_types=["attention", "attention"], shared_intermediate_size=24, mamba_n_heads=4,
            mamba_d_head=16, mamba_d_state=8,
        ),
    ),
    "granitemoeshared": ("GraniteMoeSharedForCausalLM", MOE | dict(shared_intermediate_size=24)),
    "hunyuan_v1_moe": ("HunYuanMoEV1ForCausalLM", MOE | dict(moe_topk=2)),
    "hy_v3": ("HYV3ForCausalLM", MOE),
    "hy_v4": ("HYV4ForCausalLM", LATENT | INDEX),
    "inkling": ("InklingForCausalLM", LATENT),
    "inkling2": ("Inkling2ForCausalLM", MOE),
    "jamba": (
        "JambaForCausalLM",
        MOE | dict(
            attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
            use_mamba_kernels=False, mamba_d_state=4, mamba_dt_rank=4,
        ),
    ),
    "jetmoe": ("JetMoeForCausalLM", MOE | dict(kv_channels=8, num_key_value_heads=4)),
    "kimi_linear": (
        "KimiLinearForCausalLM", LATENT | FULL | dict(linear_head_dim=8, linear_num_heads=4)
    ),
    "kolibri1": ("Kolibri1ForCausalLM", MOE),
    "laguna": ("LagunaForCausalLM", MOE),
    "lfm2_moe": ("Lfm2MoeForCausalLM", MOE | FULL | dict(num_dense_layers=1)),
    "llama4": (
        "Llama4ForCausalLM",
        MOE | dict(num_experts_per_tok=2, intermediate_size_mlp=48, moe_layers=[0, 1]),
    ),
    "longcat_flash": (
        "LongcatFlashForCausalLM",
        LATENT | dict(
            moe_topk=2, zero_expert_num=2, num_layers=2, ffn_hidden_size=48,
            expert_ffn_hidden_size=24,
        ),
    ),
    "mellum": ("MellumForCausalLM", MOE),
    "mimo_v2_flash": ("MiMoV2FlashForCausalLM", LATENT | FULL),
    "minimax": ("MiniMaxForCausalLM", MOE | FULL),
    "minimax_m2": ("MiniMaxM2ForCausalLM", MOE),
    "minimax_m3_vl": (
        "MiniMaxM3VLForCausalLM",
        MOE | dict(dense_intermediate_size=48, shared_intermediate_size=24),
    ),
    "mistral4": (
        "Mistral4ForCausalLM",
        LATENT | dict(rope_parameters=ROPE | dict(
            llama_4_scaling_beta=0.1, original_max_position_embeddings=64)),
    ),
    "mistral_large4": ("MistralLarge4TextModel", LATENT),
    "mixtral": ("MixtralForCausalLM", MOE),
    "muse_spark": ("MuseSparkTextModel", MOE | dict(moe_hidden_size=32)),
    "nemotron_h": (
        "NemotronHForCausalLM",
        LATENT | dict(
            num_hidden_layers=None, layers_block_type=["moe", "attention"],
            moe_shared_expert_intermediate_size=24, mamba_num_heads=4, mamba_head_dim=16,
            ssm_state_size=8, n_groups=2,
        ),
    ),
    "nllb_moe": (
        "NllbMoeEncoder",
        dict(
            d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=48, decoder_ffn_dim=48,
            encoder_attention_heads=4, decoder_attention_heads=4, num_experts=8,
            encoder_sparse_step=1, decoder_sparse_step=1,
        ),
    ),
    "olmoe": ("OlmoeForCausalLM", MOE),
    "openai_privacy_filter": ("OpenAIPrivacyFilterModel", MOE),
    "phimoe": ("PhimoeForCausalLM", MOE | dict(input_jitter_noise=0.1, router_jitter_noise=0.1)),
    "qwen2_moe": ("Qwen2MoeForCausalLM", MOE | dict(decoder_sparse_step=1)),
    "qwen3_5_moe": ("Qwen3_5MoeForCausalLM", MOE | LINEAR | FULL),
    "qwen3_moe": ("Qwen3MoeForCausalLM", MOE | dict(decoder_sparse_step=1, mlp_only_layers=[])),
    "qwen3_next": ("Qwen3NextForCausalLM", MOE | LINEAR | FULL),
    "qwen3_omni_moe": ("Qwen3OmniMoeThinkerTextModel", MOE),
    "qwen3_vl_moe": ("Qwen3VLMoeTextModel", MOE),
    "qwen4_exp": (
        "Qwen4ExpForCausalLM",
        MOE | LINEAR | FULL | dict(
            indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=16, indexer_budget=16,
            indexer_compress_ratio=4, hc_lowrank=8,
        ),
    ),
    "solar_open": ("SolarOpenForCausalLM", LATENT),
    "step3p7": (
        "Step3p7TextModel",
        MOE | SPARSE | FULL | dict(share_expert_dim=24, sliding_window=16),
    ),
    "switch_transformers": (
        "SwitchTransformersEncoderModel",
        dict(
            d_model=32, d_ff=48, d_kv=8, num_layers=2, num_heads=4, num_experts=8,
            expert_capacity=1, num_sparse_encoder_layers=2, dropout_rate=0.1,
        ),
    ),
    "unlimited_ocr": ("UnlimitedOcrTextModel", LATENT),
    "zaya": ("ZayaForCausalLM", MOE | dict(num_experts_per_tok=1, router_hidden_size=16)),
}  # fmt: skip
"""Family (folder of transformers.models): the class that is built, and how its configuration
departs from SIZE. The text model alone where images or sound come with it."""

NO_ROUTER = {
    "granite_docling": "no experts: its router chooses how densely an image is read",
    "vitpose_backbone": "no router: the caller says which expert, by data set",
}


def in_library() -> set[str]:
    """Folders of transformers.models that define experts or a router, or record router logits."""
    import transformers

    like = re.compile(
        r"^class \w*(Experts|MoE|Moe|Router)\w*\(nn\.|\"router_logits\": *\[?OutputRecorder", re.M
    )
    models = Path(transformers.__file__).parent / "models"
    return {
        path.parent.name
        for path in models.glob("*/modeling_*.py")
        if like.search(path.read_text(encoding="utf-8"))
    }


def built(family: str) -> torch.nn.Module:
    """A tiny model of a family, in training mode, the same at every call.

    Weights are spread widely, so that routing differs from token to token, and what is added to the
    scores for choosing alone is not zero, so that the choice is not simply the largest logits.
    """
    class_name, departures = FAMILIES[family]
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    kind = getattr(module, class_name)
    settings = {n: v for n, v in {**SIZE, **departures}.items() if v is not None}
    torch.manual_seed(0)
    model = kind(kind.config_class(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
        for name, buffer in model.named_buffers():
            if "correction_bias" in name:
                buffer.copy_(torch.rand_like(buffer) / 4)
            if "balancing_biases" in name:
                buffer[-1] = 0.25
            if name.endswith("tid2eid"):
                buffer.copy_(torch.rand(len(buffer), 8).argsort(-1)[:, : buffer.shape[-1]])
    return model.train()
