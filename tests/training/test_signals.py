import pytest

from hbr_fast.training.signals import Terminated, unwrapped


def test_sigterm_that_a_library_wrapped_is_raised_as_itself() -> None:
    with pytest.raises(Terminated), unwrapped():
        try:
            try:
                raise Terminated
            except BaseException as error:
                raise SystemError("returned a result with an exception set") from error
        except SystemError:
            raise ConnectionError("the task has failed")  # noqa: B904 - by its context alone


def test_other_exceptions_come_out_as_they_are() -> None:
    with pytest.raises(ConnectionError, match="the task has failed"), unwrapped():
        raise ConnectionError("the task has failed")
