"""Checks of saved states before anything is restored from them."""

from __future__ import annotations

from typing import Any

import numpy as np

from utils import UserError


def expect(state: Any, key: str, kind: Any, shape: tuple[int | None, ...] | None = None) -> Any:
    """Return `state[key]`, of exactly that type; with a shape, an array of that dtype (None: any length).

    Raises:
        UserError: it is missing or something else; the line names key, expected and found.
    """
    if not isinstance(state, dict):
        raise UserError(f"environment state: expected a dict, found {type(state).__name__}")
    if key not in state:
        raise UserError(f"environment state: {key!r} is missing")
    value = state[key]
    if shape is None:
        fits, expected = type(value) is kind, kind.__name__
    else:
        expected = f"{np.dtype(kind)} {shape}"
        fits = isinstance(value, np.ndarray) and value.dtype == kind and len(value.shape) == len(shape)
        fits = fits and all(b in (None, a) for a, b in zip(value.shape, shape, strict=True))
    if not fits:
        found = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise UserError(f"environment state: {key!r} must be {expected}, found {found}")
    return value
