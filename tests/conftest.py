"""Settings for the whole suite: repeatable property tests without deadlines, Ctrl-C enabled."""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import hypothesis
import pytest
import torch

from hbr_fast.report import figures

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def enable_ctrl_c() -> None:
    """Background jobs of a shell ignore Ctrl-C; tests that send it would hang."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def double_by_default() -> Callable[[], AbstractContextManager[None]]:
    """A context in which the default dtype is float64."""

    @contextmanager
    def context() -> Iterator[None]:
        usual = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(usual)

    return context


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from a second thread, and on a busy machine wait for it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without pictures, which take seconds each to draw and are tested in tests/report."""
    monkeypatch.setattr(figures, "pictures_of", lambda *args, **named: [])
