import numpy as np
import pytest
import torch

from hbr_fast.kernels import cpu_orders, triton_orders
from hbr_fast.sampler import uniform_order


@pytest.mark.parametrize("length", [*range(1, 18), 255, 256, 257, 1000, 3001, 1_281_167, 10**9, 2**31 + 5, 2**48])
@pytest.mark.parametrize("stride", [1, 3])
def test_rows_are_those_of_the_cpu(length: int, stride: int) -> None:
    order = uniform_order(length, seed=length)
    count = min(1300, -(-length // stride))
    for start in {0, (length - 1) - (count - 1) * stride}:
        expected = order.rows(start, count, epoch=2, stride=stride)
        rows = order.device_rows(start, count, epoch=2, stride=stride, device="cpu")
        assert rows.dtype == torch.int64
        np.testing.assert_array_equal(rows.numpy(), expected)


def test_nothing_is_written_behind_the_rows() -> None:
    memory = torch.full((600,), -7)
    keys = np.arange(12, dtype=np.int64)
    triton_orders.bijection(0, 1, 1000, *cpu_orders.grid(1000), keys, memory[:517])
    assert (memory[517:] == -7).all()
    assert (memory[:517] >= 0).all()


def test_no_rows() -> None:
    assert uniform_order(10, seed=0).device_rows(10, 0, epoch=0, device="cpu").shape == (0,)


def test_the_kernel_is_interpreted() -> None:
    # Otherwise everything above would have needed a GPU, or been skipped.
    assert "interpreter" in type(triton_orders.bijection_kernel).__module__
