import numpy as np
import pytest
import torch

from hbr_fast.kernels.orders import cpu_bijections, triton_bijections
from hbr_fast.orders import uniform_order


@pytest.mark.parametrize("length", [*range(1, 18), 255, 256, 257, 1000, 3001, 1_281_167, 10**9, 2**31 + 5, 2**48])
@pytest.mark.parametrize("stride", [1, 3])
def test_triton_orders_match_cpu_rows(length: int, stride: int) -> None:
    order = uniform_order(length, seed=length)
    count = min(1300, -(-length // stride))
    for start in {0, (length - 1) - (count - 1) * stride}:
        expected = order.rows(start, count, epoch=2, stride=stride)
        rows = order.device_rows(start, count, epoch=2, stride=stride, device="cpu")
        assert rows.dtype == torch.int64
        np.testing.assert_array_equal(rows.numpy(), expected)


def test_triton_orders_write_nothing_past_the_rows() -> None:
    memory = torch.full((600,), -7)
    keys = np.arange(12, dtype=np.int64)
    triton_bijections.bijection(0, 1, 1000, *cpu_bijections.grid(1000), keys, memory[:517])
    assert (memory[517:] == -7).all()
    assert (memory[:517] >= 0).all()


def test_triton_orders_no_rows() -> None:
    assert uniform_order(10, seed=0).device_rows(10, 0, epoch=0, device="cpu").shape == (0,)


def test_triton_orders_kernel_is_interpreted() -> None:
    # Otherwise all tests above would need a GPU or be skipped.
    assert "interpreter" in type(triton_bijections.bijection_kernel).__module__
