"""The logits of a trained network: the one loop that evaluates."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from hbr_fast.data.dataset import Split
from hbr_fast.data.plan import Plan
from hbr_fast.loaders.batch import Batch
from hbr_fast.loaders.loader import Loader
from hbr_fast.orders import Sampler, sequential_order

# On a CPU: the output of a layer of 64 channels for this many images stays below 32 MiB. The C library takes larger
# blocks from the system and returns them each time, so every page is mapped again: the likely cause of what
# bench_settings.py measures.
EVALUATION_BATCH = 125
_ON_GPU = 1000


def evaluated(
    model: nn.Module,
    split: Split,
    *,
    dtype: torch.dtype,
    rows: np.ndarray | None = None,
    order: Sampler | None = None,
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Batches of a split and their logits, eval mode, no augmentation, on the device of the model.

    Parameters
    ----------
    model : nn.Module
        From images [B, channels, H, W] to logits [B, C].
    split : Split
    dtype : torch.dtype
        Of the images; with bfloat16 the model runs under autocast.
    rows : int64 [R], optional
        Samples of the split, by default all.
    order : Sampler, optional
        Order of those rows, by default as they are.

    Yields
    ------
    batch : Batch
    logits : float32 [B, C]
    """
    order = order or sequential_order(len(split) if rows is None else len(rows))
    device = next((one.device for one in model.parameters()), torch.device("cpu"))
    loader = Loader(
        split,
        plan=None if rows is None else Plan.of_rows(rows),
        order=order,
        batch_size=min(EVALUATION_BATCH if device.type == "cpu" else _ON_GPU, len(order)),
        dtype=dtype,
        channels_last=True,
        device=device,
        prefetch=0,
    )
    model.eval()
    for batch in loader.epoch(0):
        # Not around the loop: the caller's code runs between two batches.
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = model(batch.images).float()
        yield batch, logits


def predict(
    model: nn.Module,
    split: Split,
    *,
    dtype: torch.dtype,
    rows: np.ndarray | None = None,
    order: Sampler | None = None,
    after_batch: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Logits of every sample of a split, float32 [N, C], or of some rows, in an order; see `evaluated`."""
    logits = []
    for _, of_batch in evaluated(model, split, dtype=dtype, rows=rows, order=order):
        logits.append(of_batch)
        after_batch()
    return torch.cat(logits).cpu().numpy()
