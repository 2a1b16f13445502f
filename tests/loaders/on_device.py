"""The native GPU backend without a GPU: in the CPU's memory, and without launches where those would be slow.

Triton's interpreter needs a hundredth of a second per image, so `tests/interpreted/` runs part of the contract in it;
the whole contract runs with the reference in place of the kernel, reading the same tables of addresses.
"""

import ctypes
import dataclasses

import numpy as np
import pytest
import torch

from hbr_fast.kernels import reference
from hbr_fast.kernels.images.triton_batch import Table
from hbr_fast.loaders import native_cuda
from hbr_fast.loaders.backends import BACKENDS, FEATURES
from loaders.contracts import fused_fields


def use_memory_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `Loader(backend="native", device="cpu")` use the class for GPUs."""
    entry = dataclasses.replace(
        BACKENDS["native"], classes={"cpu": "native_cuda:NativeCudaBackend"}, features=frozenset(FEATURES)
    )
    monkeypatch.setitem(BACKENDS, "native", entry)


def make_by_reference(
    self: native_cuda.NativeCudaBackend, table: Table, rows_b: torch.Tensor, position: int, epoch: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Replaces `NativeCudaBackend._make`."""
    job = self.job
    first_position, step = job.order.global_positions(position)
    address, label, id_ = (column[rows_b].numpy() for column in (table.address, table.label, table.id))
    images = _Addressed(job.split.images.shape)
    images.at.update(zip(id_.tolist(), address.tolist(), strict=True))
    partner, weight = np.full(len(id_), -1), np.ones(len(id_), np.float32)
    if table.partner is not None and table.weight is not None:
        partner, weight = table.partner[rows_b].numpy(), table.weight[rows_b].numpy()
        images.at.update((one, one) for one in partner.tolist())  # by its address
    made = reference.make_batch(
        images,  # type: ignore[arg-type]
        id_,
        partner,
        weight,
        first_position=first_position,
        step=step,
        epoch=epoch,
        seed=job.seed,
        mean_c=job.split.mean.astype(np.float64),
        std_c=job.split.std.astype(np.float64),
        copy_b=None if table.draw_key is None else _copies(table.draw_key[rows_b].numpy(), id_),
        **fused_fields(job.augment),
    )
    if job.levels:
        made = 255 * (made * job.split.std[:, None, None] + job.split.mean[:, None, None])
    layout = torch.channels_last if job.channels_last else torch.contiguous_format
    images_bchw = torch.from_numpy(made).to(job.dtype).contiguous(memory_format=layout)
    return images_bchw, torch.from_numpy(label), torch.from_numpy(id_)


def _copies(draw_key: np.ndarray, id_: np.ndarray) -> np.ndarray:
    copy = draw_key >> 40
    np.testing.assert_array_equal(draw_key, reference.draw_key(id_, copy))
    return copy


class _Addressed:
    """Images looked up by address, as in the kernel."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.at: dict[int, int] = {}

    def __getitem__(self, name: int) -> np.ndarray:
        size = int(np.prod(self.shape[1:]))
        memory = (ctypes.c_uint8 * size).from_address(self.at[int(name)])
        return np.ctypeslib.as_array(memory).reshape(self.shape[1:])
