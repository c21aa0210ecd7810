"""Confidence and drops: the record and the fixed tokens tell how sure the routers are."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from probes.confidence import confidence, confidence_fixed
from probes.drops import drop_rate
from workbench.errors import SchemaError, UsageError
from workbench.testing import router_record

DIMS = ("checkpoint", "token", "layer")


def routing(logits: np.ndarray, k: int) -> xr.Dataset:
    """An activations record of these logits (token, expert), one layer."""
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    ids = np.argsort(-logits, axis=-1)[:, :k]
    return xr.Dataset(
        {
            "expert_ids": ((*DIMS, "k"), ids[None, :, None]),
            "router_probs": ((*DIMS, "expert"), probs[None, :, None].astype(np.float32)),
        },
        coords={"checkpoint": [0]},
    )


def test_the_fixed_tokens_agree_with_a_plain_loop_and_with_scipy():
    logits = np.random.default_rng(0).normal(0, 1.5, (200, 6))
    found = confidence_fixed(routing(logits, 2), n_boot=5).isel(checkpoint=0, layer=0)
    rows = {"entropy": [], "margin": [], "topk_mass": [], "near_tie": [], "square": []}
    for z in logits:
        p = np.exp(z) / np.exp(z).sum()
        ranked = sorted(z, reverse=True)
        rows["entropy"].append(stats.entropy(p))
        rows["margin"].append(ranked[1] - ranked[2])
        rows["topk_mass"].append(sum(sorted(p, reverse=True)[:2]))
        rows["near_tie"].append(ranked[1] - ranked[2] < 0.1)
        rows["square"].append(np.var(z))
    for name in ("entropy", "margin", "topk_mass", "near_tie"):
        assert float(found[name]) == pytest.approx(np.mean(rows[name]), rel=1e-5)
    assert float(found["logit_rms"]) == pytest.approx(np.sqrt(np.mean(rows["square"])), rel=1e-5)
    assert (found["entropy_low"] <= found["entropy"]) & (found["entropy"] <= found["entropy_high"])


def test_a_router_that_knows_nothing_is_at_the_chance_levels():
    found = confidence_fixed(routing(np.zeros((80, 8)), 2)).isel(checkpoint=0, layer=0)
    for name in ("entropy", "topk_mass"):
        assert float(found[name]) == pytest.approx(found[name].attrs["chance_level"], rel=1e-5)
    assert float(found["near_tie"]) == 1
    assert float(found["logit_rms"]) == 0


def test_where_every_expert_is_chosen_there_is_no_margin():
    found = confidence_fixed(routing(np.random.default_rng(0).normal(size=(40, 3)), 3))
    assert found["margin"].isnull().all()
    assert found["near_tie"].isnull().all()
    assert float(found["topk_mass"].item()) == pytest.approx(1)


def test_probabilities_that_vanish_leave_finite_measures():
    logits = np.zeros((40, 4))
    logits[:, 0] = 200.0
    found = confidence_fixed(routing(logits, 1))
    assert all(np.isfinite(found[v]).all() for v in found.data_vars)
    assert float(found["margin"].item()) == pytest.approx(87.5, abs=0.1)


def test_the_stream_is_pooled_by_tokens():
    router = router_record(steps=4, tokens=100)
    router["tokens"] = ("step", np.array([100, 300, 0, 200]))
    router["entropy"][2] = np.nan
    pooled = confidence(router, window=400)
    e = router["entropy"].values.astype(float)
    np.testing.assert_allclose(pooled["entropy"][0], (e[0] * 100 + e[1] * 300) / 400)
    assert pooled.sizes["step"] == 1
    z = router["z_squared"].values.astype(float)
    np.testing.assert_allclose(confidence(router)["logsumexp_rms"][3], np.sqrt(z[3]))


def test_what_a_record_lacks_is_left_out_and_what_must_be_there_is_named():
    router = router_record(steps=4)
    assert "margin" not in confidence(router.drop_vars("margin"))
    with pytest.raises(SchemaError, match="lacks entropy"):
        confidence(router.drop_vars("entropy"))


def test_a_tenth_that_is_dropped_is_seen_to_be():
    router = router_record(steps=5, tokens=1000, k=2)
    assert (drop_rate(router)["drop_rate"] == 0).all()
    kept = router.copy(deep=True)
    kept["assignments"][3, 1] = (router["assignments"][3, 1] * 0.9).round().astype(int)
    rate = drop_rate(kept)["drop_rate"]
    assert float(rate[3, 1]) == pytest.approx(0.1, abs=0.003)
    assert int((rate > 0).sum()) == 1
    assert float(drop_rate(kept, window=5000)["drop_rate"][0, 1]) == pytest.approx(0.02, abs=1e-3)


def test_a_drop_rate_needs_a_k_that_fits():
    router = router_record(steps=2, k=2)
    with pytest.raises(UsageError, match="say k="):
        drop_rate(router.assign_attrs(k=None))
    with pytest.raises(SchemaError, match="more assignments than tokens x k"):
        drop_rate(router, k=1)
