"""The table of sites is what a run shows."""

from __future__ import annotations

import pytest
import torch

from model.config import NANO
from model.lm import MoELM
from model.sites import ALIASES, SITES, aliases, shape, sites

DTYPES = {"float32": torch.float32, "int64": torch.int64}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_run_shows_exactly_the_sites_of_the_table(dtype):
    lm = MoELM(NANO).to(dtype)
    _, cache = lm.run_with_cache(torch.arange(22).view(2, 11))
    table = sites(NANO)
    assert list(cache) == list(table)
    for name, site in table.items():
        assert tuple(cache[name].shape) == shape(site, NANO, batch=2, pos=11), name
        assert cache[name].dtype == DTYPES.get(site.dtype, dtype), name


def test_every_hook_point_is_in_the_table():
    assert set(MoELM(NANO).hook_dict) == set(sites(NANO))


def test_every_site_has_a_unit_and_a_sentence():
    assert all(site.unit and site.meaning.endswith(".") for site in SITES)


def test_an_alias_is_the_same_point():
    lm = MoELM(NANO)
    for alias, name in aliases(NANO).items():
        assert lm.mod_dict[alias] is lm.hook_dict[name]
        assert alias not in lm.hook_dict
    assert len(aliases(NANO)) == NANO.n_layers * len(ALIASES)


def test_a_site_that_is_not_there_is_answered_with_the_nearest():
    with pytest.raises(KeyError, match=r"Did you mean 'blocks\.0\.mlp\.router\.hook_logits'"):
        MoELM(NANO).run_with_hooks(
            torch.zeros(1, 2, dtype=torch.long),
            fwd_hooks=[("blocks.0.mlp.router.hook_logit", lambda x, hook: x)],
        )
