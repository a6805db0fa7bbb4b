"""Where a run's files lie, and who may write them.

outputs/<n>/                       config.yaml, run.json, metrics.jsonl, manifest.json, ckpt/, state/, videos/
outputs/eval_result/<n>.csv        evaluations; <n>_episodes.csv, and in <n>/ films and world-model reports
runs/<n>/                          TensorBoard event files
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import socket
from pathlib import Path
from typing import Any

from configuration.checks import check_run_name
from configuration.loading import config_to_yaml
from configuration.schema import Config
from configuration.spaces import ActionSpec, ObservationSpec, Spaces
from run_files.manifest import EVALUATED, TRAINED, enter, read_json, read_manifest, strike
from utils import UserError, disk_errors, nearest, typed_path, write_atomically

EVALUATIONS = "eval_result"  # the folder of evaluation CSVs beside the runs
RESERVED = {  # folders beside the runs, and what they hold
    EVALUATIONS: "the evaluations",
    "report": "the report",
    "sweep": "the logs of sweeps",
    "recordings": "what was recorded while playing",
}
EPISODES = "_episodes"  # ends the name of the table of episodes


class RunDirectory:
    """The folders of the run `name` under `root`; nothing is made before it is written.

    Raise UserError if `name` is not a plain folder name.
    """

    def __init__(self, name: str, root: Path = Path(".")) -> None:
        check_run_name(name)
        if name in RESERVED:
            raise UserError(f"run name {name!r}: outputs/{name} holds {RESERVED[name]}; choose another name")
        for ending in (EPISODES, ".csv"):
            if name.lower().endswith(ending):
                raise UserError(
                    f"run name {name!r}: {ending} ends the names of evaluation tables; choose another"
                )
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
        self.shown = self.evaluations / name  # films, and what the world model predicts
        self.lock_file = self.root / "outputs" / ".locks" / f"{name}.lock"
        self._lock: io.FileIO | None = None
        self.trained = {part: self.outputs / part for part in TRAINED}
        tables = (self.table, self.evaluations / f"{name}{EPISODES}.csv")
        self.evaluated = dict(zip(EVALUATED, tables, strict=True))

    def exists(self) -> bool:
        """Return whether there are files of a run of this name."""
        with disk_errors(self.outputs):
            return any(each.is_dir() and any(each.iterdir()) for each in (self.outputs, self.tensorboard))

    def lock(self) -> None:
        """Take the run for this process, as long as this object and the process live, however it ends.

        The operating system holds the lock, so that a dead process has none. Half-written files
        that a killed process left are removed. Raise UserError naming the other process's host
        and pid if it has the run.
        """
        if self._lock is not None:
            return
        with disk_errors(self.lock_file):
            self.lock_file.parent.mkdir(parents=True, exist_ok=True)
            file = open(self.lock_file, "a+b", buffering=0)  # noqa: SIM115  (open as long as the lock is held)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = self.lock_file.read_text(errors="replace")[:200] or "another process"
            reason = f"run {self.name} is in use by {owner}; wait for it or stop it"
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                reason = f"{self.lock_file}: this file system has no locks ({error.strerror}); run elsewhere"
            raise UserError(reason) from error
        with disk_errors(self.lock_file):
            file.truncate(0)
            file.write(f"process {os.getpid()} on host {socket.gethostname()}".encode())
        self._lock = file
        for folder in (self.outputs, self.checkpoints, self.state, self.videos):
            for leftover in folder.glob(".*.tmp"):
                with contextlib.suppress(OSError):
                    leftover.unlink()

    def archive(self) -> str | None:
        """Rename the run and its evaluations; return the new name <name>.archived-<k>, None without a run.

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

    def write_status(self, status: dict[str, Any]) -> None:
        """Write run.json; what training wrote is in the manifest unless the run is running.

        Args:
            status: `status`, one of running, stopped and finished; `started`, ISO 8601, UTC;
                `finished_step`, `sample_max_steps`; `elapsed_s` and `cpu_s`, seconds of all its processes;
                `spaces`, the fields of the environment's Spaces; and those of `machine_facts`.
        """
        strike(self.outputs, TRAINED)
        write_atomically(self.status_file, json.dumps(status, indent=1))
        if status["status"] != "running":
            enter(self.outputs, self.trained)

    def is_closed(self) -> bool:
        """Return whether training has said how it ended, up to its last word."""
        return self.status_file.name in read_manifest(self.outputs)

    def _archive_moves(self, number: int) -> list[tuple[Path, Path]]:
        """Old and new paths of all that the run wrote, the folder with the states last."""
        new = f"{self.name}.archived-{number}"
        written = (*self.evaluated.values(), self.shown, self.tensorboard, self.outputs)
        return [(path, path.with_name(new + path.name.removeprefix(self.name))) for path in written]


def as_outputs(text: str | Path) -> Path:
    """Return the path of a run as it was typed, or completed by a shell: outputs/NAME of runs/NAME, too."""
    path = typed_path(text)
    outputs = path.parent.parent / "outputs" / path.name
    return outputs if path.parent.name == "runs" and outputs.is_dir() else path


def find_run(name: str, root: Path = Path(".")) -> RunDirectory:
    """Return the directory of a run that exists; raise UserError naming the nearest run if it does not."""
    directory = RunDirectory(name, root)
    if not directory.outputs.is_dir():
        folder = directory.outputs.parent
        names = [path.parent.name for path in folder.glob("*/config.yaml")]
        raise UserError(f"no run {name!r} in {folder.absolute()}{nearest(name, names)}")
    return directory


def read_spaces(path: Path) -> Spaces | None:
    """Return what the agent of a run sees and does; None if its run.json at `path` does not say it."""
    try:
        seen, done = (read_json(path)["spaces"][part] for part in ("observation", "action"))
        return Spaces(ObservationSpec(seen["kind"], tuple(seen["shape"])), ActionSpec(**done))
    except (KeyError, TypeError):
        return None
