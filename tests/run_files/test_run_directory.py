"""Run directories: one process at a time, nothing outside of them, and what a run was made with."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from configuration.loading import config_to_yaml, load_saved_config
from configuration.schema import Config
from configuration.spaces import ActionSpec, ObservationSpec, Spaces
from run_files.directory import RunDirectory, as_outputs, find_run, read_spaces
from run_files.loggers import RunLogger
from run_files.manifest import read_json
from run_files.provenance import joined_facts, machine_facts, moves
from utils import UserError

fork = multiprocessing.get_context("fork")

HOLD_LOCK = """
import sys, time
from pathlib import Path
from run_files.directory import RunDirectory
directory = RunDirectory("Boxing", Path(sys.argv[1]))
directory.lock()
print("locked", flush=True)
time.sleep(60)
"""


def hold_lock(root: Path, ready: Any, name: str = "Boxing") -> None:
    directory = RunDirectory(name, root)
    directory.lock()
    ready.set()
    time.sleep(60)


class TestNames:
    @pytest.mark.parametrize(
        "name",
        [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "/tmp/x",
            "a\\b",
            "a\0b",
            "a\nb",
            "x" * 300,
            ".x",
            "eval_result",
            "recordings",
            "pong_episodes",
            "pong.csv",
            "pong.CSV",
        ],
    )
    def test_names_that_would_escape(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(UserError, match="run name"):
            RunDirectory(name, tmp_path)

    @pytest.mark.parametrize("name", ["Boxing-STORM-seed_0", "1e5", "ünï cøde", "a.b"])
    def test_plain_names(self, tmp_path: Path, name: str) -> None:
        directory = RunDirectory(name, tmp_path)
        assert directory.outputs == tmp_path / "outputs" / name
        assert directory.tensorboard == tmp_path / "runs" / name
        assert list(tmp_path.iterdir()) == []

    def test_find_run_suggests(self, tmp_path: Path) -> None:
        RunDirectory("Boxing-STORM-seed_0", tmp_path).save_config(Config())
        assert find_run("Boxing-STORM-seed_0", tmp_path).name == "Boxing-STORM-seed_0"
        with pytest.raises(
            UserError, match=r"no run 'Boxing-STROM-seed_0'.*did you mean 'Boxing-STORM-seed_0'"
        ):
            find_run("Boxing-STROM-seed_0", tmp_path)


class TestLock:
    def test_second_process_is_refused_until_the_first_dies(self, tmp_path: Path) -> None:
        command = [sys.executable, "-c", HOLD_LOCK, str(tmp_path)]
        root = Path(__file__).resolve().parents[2]
        first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
        try:
            assert first.stdout is not None and first.stdout.readline() == "locked\n"
            directory = RunDirectory("Boxing", tmp_path)
            with pytest.raises(UserError, match=f"process {first.pid} on host {socket.gethostname()}"):
                directory.lock()
            RunDirectory("Pong", tmp_path).lock()  # another run is free
        finally:
            first.kill()
            first.wait()
        directory.lock()
        assert f"process {os.getpid()} on" in directory.lock_file.read_text()

    def test_a_child_process_does_not_keep_it(self, tmp_path: Path) -> None:
        """The worker of a killed process may live on for a moment; the lock must not."""
        ready, children = fork.Event(), fork.Value("i", 0)

        def lock_and_fork() -> None:
            directory = RunDirectory("Boxing", tmp_path)
            directory.lock()
            child = os.fork()
            if child:
                children.value = child
                ready.set()
            time.sleep(60)

        process = fork.Process(target=lock_and_fork)
        process.start()
        assert ready.wait(30)
        process.kill()
        process.join()
        assert children.value > 0
        try:
            os.kill(children.value, 0)  # it is alive
            RunDirectory("Boxing", tmp_path).lock()
        finally:
            os.kill(children.value, signal.SIGKILL)

    def test_owner_that_has_not_written_its_name(self, tmp_path: Path) -> None:
        ready = fork.Event()
        process = fork.Process(target=hold_lock, args=(tmp_path, ready), daemon=True)
        process.start()
        assert ready.wait(30)
        directory = RunDirectory("Boxing", tmp_path)
        for text, owner in ((b"", "another process; "), (b"\xff" * 999, "\ufffd{200}; ")):
            directory.lock_file.write_bytes(text)
            with pytest.raises(UserError, match=f"in use by {owner}"):
                directory.lock()
        process.kill()
        process.join()

    def test_file_system_without_locks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_locks(file: Any, operation: int) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr("fcntl.lockf", no_locks)
        with pytest.raises(UserError, match="has no locks"):
            RunDirectory("Boxing", tmp_path).lock()

    def test_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "outputs").write_text("a file")
        with pytest.raises(UserError, match=f"cannot write {tmp_path}/outputs"):
            RunDirectory("Boxing", tmp_path).lock()

    def test_half_written_files_are_removed(self, tmp_path: Path) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        directory.checkpoints.mkdir(parents=True)
        (directory.checkpoints / ".agent_5.pth.x1_y.tmp").touch()
        (directory.checkpoints / "agent_5.pth").touch()
        directory.lock()
        assert [entry.name for entry in directory.checkpoints.iterdir()] == ["agent_5.pth"]


class TestFiles:
    def test_config(self, tmp_path: Path) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        config = Config()
        config.BasicSettings.n = "1e5"
        directory.save_config(config)
        assert directory.config_file.read_text(encoding="utf-8") == config_to_yaml(config)
        assert load_saved_config(directory.config_file).BasicSettings == config.BasicSettings

    def test_status(self, tmp_path: Path) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        assert read_json(directory.status_file) == {} and read_spaces(directory.status_file) is None
        spaces = Spaces(ObservationSpec("image", (64, 64, 3)), ActionSpec("discrete", 18))
        facts = machine_facts(torch.device("cpu"))
        started = "2025-01-01T00:00:00+00:00"
        directory.write_status({"status": "running", "started": started, "spaces": asdict(spaces)} | facts)
        read = read_json(directory.status_file)
        assert (read["status"], read["started"]) == ("running", started)
        assert read["device"] == "cpu" and read["hardware"]
        assert torch.__version__.startswith(read["versions"]["torch"])
        assert read_spaces(directory.status_file) == spaces
        for text in ("{", "[]", "[" * 100_000, '{"spaces": {"observation": 1}}', '{"spaces": []}'):
            directory.status_file.write_text(text)
            assert read_spaces(directory.status_file) is None

    def test_exists(self, tmp_path: Path) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        assert not directory.exists()
        directory.lock()
        directory.outputs.mkdir()
        assert not directory.exists()
        directory.save_config(Config())
        assert directory.exists()

    def test_archive(self, tmp_path: Path) -> None:
        directory = RunDirectory("pong", tmp_path)
        assert directory.archive() is None
        directory.evaluations.mkdir(parents=True)
        own = (".csv", "_episodes.csv", "/5000.gif", "/world_model.json")
        others = (
            "pong_1.csv",
            "pong_1_episodes.csv",
            "pong-other.csv",
            "pong_world_model.csv",
        )
        for name in others:  # of the runs pong_1, pong-other and pong_world_model
            (directory.evaluations / name).touch()
        for number in (1, 2):
            directory.lock()
            directory.save_config(Config())
            RunLogger(directory, Config()).close()
            directory.shown.mkdir()
            for end in own:
                (directory.evaluations / f"pong{end}").touch()
            assert directory.archive() == f"pong.archived-{number}"
            assert not directory.exists()
            archived = RunDirectory(f"pong.archived-{number}", tmp_path)
            assert archived.config_file.exists()
            assert len(list(archived.tensorboard.iterdir())) == 1
        assert {path.name for path in directory.evaluations.iterdir()} == {
            *others,
            *(f"pong.archived-{number}{end}" for number in (1, 2) for end in ("", ".csv", "_episodes.csv")),
        }
        ready = fork.Event()
        process = fork.Process(target=hold_lock, args=(tmp_path, ready, "pong"))
        process.start()
        process.join(20)
        assert process.exitcode == 1 and not ready.is_set()  # the lock was held all the time


def test_facts_of_several_processes_stand_side_by_side() -> None:
    now = {"commit": "b", "device": "cpu", "hardware": "EPYC", "versions": {"torch": "2.7.0"}}
    earlier = {"commit": "a", "device": "cpu", "hardware": "H200 + EPYC", "versions": {"torch": "2.6.0"}}
    joined = joined_facts(earlier, now)
    versions = {"torch": "2.6.0 + 2.7.0"}
    assert joined == {"commit": "a + b", "device": "cpu", "hardware": "H200 + EPYC", "versions": versions}
    assert joined_facts(joined, now) == joined and joined_facts({}, now) == now
    assert joined_facts(earlier, now | {"commit": None})["commit"] == "a"


def test_a_run_that_was_moved_is_said_in_a_line() -> None:
    now = {"hardware": "EPYC", "versions": {"torch": "2.7.0", "python": "3.11.1"}}
    earlier = {"hardware": "H200 + EPYC", "versions": {"torch": "2.6.0", "python": "3.11.1"}}
    (line,) = moves(earlier, now)
    assert "torch was 2.6.0, is 2.7.0" in line and "EPYC" not in line and "python" not in line
    assert "hardware was EPYC, is H200" in moves(earlier, now | {"hardware": "H200"})[0]
    back = joined_facts(joined_facts(earlier, now), now | {"hardware": "H200"})
    assert back["hardware"] == "H200 + EPYC + H200" and moves(back, now | {"hardware": "H200"}) == []
    assert moves(joined_facts(earlier, now), now) == moves({}, now) == moves({"versions": 3}, now) == []


def test_a_user_that_there_is_not_has_no_home() -> None:
    assert as_outputs("~no-such-user/run") == Path("~no-such-user/run")
