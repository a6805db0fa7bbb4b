"""Where a run's files lie, who may write them, and its logs.

outputs/<n>/    config.yaml, run.json, metrics.jsonl, seal.json, ckpt/, state/, videos/
runs/<n>/       TensorBoard event files
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import platform
import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configuration.checks import check_run_name
from configuration.loading import config_to_yaml
from configuration.schema import Config
from run_files.event_file import AppendedFile, EventFile, disk_errors, encode_gif
from run_files.seals import SEAL
from utils import REPOSITORY, UserError, nearest, write_atomically

EVALUATIONS = "eval_result"  # the folder of evaluation CSVs beside the runs
RESERVED = {EVALUATIONS: "the evaluations", "report": "the report", "sweep": "the logs of sweeps"}
PACKAGES = ("torch", "numpy", "gymnasium", "ale-py", "opencv-python-headless", "tensorboard")
_LOCK_TAKEN = (errno.EACCES, errno.EAGAIN)
# Locked files by process (a forked one inherits this table, but not the locks) and path.
_LOCKED: dict[tuple[int, Path], io.FileIO] = {}


@dataclass(frozen=True)
class RunStatus:
    """What run.json says about a run. started: ISO 8601, UTC; elapsed_s: seconds of all its processes."""

    status: str
    started: str
    finished_step: int
    sample_max_steps: int
    elapsed_s: float
    commit: str | None
    device: str
    hardware: str
    versions: dict[str, str]


class RunDirectory:
    """The folders of the run `name` under `root`; nothing is made before it is written.

    Raises UserError if `name` is not a plain folder name.
    """

    def __init__(self, name: str, root: Path = Path(".")) -> None:
        check_run_name(name)
        if name in RESERVED:
            raise UserError(f"run name {name!r}: outputs/{name} holds {RESERVED[name]}; choose another name")
        self.name = name
        self.root = Path(root)
        self.outputs = self.root / "outputs" / name
        self.tensorboard = self.root / "runs" / name
        self.config_file = self.outputs / "config.yaml"
        self.status_file = self.outputs / "run.json"
        self.metrics_file = self.outputs / "metrics.jsonl"
        self.seal_file = self.outputs / SEAL
        self.checkpoints = self.outputs / "ckpt"
        self.state = self.outputs / "state"
        self.videos = self.outputs / "videos"
        self.lock_file = self.root / "outputs" / ".locks" / f"{name}.lock"

    def exists(self) -> bool:
        """Whether there are files of a run of this name."""
        with disk_errors(self.outputs):
            return any(each.is_dir() and any(each.iterdir()) for each in (self.outputs, self.tensorboard))

    def lock(self) -> None:
        """Take the run for this process until `unlock` or its end, however it ends.

        The operating system holds the lock, so that a dead process has none. Half-written files
        that a killed process left are removed. Raises UserError naming the other process's host
        and pid if it has the run.
        """
        if self._lock_key() in _LOCKED:
            return
        with disk_errors(self.lock_file):
            self.lock_file.parent.mkdir(parents=True, exist_ok=True)
            file = open(self.lock_file, "a+b", buffering=0)  # noqa: SIM115  (open as long as the lock is held)
        try:
            self._take(file)
        except BaseException:
            file.close()
            raise
        _LOCKED[self._lock_key()] = file
        self._remove_leftovers()

    def unlock(self) -> None:
        """Give the run back; does nothing if this process does not have it."""
        file = _LOCKED.pop(self._lock_key(), None)
        if file is not None:
            with contextlib.suppress(OSError):
                file.truncate(0)
            file.close()

    def archive(self) -> str | None:
        """Rename the run and its evaluations to <name>.archived-<k>; the new name, None if there is no run.

        Call it with the lock held. Raises UserError if a folder cannot be renamed.
        """
        if not self.exists():
            return None
        number = 1
        while any(target.exists() for _, target in self._archive_moves(number)):
            number += 1
        for source, target in self._archive_moves(number):
            with disk_errors(source):
                if source.exists():
                    source.rename(target)
        return f"{self.name}.archived-{number}"

    def save_config(self, config: Config) -> None:
        """Write the resolved configuration to config.yaml."""
        content = config_to_yaml(config).encode()
        write_atomically(self.config_file, lambda file: file.write(content))

    def write_status(self, status: RunStatus) -> None:
        """Write run.json."""
        content = json.dumps(asdict(status), indent=1).encode()
        write_atomically(self.status_file, lambda file: file.write(content))

    def unseal(self) -> None:
        """Remove the seal of a run that goes on."""
        with disk_errors(self.seal_file):
            self.seal_file.unlink(missing_ok=True)

    def read_status(self) -> dict[str, Any]:
        """What run.json says; {} if it is missing or not readable."""
        try:
            status = json.loads(self.status_file.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return status if isinstance(status, dict) else {}

    def _lock_key(self) -> tuple[int, Path]:
        return os.getpid(), self.lock_file.resolve()

    def _take(self, file: io.FileIO) -> None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _LOCK_TAKEN:
                raise UserError(
                    f"run {self.name} is in use by {_owner(file)}; wait for it or stop it"
                ) from error
            raise UserError(
                f"cannot lock {self.lock_file}: {error.strerror}; "
                f"this file system has no locks, so run from a folder on another one"
            ) from error
        with disk_errors(self.lock_file):
            file.truncate(0)
            file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())

    def _remove_leftovers(self) -> None:
        for folder in (self.outputs, self.checkpoints, self.state, self.videos):
            for leftover in folder.glob(".*.tmp"):
                with contextlib.suppress(OSError):
                    leftover.unlink()

    def _archive_moves(self, number: int) -> list[tuple[Path, Path]]:
        """Old and new paths, the folder with the states last."""
        evaluations = self.root / "outputs" / EVALUATIONS
        of_this_run = re.compile(
            rf"{re.escape(self.name)}(_seal\.json|(?:_episodes|_world_model|_\d+)?\.\w+)"
        )
        files = evaluations.iterdir() if evaluations.is_dir() else ()
        matches = [match for match in (of_this_run.fullmatch(file.name) for file in files) if match]
        moves = [(evaluations, match[0], match[1]) for match in matches]
        moves += [(folder.parent, self.name, "") for folder in (self.tensorboard, self.outputs)]
        return [(parent / old, parent / f"{self.name}.archived-{number}{end}") for parent, old, end in moves]


class RunLogger:
    """Logs scalars, texts and videos to TensorBoard, and the same scalars to metrics.jsonl.

    A line of metrics.jsonl is {"step": int, "<tag>": float, ...}; NaN and infinity are null.
    Tags of wall-clock figures start with "time/". Every method raises UserError if the disk is
    full or not writable.

    Args:
        directory: of the run.
        first_step: the first step that this process logs. TensorBoard drops what an earlier
            process logged at this step or later. With 0 metrics.jsonl is started anew;
            otherwise `load_state_dict` cuts it.
    """

    def __init__(self, directory: RunDirectory, first_step: int = 0) -> None:
        self._directory = directory
        self._events = EventFile(directory.tensorboard, first_step)
        self._metrics = AppendedFile(directory.metrics_file)
        self._logged = hashlib.sha256()  # of all of metrics.jsonl, as it was logged
        if first_step == 0:
            self._metrics.truncate(0)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers at an environment step, as one line written at once."""
        numbers = {tag: float(value) for tag, value in values.items()}
        self._events.write_scalars(step, numbers)
        fields = {tag: value if math.isfinite(value) else None for tag, value in numbers.items()}
        line = json.dumps({"step": int(step), **fields}).encode() + b"\n"
        self._metrics.write(line)
        self._logged.update(line)

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """Log a text (Markdown) to TensorBoard."""
        self._events.write_text(step, tag, text)

    def video(self, tag: str, frames: np.ndarray, step: int, fps: float) -> None:
        """Log frames, uint8 (T, H, W, 3), to TensorBoard and to videos/<tag>_<step>.gif."""
        content = encode_gif(frames, fps)
        self._events.write_gif(step, tag, content, frames.shape[1], frames.shape[2])
        name = f"{re.sub(r'[^A-Za-z0-9-]+', '_', tag)}_{step}.gif"
        write_atomically(self._directory.videos / name, lambda file: file.write(content))

    def flush(self) -> None:
        """Bring everything logged so far to the disk."""
        self._events.flush()
        self._metrics.flush()

    def close(self) -> None:
        """Close both files."""
        self._events.close()
        self._metrics.close()

    def state_dict(self) -> dict[str, int | str]:
        """Flush, and return how many bytes metrics.jsonl has, and the SHA-256 of what was logged."""
        self.flush()
        return {"metrics_offset": self._metrics.size, "metrics_sha256": self._logged.hexdigest()}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Cut metrics.jsonl back to where a state was saved.

        Returns lines to tell the user: one if the file is shorter than it was, so that metrics
        are lost, or altered; the run's seal will then not fit it. Raises UserError if `state` is
        not of a logger.
        """
        offset = state.get("metrics_offset")
        if type(offset) is not int or offset < 0:
            raise UserError(
                f"saved state: metrics_offset is {str(offset)[:50]!r}, expected a number of bytes"
            )
        size = self._metrics.size
        self._metrics.truncate(offset)
        with disk_errors(self._metrics.path):
            self._logged = hashlib.sha256(self._metrics.path.read_bytes())
        expected = str(state.get("metrics_sha256", self._logged.hexdigest()))  # older states have none
        altered = self._logged.hexdigest() != expected
        if altered:
            self._logged = hashlib.sha256(expected.encode())
        if size < offset:
            return [f"{self._metrics.path} has {size} bytes and had {offset}: some logged metrics are lost"]
        return [f"{self._metrics.path} was altered since it was logged"] if altered else []


def machine_facts(device: torch.device) -> dict[str, Any]:
    """The fields of RunStatus that say what the run was made with: commit, device, hardware, versions."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    hardware = gpu or f"{_processor()}, {os.cpu_count()} cores"
    return {"commit": _commit(), "device": str(device), "hardware": hardware, "versions": _versions()}


