"""The logits of a trained network: one pass over a split."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from hbr_fast.data.dataset import Split
from hbr_fast.loaders.loader import Loader
from hbr_fast.sampler import Sampler, sequential_order

# On a CPU: what a layer of 64 channels makes of so many images stays below 32 MiB. Larger pieces the C library takes
# from the system and gives back each time, and every page of them is mapped anew: the likely cause of what
# bench_settings.py measures.
EVALUATION_BATCH = 125
_ON_GPU = 1000


def predict(
    model: nn.Module,
    split: Split,
    *,
    dtype: torch.dtype,
    order: Sampler | None = None,
    after_batch: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Logits of every sample of a split in its order, or another one; eval mode, no augmentation: float32 [N, C]."""
    order = order or sequential_order(len(split))
    device = next((one.device for one in model.parameters()), torch.device("cpu"))
    loader = Loader(
        split,
        order=order,
        batch_size=min(EVALUATION_BATCH if device.type == "cpu" else _ON_GPU, len(order)),
        dtype=dtype,
        channels_last=True,
        device=device,
        prefetch=0,
    )
    model.eval()
    with (
        torch.inference_mode(),
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16),
    ):
        logits = []
        for batch in loader.epoch(0):
            logits.append(model(batch.images))
            after_batch()
        return torch.cat(logits).cpu().numpy()
