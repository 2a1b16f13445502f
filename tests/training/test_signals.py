from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hbr_fast.training.signals import Terminated, unwrapped


@contextmanager
def library() -> Iterator[None]:
    """Wraps what comes, once by its cause and once by its context alone."""
    try:
        try:
            yield
        except BaseException as error:
            raise SystemError("returned a result with an exception set") from error
    except SystemError:
        raise ConnectionError("the task has failed")  # noqa: B904


def test_sigterm_that_a_library_wrapped_is_raised_as_itself() -> None:
    with pytest.raises(Terminated), unwrapped(), library():
        raise Terminated


def test_other_exceptions_come_out_as_they_are() -> None:
    with pytest.raises(ConnectionError, match="the task has failed"), unwrapped(), library():
        raise ValueError
