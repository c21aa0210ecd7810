"""The weights' fingerprint: the same model is the same, another is another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from checkpoints_index.fingerprint import fingerprint, round_to_bfloat16


def model(seed=0):
    random = torch.Generator().manual_seed(seed)
    return {"a.w": torch.randn(8, 4, generator=random), "b.w": torch.randn(3, generator=random)}


def test_a_model_keeps_its_fingerprint_through_dtypes_orders_and_libraries():
    weights = model()
    same = [
        {name: w.double() for name, w in weights.items()},
        {name: w.bfloat16() for name, w in weights.items()},
        dict(reversed(weights.items())),
        {name: w.numpy() for name, w in weights.items()},
        {name: w.t().contiguous().t() for name, w in weights.items() if w.ndim == 2}
        | {"b.w": weights["b.w"]},
    ]
    assert {fingerprint(w) for w in same} == {fingerprint(weights)}


def test_a_change_of_value_name_or_shape_changes_it():
    weights = model()
    one_up = {**weights, "b.w": weights["b.w"] * 1.01}
    renamed = {"a.w": weights["a.w"], "c.w": weights["b.w"]}
    reshaped = {**weights, "a.w": weights["a.w"].reshape(4, 8)}
    swapped = {"a.w": weights["a.w"], "b.w": weights["b.w"].flip(0)}
    fewer = {"a.w": weights["a.w"]}
    every = [weights, one_up, renamed, reshaped, swapped, fewer, model(1), {}]
    assert len({fingerprint(w) for w in every}) == len(every)


def test_a_copy_in_float16_is_another_model():
    # 1 + 2**-8 + 2**-20 lies above the middle of two values of bfloat16, its float16 right in it.
    weights = {"w": torch.tensor([1 + 2**-8 + 2**-20])}
    assert fingerprint({"w": weights["w"].half()}) != fingerprint(weights)


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_rounding_is_torch_s_own_for_every_float(values):
    ours = round_to_bfloat16(np.array(values, "float32"))
    theirs = torch.tensor(values, dtype=torch.float32).bfloat16()
    numbers = ~torch.isnan(theirs)
    assert (
        ours[numbers.numpy()] == theirs.view(torch.int16).numpy().view("<u2")[numbers.numpy()]
    ).all()
    assert (ours[~numbers.numpy()] == 0x7FC0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4e38, 1e-45, -0.0])
def test_the_ends_of_the_float_range_agree_across_dtypes(value):
    single = {"w": np.array([value], "float32")}
    assert fingerprint(single) == fingerprint({"w": torch.tensor([value], dtype=torch.float32)})
    assert fingerprint(single) == fingerprint({"w": np.array([value], "float32").astype("float64")})


def test_integers_and_flags_count_too():
    assert fingerprint({"n": np.array([1, 2])}) == fingerprint({"n": np.array([1, 2], "int32")})
    assert fingerprint({"n": np.array([1, 2])}) != fingerprint({"n": np.array([1, 3])})
    assert fingerprint({"f": torch.tensor([True])}) != fingerprint({"f": torch.tensor([False])})
