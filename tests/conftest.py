"""Settings of every test: one thread of PyTorch, as test.sh runs two tests at once, order and progress."""

from __future__ import annotations

import os
import signal
import time

import pytest

# However the tests were started, as in a script's background: no signal that they send is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(number, signal.SIG_DFL)

os.environ.setdefault("OMP_NUM_THREADS", "1")
SAY_EVERY = 30.0  # seconds


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest tests at once, so that the others run beside them; skip what needs a missing card."""
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu") is not None:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA card, and ./test.sh --gpu"))
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


class Progress:
    """Says now and then how many tests are done, and about how long the rest will take."""

    def __init__(self, reporter: pytest.TerminalReporter) -> None:
        self._reporter = reporter
        self._start = self._said = time.monotonic()
        self._done = 0

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Remember the session, which counts the tests."""
        self._session = session

    def pytest_runtest_logfinish(self) -> None:
        """Count a test."""
        self._done += 1
        now, left = time.monotonic(), self._session.testscollected - self._done
        if now - self._said >= SAY_EVERY:
            minutes = (now - self._start) / self._done * left / 60
            self._reporter.write_line(
                f" {left} of {left + self._done} tests left, about {minutes:.0f} minutes"
            )
            self._said = now


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Report progress, but not from the processes that share the tests."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        config.pluginmanager.register(Progress(reporter))
