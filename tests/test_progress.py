"""The progress that the tests report."""

from __future__ import annotations

from types import SimpleNamespace

import conftest
import pytest


def test_tests_and_time_left_are_said_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now, lines = [0.0], []
    monkeypatch.setattr(conftest.time, "monotonic", lambda: now[0])
    progress = conftest.Progress(SimpleNamespace(write_line=lines.append))
    progress.pytest_sessionstart(SimpleNamespace(testscollected=40))
    for _ in range(10):
        now[0] += 6
        progress.pytest_runtest_logfinish()
    assert lines == [" 35 of 40 tests left, about 4 minutes", " 30 of 40 tests left, about 3 minutes"]
