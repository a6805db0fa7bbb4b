"""Scores of checkpoints, how well world models predict, and playing in them.

from evaluation import DreamEnvironment, dream, load_policy
"""

from __future__ import annotations

import importlib
from typing import Any

HOMES = {  # imported when first asked for: reports do without PyTorch
    "load_policy": "evaluation.policies",
    "DreamEnvironment": "evaluation.playing.environment",
    "dream": "evaluation.playing.dreaming",
}
__all__ = ["DreamEnvironment", "dream", "load_policy"]


def __getattr__(name: str) -> Any:
    if name in HOMES:
        return getattr(importlib.import_module(HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
