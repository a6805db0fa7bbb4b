"""Where the metrics, texts and videos of a run go: what `BasicSettings.Loggers` names."""

from __future__ import annotations

import dataclasses
import errno
import functools
import importlib
import io
import json
import math
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import text as text_summary

from configuration.schema import Config
from run_files.directory import RunDirectory
from utils import UserError, disk_errors, load_class, nearest, write_atomically

PROJECT = "GIT-STORM"  # of the runs at Weights & Biases and Trackio


class Logger:
    """One place that a run is logged to, in which every method does nothing.

    `BasicSettings.Loggers` names a class of one's own as `module:Class`.

    Args:
        directory: of the run. config: of the run.
        first_step: the first environment step that this process logs, 0 for a new run. What an
            earlier process, which was killed, logged at this step or later is to be dropped.
    """

    def __init__(self, directory: RunDirectory, config: Config, first_step: int) -> None:
        pass

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers by tag, at an environment step. Tags of wall-clock figures start with "time/"."""

    def text(self, step: int, tag: str, text: str) -> None:
        """Log a text (Markdown)."""

    def video(self, step: int, tag: str, gif: Path) -> None:
        """Log a video, a GIF file of the run."""

    def state_dict(self) -> dict[str, Any]:
        """Bring everything to the disk; return what `load_state_dict` needs to go on from here."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Go on from a saved state; return lines to tell the user."""
        return []

    def close(self) -> None:
        """Log no more."""


class RunLogger:
    """All loggers of a run, each called with the same; arguments as of a Logger.

    Raise UserError for a logger that is not there; methods, if the disk is full or not writable.
    """

    def __init__(self, directory: RunDirectory, config: Config, first_step: int = 0) -> None:
        self._videos = directory.videos
        makers = {name: find_logger(name) for name in config.BasicSettings.Loggers}
        self._loggers = {name: make(directory, config, first_step) for name, make in makers.items()}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers by tag, at an environment step."""
        numbers = {tag: float(value) for tag, value in values.items()}
        for logger in self._loggers.values():
            logger.scalars(step, numbers)

    def text(self, step: int, tag: str, text: str) -> None:
        """Log a text (Markdown)."""
        for logger in self._loggers.values():
            logger.text(step, tag, text)

    def video(self, step: int, tag: str, frames: np.ndarray, fps: float) -> None:
        """Log frames, uint8 (T, H, W, 3), which are also kept as videos/<tag>_<step>.gif."""
        path = self._videos / f"{re.sub(r'[^A-Za-z0-9-]+', '_', tag)}_{step}.gif"
        write_atomically(path, encode_gif(frames, fps))
        for logger in self._loggers.values():
            logger.video(step, tag, path)

    def state_dict(self) -> dict[str, Any]:
        """Bring everything to the disk; return the state of each logger."""
        return {name: logger.state_dict() for name, logger in self._loggers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Go on from a saved state; return lines to tell the user."""
        known = [name for name in self._loggers if name in state]
        return [line for name in known for line in self._loggers[name].load_state_dict(state[name])]

    def close(self) -> None:
        """Close every logger."""
        for logger in self._loggers.values():
            logger.close()


def find_logger(name: str) -> Callable[[RunDirectory, Config, int], Logger]:
    """Return the class that `BasicSettings.Loggers` names; raise UserError if there is none."""
    if name in LOGGERS:
        return LOGGERS[name]
    if ":" in name:
        return load_class(name)
    if name not in SERVICES:
        known = [*LOGGERS, *SERVICES]
        hint = f"must be {', '.join(known)} or module:Class{nearest(name, known)}"
        raise UserError(f"BasicSettings.Loggers={name}: {hint}")
    try:
        return functools.partial(Service, importlib.import_module(name))
    except ImportError as error:
        raise UserError(f"BasicSettings.Loggers={name}: {error}; pip install {name}") from error


