"""Videos of play: MP4 if imageio-ffmpeg is installed, else GIF."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from run_files.loggers import encode_gif
from utils import UserError, write_atomically

GIF_PICTURES = 1_500  # at most; of a longer play every second, fourth … picture is kept
FILM_HEIGHT = 240  # of pictures that stand side by side


class Video:
    """A video that pictures, uint8 (H, W, 3) of one size, are added to.

    Args:
        fps: pictures a second.
    """

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self._pictures: list[np.ndarray] = []  # of a GIF
        self._every, self._count = 1, 0
        self._file: Any = None  # of an MP4, as its writer
        self._writer: Any = None
        with contextlib.suppress(ImportError):
            import imageio_ffmpeg

            self._encode = imageio_ffmpeg.write_frames
            self._file = tempfile.NamedTemporaryFile(suffix=".mp4")  # noqa: SIM115  (closed by save)

    def add(self, picture: np.ndarray) -> None:
        """Append a picture; raise UserError if it cannot be encoded."""
        if self._file is not None:
            with _encoding_errors():
                if self._writer is None:
                    size = picture.shape[1::-1]
                    self._writer = self._encode(self._file.name, size, fps=self.fps, macro_block_size=2)
                    self._writer.send(None)
                self._writer.send(np.ascontiguousarray(picture))
            return
        if self._count % self._every == 0:
            self._pictures.append(picture)
        self._count += 1
        if len(self._pictures) > GIF_PICTURES:
            self._pictures, self._every = self._pictures[::2], 2 * self._every

    def save(self, path: Path) -> Path:
        """Write the video and return where: `path` with .mp4 or .gif at its end."""
        if self._file is None:
            content, ending = encode_gif(np.stack(self._pictures), self.fps / self._every), ".gif"
        else:
            with _encoding_errors(), self._file:
                self._writer.close()
                content, ending = Path(self._file.name).read_bytes(), ".mp4"
        path = path.with_name(path.name + ending)
        write_atomically(path, content)
        return path


def side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Return pictures, uint8 (H, W, 3) of any sizes, at one height beside each other."""

    def at_height(picture: np.ndarray) -> np.ndarray:
        height, width = picture.shape[:2]
        size = (2 * round(width * FILM_HEIGHT / height / 2), FILM_HEIGHT)
        return cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST)

    return np.concatenate([at_height(picture) for picture in pictures], axis=1)


@contextlib.contextmanager
def _encoding_errors() -> Any:
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"imageio-ffmpeg cannot encode the video ({str(error).splitlines()[0]}); "
            f"without it a GIF is made: pip uninstall imageio-ffmpeg"
        ) from error
