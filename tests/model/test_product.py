"""Facts about matrix products, with oneDNN and without."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from model import product
from model.product import grouped_product, linear, outer_sum

# Above product._WORTH_IT, so that oneDNN is taken where the machine has it.
ROWS, INNER, OUTER = 512, 64, 96


@pytest.fixture(params=[True, False], ids=["onednn", "torch"])
def onednn(request: pytest.FixtureRequest) -> Iterator[bool]:
    with warnings.catch_warnings():
        # torch's switch touches a setting for Intel GPUs on its way, and warns that there are none.
        warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN", UserWarning)
        with torch.backends.mkldnn.flags(enabled=request.param):
            yield request.param


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def spread(sizes: list[int]) -> Tensor:
    return torch.tensor(sizes).cumsum(0).int()


def grouped_reference(x: Tensor, W: Tensor, sizes: list[int]) -> Tensor:
    return torch.cat([part @ matrix for part, matrix in zip(x.split(sizes), W, strict=True)])


def test_linear_and_its_gradients_are_torchs(onednn):
    x, W = random(2, ROWS // 2, INNER).requires_grad_(), random(OUTER, INNER).requires_grad_()
    weight = random(2, ROWS // 2, OUTER)
    got = torch.autograd.grad((linear(x, W) * weight).sum(), (x, W))
    x64, W64 = x.detach().double().requires_grad_(), W.detach().double().requires_grad_()
    exact = torch.nn.functional.linear(x64, W64)
    want = torch.autograd.grad((exact * weight.double()).sum(), (x64, W64))
    # float32 sums of 64 to 512 products of normal numbers; their rounding is some 1e-5.
    torch.testing.assert_close(linear(x, W).double(), exact, atol=1e-4, rtol=0)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g.double(), w, atol=5e-4, rtol=0)


def test_onednn_is_used_where_it_should_be(onednn):
    x, W = random(ROWS, INNER), random(OUTER, INNER)
    assert product._suits_onednn(x, W) == (product._ONEDNN and onednn)
    assert not product._suits_onednn(x.double(), W.double())
    assert not product._suits_onednn(x.bfloat16(), W.bfloat16())
    assert not product._suits_onednn(x[:4], W)
    with torch.autocast("cpu", torch.bfloat16):
        assert not product._suits_onednn(x, W)


SIZES = {
    "even": [256, 256, 256, 256],
    "one without rows": [500, 0, 300, 224],
    "all in one": [0, 0, 1024, 0],
    "single rows": [1, 1, 1021, 1],
    "last without rows": [1024, 0, 0, 0],
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Half an ulp of the result's size (about 30), times the square root of the sum's length where
    # the sum itself is rounded; bfloat16 rounds the result to 8 bits.
    [(torch.float64, 1e-11), (torch.float32, 3e-4), (torch.bfloat16, 0.3)],
    ids=["float64", "float32", "bfloat16"],
)
def test_grouped_products_are_products_of_the_groups(onednn, sizes, dtype, tolerance):
    x = random(1024, INNER, dtype=dtype).requires_grad_()
    W = random(4, INNER, OUTER, dtype=dtype).requires_grad_()
    weight = random(1024, OUTER, dtype=dtype)
    got = grouped_product(x, W, spread(sizes))
    want = grouped_reference(x, W, sizes)
    torch.testing.assert_close(got, want, atol=tolerance, rtol=0)
    got_grads = torch.autograd.grad((got * weight).sum(), (x, W))
    want_grads = torch.autograd.grad((want * weight).sum(), (x, W))
    torch.testing.assert_close(got_grads[0], want_grads[0], atol=tolerance, rtol=0)
    # The sum over a group's rows, up to 1024 of them.
    torch.testing.assert_close(got_grads[1], want_grads[1], atol=4 * tolerance, rtol=0)
    for size, grad in zip(sizes, got_grads[1], strict=True):
        assert size or grad.abs().max() == 0


def test_the_derivatives_of_a_grouped_product_are_its_derivatives():
    x = random(7, 3, dtype=torch.float64).requires_grad_()
    W = random(3, 3, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, W: grouped_product(x, W, spread([4, 0, 3])), (x, W))


def test_the_op_keeps_torchs_rules_for_custom_ops():
    x, W = random(8, 3).requires_grad_(), random(2, 3, 4).requires_grad_()
    torch.library.opcheck(product._grouped, (x, W, spread([3, 5])))


def test_a_window_holds_its_stretch_and_has_one_of_few_lengths():
    lengths, rows_of = set(), torch.empty(5000, 1, dtype=torch.bfloat16)
    for rows in range(1, 4097):
        begin, stop = product._window(3, 3 + rows, rows_of)
        assert 0 <= begin <= 3
        assert stop >= 3 + rows
        assert stop - begin <= max(rows + 63, rows * 1.13)
        lengths.add(stop - begin)
    assert len(lengths) <= 64
    assert product._window(90, 100, rows_of[:100]) == (36, 100)
    assert product._window(2, 5, rows_of[:9]) == (0, 9)
    assert product._window(2, 5, rows_of.double()) == (2, 5)


def test_outer_sum_is_the_transposed_product(onednn):
    g, x = random(ROWS, OUTER), random(ROWS, INNER)
    torch.testing.assert_close(outer_sum(g, x), g.T @ x, atol=5e-4, rtol=0)
    torch.testing.assert_close(outer_sum(x, g), x.T @ g, atol=5e-4, rtol=0)


def test_autocast_reaches_the_grouped_product():
    with torch.autocast("cpu", torch.bfloat16):
        assert (
            grouped_product(random(8, 8), random(2, 8, 8), spread([3, 5])).dtype == torch.bfloat16
        )
