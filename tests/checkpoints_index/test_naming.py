"""One model under the names of several formats has one fingerprint."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

from checkpoints_index.fingerprint import fingerprint
from checkpoints_index.formats import open_weights
from model.config import NANO
from model.hf import save_hf
from model.lm import MoELM

SMALL = replace(
    NANO, d_vocab=64, d_model=16, n_layers=2, n_heads=2, n_key_value_heads=1, d_mlp=8,
    num_experts=4, experts_per_token=2, n_ctx=8,
)  # fmt: skip
# torch says, of every save without ranks, that there are none.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard_bytes", [1 << 30, 4000])
def test_our_model_and_its_dbrx_folder_agree(tmp_path, dtype, shard_bytes):
    lm = MoELM(SMALL, seed=1).to(dtype)
    theirs = open_weights(save_hf(lm, tmp_path / "dbrx", shard_bytes=shard_bytes))
    assert theirs.format == "huggingface"
    assert not set(theirs) & set(lm.state_dict())
    assert theirs.fingerprint() == fingerprint(lm.state_dict())


def test_a_dbrx_with_one_expert_s_number_changed_is_another_model(tmp_path):
    lm = MoELM(SMALL, seed=1)
    folder = save_hf(lm, tmp_path / "dbrx")
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["transformer.blocks.1.ffn.experts.mlp.v1"][9, 3] += 0.5
    save_file(weights, file)
    assert open_weights(folder).fingerprint() != fingerprint(lm.state_dict())


@pytest.mark.parametrize("config", ['{"model_type": "dbrx", "ffn_config": {}}', "{}", None])
def test_a_dbrx_is_told_by_its_names_whatever_its_config_says(tmp_path, config):
    lm = MoELM(SMALL, seed=1)
    folder = save_hf(lm, tmp_path / "dbrx")
    (folder / "config.json").unlink()
    if config is not None:
        (folder / "config.json").write_text(config)
    assert open_weights(folder).fingerprint() == fingerprint(lm.state_dict())
    assert fingerprint(load_file(folder / "model.safetensors")) == fingerprint(lm.state_dict())


def test_a_dbrx_that_cannot_be_laid_out_as_ours_keeps_its_names(tmp_path):
    lm = MoELM(SMALL, seed=1)
    theirs = load_file(save_hf(lm, tmp_path / "dbrx") / "model.safetensors")
    del theirs["transformer.blocks.0.ffn.router.layer.weight"]
    assert fingerprint(theirs) != fingerprint(lm.state_dict())
    twice = {**theirs, "embed.weight": torch.ones(2)}
    other = {**theirs, "embed.weight": torch.zeros(2)}
    assert len({fingerprint(w) for w in (theirs, twice, other)}) == 3


def test_two_tensors_that_a_rule_gives_one_name_both_count():
    mixtral, plain = "m.block_sparse_moe.gate.weight", "m.mlp.gate.weight"
    one, two = torch.ones(2, 2), torch.zeros(2, 2)
    every = [
        {plain: one, mixtral: two}, {plain: two, mixtral: one}, {plain: one}, {plain: two},
        {plain: one, mixtral: one},
    ]  # fmt: skip
    assert len({fingerprint(weights) for weights in every}) == len(every)
    assert fingerprint(every[0]) == fingerprint(dict(reversed(every[0].items())))
    assert fingerprint({mixtral: one}) == fingerprint({plain: one})


def test_a_tied_head_is_left_out_as_files_leave_it_out(tmp_path):
    torch.manual_seed(0)
    config = Qwen2MoeConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, intermediate_size=8, num_experts=2, moe_intermediate_size=8,
        shared_expert_intermediate_size=8, tie_word_embeddings=True, eos_token_id=1,
    )  # fmt: skip
    tied = Qwen2MoeForCausalLM(config)
    tied.save_pretrained(tmp_path)
    assert "lm_head.weight" not in open_weights(tmp_path)
    assert open_weights(tmp_path).fingerprint() == fingerprint(tied.state_dict())
    untied = {**tied.state_dict(), "lm_head.weight": torch.ones(32, 16)}
    assert fingerprint(untied) != fingerprint(tied.state_dict())


def hugging_face(kind):
    """A tiny mixture of experts of transformers."""
    torch.manual_seed(0)
    shape = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 2, "intermediate_size": 8}  # fmt: skip
    if kind == "mixtral":
        return MixtralForCausalLM(MixtralConfig(**shape, num_local_experts=4))
    more = {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 8, "num_experts": 4}
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**shape, **more))


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe"])
def test_experts_fused_in_memory_and_split_in_files_agree(tmp_path, kind):
    model = hugging_face(kind)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    dcp.save({"model": model.state_dict()}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    in_memory = model.state_dict()
    assert any("gate_up_proj" in name for name in in_memory)
    split, fused = open_weights(tmp_path / "whole"), open_weights(tmp_path / "dcp")
    assert set(split) != set(fused)
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    prints = {split.fingerprint(), open_weights(tmp_path / "sharded").fingerprint(),
              fused.fingerprint(), fingerprint(in_memory)}  # fmt: skip
    assert len(prints) == 1


def test_experts_in_another_order_are_another_model():
    fused = {"mlp.experts.down_proj": torch.arange(12.0).reshape(2, 2, 3)}
    turned = {"mlp.experts.down_proj": fused["mlp.experts.down_proj"].flip(0)}
    assert fingerprint(fused) != fingerprint(turned)
    assert fingerprint({"mlp.experts.gate_up_proj": torch.ones(2, 3, 4)})
    assert fingerprint({"mlp.experts.gate_up_proj": torch.ones(0, 2, 4)})
