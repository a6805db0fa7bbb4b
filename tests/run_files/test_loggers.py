"""Loggers: metrics.jsonl and TensorBoard that agree and can be cut back, others by name, and full disks."""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import resource
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configuration.schema import Config
from run_files import loggers
from run_files.directory import RunDirectory
from run_files.loggers import Logger, RunLogger
from utils import UserError

fork = multiprocessing.get_context("fork")
FRAMES = np.zeros((2, 8, 8, 3), np.uint8)


def read_events(directory: RunDirectory) -> EventAccumulator:
    events = EventAccumulator(
        str(directory.tensorboard), size_guidance={"scalars": 0, "images": 0, "tensors": 0}
    )
    return events.Reload()


def read_lines(directory: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in directory.metrics_file.read_text().splitlines()]


def config_with(*names: str) -> Config:
    config = Config()
    config.BasicSettings.Loggers = list(names)
    return config


class TestScalars:
    def test_both_logs_agree(self, tmp_path: Path) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        logger = RunLogger(directory, Config())
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
        logger = RunLogger(directory, Config())
        logger.scalars(1, {"a": 1})
        assert read_lines(directory) == [{"step": 1, "a": 1.0}]
        assert len(read_events(directory).Scalars("a")) == 1
        logger.close()

    def test_not_finite(self, tmp_path: Path) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        logger = RunLogger(directory, Config())
        logger.scalars(1, {"a": math.nan, "b": -math.inf, "c": 1e300})
        logger.close()
        assert read_lines(directory) == [{"step": 1, "a": None, "b": None, "c": 1e300}]
        assert math.isnan(read_events(directory).Scalars("a")[0].value)

    def test_text(self, tmp_path: Path) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        logger = RunLogger(directory, Config())
        logger.text(0, "config", "Größe: 1")
        logger.close()
        tensor = read_events(directory).Tensors("config/text_summary")[0].tensor_proto
        assert tensor.string_val[0].decode() == "Größe: 1"


class TestVideo:
    def test_the_event_file_holds_it(self, tmp_path: Path) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        logger = RunLogger(directory, Config())
        frames = np.zeros((5, 24, 16, 3), dtype=np.uint8)
        for index, frame in enumerate(frames):
            frame[index : index + 4, :, 0] = 255
        logger.video(5_000, "Imagine/predict_video", frames, fps=10)
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
        logger = RunLogger(directory, Config())
        logger.video(1, "../../evil", np.zeros((1, 8, 8, 3), dtype=np.uint8), fps=10)
        logger.close()
        assert [file.name for file in directory.videos.iterdir()] == ["_evil_1.gif"]

    def test_other_arrays_are_a_defect(self, tmp_path: Path) -> None:
        logger = RunLogger(RunDirectory("Boxing", tmp_path), Config())
        for frames in (
            np.zeros((2, 8, 8, 3)),
            np.zeros((2, 8, 8), np.uint8),
            np.zeros((2, 8, 8, 1), np.uint8),
        ):
            with pytest.raises(AssertionError):
                logger.video(1, "v", frames, fps=10)
        logger.close()


class TestResume:
    def test_later_lines_and_events_are_dropped(self, tmp_path: Path) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        frames = np.zeros((1, 8, 8, 3), dtype=np.uint8)
        logger = RunLogger(directory, Config())
        logger.text(0, "config", "kept")
        for step in (1, 2):
            logger.scalars(step, {"a": step})
        logger.video(2, "v", frames, fps=10)
        state = logger.state_dict()
        for step in (3, 4):
            logger.scalars(step, {"a": step, "late": step})
        logger.video(4, "v", frames, fps=10)
        logger.close()

        resumed = RunLogger(directory, Config(), first_step=3)
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
            monkeypatch.setattr(loggers.time, "time", lambda now=1.7e9 - 1000 * attempt: now)
            monkeypatch.setattr(loggers.socket, "gethostname", lambda name=f"host{9 - attempt}": name)
            logger = RunLogger(directory, Config(), first_step=0 if state is None else 2)
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
            logger = RunLogger(directory, Config())
            logger.scalars(5, {"a": value})
            logger.close()
        assert read_lines(directory) == [{"step": 5, "a": 2}]
        assert [event.value for event in read_events(directory).Scalars("a")] == [2]

    def test_torn_last_line_is_cut(self, tmp_path: Path) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        logger = RunLogger(directory, Config())
        logger.scalars(1, {"a": 1})
        state = logger.state_dict()
        logger.close()
        with open(directory.metrics_file, "a") as file:
            file.write('{"step": 2, "a"')
        resumed = RunLogger(directory, Config(), first_step=2)
        resumed.load_state_dict(state)
        resumed.scalars(2, {"a": 2})
        resumed.close()
        assert [line["step"] for line in read_lines(directory)] == [1, 2]

    def test_lost_lines_are_said(self, tmp_path: Path) -> None:
        directory = RunDirectory("Boxing", tmp_path)
        logger = RunLogger(directory, Config(), first_step=2)
        assert "some logged metrics are lost" in logger.load_state_dict({"jsonl": {"bytes": 100}})[0]
        logger.scalars(2, {"a": 2})
        logger.close()
        assert read_lines(directory) == [{"step": 2, "a": 2}]

    @pytest.mark.parametrize("state", [{}, {"bytes": -1}, {"bytes": "1"}, {"bytes": True}])
    def test_other_states_are_refused(self, tmp_path: Path, state: dict[str, Any]) -> None:
        logger = RunLogger(RunDirectory("Boxing", tmp_path), Config(), first_step=2)
        with pytest.raises((KeyError, ValueError), match="bytes"):
            logger.load_state_dict({"jsonl": state})
        logger.close()


