"""Whether this process is one of several that train one model together."""

from __future__ import annotations

import os


def in_process_group() -> bool:
    """Whether `torch.distributed` is initialised."""
    import torch.distributed as distributed

    return distributed.is_available() and distributed.is_initialized()


def left_alone() -> str:
    """Why this process seems to be one of several that do not know of each other; "" if it does not.

    A launcher has set `WORLD_SIZE`, and nothing has initialised `torch.distributed`.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if in_process_group() or not size.isdecimal() or int(size) < 2:
        return ""
    return (
        f"WORLD_SIZE says that {size} processes were launched, but torch.distributed is not initialised in this one: "
        "each would train alone; initialise it first, with init_process_group or e.g. Accelerator(cpu=True)"
    )
