"""All state of an optimiser survives a round trip through a file bit for bit."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from hbr_fast.training import optimizer_state
from hbr_fast.training.optimizers import muon

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, fused=True),
    "sgd without momentum": lambda p: torch.optim.SGD(p, lr=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "fused adamw": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "muon": lambda p: muon(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4 * 4, 5))
    return layers.to(memory_format=torch.channels_last)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    images = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(images.to(memory_format=torch.channels_last)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_restore_continues_to_same_bits(name: str, steps: int) -> None:
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    for seed in range(steps):
        step(model, optimizer, seed)
    again = copy.deepcopy(model)
    tensors, values = optimizer_state.saved(optimizer)
    content = save({key: tensor.contiguous() for key, tensor in tensors.items()})
    restored = OPTIMIZERS[name](again.parameters())
    optimizer_state.restore(restored, load(content), json.loads(json.dumps(values)))
    assert restored.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    for seed in range(10, 13):
        step(model, optimizer, seed)
        step(again, restored, seed)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_restore_keeps_strides_of_parameter() -> None:
    model = network()
    optimizer = OPTIMIZERS["fused adamw"](model.parameters())
    step(model, optimizer, 0)
    tensors, values = optimizer_state.saved(optimizer)
    restored = OPTIMIZERS["fused adamw"](model.parameters())
    optimizer_state.restore(restored, {key: tensor.contiguous() for key, tensor in tensors.items()}, values)
    weight = next(model.parameters())
    assert (
        restored.state[weight]["exp_avg"].stride()
        == weight.stride()
        != tensors["state.0.exp_avg"].contiguous().stride()
    )


def test_saved_refuses_values_other_than_tensors_and_json() -> None:
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    optimizer.state[next(model.parameters())]["helper"] = object()
    with pytest.raises(ValueError, match=r"the state of SGD cannot be saved: state\.0\.helper is of type object"):
        optimizer_state.saved(optimizer)


def test_restore_refuses_state_of_other_parameters() -> None:
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    step(model, optimizer, 0)
    tensors, values = optimizer_state.saved(optimizer)
    fewer = OPTIMIZERS["sgd"](list(model.parameters())[:1])
    with pytest.raises((IndexError, ValueError)):
        optimizer_state.restore(fewer, tensors, values)
    del tensors["state.0.momentum_buffer"]
    with pytest.raises(KeyError):
        optimizer_state.restore(OPTIMIZERS["sgd"](model.parameters()), tensors, values)