def joined_facts(earlier: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The facts of a run that several processes made: what differs stands side by side, joined by " + ".

    Args:
        earlier: run.json of the processes before, {} if it is lost. now: `machine_facts`.
    """
    joined = {}
    for key in ("commit", "device", "hardware"):
        parts = [*str(earlier.get(key) or now[key]).split(" + "), str(now[key])]
        joined[key] = " + ".join(dict.fromkeys(parts)) if now[key] or earlier.get(key) else None
    return now | joined


def find_run(name: str, root: Path = Path(".")) -> RunDirectory:
    """The directory of a run that exists; UserError naming the nearest run if it does not."""
    directory = RunDirectory(name, root)
    if not directory.outputs.is_dir():
        folder = directory.outputs.parent
        names = [path.parent.name for path in folder.glob("*/config.yaml")]
        raise UserError(f"no run {name!r} in {folder.absolute()}{nearest(name, names)}")
    return directory


def _owner(file: io.FileIO) -> str:
    """Host and pid that the lock file names."""
    try:
        file.seek(0)
        owner = json.loads(file.read(1_000))
        return f"process {owner['pid']:d} on host {str(owner['host'])[:200]}"
    except (OSError, ValueError, TypeError, KeyError):  # its owner has not written them yet
        return "another process"


def _commit() -> str | None:
    """The commit of this source, "-modified" after it if files differ; None outside of git."""
    git = ["git", "-C", str(REPOSITORY)]
    command = [*git, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=-modified"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def _processor() -> str:
    with contextlib.suppress(OSError):
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
