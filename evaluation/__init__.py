"""Scores of checkpoints, and how well world models predict.

from evaluation import load_policy
"""

from __future__ import annotations

from typing import Any

__all__ = ["load_policy"]


def __getattr__(name: str) -> Any:
    if name == "load_policy":  # only then is PyTorch imported, which reports do without
        from evaluation.policies import load_policy

        return load_policy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
