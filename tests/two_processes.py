"""Run functions in two processes of one group; they rendezvous through a file, so no port is needed."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WORLD = 2


def run_by_two(function: Callable[[Path], Any], folder: Path) -> list[Any]:
    """What `function(folder)` returns in each of two processes, through JSON; it may call `join_group`."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_as_rank, args=(function, rank, folder)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    failures = [path.read_text() for path in sorted(folder.glob("failed-*"))]
    assert not failures, "\n".join(failures)
    assert [process.exitcode for process in processes] == [0, 0]
    return [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(WORLD)]


def join_group(folder: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=int(os.environ["RANK"]), world_size=WORLD
    )


def _as_rank(function: Callable[[Path], Any], rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for workers; a spawned process would slowly spawn its own
    # Set by launchers; the port is never opened, because the group exists before a trainer creates one.
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD), LOCAL_WORLD_SIZE=str(WORLD))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="1", ACCELERATE_USE_CPU="true", CUDA_VISIBLE_DEVICES="")
    try:
        (folder / f"result-{rank}.json").write_text(json.dumps(function(folder)))
    except BaseException:
        import traceback

        (folder / f"failed-{rank}").write_text(f"rank {rank}: {traceback.format_exc()}")
        os._exit(1)  # the other rank may be waiting: its collectives fail when the connection closes
    os._exit(0)  # skips the interpreter's finalisation, in which torch sometimes aborts
