"""TensorBoard event files, and the append-only files that logs are written to."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import text as text_summary

from utils import UserError

COLOUR_CHANNELS = 3


class AppendedFile:
    """A log file that grows by whole records: each is written at once, or not at all if the disk is full.

    Nothing is buffered in this process, so that its death loses nothing. Every method raises
    UserError if the disk is full or not writable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115  (closed by close)
            self.size = os.fstat(self._file.fileno()).st_size

    def write(self, record: bytes) -> None:
        """Append a record; called with the whole of it."""
        with disk_errors(self.path):
            try:
                if self._file.write(record) != len(record):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                self._file.truncate(self.size)
                raise
        self.size += len(record)

    def truncate(self, size: int) -> None:
        """Cut the file back to its first `size` bytes; does nothing if it has fewer."""
        with disk_errors(self.path):
            self.size = min(size, self.size)
            self._file.truncate(self.size)

    def flush(self) -> None:
        """Wait until everything written is on the disk."""
        with disk_errors(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        with disk_errors(self.path):
            self._file.close()


class EventFile:
    """A TensorBoard event file, written in this thread so that a full disk is reported in this thread.

    Its name sorts after those of all earlier processes, whatever the clocks of their hosts say,
    because TensorBoard reads a folder in that order.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self.folder = folder
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            earlier = [
                re.match(r"events\.out\.tfevents\.(\d{10})\.", entry.name) for entry in folder.iterdir()
            ]
            number = max([int(time.time()), *(int(match[1]) + 1 for match in earlier if match)])
            path = folder / f"events.out.tfevents.{number:010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = AppendedFile(path)
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._write(
            Event(wall_time=time.time(), step=first_step, session_log=SessionLog(status=SessionLog.START))
        )

    def write_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add one event with all these numbers."""
        self._write_summary(step, [Summary.Value(tag=tag, simple_value=each) for tag, each in values.items()])

    def write_text(self, step: int, tag: str, text: str) -> None:
        """Add a text, shown as Markdown."""
        self._write_summary(step, text_summary(tag, text).value)

    def write_gif(self, step: int, tag: str, gif: bytes, height: int, width: int) -> None:
        """Add an encoded GIF, shown as an animated image."""
        image = Summary.Image(
            height=height, width=width, colorspace=COLOUR_CHANNELS, encoded_image_string=gif
        )
        self._write_summary(step, [Summary.Value(tag=tag, image=image)])

    def flush(self) -> None:
        """Bring all events to the disk."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write_summary(self, step: int, values: Iterable[Summary.Value]) -> None:
        self._write(Event(wall_time=time.time(), step=int(step), summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside into a UserError that names `path` and what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free space there or make it writable, "
            f"and run the same command again"
        ) from error


def encode_gif(frames: np.ndarray, fps: float) -> bytes:
    """Frames, uint8 (T, H, W, 3), as an endlessly repeating GIF."""
    assert frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[3] == COLOUR_CHANNELS, frames.shape
    first, *others = [Image.fromarray(frame) for frame in frames]
    content = io.BytesIO()
    first.save(content, format="GIF", save_all=True, append_images=others, duration=1000 / fps, loop=0)
    return content.getvalue()
