"""Every write on a tensor changes its checksum, by whatever door it came in."""

from __future__ import annotations

import pytest
import torch

from probes.inputs.checksum import _where_it_is, checksum


def _elsewhere(tensor):
    return _where_it_is(tensor.contiguous().reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("sums", [checksum, _elsewhere])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_value_that_changes_or_moves_changes_the_checksum(sums, dtype):
    torch.manual_seed(0)
    tensor = (torch.randn(40, 33) * 50).to(dtype)
    tensor[:2] = torch.arange(66).reshape(2, 33).to(dtype)
    before = sums(tensor)
    assert sums(tensor.clone()) == before
    one = tensor.clone()
    one[17, 5] = not one[17, 5] if dtype is torch.bool else one[17, 5] + 1
    assert sums(one) != before
    assert sums(tensor.flip(0)) != before
    assert sums(tensor.flip(1)) != before


def test_a_tensor_without_values_and_a_view_have_a_checksum():
    assert checksum(torch.zeros(0)) == checksum(torch.zeros(0, 3))
    whole = torch.arange(12.0).reshape(3, 4)
    assert checksum(whole.T) == checksum(whole.T.clone())
    assert checksum(torch.tensor(1.0)) != checksum(torch.tensor(2.0))
    assert _elsewhere(torch.zeros(0)) == 0
