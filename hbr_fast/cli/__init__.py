"""The command line: `hbr-fast convert | verify | info | train | evaluate | hardness | resample | relabel |
suspects | study | import | report`.

Each command has its own file. Heavy imports happen inside the commands, so that `--help` is fast.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from hbr_fast import __version__, progress
from hbr_fast.cli.accepted import accepted_by
from hbr_fast.cli.convert import convert
from hbr_fast.cli.evaluate import evaluate
from hbr_fast.cli.hardness import hardness
from hbr_fast.cli.import_runs import import_runs
from hbr_fast.cli.info import info
from hbr_fast.cli.messages import command_words
from hbr_fast.cli.options import require_lists
from hbr_fast.cli.relabel import relabel
from hbr_fast.cli.report import report
from hbr_fast.cli.resample import resample
from hbr_fast.cli.study import study
from hbr_fast.cli.suspects import suspects
from hbr_fast.cli.train import train
from hbr_fast.cli.usage import command_of
from hbr_fast.cli.verify import verify
from hbr_fast.progress import printable
from hbr_fast.training.distributed import OtherRankFailed, own_rank, started_by_torchrun
from hbr_fast.training.signals import EXIT_CODE as TERMINATED
from hbr_fast.training.signals import Terminated, raised_at_once

USER_ERROR, INTERRUPTED = 2, 130
DESCRIPTION = (
    "Hardness-based resampling at memory speed. --version prints the version, --debug the traceback of an error."
)

COMMANDS: dict[str, Callable[..., None]] = {
    "convert": convert,
    "verify": verify,
    "info": info,
    "train": train,
    "evaluate": evaluate,
    "hardness": hardness,
    "resample": resample,
    "relabel": relabel,
    "suspects": suspects,
    "study": study,
    "import": import_runs,
    "report": report,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a user error prints one line and exits with code 2, with --debug the full traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        print(f"hbr-fast {__version__}")
        return
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    options = [one.name for one in accepted_by(COMMANDS[words[0]])] if words and words[0] in COMMANDS else []
    say_it = functools.partial(command_words, options=options)
    try:
        if started_by_torchrun() and words[:1] != ["train"]:
            raise ValueError("only train can run under torchrun: start this command without it")
        require_lists(words)
        with raised_at_once(), contextlib.suppress(BrokenPipeError), progress.spoken(say_it):
            command_of(words, COMMANDS, description=DESCRIPTION)()
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        if debug:
            raise
        _end(say_it(str(error)), USER_ERROR)
    except OtherRankFailed:
        sys.exit(USER_ERROR)  # that process reports why
    except MemoryError:
        if debug:
            raise
        _end("out of memory: ask for less at a time, or use a machine with more", USER_ERROR)
    except Terminated:
        saved = "what was trained is saved, " if words[:1] in (["train"], ["study"]) else ""
        _end(f"ended by SIGTERM; {saved}run the same command again", TERMINATED)
    except KeyboardInterrupt:
        _end("interrupted; run the same command again to resume", INTERRUPTED)


def _end(line: str, code: int) -> NoReturn:
    rank = own_rank()
    if rank == 0 or code == USER_ERROR:  # a signal reaches all processes of torchrun, an error may occur in one
        print(f"hbr-fast: {f'process {rank}: ' if rank else ''}{printable(line)}", file=sys.stderr)
    sys.exit(code)
