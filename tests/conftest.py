"""Settings of every test: one thread of PyTorch, as test.sh runs two tests at once, and the order."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest tests at once, so that the others run beside them."""
    items.sort(key=lambda item: item.get_closest_marker("first") is None)
