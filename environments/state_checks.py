"""Checks of saved states before anything is restored from them."""

from __future__ import annotations

from typing import Any

import numpy as np

from utils import UserError


def expect(state: Any, key: str, kind: type) -> Any:
    """`state[key]`, of exactly that type.

    Raises:
        UserError: it is missing or of another type; the line names key, expected and found.
    """
    if not isinstance(state, dict):
        raise UserError(f"environment state: expected a dict, found {type(state).__name__}")
    if key not in state:
        raise UserError(f"environment state: {key!r} is missing, expected {kind.__name__}")
    value = state[key]
    if type(value) is not kind:
        raise UserError(f"environment state: {key!r} must be {kind.__name__}, found {type(value).__name__}")
    return value


def expect_array(state: Any, key: str, dtype: type, shape: tuple[int | None, ...]) -> np.ndarray:
    """`state[key]`, an array of that dtype and shape (None: any length).

    Raises:
        UserError: it is not; the line names key, expected and found.
    """
    value = expect(state, key, np.ndarray)
    fits = len(value.shape) == len(shape) and all(
        b in (None, a) for a, b in zip(value.shape, shape, strict=True)
    )
    if value.dtype != dtype or not fits:
        raise UserError(
            f"environment state: {key!r} must be {np.dtype(dtype)} {shape}, found {value.dtype} {value.shape}"
        )
    return value