class JsonLines(Logger):
    """metrics.jsonl: a line {"step": int, "<tag>": float, ...} a call; NaN and infinity are null."""

    def __init__(self, directory: RunDirectory, config: Config, first_step: int) -> None:
        self._file = AppendedFile(directory.metrics_file)
        if first_step == 0:
            self._file.truncate(0)
        self.close = self._file.close

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        fields = {tag: value if math.isfinite(value) else None for tag, value in values.items()}
        self._file.write(json.dumps({"step": int(step), **fields}).encode() + b"\n")

    def state_dict(self) -> dict[str, int]:
        self._file.flush()
        return {"bytes": self._file.size}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        wanted, size = state["bytes"], self._file.size
        if type(wanted) is not int or wanted < 0:
            raise ValueError(f"bytes of {self._file.path.name}: {wanted!r:.50}")
        self._file.truncate(wanted)
        lost = f"{self._file.path} has {size} bytes and had {wanted}: some logged metrics are lost"
        return [lost] if size < wanted else []


class TensorBoard(Logger):
    """An event file in runs/<n>/, written in this thread so that a full disk is reported in this thread.

    Its name sorts after those of earlier processes, whatever the clocks of their hosts say, because
    TensorBoard reads a folder in that order; it drops what they logged at the first step or later.
    """

    def __init__(self, directory: RunDirectory, config: Config, first_step: int) -> None:
        folder = directory.tensorboard
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            earlier = [re.match(r"events\.out\.tfevents\.(\d{10})\.", path.name) for path in folder.iterdir()]
        number = max([int(time.time()), *(int(match[1]) + 1 for match in earlier if match)])
        name = f"events.out.tfevents.{number:010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = AppendedFile(folder / name)
        self._records = RecordWriter(self._file)
        self._write(0, file_version="brain.Event:2")
        self._write(first_step, session_log=SessionLog(status=SessionLog.START))
        self.close = self._file.close

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        numbers = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(step, summary=Summary(value=numbers))

    def text(self, step: int, tag: str, text: str) -> None:
        self._write(step, summary=text_summary(tag, text))

    def video(self, step: int, tag: str, gif: Path) -> None:
        content = gif.read_bytes()
        width, height = Image.open(io.BytesIO(content)).size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
        self._write(step, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))

    def state_dict(self) -> dict[str, Any]:
        self._file.flush()
        return {}

    def _write(self, step: int, **content: Any) -> None:
        self._records.write(Event(wall_time=time.time(), step=int(step), **content).SerializeToString())


class Service(Logger):
    """Weights & Biases or Trackio, whose interfaces agree. What was logged there cannot be dropped."""

    def __init__(self, module: Any, directory: RunDirectory, config: Config, first_step: int) -> None:
        self._module, self._name, self._id = module, module.__name__, uuid.uuid4().hex
        self._folder = directory.outputs
        self._settings = {"project": PROJECT, "name": directory.name, "config": dataclasses.asdict(config)}
        self._settings["resume"] = "allow" if first_step else "never"

    @functools.cached_property
    def _run(self) -> Any:
        if self._name == "wandb":  # to Trackio a name is enough
            self._folder.mkdir(parents=True, exist_ok=True)
            self._settings |= {"id": self._id, "dir": str(self._folder)}
        try:
            return self._module.init(**self._settings)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"BasicSettings.Loggers={self._name}: no run can be started: {reason}") from error

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=int(step))

    def text(self, step: int, tag: str, text: str) -> None:
        self._run.log({tag: text}, step=int(step))

    def video(self, step: int, tag: str, gif: Path) -> None:
        self._run.log({tag: self._module.Video(str(gif))}, step=int(step))

    def state_dict(self) -> dict[str, Any]:
        return {"id": self._id}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        self._id = str(state["id"])
        return []

    def close(self) -> None:
        if "_run" in vars(self):  # else nothing was logged
            self._run.finish()


LOGGERS = {"tensorboard": TensorBoard, "jsonl": JsonLines}
SERVICES = ("wandb", "trackio")  # packages, imported only where they are named


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
        """Cut the file back to its first `size` bytes; do nothing if it has fewer."""
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


def encode_gif(frames: np.ndarray, fps: float) -> bytes:
    """Return frames, uint8 (T, H, W, 3), as an endlessly repeating GIF."""
    assert frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[3] == 3, frames.shape
    first, *others = [Image.fromarray(frame) for frame in frames]
    content = io.BytesIO()
    first.save(content, format="GIF", save_all=True, append_images=others, duration=1000 / fps, loop=0)
    return content.getvalue()
