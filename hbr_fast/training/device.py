"""Where a training computes: the processor or a GPU, and whether its network is compiled."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

import torch
from torch import nn

from hbr_fast import machine
from hbr_fast.training.distributed import started_by_torchrun
from hbr_fast.training.recipe import Recipe


@dataclass(frozen=True)
class Compute:
    """Where members compute.

    Attributes
    ----------
    device : str
        "auto" is the GPU if there is one, else the processor; "cpu", "cuda", "cuda:N". A process that torchrun
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
            If there is no such device here, or `compile` does not work on it.
        """
        device = _resolved(self.device)
        if self.compile and (device.type != "cuda" or started_by_torchrun()):
            raise ValueError("compile is for one process on a GPU: leave it out")
        return device

    def network(self, model: nn.Module) -> nn.Module:
        """The module to call in a step, compiled if requested."""
        if not self.compile:
            return model
        model.compile(mode="reduce-overhead", dynamic=False)  # in place: the names in its state stay the same
        return model


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device computes faster in bfloat16 than in float32.

    Raises
    ------
    ValueError
        If it is a GPU and this machine has none to query, as on the driver of a cluster whose nodes have GPUs.
    """
    if device.type != "cuda":
        return machine.has_fast_bfloat16()
    if not torch.cuda.is_available():
        raise ValueError(
            "precision=auto goes by the GPU that members train on, and this machine has none to ask: set precision to "
            "float32 or bfloat16"
        )
    return torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere


def resolve_precision(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe with `precision="auto"` replaced by the fastest precision of the device that trains.

    It is decided once, before anything is looked up or trained: members are keyed by "float32" or "bfloat16".

    Raises
    ------
    ValueError
        See `has_fast_bfloat16`.
    """
    if recipe.precision != "auto":
        return recipe
    return dataclasses.replace(recipe, precision="bfloat16" if has_fast_bfloat16(device) else "float32")


def compute_dtype(recipe: Recipe) -> torch.dtype:
    """The number format of the convolutions of a recipe whose precision is resolved."""
    assert recipe.precision != "auto", "the precision must be resolved first"
    return torch.bfloat16 if recipe.precision == "bfloat16" else torch.float32


def device_name(compute: Compute | None) -> str:
    """The device of a training in words: "cpu", or the GPU's name."""
    device = (compute or Compute()).resolved()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def gpu_memory_mb(device: torch.device) -> float | None:
    """The peak memory of tensors on a GPU so far, in MB of 10^6 bytes; None on the processor."""
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
