"""Facts about reading and writing Hugging Face's DBRX."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, DbrxConfig

from model.config import DBRX, MoEConfig
from model.errors import ConfigError, DataError, TokenizerMismatch, TrainingStateError
from model.hf import load_hf, save_hf
from model.hf_config import config_from_hf, config_to_hf
from model.lm import MoELM

TINY = MoEConfig(
    d_vocab=40, d_model=16, n_layers=2, n_heads=2, n_key_value_heads=1, d_mlp=24,
    num_experts=4, experts_per_token=2, n_ctx=32, rope_theta=10_000.0,
    clip_qkv=0.5, balance_loss_weight=0.03, z_loss_weight=0.001, init_range=0.2,
)  # fmt: skip


@st.composite
def configs(draw: st.DrawFn) -> MoEConfig:
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 3))
    experts = draw(st.integers(1, 6))
    return MoEConfig(
        d_vocab=draw(st.integers(2, 70)),
        d_model=heads * 2 * draw(st.integers(1, 5)),
        n_layers=draw(st.integers(1, 3)),
        n_heads=heads,
        n_key_value_heads=kv_heads,
        d_mlp=draw(st.integers(1, 20)),
        num_experts=experts,
        experts_per_token=draw(st.integers(1, experts)),
        n_ctx=draw(st.integers(8, 40)),
        rope_theta=draw(st.sampled_from([100.0, 10_000.0, 500_000.0])),
        clip_qkv=draw(st.sampled_from([None, 0.1, 8.0])),
        init_range=0.2,
    )


random_shapes = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


def hf_from_pretrained(folder: Path | str) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def largest_difference(lm: MoELM, hf: torch.nn.Module, length: int = 8) -> float:
    tokens = torch.arange(2 * length).view(2, length) * 7 % lm.cfg.d_vocab
    with torch.no_grad():
        return (lm(tokens) - hf(input_ids=tokens).logits).abs().max().item()


@random_shapes
@given(config=configs())
def test_hugging_face_computes_the_same_logits_from_what_we_write(config):
    lm = MoELM(config, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        hf = hf_from_pretrained(save_hf(lm, Path(folder) / "out"))
    assert largest_difference(lm, hf) < 1e-4


@random_shapes
@given(config=configs())
def test_we_compute_the_same_logits_from_what_hugging_face_writes(config):
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(DbrxConfig(**config_to_hf(config))).eval()
    with tempfile.TemporaryDirectory() as folder:
        hf.save_pretrained(folder)
        lm = load_hf(folder)
    assert lm.cfg == replace(config, eps=1e-5)
    assert largest_difference(lm, hf) < 1e-4


def test_a_round_trip_changes_no_bit_and_keeps_the_configuration(tmp_path):
    lm = MoELM(TINY, seed=3)
    back = load_hf(save_hf(lm, tmp_path / "out"))
    assert back.cfg == TINY
    for name, weight in lm.state_dict().items():
        assert torch.equal(weight, back.state_dict()[name]), name


def test_a_model_in_several_files_is_the_same_model(tmp_path):
    lm = MoELM(TINY, seed=3)
    folder = save_hf(lm, tmp_path / "out", shard_bytes=8_000)
    files = sorted(p.name for p in folder.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert largest_difference(lm, hf_from_pretrained(folder)) < 1e-4
    assert largest_difference(load_hf(folder), hf_from_pretrained(folder)) < 1e-4


def test_a_bfloat16_model_stays_bfloat16_unless_asked(tmp_path):
    lm = MoELM(TINY, seed=3).to(torch.bfloat16)
    folder = save_hf(lm, tmp_path / "out")
    assert load_hf(folder).unembed.weight.dtype == torch.bfloat16
    assert load_hf(folder, dtype=torch.float32).unembed.weight.dtype == torch.float32
    assert hf_from_pretrained(folder).dtype == torch.bfloat16


def test_loading_draws_no_weights_and_keeps_gradients_on(tmp_path):
    lm = load_hf(save_hf(MoELM(TINY, seed=3), tmp_path / "out"))
    lm(torch.zeros(1, 4, dtype=torch.long), return_type="losses").total.backward()
    assert all(p.grad is not None for p in lm.parameters())


def test_no_clamp_is_written_as_a_number_that_every_dtype_has():
    written = config_to_hf(replace(TINY, clip_qkv=None))["attn_config"]["clip_qkv"]
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert torch.ones(1, dtype=dtype).clamp(-written, written).item() == 1
    assert config_from_hf(config_to_hf(replace(TINY, clip_qkv=None))).clip_qkv is None


def test_the_published_configuration_is_the_preset():
    published = {
        "model_type": "dbrx", "d_model": 6144, "n_heads": 48, "n_layers": 40,
        "max_seq_len": 32768, "vocab_size": 100352, "initializer_range": 0.02,
        "attn_config": {"clip_qkv": 8, "kv_n_heads": 8, "model_type": "", "rope_theta": 500000},
        "ffn_config": {
            "ffn_hidden_size": 10752, "model_type": "", "moe_loss_weight": 0.05,
            "moe_num_experts": 16, "moe_top_k": 4, "moe_jitter_eps": 0,
        },
        "emb_pdrop": 0.0, "resid_pdrop": 0.0, "tie_word_embeddings": False,
    }  # fmt: skip
    assert config_from_hf(published) == DBRX


@pytest.mark.parametrize(
    ("group", "key", "value", "message"),
    [
        ("ffn_config", "ffn_act_fn", {"name": "gelu"}, "'gelu', expected 'silu'"),
        ("ffn_config", "moe_normalize_expert_weights", None, "None, expected 1.0"),
        ("ffn_config", "moe_jitter_eps", 0.01, "drop_training_noise=True"),
        ("attn_config", "attn_pdrop", 0.1, "drop_training_noise=True"),
        (None, "resid_pdrop", 0.1, "drop_training_noise=True"),
        (None, "tie_word_embeddings", True, "tie_word_embeddings=True, expected False"),
        (None, "rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}, "'yarn'"),
        (None, "quantization_config", {"bits": 4}, "quantization_config"),
        (None, "model_type", "mixtral", "expected 'dbrx'"),
        (None, "vocab_size", -1, "d_vocab=-1"),
    ],
)
def test_what_cannot_be_represented_is_refused_with_the_remedy(group, key, value, message):
    values = config_to_hf(TINY)
    (values[group] if group else values)[key] = value
    with pytest.raises(ConfigError, match=message):
        config_from_hf(values)


def test_all_differences_are_named_at_once():
    values = config_to_hf(TINY)
    values["resid_pdrop"] = 0.1
    values["ffn_config"]["ffn_act_fn"] = {"name": "relu"}
    del values["n_layers"], values["attn_config"]["kv_n_heads"]
    with pytest.raises(ConfigError, match=r"'relu'.*resid_pdrop=0\.1.*n_layers, kv_n_heads"):
        config_from_hf(values)


def test_training_noise_can_be_left_out_on_request():
    values = config_to_hf(TINY)
    values["ffn_config"]["moe_jitter_eps"] = 0.01
    assert config_from_hf(values, drop_training_noise=True) == TINY


def test_rotary_bases_that_contradict_each_other_need_a_decision():
    # What transformers 5.23 writes when it is given the published configuration and saves it.
    values = config_to_hf(replace(TINY, rope_theta=500_000.0))
    values["rope_parameters"]["rope_theta"] = 10_000.0
    with pytest.raises(ConfigError, match=r"rope_theta=10000 and .*=500000; pass rope_theta="):
        config_from_hf(values)
    assert config_from_hf(values, rope_theta=500_000).rope_theta == 500_000
    del values["rope_parameters"]
    assert config_from_hf(values).rope_theta == 500_000


def test_another_eps_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="1e-05 built in"):
        save_hf(MoELM(replace(TINY, eps=1e-6)), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_not_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match="not empty"):
        save_hf(MoELM(TINY), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_tokenizer_goes_along_and_comes_back(tmp_path):
    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    folder = save_hf(MoELM(TINY), tmp_path / "out", tokenizer)
    assert AutoTokenizer.from_pretrained(folder)("b")["input_ids"] == [1]


def test_a_tokenizer_with_more_entries_than_the_model_is_refused(tmp_path):
    tokenizer = Tokenizer(WordLevel({str(i): i for i in range(41)}, unk_token="0"))
    with pytest.raises(TokenizerMismatch, match="41 entries, the model d_vocab=40"):
        save_hf(MoELM(TINY), tmp_path / "out", tokenizer)


def test_pickled_weights_are_not_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(TINY)))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(DataError, match="pickled"):
        load_hf(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        load_hf(tmp_path / "nowhere")


def test_a_cut_off_file_is_named(tmp_path):
    folder = save_hf(MoELM(TINY), tmp_path / "out")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainingStateError, match=r"model\.safetensors cannot be read"):
        load_hf(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("lm_head.weight"), r"lacks 1 weights \(lm_head\.weight\)"),
        (lambda w: w.update(extra=torch.ones(1)), "'extra', which this model has no place for"),
        (lambda w: w.update({"lm_head.weight": torch.ones(3, 16)}), r"\(3, 16\), expected \(40"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, message):
    folder = save_hf(MoELM(TINY), tmp_path / "out")
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(TrainingStateError, match=message):
        load_hf(folder)
