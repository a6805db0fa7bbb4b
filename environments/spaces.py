"""Gymnasium's spaces as an agent meets them: images or vectors, classes or points of [−1, 1]^n."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
from gymnasium import Space, spaces

from configuration.spaces import ActionSpec, ObservationSpec
from utils import UserError

COLOURS = 3
FLATTENED = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
SUPPORTED_OBSERVATIONS = (
    "images (uint8 (H, W), or uint8 or [0, 1] floats (H, W, 1) or (H, W, 3)) or vectors (Box, Discrete, "
    "Dict or Tuple of them); Environment.Observation=image has pictures drawn"
)
SUPPORTED_ACTIONS = "Discrete, or a Box of floats with finite bounds"


class ImageReader:
    """Any picture as uint8 (S, S, 3): its size changed by area, grey repeated to three channels.

    Args:
        space: of the pictures; None takes whatever `render` returns. image_size: S.
    """

    def __init__(self, space: spaces.Box | None, image_size: int) -> None:
        self.spec = ObservationSpec("image", (image_size, image_size, COLOURS))
        self._space = space

    def __call__(self, image: Any) -> np.ndarray:
        """Return the picture as the agent sees it; ValueError unless it is of the space's dtype and shape."""
        image, size = self.in_colour(image), self.spec.shape[:2]
        return image if image.shape[:2] == size else cv2.resize(image, size, interpolation=cv2.INTER_AREA)

    def in_colour(self, image: Any) -> np.ndarray:
        """Return the picture in its own size, uint8 (height, width, 3); ValueError likewise."""
        if not isinstance(image, np.ndarray):
            raise ValueError(f"its observation must be a NumPy array, found {type(image).__name__}")
        dtype = np.dtype(np.uint8) if self._space is None else self._space.dtype
        shape = (*image.shape[:2], COLOURS) if self._space is None else self._space.shape
        if image.dtype != dtype or image.shape != shape:
            raise ValueError(f"its observation must be {dtype} {shape}, found {image.dtype} {image.shape}")
        if dtype != np.uint8:
            image = np.rint(255 * np.clip(_finite(image), 0, 1)).astype(np.uint8)
        return np.broadcast_to(image if image.ndim == 3 else image[:, :, None], (*shape[:2], COLOURS))


class VectorReader:
    """Any numbers as one vector, float32 (n,), in Gymnasium's order of flattening."""

    def __init__(self, space: Space) -> None:
        self.spec = ObservationSpec("vector", (spaces.flatdim(space),))
        self._space = space

    def __call__(self, observation: Any) -> np.ndarray:
        """Return the vector; ValueError unless it is of the space's size and finite."""
        with np.errstate(over="ignore"):
            vector = spaces.flatten(self._space, observation).astype(np.float32)
        if vector.shape != self.spec.shape:
            raise ValueError(f"its observation must have {self.spec.shape[0]} numbers, found {vector.size}")
        return _finite(vector)


def _finite(observation: np.ndarray) -> np.ndarray:
    if not np.isfinite(observation).all():
        raise ValueError(f"its observation must be finite, found {observation[~np.isfinite(observation)][0]}")
    return observation


def observation_reader(space: Space, wanted: str, image_size: int) -> ImageReader | VectorReader | None:
    """Return what turns an environment's observations into the agent's; None if it must be drawn for them.

    Args:
        space: of the environment's observations. wanted: Environment.Observation. image_size: S.

    Raises:
        UserError: the space is not supported.
    """
    if wanted != "vector" and _is_image(space):
        return ImageReader(space, image_size)
    if wanted == "image":
        return None
    leaves = list(_leaves(space))
    flat = all(isinstance(leaf, FLATTENED) for leaf in leaves) and len(set(map(_is_image, leaves))) == 1
    if wanted == "auto":
        flat = flat and all(len(leaf.shape) <= 2 and not _is_image(leaf) for leaf in leaves)
    if not flat or spaces.flatdim(space) == 0:
        raise UserError(f"its observations are {_shown(space)}; supported are {SUPPORTED_OBSERVATIONS}")
    return VectorReader(space)


def _is_image(space: Space) -> bool:
    if not isinstance(space, spaces.Box):
        return False
    layered = len(space.shape) == 3 and space.shape[2] in (1, COLOURS)
    if space.dtype == np.uint8:
        return layered or len(space.shape) == 2
    return layered and space.dtype.kind == "f" and bool((space.low == 0).all() and (space.high == 1).all())


def _leaves(space: Space) -> Iterator[Space]:
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        for inner in space.values() if isinstance(space, spaces.Dict) else space:
            yield from _leaves(inner)
    else:
        yield space


def action_map(space: Space) -> tuple[ActionSpec, Callable[[Any], Any]]:
    """Return what an agent's actions are, and what turns one of them into the environment's own.

    Points of [−1, 1]^n are mapped affinely to a box: −1 is its lower and 1 its upper bound, and what
    lies outside is clipped.

    Raises:
        UserError: the space is not supported.
    """
    if isinstance(space, spaces.Discrete):
        return ActionSpec("discrete", int(space.n)), lambda action: int(space.start) + int(action)
    if not _is_bounded(space):
        raise UserError(f"its actions are {_shown(space)}; supported are {SUPPORTED_ACTIONS}")
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)

    def to_box(action: np.ndarray) -> np.ndarray:
        share = (action.astype(np.float64).reshape(space.shape) + 1) / 2
        return np.clip(low + share * (high - low), low, high).astype(space.dtype)

    return ActionSpec("continuous", low.size), to_box


def _is_bounded(space: Space) -> bool:
    if not isinstance(space, spaces.Box) or space.dtype.kind != "f" or space.low.size == 0:
        return False
    with np.errstate(over="ignore"):
        return bool(np.isfinite(space.high.astype(np.float32) - space.low.astype(np.float32)).all())


def _shown(space: Space) -> str:
    text = " ".join(str(space).split())
    return text if len(text) <= 160 else f"{text[:157]}..."
