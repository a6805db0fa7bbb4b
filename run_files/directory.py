"""Where a run's files lie, and who may write them.

outputs/<n>/                       config.yaml, run.json, metrics.jsonl, manifest.json, ckpt/, state/, videos/
outputs/eval_result/<n>.csv        evaluations; <n>_episodes.csv, <n>_<step>.gif, <n>_world_model.*
runs/<n>/                          TensorBoard event files
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import re
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configuration.checks import check_run_name
from configuration.loading import config_to_yaml
from configuration.schema import Config
from configuration.spaces import ActionSpec, ObservationSpec, Spaces
from run_files.manifest import EVALUATED, TRAINED, enter
from utils import UserError, disk_errors, nearest, write_atomically

EVALUATIONS = "eval_result"  # the folder of evaluation CSVs beside the runs
RESERVED = {EVALUATIONS: "the evaluations", "report": "the report", "sweep": "the logs of sweeps"}
EPISODES = "_episodes"  # ends the name of the table of episodes
_LOCK_TAKEN = (errno.EACCES, errno.EAGAIN)
# Locked files by process (a forked one inherits this table, but not the locks) and path.
_LOCKED: dict[tuple[int, Path], io.FileIO] = {}


@dataclass(frozen=True)
class RunStatus:
    """What run.json says about a run.

    status: running, stopped or finished. started: ISO 8601, UTC. elapsed_s: seconds of all its
    processes. spaces: the fields of the environment's Spaces. The rest: as `machine_facts`.
    """

    status: str
    started: str
    finished_step: int
    sample_max_steps: int
    elapsed_s: float
    spaces: dict[str, dict[str, Any]]
    commit: str | None
    device: str
    hardware: str
    versions: dict[str, str]


class RunDirectory:
    """The folders of the run `name` under `root`; nothing is made before it is written.

    Raise UserError if `name` is not a plain folder name.
    """

    def __init__(self, name: str, root: Path = Path(".")) -> None:
        check_run_name(name)
        if name in RESERVED:
            raise UserError(f"run name {name!r}: outputs/{name} holds {RESERVED[name]}; choose another name")
        if name.endswith(EPISODES):
            raise UserError(f"run name {name!r}: tables of episodes are named so; choose another name")
        self.name = name
        self.root = Path(root)
        self.outputs = self.root / "outputs" / name
        self.tensorboard = self.root / "runs" / name
        self.config_file = self.outputs / "config.yaml"
        self.status_file = self.outputs / "run.json"
        self.metrics_file = self.outputs / "metrics.jsonl"
        self.checkpoints = self.outputs / "ckpt"
        self.state = self.outputs / "state"
        self.videos = self.outputs / "videos"
        self.evaluations = self.root / "outputs" / EVALUATIONS
        self.table = self.evaluations / f"{name}.csv"
        self.lock_file = self.root / "outputs" / ".locks" / f"{name}.lock"
        self.trained = {part: self.outputs / part for part in TRAINED}
        tables = (self.table, self.evaluations / f"{name}{EPISODES}.csv")
        self.evaluated = dict(zip(EVALUATED, tables, strict=True))

    def exists(self) -> bool:
        """Return whether there are files of a run of this name."""
        with disk_errors(self.outputs):
            return any(each.is_dir() and any(each.iterdir()) for each in (self.outputs, self.tensorboard))

    def lock(self) -> None:
        """Take the run for this process until `unlock` or its end, however it ends.

        The operating system holds the lock, so that a dead process has none. Half-written files
        that a killed process left are removed. Raise UserError naming the other process's host
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
        for folder in (self.outputs, self.checkpoints, self.state, self.videos):
            for leftover in folder.glob(".*.tmp"):
                with contextlib.suppress(OSError):
                    leftover.unlink()

    def unlock(self) -> None:
        """Give the run back; do nothing if this process does not have it."""
        file = _LOCKED.pop(self._lock_key(), None)
        if file is not None:
            with contextlib.suppress(OSError):
                file.truncate(0)
            file.close()

    def archive(self) -> str | None:
        """Rename the run and its evaluations to <name>.archived-<k>; the new name, None if there is no run.

        Call it with the lock held. Raise UserError if a folder cannot be renamed.
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
        write_atomically(self.config_file, config_to_yaml(config))

    def write_status(self, status: RunStatus) -> None:
        """Write run.json; of a run that is not running, enter what training wrote in the manifest."""
        write_atomically(self.status_file, json.dumps(asdict(status), indent=1))
        if status.status != "running":
            enter(self.outputs, self.trained)

    def read_status(self) -> dict[str, Any]:
        """Return what run.json says; {} if it is missing or not readable."""
        return read_status(self.status_file)

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

    def _archive_moves(self, number: int) -> list[tuple[Path, Path]]:
        """Old and new paths of all that the run wrote, the folder with the states last."""
        mine = re.compile(
            rf"{re.escape(self.name)}(\.csv|{EPISODES}\.csv|_\d+\.(?:gif|mp4)|_world_model\.(?:json|png|gif))"
        )
        files = sorted(self.evaluations.iterdir()) if self.evaluations.is_dir() else []
        ends = [(path, match[1]) for path in files if (match := mine.fullmatch(path.name))]
        return [
            (path, path.with_name(f"{self.name}.archived-{number}{end}"))
            for path, end in (*ends, (self.tensorboard, ""), (self.outputs, ""))
        ]


def find_run(name: str, root: Path = Path(".")) -> RunDirectory:
    """Return the directory of a run that exists; raise UserError naming the nearest run if it does not."""
    directory = RunDirectory(name, root)
    if not directory.outputs.is_dir():
        folder = directory.outputs.parent
        names = [path.parent.name for path in folder.glob("*/config.yaml")]
        raise UserError(f"no run {name!r} in {folder.absolute()}{nearest(name, names)}")
    return directory


def read_status(path: Path) -> dict[str, Any]:
    """Return what a run.json says; {} if it is missing or not readable."""
    try:
        status = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return status if isinstance(status, dict) else {}


def read_spaces(path: Path) -> Spaces | None:
    """Return what the agent of a run sees and does; None if its run.json at `path` does not say it."""
    try:
        seen, done = (read_status(path)["spaces"][part] for part in ("observation", "action"))
        return Spaces(ObservationSpec(seen["kind"], tuple(seen["shape"])), ActionSpec(**done))
    except (KeyError, TypeError):
        return None


def _owner(file: io.FileIO) -> str:
    """Host and pid that the lock file names."""
    try:
        file.seek(0)
        owner = json.loads(file.read(1_000))
        return f"process {owner['pid']:d} on host {str(owner['host'])[:200]}"
    except (OSError, ValueError, TypeError, KeyError):  # its owner has not written them yet
        return "another process"
