"""The command line: `hbr-fast convert | verify | info | train | hardness | resample | relabel |
suspects | study | report`.

One file a command. Heavy imports happen inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import tyro

from hbr_fast.cli.convert import convert
from hbr_fast.cli.hardness import hardness
from hbr_fast.cli.info import info
from hbr_fast.cli.options import require_lists_once
from hbr_fast.cli.relabel import relabel
from hbr_fast.cli.report import report
from hbr_fast.cli.resample import resample
from hbr_fast.cli.study import study
from hbr_fast.cli.suspects import suspects
from hbr_fast.cli.train import train
from hbr_fast.cli.verify import verify
from hbr_fast.training.distributed import OtherRankFailed, own_rank, started_by_torchrun
from hbr_fast.training.signals import EXIT_CODE as TERMINATED
from hbr_fast.training.signals import Terminated, raised_at_once

USER_ERROR, INTERRUPTED = 2, 130

COMMANDS: dict[str, Callable[..., None]] = {
    "convert": convert,
    "verify": verify,
    "info": info,
    "train": train,
    "hardness": hardness,
    "resample": resample,
    "relabel": relabel,
    "suspects": suspects,
    "study": study,
    "report": report,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a user's mistake is one line and exit code 2, with --debug the whole traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        if started_by_torchrun() and words[:1] != ["train"]:
            raise ValueError("only train shares its work among the processes of torchrun: start this one without it")
        require_lists_once(words)
        with raised_at_once(), contextlib.suppress(BrokenPipeError):
            tyro.extras.subcommand_cli_from_dict(
                COMMANDS,
                prog="hbr-fast",
                description="Hardness-based resampling at memory speed. --debug shows the traceback of an error.",
                args=words,
            )
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        if debug:
            raise
        _end(str(error), USER_ERROR)
    except OtherRankFailed:
        sys.exit(USER_ERROR)  # that process says why
    except MemoryError:
        if debug:
            raise
        _end("out of memory: ask for less at a time, or use a machine with more", USER_ERROR)
    except Terminated:
        saved = "what was trained is saved, " if words[:1] in (["train"], ["study"]) else ""
        _end(f"ended by SIGTERM; {saved}run the same command again", TERMINATED)
    except KeyboardInterrupt:
        _end("interrupted; run the same command again to go on", INTERRUPTED)


def _end(line: str, code: int) -> NoReturn:
    rank = own_rank()
    if rank == 0 or code == USER_ERROR:  # a signal comes to all processes of torchrun, an error may be of one
        print(f"hbr-fast: {f'process {rank}: ' if rank else ''}{line}", file=sys.stderr)
    sys.exit(code)
