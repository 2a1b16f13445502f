"""The state of a recorder as a file: safetensors with JSON metadata, never pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from hbr_fast.kernels.hardness import layout
from hbr_fast.tensor_files import read_tensors, write_tensors

SCHEMA = 1
FORMS = {
    "sums": f"float64 [N, {layout.SUM_COLUMNS}]",
    "counters": f"int32 [N, {layout.COUNTER_COLUMNS}]",
    "nonfinite": f"int64 [{layout.STATUS_ENTRIES}]",
    "*": "float32 [N, C]",  # mean probabilities
}


def save_state(path: str | os.PathLike[str], state: Mapping[str, Any], **about: Any) -> None:
    """Write the result of `HardnessRecorder.state_dict` atomically, with any JSON value about it.

    Parameters
    ----------
    path : path
    state : mapping
        Tensors and JSON values.
    about
        A value for `load_state` to return with the state, e.g. the training step.
    """
    import torch

    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    values = {name: value for name, value in state.items() if name not in tensors}
    write_tensors(path, tensors, {"recorder": SCHEMA, "values": values, "about": about})


def load_state(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what `save_state` wrote: the state, for `HardnessRecorder.load_state_dict`, and the value about it.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file does not hold the state of a recorder, or a sum in it is not finite.
    """
    what, remedy = "the state of a recorder", "resume from another checkpoint, or train from the first step"
    about = {"recorder": SCHEMA, "values": dict, "about": dict}
    tensors, values = read_tensors(path, FORMS, what=what, remedy=remedy, about=about, framework="pt")
    broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise ValueError(f"{path} does not hold {what} ({', '.join(broken)} not finite): {remedy}")
    return {**tensors, **values["values"]}, values["about"]
