"""Facts about configurations and their parameter counts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from model.config import DBRX, NANO, PRESETS, MoEConfig, parameter_counts, preset
from model.errors import ConfigError
from model.lm import MoELM


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layers": 0}, "n_layers=0: must be a whole number, 1 or more"),
        ({"d_mlp": 2.5}, r"d_mlp=2\.5: must be a whole number"),
        ({"num_experts": True}, "num_experts=True: must be a whole number"),
        ({"d_model": 97}, "does not divide by n_heads=8: choose a width"),
        ({"d_model": 24}, "width of a head must be even"),
        ({"n_key_value_heads": 3}, "does not divide by n_key_value_heads"),
        ({"experts_per_token": 17}, "cannot be sent to more experts than there are"),
        ({"clip_qkv": 0.0}, r"clip_qkv=0\.0: must be above 0, or None"),
        ({"eps": 0.0}, r"eps=0\.0: must be above 0"),
        ({"rope_theta": "big"}, "rope_theta='big': must be a finite number"),
        ({"init_range": float("nan")}, "init_range=nan: must be a finite number"),
        ({"rope_theta": None}, "rope_theta=None: must be a finite number"),
        ({"z_loss_weight": -1.0}, r"z_loss_weight=-1\.0: must be 0 or more"),
    ],
)
def test_nonsense_is_refused_with_its_remedy(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(NANO, **change)


def test_a_configuration_survives_json():
    for config in PRESETS.values():
        assert MoEConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_misspelt_field_is_answered_with_the_right_one():
    with pytest.raises(ConfigError, match=r"unknown field 'num_expert'.*'num_experts'"):
        MoEConfig.from_dict({"num_expert": 4})
    with pytest.raises(ConfigError, match=r"not complete.*d_vocab"):
        MoEConfig.from_dict({"d_model": 4})


def test_an_unknown_preset_is_answered_with_those_there_are():
    assert preset("Nano") is NANO
    with pytest.raises(ConfigError, match=r"nano, small, base, dbrx. Did you mean 'small'"):
        preset("smal")


@pytest.mark.parametrize("name", PRESETS)
def test_counted_parameters_are_those_of_the_model(name):
    with torch.device("meta"):
        lm = MoELM(PRESETS[name])
    assert sum(p.numel() for p in lm.parameters()) == parameter_counts(PRESETS[name]).total


def test_dbrx_has_its_published_size_and_takes_no_memory():
    with torch.device("meta"):
        lm = MoELM(DBRX)
    counts = parameter_counts(DBRX)
    assert round(counts.total / 1e9, 1) == 131.6
    assert round(counts.active / 1e9, 1) == 36.5
    assert all(t.is_meta for t in (*lm.parameters(), *lm.buffers()))
    with torch.device("meta"):
        logits = lm(torch.zeros(1, 4, dtype=torch.long))
    assert logits.shape == (1, 4, 100_352)
