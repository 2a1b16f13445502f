"""SIGTERM and Ctrl-C while members train: saved first, then obeyed."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

HANDLED = (signal.SIGTERM, signal.SIGINT)
# sysexits.h's EX_TEMPFAIL, "try again later", and SLURM's usual RequeueExit: a shell says 143 also of a process that
# SIGTERM killed before it could save.
EXIT_CODE = 75


class Terminated(BaseException):
    """The process was asked to end by SIGTERM, as SLURM and Kubernetes do. No `Exception`, so nothing absorbs it."""

    def __init__(self) -> None:
        super().__init__("ended by SIGTERM")


@contextlib.contextmanager
def raised_at_once() -> Iterator[None]:
    """In this block SIGTERM raises `Terminated` where the program stands, as Ctrl-C raises `KeyboardInterrupt`."""
    with _handled(lambda number, _: _raise(number)):
        yield


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], int | None]]:
    """In this block SIGTERM and Ctrl-C are only noted: the caller asks for them where it can stop, and calls `obey`.

    Yields a function that gives the signal's number, or None while there was none. A second signal does not wait.
    """
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if came:
            _raise(number)
        came.append(number)

    with _handled(note):
        yield lambda: came[0] if came else None
    if came:
        _raise(came[0])


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """What signals mean here, they mean after this block too: for libraries that take them for themselves.

    Ray's handler of SIGTERM aborts, with its own traceback. It is not Python's, which does not see that it was changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in HANDLED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def unwrapped() -> Iterator[None]:
    """SIGTERM that comes out of this block as the cause of a library's own exception is raised as itself."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, Terminated):
                raise Terminated from None
            cause = cause.__cause__ or cause.__context__
        raise


def obey(number: int) -> None:
    """Raise what the signal means."""
    _raise(number)


def _raise(number: int) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may say what signals do
        yield
        return
    # One that is ignored stays so: a worker's parent decides what Ctrl-C means.
    before = {number: signal.getsignal(number) for number in HANDLED if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
