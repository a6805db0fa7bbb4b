"""benchmark.py at the smallest sizes: what it prints and writes."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import GIT_STORM, SMALL
from tqdm import tqdm

import benchmark
from env_wrapper import EnvironmentFault, StepResult, VectorEnvironment
from run_files.directory import RunDirectory
from run_files.states import StateStore
from training import measurements
from training.measurements import Clock, EndOfTrace
from training.run import TrainingRun
from utils import UserError

SHORT = ["--repeats=1", "--warm-up=0"]
PEAK = ("product_flop_per_s", "float32_1024x512x512_flop_per_s", "copy_bytes_per_s")
PHASES = ["acting", "replay sampling", "world model", "imagination", "agent"]


def test_one_call_measures_phases_and_the_whole_loop(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "figures.json"
    benchmark.main([*SMALL, GIT_STORM, *SHORT, "--steps=24", f"--json={file}", f"--profile={tmp_path}"])
    figures = json.loads(file.read_text())
    keys = {"iteration_s", "iterations_per_s", "env_steps_per_s", "phases", "flop", "peak", "device"}
    assert keys | {"precision", "commit"} <= set(figures)
    assert list(figures["phases"]) == PHASES
    learning = PHASES[2:]
    assert figures["iteration_s"] == sum(figures["phases"][name]["median_s"] for name in learning)
    assert figures["flop"] == sum(figures["phases"][name]["flop"] for name in learning) > 0
    assert figures["env_steps_per_s"] > 0 and figures["evaluation_steps_per_s"] > 0
    assert figures["precision"] == "float32"
    printed = capsys.readouterr().out
    assert all(name in printed for name in PHASES) and "whole loop" in printed
    assert "of copy" not in printed  # a share that said nothing to a reader, or more than all
    assert (tmp_path / "trace.json").stat().st_size and "aten::" in (tmp_path / "kernels.txt").read_text()


def test_more_environments_act_than_windows_are_learned_from(capsys: pytest.CaptureFixture) -> None:
    benchmark.main([*SMALL, *SHORT, "--steps=0", "JointTrainAgent.NumEnvs=3"])  # of two windows
    assert "acting" in capsys.readouterr().out


@pytest.mark.parametrize("other", ["BasicSettings.ImageSize=32", "JointTrainAgent.BatchSize=8"])
def test_the_release_is_compared_with_at_its_sizes_only(other: str) -> None:
    device = torch.device("cpu")
    assert benchmark.is_release_size(benchmark.load_config([]), device)
    assert not benchmark.is_release_size(benchmark.load_config([other]), device)
    assert not benchmark.is_release_size(benchmark.load_config([]), torch.device("meta"))


def test_an_environments_fault_does_not_end_the_measurement_of_evaluation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, calls = VectorEnvironment.finish_step, []

    def failing(self: VectorEnvironment) -> StepResult:
        result = original(self)
        calls.append(result)
        if len(calls) == 3:
            raise EnvironmentFault("it died")
        return result

    monkeypatch.setattr(VectorEnvironment, "finish_step", failing)
    config = benchmark.load_config([*SMALL, "BasicSettings.env_name=Diagnostic/Catch-v0"])
    assert benchmark.evaluation_speed(config, 4)["evaluation_steps_per_s"] > 0 and len(calls) > 3


def test_all_rows_come_from_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.json"
    presets = {name: benchmark.PRESETS["cpu"][name] for name in ("STORM-tiny", "GITSTORM-small")}
    monkeypatch.setitem(benchmark.PRESETS, "cpu", presets)
    monkeypatch.setattr(benchmark, "measure_peak", lambda *_: dict.fromkeys(PEAK, 1.0))
    benchmark.main([*SMALL, *SHORT, "--rows", "--steps=8", f"--json={file}"])
    rows = json.loads(file.read_text())
    assert "float32" in rows["iterations"]
    assert rows["env_steps_per_s"] == rows["loops"]["STORM-tiny"]["env_steps_per_s"]
    assert set(rows["loops"]) == {"STORM-tiny", "GITSTORM-small"}
    for loop in rows["loops"].values():
        assert loop["env_steps_per_s"] > 0 and loop["evaluation_steps_per_s"] > 0
        assert list(loop["phases"]) == PHASES


def test_what_the_time_does_not_suffice_for_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.json"
    benchmark.main([*SMALL, *SHORT, "--rows", "--minutes=1e-9", f"--json={file}"])
    printed = capsys.readouterr().out
    titles = ["STORM, precision auto", "STORM, precision float32", *benchmark.SMALL]
    assert all(f"{title}: {benchmark.LATE}" in printed for title in titles)
    rows = json.loads(file.read_text())
    assert rows["iterations"] == rows["loops"] == {} and rows["env_steps_per_s"] is None

    monkeypatch.setattr(benchmark, "measure_peak", lambda *_: dict.fromkeys(PEAK, 1.0))
    benchmark.main([*SMALL, "--repeats=3", "--minutes=1e-9"])  # phases are measured once at least
    printed = capsys.readouterr().out
    assert f"whole loop: {benchmark.LATE}" in printed and all(name in printed for name in PHASES)


def test_a_loop_stops_when_its_time_is_up() -> None:
    config = benchmark.load_config([*SMALL, "BasicSettings.env_name=Diagnostic/Catch-v0"])
    start = time.monotonic()
    figures = benchmark.end_to_end(config, 1_000_000, benchmark.train, start + 5)
    assert figures["env_steps_per_s"] > 0 and time.monotonic() - start < 30
    assert benchmark.end_to_end(config, 1_000_000, benchmark.train, start) == {}


def test_a_copy_takes_a_part_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[torch.Tensor] = []
    monkeypatch.setattr(measurements, "free_bytes", lambda device: 64)
    monkeypatch.setattr(
        Clock, "fastest", lambda self, statement, source, target: copied.append(source) or 1.0
    )
    measurements.copy_bandwidth(Clock(torch.device("cpu"), 1, 0))
    assert copied[0].numel() == 16


@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_recording_ends_before_the_loop_saves(tmp_path: Path, num_envs: int) -> None:
    class Trace:
        def __init__(self) -> None:
            self.told: list[str] = []

        def start(self) -> None:
            self.told.append("start")

        def stop(self) -> None:
            self.told.append("stop")

    config = benchmark.load_config([*SMALL, "BasicSettings.env_name=Diagnostic/Catch-v0"])
    config.JointTrainAgent.NumEnvs, config.JointTrainAgent.SampleMaxSteps = num_envs, 4 + num_envs
    trace, directory = Trace(), RunDirectory("trace", tmp_path)
    store = StateStore(directory.state)
    with contextlib.closing(TrainingRun(config, directory, store, None)) as run:
        request = EndOfTrace(run, 4, trace, Clock(torch.device("cpu"), 1, 0))
        run.save_state = lambda status: trace.told.append(status)
        assert not benchmark.train(run, request, tqdm(disable=True))
        assert run.step == request.recorded == (4 if num_envs == 1 else 6)
        assert request.signal and trace.told == ["start", "stop", "stopped"]


def test_a_clock_calls_at_least_once_and_not_again_when_time_is_up() -> None:
    calls: list[int] = []
    for end, expected in ((0.0, 1), (float("inf"), 5)):
        calls.clear()
        clock = benchmark.Clock(torch.device("cpu"), 3, 2, end)
        assert len(clock.measure(lambda: calls.append(1))) == min(expected, 3) and len(calls) == expected


@pytest.mark.parametrize(
    "option", ["--repeats=0", "--warm-up=-1", "--steps=-1", "--minutes=0", "--minutes=nan"]
)
def test_counts_that_make_no_sense_are_refused(option: str) -> None:
    with pytest.raises(UserError, match="at least"):
        benchmark.main([*SMALL, option])


def test_the_loops_of_a_gpu_are_runs_of_paper_size() -> None:
    loops = {title: benchmark.load_config(settings) for title, settings in benchmark.PRESETS["cuda"].items()}
    assert {loop.JointTrainAgent.ModelType for loop in loops.values()} == {"STORM", "GITSTORM"}
    assert {loop.BasicSettings.ReplayBufferOnGPU for loop in loops.values()} == {True, False}
    for loop in loops.values():
        assert loop.Evaluation.NumEnvs == 20 and loop.JointTrainAgent.ImagineBatchSize == 1024
