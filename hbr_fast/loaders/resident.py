"""Whole splits in device memory: uploaded once, shared by all loaders of a split."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakValueDictionary

import numpy as np
import torch

from hbr_fast.data.dataset import Split

SHARE = 0.5  # share of the device's free memory for splits: the network and its activations need the rest
CHUNK_BYTES = 64 * 2**20  # chunk of a copy through pinned memory


class _Resident:
    """The images of one split on one device, uint8 [N, C, H, W]; holds the host array to keep its address."""

    def __init__(self, images: np.ndarray, device: torch.device) -> None:
        self.host = images
        self.images = _upload(images, device)


_residents: WeakValueDictionary[tuple[int, tuple[int, ...], torch.device], _Resident] = WeakValueDictionary()


def resident(splits: Sequence[Split], device: torch.device) -> list[_Resident] | None:
    """The images of the splits on a device, or None if they do not fit there.

    They stay there as long as any loader holds a returned result.
    """
    keys = [(split.images.ctypes.data, split.images.shape, device) for split in splits]
    held = [_residents.get(key) for key in keys]
    needed = sum(split.store.nbytes for split, one in zip(splits, held, strict=True) if one is None)
    if needed > SHARE * free_bytes(device):
        return None
    for number, split in enumerate(splits):
        if held[number] is None:
            held[number] = _residents[keys[number]] = _Resident(split.images, device)
    return [one for one in held if one is not None]


def free_bytes(device: torch.device) -> float:
    """Free memory of a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")


def _upload(images: np.ndarray, device: torch.device) -> torch.Tensor:
    out = torch.empty(images.shape, dtype=torch.uint8, device=device)
    step = max(1, CHUNK_BYTES // max(1, images[:1].nbytes))
    staging = torch.empty(
        (min(step, len(images)), *images.shape[1:]), dtype=torch.uint8, pin_memory=device.type == "cuda"
    )
    for first in range(0, len(images), step):
        chunk = images[first : first + step]
        np.copyto(staging[: len(chunk)].numpy(), chunk)
        out[first : first + step].copy_(staging[: len(chunk)])
    return out
