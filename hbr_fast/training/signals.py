"""SIGTERM and Ctrl-C while members train: save first, then obey."""

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
    """SIGTERM asked the process to end, as SLURM and Kubernetes do. Not an `Exception`, so nothing absorbs it."""

    def __init__(self) -> None:
        super().__init__("ended by SIGTERM")


@contextlib.contextmanager
def raised_at_once() -> Iterator[None]:
    """In this block SIGTERM raises `Terminated` at the current point, as Ctrl-C raises `KeyboardInterrupt`."""
    with _handled(lambda number, _: _raise(number)):
        yield


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], int | None]]:
    """In this block SIGTERM and Ctrl-C are only noted: the caller polls where it can stop, and calls `obey`.

    Yields a function that returns the signal's number, or None before any signal. A second signal acts at once.
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
    """Restore signal handlers after this block, for libraries that install their own.

    Ray's SIGTERM handler aborts with its own traceback. It is set below Python, which does not see the change.
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
    """Re-raise SIGTERM itself if it leaves this block as the cause of a library's own exception."""
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
    """Raise the exception for the signal."""
    _raise(number)


def _raise(number: int) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
        yield
        return
    # An ignored signal stays ignored: a worker's parent handles Ctrl-C.
    before = {number: signal.getsignal(number) for number in HANDLED if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