def log_under_limit(root: Path, outcome: Any) -> None:
    directory = RunDirectory("Boxing", root)
    logger = RunLogger(directory, Config())
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    for step in range(1_000):
        try:
            logger.scalars(step, {"tag": step})
        except UserError as error:
            outcome.put((step, str(error)))
            return
    outcome.put((1_000, "no limit"))


def append_under_limit(path: Path) -> None:
    file = loggers.AppendedFile(path)
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
            RunLogger(RunDirectory("Boxing", tmp_path), Config())


class Notebook(Logger):
    """A logger of one's own, which keeps what it is told."""

    def __init__(self, directory: RunDirectory, config: Config, first_step: int) -> None:
        self.notes: list[Any] = [directory.name, config.BasicSettings.Seed, first_step]

    def scalars(self, step: int, values: Any) -> None:
        self.notes.append((step, values))

    def state_dict(self) -> dict[str, Any]:
        return {"notes": len(self.notes)}

    def load_state_dict(self, state: Any) -> list[str]:
        return [f"had {state['notes']} notes"]


class FakeService(types.ModuleType):
    """Stands for wandb or trackio."""

    Video = staticmethod(lambda path: ("video", Path(path).name))

    def __init__(self, name: str, failure: str = "") -> None:
        super().__init__(name)
        self.runs: list[dict[str, Any]] = []
        self.logged: list[tuple[int, Any]] = []
        self.finished, self.failure = 0, failure

    def init(self, **settings: Any) -> FakeService:
        if self.failure:
            raise RuntimeError(self.failure)
        self.runs.append(settings)
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


class TestOthers:
    def test_a_class_of_ones_own(self, tmp_path: Path) -> None:
        name = f"{__name__}:Notebook"
        logger = RunLogger(RunDirectory("Boxing", tmp_path), config_with(name, "jsonl"), first_step=7)
        notebook = logger._loggers[name]
        logger.scalars(8, {"a": np.float32(1)})
        logger.text(8, "t", "text")
        logger.video(8, "v", FRAMES, fps=10)
        assert notebook.notes == ["Boxing", 0, 7, (8, {"a": 1.0})]
        assert logger.state_dict()[name] == {"notes": 4}
        assert logger.load_state_dict({name: {"notes": 3}, "tensorboard": {}}) == ["had 3 notes"]
        logger.close()
        assert [path.name for path in tmp_path.iterdir()] == ["outputs"]  # no TensorBoard

    @pytest.mark.parametrize("service", ["wandb", "trackio"])
    def test_a_service_goes_on_with_its_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: str
    ) -> None:
        monkeypatch.setitem(sys.modules, service, fake := FakeService(service))
        directory, config = RunDirectory("Boxing", tmp_path), config_with(service)
        logger = RunLogger(directory, config)
        logger.scalars(1, {"a": 1})
        logger.text(1, "t", "text")
        logger.video(2, "v", FRAMES, fps=10)
        state = logger.state_dict()
        logger.close()
        assert fake.logged == [(1, {"a": 1.0}), (1, {"t": "text"}), (2, {"v": ("video", "v_2.gif")})]
        resumed = RunLogger(directory, config, first_step=3)
        assert resumed.load_state_dict(state) == []
        resumed.scalars(3, {"a": 2})
        resumed.close()
        first, second = fake.runs
        assert (first["name"], first["resume"], second["resume"]) == ("Boxing", "never", "allow")
        assert first["config"]["BasicSettings"]["Loggers"] == [service]
        assert first.get("id") == second.get("id") and ("id" in first) == (service == "wandb")
        assert fake.finished == 2

    @pytest.mark.parametrize("service", ["wandb", "trackio"])
    def test_a_service_that_is_not_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: str
    ) -> None:
        monkeypatch.setitem(sys.modules, service, None)
        with pytest.raises(UserError, match=f"Loggers={service}.*pip install {service}"):
            RunLogger(RunDirectory("Boxing", tmp_path), config_with(service))
        monkeypatch.setitem(sys.modules, service, FakeService(service, "no API\nkey"))
        logger = RunLogger(RunDirectory("Boxing", tmp_path), config_with(service))
        with pytest.raises(UserError, match=f"Loggers={service}: no run can be started: no API key"):
            logger.scalars(1, {"a": 1})

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("tensrboard", "did you mean 'tensorboard'"),
            ("csv", "must be tensorboard, jsonl, wandb, trackio or module:Class"),
            ("no_such_module:Logger", "No module named 'no_such_module'"),
            ("json:Logger", "has no attribute 'Logger'"),
            (":Logger", "':Logger' names no class"),
            (".a:Logger", "'.a:Logger': .a cannot be imported .TypeError: "),
        ],
    )
    def test_unknown_ones_are_named(self, tmp_path: Path, name: str, reason: str) -> None:
        with pytest.raises(UserError, match=reason):
            RunLogger(RunDirectory("Boxing", tmp_path), config_with("jsonl", name))
        assert list(tmp_path.iterdir()) == []
