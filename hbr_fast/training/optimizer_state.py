"""An optimiser's `state_dict` as tensors by name and JSON values, and back: for checkpoints, without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

# Tags for values that JSON lacks; a state holds no dict with one of these as its only key.
_TENSOR, _TUPLE, _PAIRS = "tensor", "tuple", "pairs"


def saved(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], Any]:
    """Tensors by name, and everything else of the state as JSON values that refer to them.

    Raises
    ------
    ValueError
        If the state holds an object that is neither a tensor nor a JSON value.
    """
    tensors: dict[str, torch.Tensor] = {}
    return tensors, _encoded(optimizer.state_dict(), type(optimizer).__name__, (), tensors)


def restore(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], values: Any) -> None:
    """Restore the state that `saved` returned to an optimiser of the same kind over the same parameters.

    Raises
    ------
    KeyError, TypeError, ValueError
        If a tensor is missing or the state belongs to another optimiser.
    """
    state = _decoded(values, tensors)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, of_parameter in state["state"].items():
        for name, value in of_parameter.items():
            if isinstance(value, torch.Tensor) and value.shape == parameters[index].shape:
                # Files store no strides, and fused kernels need those of the parameter.
                of_parameter[name] = torch.empty_like(parameters[index], dtype=value.dtype).copy_(value)
    optimizer.load_state_dict(state)


def _encoded(value: Any, owner: str, path: tuple[str, ...], tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = ".".join(path)
        assert name not in tensors, f"two tensors of {owner} are called {name}"
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, dict):
        # As pairs: a state is keyed by parameter numbers, and keys of JSON objects are strings.
        return {_PAIRS: [[key, _encoded(one, owner, (*path, str(key)), tensors)] for key, one in value.items()]}
    if isinstance(value, list | tuple):
        items = [_encoded(one, owner, (*path, str(place)), tensors) for place, one in enumerate(value)]
        return items if isinstance(value, list) else {_TUPLE: items}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"the state of {owner} cannot be saved: {'.'.join(path)} is of type {type(value).__name__}, neither "
        "a tensor nor a JSON value; train with another optimiser"
    )


def _decoded(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decoded(one, tensors) for one in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag == _TENSOR:
        return tensors[content]
    if tag == _TUPLE:
        return tuple(_decoded(one, tensors) for one in content)
    return {key: _decoded(one, tensors) for key, one in content}
