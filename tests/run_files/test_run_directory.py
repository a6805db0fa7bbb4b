"""Run directories: one process at a time, nothing outside of them, and logs that can be cut back."""

from __future__ import annotations

import errno
import io
import json
import math
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configuration.loading import config_to_yaml, load_saved_config
from configuration.schema import Config
from run_files import event_file
from run_files.directory import RunDirectory, RunLogger, RunStatus, find_run, joined_facts, machine_facts
from utils import UserError

fork = multiprocessing.get_context("fork")

HOLD_LOCK = """
import sys, time
from pathlib import Path
from run_files.directory import RunDirectory
RunDirectory("Boxing", Path(sys.argv[1])).lock()
print("locked", flush=True)
time.sleep(60)
"""


def hold_lock(root: Path, ready: Any) -> None:
    RunDirectory("Boxing", root).lock()
    ready.set()
    time.sleep(60)


def read_events(directory: RunDirectory) -> EventAccumulator:
    events = EventAccumulator(
        str(directory.tensorboard), size_guidance={"scalars": 0, "images": 0, "tensors": 0}
    )
    return events.Reload()


def read_lines(directory: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in directory.metrics_file.read_text().splitlines()]


class TestNames:
    @pytest.mark.parametrize(
        "name",
        ["", ".", "..", "../x", "a/b", "/tmp/x", "a\\b", "a\0b", "a\nb", "x" * 300, ".x", "eval_result"],
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
        assert json.loads(directory.lock_file.read_text())["pid"] == os.getpid()
        directory.unlock()

    def test_unlocked_run_can_be_taken(self, tmp_path: Path) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        directory.lock()
        directory.lock()  # it has it already
        directory.unlock()
        directory.unlock()
        ready = fork.Event()
        process = fork.Process(target=hold_lock, args=(tmp_path, ready), daemon=True)
        process.start()
        assert ready.wait(30)
        with pytest.raises(UserError, match=f"process {process.pid} on host"):
            directory.lock()
        process.kill()
        process.join()

    def test_a_child_process_does_not_keep_it(self, tmp_path: Path) -> None:
        """The worker of a killed process may live on for a moment; the lock must not."""
        ready, children = fork.Event(), fork.Value("i", 0)

        def lock_and_fork() -> None:
            RunDirectory("Boxing", tmp_path).lock()
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
        for text in ("", "{", "[]", '{"host": 1}', '{"host": "a", "pid": "b"}'):
            directory.lock_file.write_text(text)
            with pytest.raises(UserError, match="in use by another process"):
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
        directory.unlock()


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
        assert directory.read_status() == {}
        facts = machine_facts(torch.device("cpu"))
        status = RunStatus("running", "2025-01-01T00:00:00+00:00", 5, 100, 1.5, **facts)
        directory.write_status(status)
        read = directory.read_status()
        assert (read["status"], read["finished_step"], read["sample_max_steps"], read["device"]) == (
            "running",
            5,
            100,
            "cpu",
        )
        assert torch.__version__.startswith(read["versions"]["torch"])
        assert read["hardware"]
        for text in ("{", "[]", "[" * 100_000):
            directory.status_file.write_text(text)
            assert directory.read_status() == {}

    def test_exists(self, tmp_path: Path) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        assert not directory.exists()
        directory.lock()
        directory.outputs.mkdir()
        assert not directory.exists()
        directory.save_config(Config())
        assert directory.exists()
        directory.unlock()

    def test_archive(self, tmp_path: Path) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        assert directory.archive() is None
        evaluations = tmp_path / "outputs" / "eval_result"
        evaluations.mkdir(parents=True)
        for number in (1, 2):
            directory.lock()
            directory.save_config(Config())
            RunLogger(directory).close()
            for end in (".csv", "_episodes.csv", "_seal.json", "-other.csv"):
                (evaluations / f"Boxing{end}").touch()
            assert directory.archive() == f"Boxing.archived-{number}"
            assert not directory.exists()
            archived = RunDirectory(f"Boxing.archived-{number}", tmp_path)
            assert archived.config_file.exists()
            assert len(list(archived.tensorboard.iterdir())) == 1
        assert sorted(entry.name for entry in evaluations.iterdir()) == [
            "Boxing-other.csv",
            *(
                f"Boxing.archived-{number}{end}"
                for number in (1, 2)
                for end in (".csv", "_episodes.csv", "_seal.json")
            ),
        ]
        ready = fork.Event()
        process = fork.Process(target=hold_lock, args=(tmp_path, ready))
        process.start()
        process.join(20)
        assert process.exitcode == 1 and not ready.is_set()  # the lock was held all the time
        directory.unlock()


class TestScalars:
    def test_both_logs_agree(self, tmp_path: Path) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        logger = RunLogger(directory)
        logger.scalars(1, {"a/x": 0.1, "time/elapsed_s": 3})
        logger.scalars(2, {"a/x": np.float32(2), "a/y": torch.tensor(3.0)})
        logger.close()
        assert read_lines(directory) == [
            {"step": 1, "a/x": 0.1, "time/elapsed_s": 3.0},
            {"step": 2, "a/x": 2.0, "a/y": 3.0},
        ]
        events = read_events(directory)
        assert [(event.step, event.value) for event in events.Scalars("a/x")] == [
            (1, pytest.approx(0.1)),
            (2, 2.0),
        ]
        assert [event.value for event in events.Scalars("a/y")] == [3.0]

    def test_a_line_is_in_the_file_at_once(self, tmp_path: Path) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        logger = RunLogger(directory)
        logger.scalars(1, {"a": 1})
        assert read_lines(directory) == [{"step": 1, "a": 1.0}]
        assert len(read_events(directory).Scalars("a")) == 1
        logger.close()

    def test_not_finite(self, tmp_path: Path) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        logger = RunLogger(directory)
        logger.scalars(1, {"a": math.nan, "b": -math.inf, "c": 1e300})
        logger.close()
        assert read_lines(directory) == [{"step": 1, "a": None, "b": None, "c": 1e300}]
        assert math.isnan(read_events(directory).Scalars("a")[0].value)

    def test_text(self, tmp_path: Path) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        logger = RunLogger(directory)
        logger.text("config", "Größe: 1")
        logger.close()
        tensor = read_events(directory).Tensors("config/text_summary")[0].tensor_proto
        assert tensor.string_val[0].decode() == "Größe: 1"


class TestVideo:
    def test_the_event_file_holds_it(self, tmp_path: Path) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        logger = RunLogger(directory)
        frames = np.zeros((5, 24, 16, 3), dtype=np.uint8)
        for index, frame in enumerate(frames):
            frame[index : index + 4, :, 0] = 255
        logger.video("Imagine/predict_video", frames, 5_000, fps=10)
        logger.close()
        event = read_events(directory).Images("Imagine/predict_video")[0]
        assert (event.step, event.width, event.height) == (5_000, 16, 24)
        animation = Image.open(io.BytesIO(event.encoded_image_string))
        assert (animation.format, animation.n_frames, animation.size) == ("GIF", 5, (16, 24))
        assert animation.info["duration"] == 100
        for index, frame in enumerate(frames):
            animation.seek(index)
            np.testing.assert_array_equal(np.asarray(animation.convert("RGB")), frame)
        file = directory.videos / "Imagine_predict_video_5000.gif"
        assert file.read_bytes() == event.encoded_image_string

    def test_a_tag_cannot_leave_the_folder(self, tmp_path: Path) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        logger = RunLogger(directory)
        logger.video("../../evil", np.zeros((1, 8, 8, 3), dtype=np.uint8), 1, fps=10)
        logger.close()
        assert [file.name for file in directory.videos.iterdir()] == ["_evil_1.gif"]

    def test_other_arrays_are_a_defect(self, tmp_path: Path) -> None:
        logger = RunLogger(RunDirectory("Boxing", tmp_path))
        for frames in (
            np.zeros((2, 8, 8, 3)),
            np.zeros((2, 8, 8), np.uint8),
            np.zeros((2, 8, 8, 1), np.uint8),
        ):
            with pytest.raises(AssertionError):
                logger.video("v", frames, 1, fps=10)
        logger.close()


class TestResume:
    def test_later_lines_and_events_are_dropped(self, tmp_path: Path) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        frames = np.zeros((1, 8, 8, 3), dtype=np.uint8)
        logger = RunLogger(directory)
        logger.text("config", "kept")
        for step in (1, 2):
            logger.scalars(step, {"a": step})
        logger.video("v", frames, 2, fps=10)
        state = logger.state_dict()
        for step in (3, 4):
            logger.scalars(step, {"a": step, "late": step})
        logger.video("v", frames, 4, fps=10)
        logger.close()

        resumed = RunLogger(directory, first_step=3)
        assert resumed.load_state_dict(state) == []
        resumed.scalars(3, {"a": 30})
        resumed.close()
        assert read_lines(directory) == [
            {"step": step, "a": value} for step, value in ((1, 1), (2, 2), (3, 30))
        ]
        events = read_events(directory)
        assert [(event.step, event.value) for event in events.Scalars("a")] == [(1, 1), (2, 2), (3, 30)]
        assert events.Scalars("late") == []
        assert [event.step for event in events.Images("v")] == [2]
        assert len(events.Tensors("config/text_summary")) == 1

    def test_many_resumes_within_a_second_and_with_clocks_apart(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        state = None
        for attempt in range(6):
            monkeypatch.setattr(event_file.time, "time", lambda now=1.7e9 - 1000 * attempt: now)
            monkeypatch.setattr(event_file.socket, "gethostname", lambda name=f"host{9 - attempt}": name)
            logger = RunLogger(directory, first_step=0 if state is None else 2)
            if state is None:
                logger.scalars(1, {"a": 1})
                state = logger.state_dict()
            else:
                assert logger.load_state_dict(state) == []
            logger.scalars(2, {"a": 10 + attempt})
            logger.close()
        assert read_lines(directory) == [{"step": 1, "a": 1}, {"step": 2, "a": 15}]
        assert [event.value for event in read_events(directory).Scalars("a")] == [1, 15]

    def test_start_without_a_state_starts_the_logs_anew(self, tmp_path: Path) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        for value in (1, 2):  # the first process died before it saved a state
            logger = RunLogger(directory)
            logger.scalars(5, {"a": value})
            logger.close()
        assert read_lines(directory) == [{"step": 5, "a": 2}]
        assert [event.value for event in read_events(directory).Scalars("a")] == [2]

    def test_torn_last_line_is_cut(self, tmp_path: Path) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        logger = RunLogger(directory)
        logger.scalars(1, {"a": 1})
        state = logger.state_dict()
        logger.close()
        with open(directory.metrics_file, "a") as file:
            file.write('{"step": 2, "a"')
        resumed = RunLogger(directory, first_step=2)
        resumed.load_state_dict(state)
        resumed.scalars(2, {"a": 2})
        resumed.close()
        assert [line["step"] for line in read_lines(directory)] == [1, 2]

    def test_lost_lines_are_said(self, tmp_path: Path) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        logger = RunLogger(directory, first_step=2)
        assert "some logged metrics are lost" in logger.load_state_dict({"metrics_offset": 100})[0]
        logger.scalars(2, {"a": 2})
        logger.close()
        assert read_lines(directory) == [{"step": 2, "a": 2}]

    def test_altered_lines_are_said_and_stay_known(self, tmp_path: Path) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        logger = RunLogger(directory)
        logger.scalars(1, {"a": 1})
        state = logger.state_dict()
        logger.close()
        assert state["metrics_sha256"] == sha256(directory.metrics_file.read_bytes()).hexdigest()
        directory.metrics_file.write_text('{"step": 1, "a": 2.0}\n')
        for step in (2, 3):  # the second process continues from a state of the first
            logger = RunLogger(directory, first_step=step)
            assert "was altered" in logger.load_state_dict(state)[0]
            logger.scalars(step, {"a": step})
            state = logger.state_dict()
            logger.close()
            assert state["metrics_sha256"] != sha256(directory.metrics_file.read_bytes()).hexdigest()

    def test_states_without_a_checksum_are_continued(self, tmp_path: Path) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        directory.outputs.mkdir(parents=True)
        directory.metrics_file.write_text('{"step": 1, "a": 1.0}\n')
        logger = RunLogger(directory, first_step=2)
        assert logger.load_state_dict({"metrics_offset": directory.metrics_file.stat().st_size}) == []
        logger.scalars(2, {"a": 2})
        state = logger.state_dict()
        logger.close()
        assert state["metrics_sha256"] == sha256(directory.metrics_file.read_bytes()).hexdigest()

    @pytest.mark.parametrize(
        "state", [{}, {"metrics_offset": -1}, {"metrics_offset": "1"}, {"metrics_offset": True}]
    )
    def test_other_states_are_refused(self, tmp_path: Path, state: dict[str, Any]) -> None:
        logger = RunLogger(RunDirectory("Boxing", tmp_path), first_step=2)
        with pytest.raises(UserError, match="metrics_offset"):
            logger.load_state_dict(state)
        logger.close()


def log_under_limit(root: Path, outcome: Any) -> None:
    directory = RunDirectory("Boxing", root)
    logger = RunLogger(directory)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    for step in range(1_000):
        try:
            logger.scalars(step, {"tag": step})
        except UserError as error:
            outcome.put((step, str(error)))
            return
    outcome.put((1_000, "no limit"))


def append_under_limit(path: Path) -> None:
    file = event_file.AppendedFile(path)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (25, hard))
    file.write(b"0123456789")
    file.write(b"0123456789")
    with pytest.raises(UserError, match="cannot write"):
        file.write(b"abcdefghij")  # five bytes would fit
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    file.write(b"ABC")
    assert file.size == 23


class TestFullDisk:
    def test_a_record_is_written_whole_or_not_at_all(self, tmp_path: Path) -> None:
        process = fork.Process(target=append_under_limit, args=(tmp_path / "log",))
        process.start()
        process.join(60)
        assert process.exitcode == 0
        assert (tmp_path / "log").read_bytes() == b"01234567890123456789ABC"

    def test_logs_end_with_a_whole_record(self, tmp_path: Path) -> None:
        outcome = fork.SimpleQueue()
        process = fork.Process(target=log_under_limit, args=(tmp_path, outcome))
        process.start()
        process.join(60)
        assert process.exitcode == 0
        step, message = outcome.get()
        assert 0 < step < 1_000
        assert "cannot write" in message and str(tmp_path) in message
        directory = RunDirectory("Boxing", tmp_path)
        assert [line["step"] for line in read_lines(directory)] == list(range(step))
        assert [event.step for event in read_events(directory).Scalars("tag")] == list(range(step))

    def test_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "runs").write_text("a file")
        with pytest.raises(UserError, match=f"cannot write {tmp_path}/runs/Boxing"):
            RunLogger(RunDirectory("Boxing", tmp_path))


def test_facts_of_several_processes_stand_side_by_side() -> None:
    now = {"commit": "b", "device": "cpu", "hardware": "EPYC", "versions": {}}
    earlier = {"commit": "a", "device": "cpu", "hardware": "H200 + EPYC"}
    joined = joined_facts(earlier, now)
    assert joined == {"commit": "a + b", "device": "cpu", "hardware": "H200 + EPYC", "versions": {}}
    assert joined_facts(joined, now) == joined
    assert joined_facts({}, now) == now
    assert joined_facts({}, now | {"commit": None})["commit"] is None
