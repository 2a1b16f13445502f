"""Where a training computes: the processor or a GPU, and whether its network is compiled there."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import nn

from hbr_fast import machine
from hbr_fast.training.distributed import started_by_torchrun


@dataclass(frozen=True)
class Compute:
    """Where members compute.

    Attributes
    ----------
    device : str
        "auto" is the GPU where there is one, else the processor; "cpu", "cuda", "cuda:N". A process that torchrun
        started takes the GPU of its local rank for "auto" and "cuda".
    compile : bool
        Compile the network with CUDA graphs (`torch.compile(mode="reduce-overhead")`); on GPUs only.
    """

    device: str = "auto"
    compile: bool = False

    def resolved(self) -> torch.device:
        """The device of this process.

        Raises
        ------
        ValueError
            If there is no such device here, or it does not go with `compile`.
        """
        device = _resolved(self.device)
        if self.compile and (device.type != "cuda" or started_by_torchrun()):
            raise ValueError("compile is for one process on a GPU: leave it out")
        return device

    def network(self, model: nn.Module) -> nn.Module:
        """The module to call in a step, compiled if that was asked for."""
        if not self.compile:
            return model
        model.compile(mode="reduce-overhead", dynamic=False)  # in place: the names in its state stay
        return model


def has_fast_bfloat16() -> bool:
    """Whether the device that "auto" stands for computes faster in bfloat16 than in float32."""
    return torch.cuda.is_bf16_supported(False) if torch.cuda.is_available() else machine.has_fast_bfloat16()


def device_name(compute: Compute | None) -> str:
    """The device of a training in words: "cpu", or the GPU's name."""
    device = (compute or Compute()).resolved()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def gpu_memory_mb(device: torch.device) -> float | None:
    """The most memory that tensors had on a GPU so far, in MB of 10^6 bytes; None on the processor."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None


def gpu_utilisation(device: torch.device) -> float | None:
    """How busy a GPU is, in percent; None on the processor or where NVIDIA's library is not installed."""
    if device.type != "cuda":
        return None
    try:
        return float(torch.cuda.utilization(device))
    except (ModuleNotFoundError, RuntimeError):
        return None


def _resolved(name: str) -> torch.device:
    kind, colon, number = name.partition(":")
    if name not in ("auto", "cpu", "cuda") and not (kind == "cuda" and colon and number.isdecimal()):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and gpus == 0):
        return torch.device("cpu")
    if gpus == 0:
        raise ValueError(f"device {name!r} asked for, but torch sees no GPU here: use --device cpu")
    index = int(number) if number else _local_rank()
    if index >= gpus:
        what = f"device {name!r} asked for" if number else f"process {index} of torchrun on this machine asks for a GPU"
        raise ValueError(f"{what}, but there are GPUs 0 to {gpus - 1} only: ask for fewer, or use --device cpu")
    return torch.device("cuda", index)


def _local_rank() -> int:
    return int(os.environ["LOCAL_RANK"]) if started_by_torchrun() else torch.cuda.current_device()
