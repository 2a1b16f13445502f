"""Settings of the whole suite: no timing in property tests, the same examples every run, Ctrl-C heard."""

import signal

import hypothesis
import pytest

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> None:
    """A shell starts what it runs in the background with Ctrl-C ignored; tests of Ctrl-C would wait for it in vain."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
