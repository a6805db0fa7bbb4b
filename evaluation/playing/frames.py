"""What there is to see after a step, and as one message."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np


@dataclass(frozen=True)
class Frame:
    """What there is to see after a step."""

    pictures: dict[str, np.ndarray]  # game, seen, posterior, dream: uint8 (H, W, 3); missing where none is
    facts: dict[str, Any]  # numbers, as JSON


def encode(frame: Frame) -> bytes:
    """Return a frame as one message: the length of its JSON (4 bytes, little endian), the JSON, PNG files.

    The JSON's "pictures" says names and lengths of the files, in their order.
    """
    files = {}
    for name, picture in frame.pictures.items():
        picture = np.ascontiguousarray(picture[..., ::-1])  # OpenCV's order of colours
        files[name] = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
    facts = frame.facts | {"pictures": [[name, len(file)] for name, file in files.items()]}
    header = json.dumps(facts).encode()
    return b"".join([len(header).to_bytes(4, "little"), header, *files.values()])
