from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hbr_fast.training.signals import Terminated, unwrapped


@contextmanager
def library() -> Iterator[None]:
    """Wraps an exception twice: with it as the cause, and then only as the context."""
    try:
        try:
            yield
        except BaseException as error:
            raise SystemError("returned a result with an exception set") from error
    except SystemError:
        raise ConnectionError("the task has failed")  # noqa: B904


def test_unwrapped_reraises_sigterm() -> None:
    with pytest.raises(Terminated), unwrapped(), library():
        raise Terminated


def test_unwrapped_keeps_other_exceptions() -> None:
    with pytest.raises(ConnectionError, match="the task has failed"), unwrapped(), library():
        raise ValueError
