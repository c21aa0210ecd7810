"""Subjects: how the model of a checkpoint is loaded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers.utils import logging

from probes.inputs.site_readers import _decoder_layers
from probes.subject import build_model
from workbench.errors import UsageError


@pytest.fixture
def folder(tmp_path):
    config = transformers.MixtralConfig(
        vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=2,
    )  # fmt: skip
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_hugging_face_checkpoint_is_loaded_without_a_bar_and_bars_are_as_before(folder, capfd):
    seen = []

    def theirs(bar, args, settings):
        seen.append(settings.get("desc"))
        return bar(*args, **settings)

    before = logging.set_tqdm_hook(theirs)
    try:
        capfd.readouterr()
        build_model(SimpleNamespace(path=folder))
        assert capfd.readouterr().err == ""
        assert list(logging.tqdm([1], desc="again")) == [1]
        assert seen == ["again"]
        (folder / "model.safetensors").write_bytes(b"broken")
        with pytest.raises(SafetensorError):
            build_model(SimpleNamespace(path=folder))
        list(logging.tqdm([1], desc="after a failure"))
        assert seen[-1] == "after a failure"
    finally:
        logging.set_tqdm_hook(before)


class _Block(nn.Module):
    def __init__(self, experts):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(experts))


def test_the_blocks_of_a_model_of_one_block_are_not_its_experts():
    model = nn.ModuleDict({"layers": nn.ModuleList([_Block(8)]), "heads": nn.ModuleList()})
    assert _decoder_layers(model) == list(model["layers"])


def test_a_model_without_a_list_of_blocks_is_refused_by_name():
    with pytest.raises(UsageError, match="no list of blocks"):
        _decoder_layers(nn.Sequential(nn.Linear(4, 4)))
