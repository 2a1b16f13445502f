"""Settings of the whole suite: no timing in property tests, the same examples every run, Ctrl-C heard."""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> None:
    """A shell starts what it runs in the background with Ctrl-C ignored; tests of Ctrl-C would wait for it in vain."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def double_by_default() -> Callable[[], AbstractContextManager[None]]:
    """A context in which tensors that say no type are float64."""

    @contextmanager
    def context() -> Iterator[None]:
        usual = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(usual)

    return context
