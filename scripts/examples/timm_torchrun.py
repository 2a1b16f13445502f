"""A network of timm in a loop of your own, in several processes: hardness of what all of them train on.

torchrun --standalone --nproc-per-node 2 scripts/examples/timm_torchrun.py

It also runs as one process. With images in a dataset of ours, no loop is needed: docs/models.md.
"""

from __future__ import annotations

import timm
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from hbr_fast import HardnessRecorder, OrderSampler, uniform_order
from hbr_fast.integrations.ids import WithIds

EPOCHS, BATCH = 4, 20  # rows of a process and step


def main() -> HardnessRecorder:
    several = distributed.is_torchelastic_launched() or distributed.is_initialized()
    if several and not distributed.is_initialized():
        distributed.init_process_group("gloo")  # on GPUs: "nccl", and the model on the device of LOCAL_RANK
    torch.manual_seed(0)  # the same pictures and initial weights in every process
    images, labels = stripes()
    model: torch.nn.Module = timm.create_model("test_resnet", num_classes=3)
    if several:
        model = DistributedDataParallel(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.003)
    recorder = HardnessRecorder(len(labels), num_classes=3, distributed=several)
    sampler = OrderSampler(uniform_order(len(labels), seed=0))  # each process gets its own part
    loader = DataLoader(WithIds(TensorDataset(images, labels)), batch_size=BATCH, sampler=sampler)
    for epoch in range(EPOCHS):
        for x, y, ids in loader:
            logits = model(x)
            recorder.record(logits, y, ids, epoch=epoch)
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(logits, y).backward()
            optimiser.step()
        if several:
            recorder.merge_ranks()  # every process then has the recording of all
    if not several or distributed.get_rank() == 0:
        print(recorder.to_frame().sort("aum").head())
    return recorder


def stripes() -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy pictures of rows, of columns, and of both (the hard class), float32 [300, 3, 16, 16], and labels."""
    labels = torch.arange(300) % 3
    rows = (torch.arange(16) % 4 < 2).float().sub(0.5)[:, None].expand(16, 16)
    patterns = torch.stack([rows, rows.T, 0.5 * (rows + rows.T)])
    return patterns[labels][:, None].expand(-1, 3, -1, -1) + 0.4 * torch.randn(300, 3, 16, 16), labels


if __name__ == "__main__":
    main()
